//! What a key of the file may use.

use std::num::NonZeroU32;

use muster_gateway::{KeyLimits, KeyRate, Models, RateLimit};
use serde::Deserialize;

use super::super::super::RateGiven;

/// Most requests or tokens in a minute that a limit can be: more is no limit.
const MOST: u32 = 1_000_000_000;

/// The part of an entry that limits its key.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Given {
    pub(super) models: Option<Vec<String>>,
    pub(super) requests_per_minute: Option<i64>,
    pub(super) tokens_per_minute: Option<i64>,
    pub(super) max_streams: Option<i64>,
    pub(super) rate: Option<RateGiven>,
    pub(super) burst: Option<i64>,
}

impl Given {
    /// Checks everything.
    pub(super) fn check(self) -> Result<(Option<Models>, KeyLimits), String> {
        let models = self.models.map(|names| Models::parse(&names)).transpose().map_err(|error| error.to_string())?;
        let burst = count("burst", self.burst)?;
        let rate = match (self.rate, burst) {
            (None, None) => KeyRate::Usual,
            (Some(RateGiven::Off), None) => KeyRate::Off,
            (Some(RateGiven::At(rate)), None) => KeyRate::Own(RateLimit::new(rate)),
            (Some(RateGiven::At(rate)), Some(burst)) => KeyRate::Own(RateLimit { rate, burst }),
            (None | Some(RateGiven::Off), Some(_)) => {
                return Err("burst is what a rate may have at once; say `rate` too, as in `rate: 10/s`".to_owned());
            }
        };
        let limits = KeyLimits {
            requests_per_minute: count("requests_per_minute", self.requests_per_minute)?,
            tokens_per_minute: count("tokens_per_minute", self.tokens_per_minute)?,
            max_streams: count("max_streams", self.max_streams)?,
            rate,
        };
        Ok((models, limits))
    }
}

fn count(name: &str, given: Option<i64>) -> Result<Option<NonZeroU32>, String> {
    let Some(given) = given else { return Ok(None) };
    let number = u32::try_from(given).ok().filter(|number| *number <= MOST).and_then(NonZeroU32::new);
    number.map(Some).ok_or_else(|| {
        format!("{name} is {given}; expected a whole number from 1 to {MOST}, or leave it out for no limit")
    })
}
