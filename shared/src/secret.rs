//! Keys that neither print nor leak through timing.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// What a secret prints as.
const MASK: &str = "***";

/// A key or token. Prints and serialises as `***`.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Secret(String);

/// Why a text is no secret. Tells nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Whoever shows nothing would be let in.
    #[error("a key must not be empty")]
    Empty,
    /// A printed configuration was given back.
    #[error("`{MASK}` is what is printed in place of a key; put the key itself here")]
    Masked,
    /// No HTTP header can carry it.
    #[error("a key must not hold line breaks or other control characters")]
    Control,
}

impl Secret {
    /// Takes a key as a user wrote it; blanks around it do not count.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        match text.trim() {
            "" => Err(SecretError::Empty),
            MASK => Err(SecretError::Masked),
            key if key.contains(char::is_control) => Err(SecretError::Control),
            key => Ok(Self(key.to_owned())),
        }
    }

    /// Takes a key that is known to be one, as it is.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// The key itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `given` is this key, in a time that tells nothing but its length.
    #[cfg(feature = "serve")]
    pub fn matches(&self, given: &str) -> bool {
        use subtle::ConstantTimeEq;
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

impl TryFrom<String> for Secret {
    type Error = SecretError;

    fn try_from(text: String) -> Result<Self, SecretError> {
        Self::parse(&text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_its_key() {
        let secret = Secret::new("hunter2");
        let printed = format!("{secret} {secret:?} {}", serde_json::to_string(&secret).expect("a string"));
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn what_is_no_key_is_refused_on_both_ways_in() {
        for (text, error) in [
            ("", SecretError::Empty),
            (" \t", SecretError::Empty),
            (" *** ", SecretError::Masked),
            ("hun\nter2", SecretError::Control),
        ] {
            assert_eq!(Secret::parse(text).expect_err("no key"), error);
            let read = serde_json::from_value::<Secret>(text.into()).expect_err("no key").to_string();
            assert!(read.contains(&error.to_string()) && !read.contains("ter2"), "{read}");
        }
        assert_eq!(Secret::parse(" hunter2\n").expect("a key").expose(), "hunter2");
        assert_eq!(serde_json::from_value::<Secret>("hunter2".into()).expect("a key").expose(), "hunter2");
    }
}
