//! Names a request, times it, counts it, and logs it.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use muster_shared::trace;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::account::Account;
use crate::auth::Peer;
use crate::metrics;
use crate::state::RequestId;

/// Headers that may hold a client's own name for a request, in the order in which they are looked at.
const NAMES: [HeaderName; 4] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-correlation-id"),
    HeaderName::from_static("x-trace-id"),
    HeaderName::from_static("request-id"),
];
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Says that an answer had been kept.
const CACHE: HeaderName = HeaderName::from_static("x-muster-cache");
const PROCESSING: HeaderName = HeaderName::from_static("openai-processing-ms");
/// Longest name that is taken from a client.
const LONGEST: usize = 128;

/// What is counted apart: one of a known few, since a path would be a label without bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Chat,
    Completions,
    Embeddings,
    Rerank,
    Classify,
    Moderations,
    Tokenize,
    Detokenize,
    Models,
    /// Runs of models on tensors.
    Infer,
    /// The rest of the Open Inference Protocol.
    Inference,
    Other,
    Unknown,
}

impl Route {
    /// Every route, in the order of their numbers.
    pub(crate) const ALL: [Self; 13] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Rerank,
        Self::Classify,
        Self::Moderations,
        Self::Tokenize,
        Self::Detokenize,
        Self::Models,
        Self::Infer,
        Self::Inference,
        Self::Other,
        Self::Unknown,
    ];

    /// The name in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
            Self::Classify => "classify",
            Self::Moderations => "moderations",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
            Self::Models => "models",
            Self::Infer => "infer",
            Self::Inference => "inference",
            Self::Other => "other",
            Self::Unknown => "unknown",
        }
    }

    /// What OpenTelemetry calls that; absent where no model answers.
    pub(crate) fn operation(self) -> Option<&'static str> {
        match self {
            Self::Chat => Some("chat"),
            Self::Completions => Some("text_completion"),
            Self::Embeddings => Some("embeddings"),
            Self::Rerank | Self::Classify | Self::Moderations | Self::Infer => Some(self.name()),
            _ => None,
        }
    }

    fn of(matched: Option<&MatchedPath>) -> Self {
        match matched.map(MatchedPath::as_str) {
            Some("/v1/models" | "/v1/models/{*model}") => Self::Models,
            Some(_) => Self::Other,
            None => Self::Unknown,
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) account: Account,
    /// Only where debug logs are written: making one costs more than the rest of this file.
    pub(crate) span: tracing::Span,
}

impl Observed {
    /// Begins with a request's headers.
    pub(crate) fn begin(route: Route, headers: &HeaderMap) -> Self {
        let mut buffer = Uuid::encode_buffer();
        let id: Arc<str> = match given(headers) {
            Some(id) => id.into(),
            None => (&*Uuid::now_v7().hyphenated().encode_lower(&mut buffer)).into(),
        };
        let span = tracing::debug_span!("request", %id, key = tracing::field::Empty, route = route.name());
        // Who asks whether the gateway is there is not traced.
        let trace = if route == Route::Other { None } else { trace::serve(route.name(), headers) };
        Self { account: Account::traced(RequestId(id), route, trace), span }
    }

    /// Ends with the head of the answer, which gets the request's name. `streamed`: whether its end is told elsewhere.
    pub(crate) fn finish<B>(self, response: &mut hyper::Response<B>, streamed: bool) {
        let took = self.account.begun().elapsed();
        self.end(response.status().as_u16(), streamed);
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(&self.account.id().0) {
            headers.insert(REQUEST_ID, value);
        }
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        headers.insert(PROCESSING, millis.into());
        if self.account.is_kept() {
            headers.insert(CACHE, HeaderValue::from_static("hit"));
        }
    }

    /// Ends with the status of an answer, or what would be it over HTTP; see [`Observed::finish`].
    pub(crate) fn end(&self, status: u16, streamed: bool) {
        let took = self.account.begun().elapsed();
        self.account.head(status, streamed);
        metrics::request(self.account.route(), status, took);
        self.span.in_scope(|| tracing::debug!(status, ?took, "answered"));
    }
}

/// Middleware around the routes that few ask for.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let route = Route::of(request.extensions().get::<MatchedPath>());
    let observed = Observed::begin(route, request.headers());
    observed.account.came_from(request.extensions().get::<Peer>().map(|peer| peer.0));
    let mut response = next.run(request).instrument(observed.span.clone()).await;
    observed.finish(&mut response, false);
    response
}

/// The client's name for the request, if it is short and printable: it goes to the log and back to the client.
fn given(headers: &HeaderMap) -> Option<&str> {
    let text = NAMES.iter().find_map(|name| headers.get(name))?.to_str().ok()?;
    let plain = !text.is_empty() && text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then_some(text)
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
        assert_eq!(given(&headers("x-request-id", "abc-1")), Some("abc-1"));
        assert_eq!(given(&headers("x-correlation-id", "abc-1")), Some("abc-1"));
        assert_eq!(given(&headers("x-request-id", "two words")), None);
        assert_eq!(given(&headers("x-request-id", &"x".repeat(129))), None);
        assert_eq!(given(&HeaderMap::new()), None);
    }

    #[test]
    fn routes_are_numbered_as_they_are_listed() {
        for (number, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, number);
        }
    }
}
