//! What is counted of limits. Labels hold names of limits, and of keys, which the file of keys bounds.

use metrics::{Counter, counter, describe_counter};

/// Describes every metric of limits.
pub(crate) fn describe() {
    describe_counter!("muster_gateway_limited_total", "Requests refused by a limit, by limit");
    describe_counter!("muster_gateway_key_tokens_total", "Tokens charged to keys whose tokens are limited, by key");
    describe_counter!("muster_gateway_keys_reloads_total", "Readings of the changed file of keys, by result");
}

/// A request was refused by a limit of that name.
pub(super) fn limited(limit: &'static str) {
    counter!("muster_gateway_limited_total", "limit" => limit).increment(1);
}

/// What counts the tokens of a key.
pub(crate) fn key_tokens(key: &str) -> Counter {
    counter!("muster_gateway_key_tokens_total", "key" => key.to_owned())
}

/// The file of keys has changed and was read, or could not be.
pub(crate) fn reloaded(worked: bool) {
    let result = if worked { "ok" } else { "failed" };
    counter!("muster_gateway_keys_reloads_total", "result" => result).increment(1);
}
