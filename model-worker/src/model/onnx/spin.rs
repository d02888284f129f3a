//! What threads of ONNX Runtime do while they wait for their next piece of work.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whether threads that wait keep their processor for a while, ready to go on at once, or sleep.
///
/// Measured with a model of half a billion parameters on two processors: spinning briefly makes lone answers a fifth
/// faster on a free machine and costs a tenth or more beside other work, where what a thread spins for is not running.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Spin {
    /// Briefly, until other work wants the processors; sleeping where that cannot be noticed or acted upon.
    #[default]
    Auto,
    /// They sleep at once.
    Off,
    /// They spin for some microseconds and then sleep; needs ONNX Runtime 1.26, and is `Off` with older ones.
    Brief,
    /// They spin for as long as ONNX Runtime lets them, tens of milliseconds: for machines with nothing else to do.
    Always,
}

/// Microseconds of a brief spin: longer than the gap between two operators of a run, shorter than a switch of threads
/// costs whom it keeps waiting. From 20 to 100 all are as fast on a free machine; the longer, the dearer on a full one.
pub(super) const BRIEF: &str = "20";
/// The setting of a session that bounds spinning; ONNX Runtime knows it from 1.26 on, and ignores what it does not know.
pub(super) const DURATION: &str = "session.intra_op.spin_duration_us";

impl Spin {
    /// Every choice, in the order in which they are listed to users.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Off, Self::Brief, Self::Always];

    /// The name in configuration files and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Brief => "brief",
            Self::Always => "always",
        }
    }

    /// What it means for a session that stays as it is: who cannot stop spinning should not begin.
    pub(super) fn steady(self) -> Self {
        if self == Self::Auto { Self::Off } else { self }
    }

    fn of_switch(on: bool) -> Self {
        if on { Self::Always } else { Self::Off }
    }
}

impl fmt::Display for Spin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A choice that is none of the legal ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown way to spin `{given}`; expected one of: {}, or true for always", Spin::ALL.map(Spin::name).join(", "))]
pub struct UnknownSpin {
    /// The word as it was given.
    pub given: String,
}

impl FromStr for Spin {
    type Err = UnknownSpin;

    /// Reads a choice's name in any case, or the words of a switch.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let word = given.to_ascii_lowercase();
        if let Some(spin) = Self::ALL.into_iter().find(|spin| spin.name() == word) {
            return Ok(spin);
        }
        match word.as_str() {
            "y" | "yes" | "t" | "true" | "on" | "1" => Ok(Self::of_switch(true)),
            "n" | "no" | "f" | "false" | "0" => Ok(Self::of_switch(false)),
            _ => Err(UnknownSpin { given: given.to_owned() }),
        }
    }
}

impl Serialize for Spin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Spin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "unknown way to spin; expected `auto`, `off`, `brief`, `always`, true or false")]
        enum Given {
            Switch(bool),
            Name(String),
        }
        match Given::deserialize(deserializer)? {
            Given::Switch(on) => Ok(Self::of_switch(on)),
            Given::Name(name) => name.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_by_name_or_as_the_switch_it_once_was() {
        for spin in Spin::ALL {
            assert_eq!(spin.name().to_uppercase().parse(), Ok(spin));
            let written = serde_json::to_string(&spin).expect("it is written");
            assert_eq!(serde_json::from_str::<Spin>(&written).expect("it is read"), spin);
        }
        for (text, spin) in [("1", Spin::Always), ("Yes", Spin::Always), ("0", Spin::Off), ("no", Spin::Off)] {
            assert_eq!(text.parse(), Ok(spin), "{text}");
        }
        for (text, spin) in [("true", Spin::Always), ("false", Spin::Off)] {
            assert_eq!(serde_json::from_str::<Spin>(text).expect("a switch"), spin);
        }
    }

    #[test]
    fn an_unknown_choice_is_refused_with_the_legal_ones() {
        let error = "fast".parse::<Spin>().expect_err("no such choice");
        let expected = "unknown way to spin `fast`; expected one of: auto, off, brief, always, or true for always";
        assert_eq!(error.to_string(), expected);
        let error = serde_json::from_str::<Spin>("3").expect_err("a number").to_string();
        assert!(error.contains("`brief`"), "{error}");
    }
}
