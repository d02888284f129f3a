//! Shares of something, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A share of something: `0.85` or `85%`, or `off` where it has a switch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Share {
    /// None: what goes by it is switched off.
    Off,
    /// A fraction above 0, at most 1.
    Of(f64),
}

impl Share {
    /// As a fraction; `None` where it is switched off.
    pub(crate) fn fraction(self) -> Option<f64> {
        match self {
            Self::Off => None,
            Self::Of(fraction) => Some(fraction),
        }
    }

    /// A share of that fraction, if it is one; `given`: as it was written.
    fn of(fraction: f64, given: &str) -> Result<Self, String> {
        if fraction > 0.0 && fraction <= 1.0 {
            return Ok(Self::Of(fraction));
        }
        Err(format!("`{given}` is no share; write a fraction above 0 and at most 1, such as 0.85, or 85%, or `off`"))
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(Self::Off);
        }
        let (number, whole) = match text.strip_suffix('%') {
            Some(number) => (number.trim_end(), 100.0),
            None => (text, 1.0),
        };
        // What is no number is no share either.
        Self::of(number.parse().unwrap_or(f64::NAN) / whole, text)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Of(fraction) => fraction.fmt(f),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::Of(fraction) => serializer.serialize_f64(*fraction),
        }
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Share;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a fraction such as 0.85, a percentage such as 85%, or `off`")
            }

            fn visit_f64<E: serde::de::Error>(self, fraction: f64) -> Result<Share, E> {
                Share::of(fraction, &fraction.to_string()).map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Share, E> {
                self.visit_f64(number as f64)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Share, E> {
                self.visit_f64(number as f64)
            }

            /// In YAML, `off` is a word for no.
            fn visit_bool<E: serde::de::Error>(self, on: bool) -> Result<Share, E> {
                if on { Err(E::invalid_value(serde::de::Unexpected::Bool(on), &self)) } else { Ok(Share::Off) }
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Share, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_fraction_a_percentage_or_off() {
        for (text, share) in [
            ("0.85", Share::Of(0.85)),
            ("85%", Share::Of(0.85)),
            ("85 %", Share::Of(0.85)),
            ("1", Share::Of(1.0)),
            ("100%", Share::Of(1.0)),
            ("0.5%", Share::Of(0.005)),
            ("OFF", Share::Off),
        ] {
            assert_eq!(text.parse(), Ok(share), "{text}");
        }
        for text in ["", "0", "85", "1.01", "101%", "-0.1", "NaN", "inf", "1e308", "%", "high", "0.8.5", "0%"] {
            let error = text.parse::<Share>().expect_err("no share");
            assert!(error.contains(&format!("`{text}`")) && error.contains("85%"), "{error}");
        }
    }

    #[test]
    fn a_file_may_have_it_as_a_number_a_text_or_a_switch() {
        for (yaml, share) in [
            ("0.85", Share::Of(0.85)),
            ("85%", Share::Of(0.85)),
            ("1", Share::Of(1.0)),
            ("off", Share::Off),
            ("false", Share::Off),
        ] {
            assert_eq!(serde_saphyr::from_str::<Share>(yaml).expect(yaml), share);
        }
        for yaml in ["85", "-1", "true", "[]", "''", "1e308"] {
            serde_saphyr::from_str::<Share>(yaml).expect_err(yaml);
        }
        for share in [Share::Of(0.85), Share::Off] {
            let yaml = serde_saphyr::to_string(&share).expect("it can be written");
            assert_eq!(serde_saphyr::from_str::<Share>(&yaml).expect("it can be read"), share);
        }
    }
}
