//! OpenAI's error bodies: the only table from [`Kind`] to status, type and code.

use axum::http::StatusCode;
use axum::http::header::{ACCEPT_ENCODING, HeaderName, HeaderValue, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use muster_shared::problem::{Kind, Problem};
use serde::Serialize;

use crate::encoding;
use crate::outgoing::{self, Outgoing};

/// Read by OpenAI's own clients in preference to `Retry-After`.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// What a client hears whose request had not even a head in time.
pub(crate) const LATE: &str = r#"{"error":{"message":"the head of the request did not come in time; send it at once","type":"invalid_request_error","param":null,"code":"request_timeout"}}"#;

/// `{"error": {…}}`: the body of an error, and the last event of a stream that broke off.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorBody {
    error: Detail,
}

#[derive(Debug, Serialize)]
struct Detail {
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

/// A problem on its way to a client: answered in OpenAI's words, not in those between our own processes.
#[derive(Debug)]
pub(crate) struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        outgoing::into_axum(response(&self.0))
    }
}

/// The answer to a request that failed.
pub(crate) fn response(problem: &Problem) -> hyper::Response<Outgoing> {
    let (status, ..) = table(problem.kind);
    let mut response = outgoing::json(status, &body(problem));
    let headers = response.headers_mut();
    if let Some(seconds) = problem.retry_after_seconds() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(ms) = problem.retry_after_ms {
        headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
    }
    if problem.kind == Kind::UnsupportedCoding {
        // Tells this refusal from that of a media type (RFC 9110, section 15.5.16).
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(encoding::LEGAL));
    }
    response
}

/// The body alone.
pub(crate) fn body(problem: &Problem) -> ErrorBody {
    let (_, r#type, code) = table(problem.kind);
    // What is said of a bug was written for the log.
    let (message, param) = match problem.kind {
        Kind::Bug => ("internal error; the log has the details under this request id".to_owned(), None),
        _ => (problem.message.clone(), problem.param.clone()),
    };
    ErrorBody { error: Detail { message, r#type, param, code } }
}

fn table(kind: Kind) -> (StatusCode, &'static str, Option<&'static str>) {
    const REQUEST: &str = "invalid_request_error";
    const RATE: &str = "rate_limit_error";
    const SERVER: &str = "server_error";
    match kind {
        Kind::Invalid => (StatusCode::BAD_REQUEST, REQUEST, None),
        Kind::PromptTooLong => (StatusCode::BAD_REQUEST, REQUEST, Some("context_length_exceeded")),
        Kind::BadKey => (StatusCode::UNAUTHORIZED, REQUEST, Some("invalid_api_key")),
        Kind::Forbidden => (StatusCode::FORBIDDEN, REQUEST, None),
        Kind::UnknownModel => (StatusCode::NOT_FOUND, REQUEST, Some("model_not_found")),
        Kind::NotFound => (StatusCode::NOT_FOUND, REQUEST, None),
        Kind::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, None),
        Kind::Stale => (StatusCode::CONFLICT, REQUEST, None),
        Kind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, None),
        Kind::TooSlow => (StatusCode::REQUEST_TIMEOUT, REQUEST, Some("request_timeout")),
        Kind::UnsupportedCoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, None),
        Kind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, RATE, Some("rate_limit_exceeded")),
        Kind::Overloaded => (StatusCode::TOO_MANY_REQUESTS, RATE, Some("overloaded")),
        Kind::NoWorker => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("no_worker")),
        Kind::Run => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("model_error")),
        Kind::Upstream => (StatusCode::BAD_GATEWAY, SERVER, Some("upstream_error")),
        Kind::Timeout => (StatusCode::GATEWAY_TIMEOUT, SERVER, Some("timeout")),
        Kind::Bug => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("internal_error")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(problem: &Problem) -> serde_json::Value {
        serde_json::to_value(body(problem)).unwrap()
    }

    #[test]
    fn an_error_has_openais_shape() {
        let problem = Problem::invalid("n", "'n' must be an integer between 1 and 128; got 0");
        let expected = json!({ "error": {
            "message": "'n' must be an integer between 1 and 128; got 0",
            "type": "invalid_request_error", "param": "n", "code": null,
        }});
        assert_eq!(value(&problem), expected);
        assert_eq!(response(&problem).status(), 400);
    }

    #[test]
    fn the_cause_of_a_bug_is_not_told() {
        let error = value(&Problem::new(Kind::Bug, "index 7 out of range in upstream.rs").with_param("x"));
        let expected = json!({ "error": {
            "message": "internal error; the log has the details under this request id",
            "type": "server_error", "param": null, "code": "internal_error",
        }});
        assert_eq!(error, expected);
    }

    #[test]
    fn a_client_learns_when_to_come_again() {
        let response = response(&Problem::new(Kind::Overloaded, "full").with_retry_after_ms(1500));
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["retry-after-ms"], "1500");
    }

    #[test]
    fn a_client_learns_which_codings_there_are() {
        let response = response(&Problem::new(Kind::UnsupportedCoding, "the coding `br` is not known"));
        assert_eq!(response.status(), 415);
        assert_eq!(response.headers()["accept-encoding"], "zstd, gzip, deflate, identity");
    }

    #[test]
    fn the_status_is_the_one_that_our_own_processes_use() {
        let kinds = [
            Kind::Invalid,
            Kind::PromptTooLong,
            Kind::BadKey,
            Kind::Forbidden,
            Kind::UnknownModel,
            Kind::NotFound,
            Kind::MethodNotAllowed,
            Kind::Stale,
            Kind::TooLarge,
            Kind::TooSlow,
            Kind::UnsupportedCoding,
            Kind::RateLimited,
            Kind::Overloaded,
            Kind::NoWorker,
            Kind::Run,
            Kind::Upstream,
            Kind::Timeout,
            Kind::Bug,
        ];
        for kind in kinds {
            assert_eq!(table(kind).0.as_u16(), kind.status(), "{kind:?}");
        }
    }
}
