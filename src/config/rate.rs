//! Requests in a short time, as people write them: `100/s`, or `off`.

use std::str::FromStr;

use muster_gateway::Rate;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A rate, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RateGiven {
    /// Any number of requests.
    Off,
    /// So many.
    At(Rate),
}

impl FromStr for RateGiven {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|error: muster_gateway::RateError| format!("{error}, or `off`"))
    }
}

impl Serialize for RateGiven {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::At(rate) => serializer.collect_str(rate),
        }
    }
}

impl<'de> Deserialize<'de> for RateGiven {
    /// A text; `off` without quotes is false to YAML.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            Switch(bool),
            Number(f64),
            Text(String),
        }
        match Given::deserialize(deserializer)? {
            Given::Switch(false) => Ok(Self::Off),
            Given::Switch(true) => Err(D::Error::custom("true is no rate; write 100/s, or `off`")),
            Given::Number(number) => {
                Err(D::Error::custom(format!("{number} is no rate; say in which time, as {number}/s, or `off`")))
            }
            Given::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read_and_printed_alike() {
        for (text, printed) in
            [("100/s", "100/s"), ("off", "off"), ("'off'", "off"), ("OFF", "off"), ("60/min", "60/m")]
        {
            let rate: RateGiven = serde_saphyr::from_str(text).expect(text);
            let shown = serde_saphyr::to_string(&rate).expect("a text");
            assert_eq!(shown.trim().trim_matches(['"', '\'']), printed);
            assert_eq!(serde_saphyr::from_str::<RateGiven>(&shown).expect("its own"), rate);
        }
        for text in ["100", "true", "fast", "0/s", "-1/s", "[1]"] {
            serde_saphyr::from_str::<RateGiven>(text).expect_err(text);
        }
    }
}
