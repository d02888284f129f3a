//! What clients may use: requests in a short time, and requests, tokens and streams of a key.
//!
//! * [`rate`]: a token bucket for each key, or each address where no keys are wanted; looked at before anything is read.
//! * [`budget`]: what one key has used, by every thread; [`window`]: of the last minute.
//! * [`estimate`]: what is reserved for a request; [`meter`]: what it came to, settled when its account is closed.
//! * [`headers`]: how it stands, told with every answer.

pub(crate) mod budget;
mod estimate;
pub(crate) mod headers;
pub(crate) mod meter;
pub(crate) mod metrics;
pub(crate) mod rate;
mod window;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use muster_shared::problem::{Kind, Problem};

use crate::body::beside;
use crate::keys::ApiKey;
use crate::observe::Route;
use crate::state::{Caller, State};
use budget::{Exceeded, Full, Wants};
use estimate::Estimate;
use meter::Meter;
use rate::RateLimit;

/// When to come back for the place of a stream: nobody knows when one ends.
const STREAM_MS: u64 = 1000;

/// What a key may use. Absent: as much as it likes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests in any sixty seconds.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens in any sixty seconds, prompts and answers.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Streamed answers at the same time.
    pub max_streams: Option<NonZeroU32>,
    /// Requests in a short time.
    pub rate: KeyRate,
}

/// Requests of a key in a short time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeyRate {
    /// Those of the gateway.
    #[default]
    Usual,
    /// Any number.
    Off,
    /// Its own.
    Own(RateLimit),
}

impl KeyLimits {
    fn requests_per_minute(&self) -> Option<u64> {
        self.requests_per_minute.map(|limit| limit.get().into())
    }

    fn tokens_per_minute(&self) -> Option<u64> {
        self.tokens_per_minute.map(|limit| limit.get().into())
    }

    /// Whether anything is limited beside the rate.
    pub(crate) fn has_budget(&self) -> bool {
        self.requests_per_minute.is_some() || self.tokens_per_minute.is_some() || self.max_streams.is_some()
    }
}

/// Takes a request out of the bucket of a key; where it has none, out of its address's.
///
/// # Errors
/// [`Kind::RateLimited`] where it is empty.
pub(crate) fn knock(state: &State, key: Option<&ApiKey>, address: Option<IpAddr>) -> Result<(), Problem> {
    let (whose, limit, taken) = match (key, state.keys.addresses(), address) {
        (Some(key), ..) => match &key.door.bucket {
            Some(bucket) => (format_args!("the key `{}`", key.name), bucket.limit, bucket.take()),
            None => return Ok(()),
        },
        (None, Some(addresses), Some(address)) => {
            (format_args!("an address"), addresses.limit, addresses.take(address))
        }
        _ => return Ok(()),
    };
    taken.map_err(|wait| {
        metrics::limited("rate");
        let message = format!(
            "rate limit exceeded: {whose} may make {} requests, and {} at once; try again in {}",
            limit.rate,
            limit.burst,
            headers::duration(wait)
        );
        limited(message, wait)
    })
}

/// Takes what a request wants from the budget of its key, to be settled when the account is closed. A large body is read
/// beside other requests.
///
/// # Errors
/// [`Kind::RateLimited`] where there is no room, [`Kind::Invalid`] where there never is, or where nobody can tell.
pub(crate) async fn admit_body(caller: &Caller, route: Route, body: &Bytes) -> Result<(), Problem> {
    let Some(key) = caller.key.as_ref().filter(|key| key.limits.has_budget()) else { return Ok(()) };
    let (limits, body) = (key.limits.clone(), body.clone());
    let read = beside(body.len(), move || Estimate::of(&limits, route, &body)).await?;
    read.map_or(Ok(()), |estimate| reserve(caller, key, &estimate))
}

/// The same for a request whose body is none that is read here.
///
/// # Errors
/// As [`admit_body`].
pub(crate) fn admit(caller: &Caller, route: Route, body: &[u8]) -> Result<(), Problem> {
    let Some(key) = caller.key.as_ref().filter(|key| key.limits.has_budget()) else { return Ok(()) };
    Estimate::of(&key.limits, route, body)?.map_or(Ok(()), |estimate| reserve(caller, key, &estimate))
}

fn reserve(caller: &Caller, key: &Arc<ApiKey>, estimate: &Estimate) -> Result<(), Problem> {
    let reserved = key.limits.tokens_per_minute().map(|limit| estimate.reserve(limit)).unwrap_or_default();
    let wants = Wants { requests: 1, tokens: reserved.tokens, stream: estimate.stream };
    let given = key.door.budget.admit(&key.limits, wants, Instant::now()).map_err(|exceeded| {
        let problem = refusal(key, reserved.tokens, exceeded);
        match exceeded {
            Exceeded::Never(_) if estimate.longest.is_some() => problem.with_param("max_tokens"),
            _ => problem,
        }
    })?;
    caller.account.meter().admitted(key, given);
    caller.account.meter().reserved(reserved);
    Ok(())
}

/// Takes the place of a stream of requests; it is given back when the meter is dropped.
///
/// # Errors
/// [`Kind::RateLimited`] where the key has none left.
pub(crate) fn enter(key: Option<&Arc<ApiKey>>) -> Result<Meter, Problem> {
    let meter = Meter::default();
    if let Some(key) = key.filter(|key| key.limits.max_streams.is_some()) {
        let wants = Wants { stream: true, ..Wants::default() };
        let given = key.door.budget.admit(&key.limits, wants, Instant::now());
        meter.admitted(key, given.map_err(|exceeded| refusal(key, 0, exceeded))?);
    }
    Ok(meter)
}

/// What a client hears of a limit that it has reached.
fn refusal(key: &ApiKey, wanted: u64, exceeded: Exceeded) -> Problem {
    let name = &key.name;
    match exceeded {
        Exceeded::Requests(Full { limit, used, wait }) => {
            metrics::limited("requests");
            let wait_told = headers::duration(wait);
            limited(
                format!(
                    "rate limit reached: the key `{name}` may make {limit} requests per minute and has made {used}; \
                     try again in {wait_told}"
                ),
                wait,
            )
        }
        Exceeded::Tokens(Full { limit, used, wait }) => {
            metrics::limited("tokens");
            let wait_told = headers::duration(wait);
            limited(
                format!(
                    "rate limit reached: the key `{name}` may use {limit} tokens per minute, {used} are used or \
                     reserved, and this request wants {wanted}; try again in {wait_told}, or lower `max_tokens`"
                ),
                wait,
            )
        }
        Exceeded::Streams(limit) => {
            metrics::limited("streams");
            let message = format!(
                "rate limit reached: the key `{name}` may have {limit} streamed answers at the same time, and has \
                 them; try again when one has ended"
            );
            Problem::new(Kind::RateLimited, message).with_retry_after_ms(STREAM_MS)
        }
        Exceeded::Never(limit) => {
            metrics::limited("tokens");
            let message = format!(
                "the request wants {wanted} tokens, prompt (about a token for four letters) and answers, and the key \
                 `{name}` may use {limit} per minute; lower `max_tokens` or `n`, or send less at once"
            );
            Problem::new(Kind::Invalid, message)
        }
    }
}

fn limited(message: String, wait: Duration) -> Problem {
    let millis = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    Problem::new(Kind::RateLimited, message).with_retry_after_ms(millis.max(1))
}
