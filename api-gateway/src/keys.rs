//! The keys that clients show: each has a name, and a priority among the others.

use muster_shared::secret::Secret;

/// Longest name of a key, in characters.
const LONGEST: usize = 64;

/// A key that lets a client in. Requests of different keys share a full fleet fairly.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// What it is called in logs, in refusals, and by the controller.
    pub name: String,
    /// The key itself.
    pub secret: Secret,
    /// Higher goes first among the keys whose requests wait; 0 is usual.
    pub priority: i8,
}

/// Why a text is no name of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name for a key; take up to {LONGEST} letters, digits, `-`, `_`, `.`, `@`, `:` and `/`")]
pub struct NameError(String);

impl ApiKey {
    /// A key that nobody has named: it is called by its `place` among those that are configured, from 1 on: `key-1`.
    ///
    /// That is the same after a restart and at every gateway with the same keys in the same order, and tells nothing of
    /// the key. A hash of it would tell whether a guess is right.
    pub fn unnamed(secret: Secret, place: usize) -> Self {
        Self { name: format!("key-{place}"), secret, priority: 0 }
    }

    /// A key with a name.
    ///
    /// # Errors
    /// Where the name would not be told apart from the text around it.
    pub fn named(name: &str, secret: Secret, priority: i8) -> Result<Self, NameError> {
        let plain = |character: char| character.is_alphanumeric() || "-_.@:/".contains(character);
        if name.is_empty() || name.chars().count() > LONGEST || !name.chars().all(plain) {
            return Err(NameError(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), secret, priority })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_a_name_is_called_by_its_place_whatever_it_is() {
        let name = |secret, place| ApiKey::unnamed(Secret::new(secret), place).name;
        assert_eq!((&*name("hunter2", 1), &*name("hunter3", 1), &*name("hunter2", 12)), ("key-1", "key-1", "key-12"));
    }

    #[test]
    fn names_are_short_and_plain() {
        let name = |name: &str| ApiKey::named(name, Secret::new("key"), -1).map(|key| key.name);
        for text in ["alice", "team-7/alice@example.org", "žofie", "a:b_c"] {
            assert_eq!(name(text).as_deref(), Ok(text));
        }
        for text in ["", "two words", "a\nb", "\"", &"x".repeat(LONGEST + 1)] {
            assert_eq!(name(text), Err(NameError(text.to_owned())));
        }
    }
}
