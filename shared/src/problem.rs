//! The one error body between our processes.

use serde::{Deserialize, Serialize};

/// Whatever a library says of a failure.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, in the coarse terms upon which a caller decides what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The request says something that cannot be done; the same again fails again.
    Invalid,
    /// The prompt, or the prompt with the answer asked for, exceeds the model's context.
    PromptTooLong,
    /// No key or token, or a wrong one.
    BadKey,
    /// The caller may not do that, whoever it is.
    Forbidden,
    /// Nobody serves a model of that name.
    UnknownModel,
    /// There is nothing at that path.
    NotFound,
    /// The path takes another method.
    MethodNotAllowed,
    /// What the caller says is older than what is known.
    Stale,
    /// The body exceeds the limit.
    TooLarge,
    /// The request did not come in time.
    TooSlow,
    /// The body is in a coding that is not understood.
    UnsupportedCoding,
    /// The caller has sent too much.
    RateLimited,
    /// Every worker is full.
    Overloaded,
    /// The model is known, but no live worker serves it.
    NoWorker,
    /// The model's graph failed on this very request; the same again fails again, wherever it runs.
    Run,
    /// A service behind this one failed.
    Upstream,
    /// The deadline has passed.
    Timeout,
    /// A fault in muster.
    Bug,
}

impl Kind {
    /// The name in logs, metrics and traces: the same as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::PromptTooLong => "prompt_too_long",
            Self::BadKey => "bad_key",
            Self::Forbidden => "forbidden",
            Self::UnknownModel => "unknown_model",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Stale => "stale",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::UnsupportedCoding => "unsupported_coding",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::NoWorker => "no_worker",
            Self::Run => "run",
            Self::Upstream => "upstream",
            Self::Timeout => "timeout",
            Self::Bug => "bug",
        }
    }

    /// The HTTP status with which an error of this kind travels.
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid | Self::PromptTooLong => 400,
            Self::BadKey => 401,
            Self::Forbidden => 403,
            Self::UnknownModel | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::TooSlow => 408,
            Self::Stale => 409,
            Self::TooLarge => 413,
            Self::UnsupportedCoding => 415,
            Self::RateLimited | Self::Overloaded => 429,
            Self::Run | Self::Bug => 500,
            Self::Upstream => 502,
            Self::NoWorker => 503,
            Self::Timeout => 504,
        }
    }
}

/// An error as it travels between our processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// What went wrong.
    pub kind: Kind,
    /// What was wrong, what was expected, and what to do, in words for the caller.
    pub message: String,
    /// The field of the request that is at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// When to try again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Problem {
    /// A problem of the given kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, retry_after_ms: None }
    }

    /// An [`Kind::Invalid`] problem with one field of the request.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(Kind::Invalid, message) }
    }

    /// The same, naming the field at fault.
    #[must_use]
    pub fn with_param(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The same, saying when to try again.
    #[must_use]
    pub fn with_retry_after_ms(self, retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..self }
    }

    /// When to try again in whole seconds, at least one, as `Retry-After` wants it.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after_ms.map(|ms| ms.div_ceil(1000).max(1))
    }
}

/// An error with its causes on one line, for the log; a cause whose words are there already is not repeated.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    #[cfg(feature = "tls")]
    if let Some(hint) = crate::tls::hint(error) {
        text.push_str("; ");
        text.push_str(hint);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_called_in_logs_as_it_is_in_json() {
        for kind in [Kind::Invalid, Kind::PromptTooLong, Kind::MethodNotAllowed, Kind::NoWorker, Kind::Bug] {
            assert_eq!(serde_json::to_string(&kind).expect("JSON"), format!("\"{}\"", kind.name()));
        }
    }
}
