//! The outermost layer: names a request, times it, counts it, and logs it.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::metrics;
use crate::state::RequestId;

/// Headers that may hold a client's own name for a request, in the order in which they are looked at.
const NAMES: [&str; 4] = ["x-request-id", "x-correlation-id", "x-trace-id", "request-id"];
/// Longest name that is taken from a client.
const LONGEST: usize = 128;

/// Middleware around every route.
pub(crate) async fn observe(mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id: Arc<str> = given(request.headers()).unwrap_or_else(|| Uuid::now_v7().to_string()).into();
    let route = route(request.extensions().get::<MatchedPath>());
    let span = tracing::info_span!("request", id = %id, method = %request.method(), route);
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));

    let mut response = next.run(request).instrument(span.clone()).await;

    let (status, took) = (response.status(), begun.elapsed());
    metrics::request(route, status.as_u16(), took);
    span.in_scope(|| tracing::debug!(status = status.as_u16(), ?took, "answered"));
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(HeaderName::from_static("x-request-id"), value);
    }
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    headers.insert(HeaderName::from_static("openai-processing-ms"), millis.into());
    response
}

/// The client's name for the request, if it is short and printable: it goes to the log and back to the client.
fn given(headers: &HeaderMap) -> Option<String> {
    let text = NAMES.iter().find_map(|name| headers.get(*name))?.to_str().ok()?;
    let plain = !text.is_empty() && text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| text.to_owned())
}

/// The route's pattern, one of a known few: a path would be a label without bound.
fn route(matched: Option<&MatchedPath>) -> &'static str {
    match matched.map(MatchedPath::as_str) {
        Some("/v1/chat/completions") => "chat",
        Some("/v1/completions") => "completions",
        Some("/v1/embeddings") => "embeddings",
        Some("/v1/models" | "/v1/models/{*model}") => "models",
        Some(_) => "other",
        None => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_and_printable_names_are_taken() {
        let headers = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(value).expect("a header"));
            headers
        };
        assert_eq!(given(&headers("x-request-id", "abc-1")).as_deref(), Some("abc-1"));
        assert_eq!(given(&headers("x-correlation-id", "abc-1")).as_deref(), Some("abc-1"));
        assert_eq!(given(&headers("x-request-id", "two words")), None);
        assert_eq!(given(&headers("x-request-id", &"x".repeat(129))), None);
        assert_eq!(given(&HeaderMap::new()), None);
    }
}
