//! Compresses whole answers for clients that take them so.

use axum::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use hyper::Response;

use super::{Coding, compress, worth};
use crate::outgoing::Outgoing;

/// Longest body that is compressed where it is: some hundred microseconds' work, which holds up the other requests of
/// its thread.
const AT_ONCE: usize = 32 << 10;

/// The same answer in that coding, where that pays; a stream goes on as it is.
pub(crate) async fn compressed(coding: Coding, mut response: Response<Outgoing>) -> Response<Outgoing> {
    let Outgoing::Whole(Some(body)) = response.body() else { return response };
    if !worth(body.len(), response.headers().get(CONTENT_TYPE)) || is_final(response.headers()) {
        return response;
    }
    let body = body.clone();
    let fewer = if body.len() <= AT_ONCE { Some(compress(coding, &body)) } else { beside(coding, body.clone()).await };
    let headers = response.headers_mut();
    headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    // What does not shrink goes out as it is.
    if let Some(fewer) = fewer.filter(|fewer| fewer.len() < body.len()) {
        headers.insert(CONTENT_ENCODING, coding.header());
        *response.body_mut() = Outgoing::Whole(Some(fewer));
    }
    response
}

/// Compresses beside other requests; `None` should that fail.
async fn beside(coding: Coding, body: Bytes) -> Option<Bytes> {
    tokio::task::spawn_blocking(move || compress(coding, &body)).await.ok()
}

/// Whether a worker has coded its answer itself, or wants that nobody does.
fn is_final(headers: &HeaderMap) -> bool {
    let is_fixed = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains("no-transform"));
    headers.contains_key(CONTENT_ENCODING) || headers.get_all(CACHE_CONTROL).iter().any(is_fixed)
}
