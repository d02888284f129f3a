//! `x-ratelimit-*`: how the limits of a key stand, in OpenAI's words.

use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::budget::Level;
use crate::keys::ApiKey;

/// Limit, what remains of it, and the time until all of it is there again.
type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Says how the limits of a key stand, where it has any. A server behind this one that says so of itself is not heard.
pub(crate) fn write(key: &ApiKey, headers: &mut HeaderMap) {
    if !key.limits.has_budget() {
        return;
    }
    let standing = key.door.budget.standing(&key.limits, Instant::now());
    insert(headers, REQUESTS, standing.requests);
    insert(headers, TOKENS, standing.tokens);
}

fn insert(headers: &mut HeaderMap, [limit, remaining, reset]: Names, level: Option<Level>) {
    let Some(level) = level else {
        [limit, remaining, reset].iter().for_each(|name| drop(headers.remove(name)));
        return;
    };
    headers.insert(limit, level.limit.into());
    headers.insert(remaining, level.remaining.into());
    let text = duration(level.reset);
    headers.insert(reset, HeaderValue::try_from(text).expect("digits and letters"));
}

/// As OpenAI writes it: `6m0s`, `1.2s`, `20ms`.
pub(super) fn duration(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    let (minutes, seconds, rest) = (millis / 60_000, millis / 1000 % 60, millis % 1000);
    let fraction = format!(".{rest:03}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    match (minutes, seconds) {
        (0, 0) if rest > 0 => format!("{rest}ms"),
        (0, _) => format!("{seconds}{fraction}s"),
        _ => format!("{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_does() {
        for (millis, text) in [
            (0, "0s"),
            (20, "20ms"),
            (1200, "1.2s"),
            (59_999, "59.999s"),
            (60_000, "1m0s"),
            (61_050, "1m1.05s"),
            (360_000, "6m0s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(duration(Duration::from_micros(1)), "1ms", "what is not over is not 0");
    }
}
