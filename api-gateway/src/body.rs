//! Bodies in and streams out.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::BytesMut;
use futures_util::Stream;
use muster_shared::problem::{Kind, Problem};
use tokio_stream::StreamExt as _;

use crate::openai::error;
use crate::state::State;

/// Silence after which a stream gets a comment, so that proxies and clients keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a client may send beyond the limit before the connection is cut: it is read and thrown away, since a client
/// that is still sending does not hear the answer.
const PATIENCE_BYTES: usize = 64 << 20;
/// Time a client has to send that.
const PATIENCE: Duration = Duration::from_secs(5);

/// The bytes of a body, whatever its `Content-Type` says.
pub(crate) struct Raw(pub(crate) Bytes);

impl FromRequest<State> for Raw {
    type Rejection = Response;

    async fn from_request(request: Request, state: &State) -> Result<Self, Self::Rejection> {
        let limit = state.body_limit;
        let mut chunks = request.into_body().into_data_stream();
        let mut body = BytesMut::new();
        while let Some(chunk) = chunks.next().await {
            let unreadable = |_| Problem::new(Kind::Invalid, "the body could not be read");
            body.extend_from_slice(&chunk.map_err(unreadable).map_err(|problem| error::response(&problem))?);
            if body.len() > limit {
                drop(body);
                // However that ends, the answer is the same.
                let _ = tokio::time::timeout(PATIENCE, discard(chunks)).await;
                let message =
                    format!("the body is larger than the {limit} bytes this gateway takes; send less at once");
                return Err(error::response(&Problem::new(Kind::TooLarge, message)));
            }
        }
        Ok(Self(body.freeze()))
    }
}

async fn discard(mut chunks: BodyDataStream) {
    let mut left = PATIENCE_BYTES;
    while let Some(Ok(chunk)) = chunks.next().await
        && left > chunk.len()
    {
        left -= chunk.len();
    }
}

/// An answer of server-sent events. The body owns the stream: dropping it cancels the request.
pub(crate) fn event_stream(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let ticks = tokio::time::interval_at(tokio::time::Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    let alive = Box::pin(events).timeout_repeating(ticks).map(|event| {
        // Time ran out between two events: a comment, which clients skip.
        Ok::<_, Infallible>(event.unwrap_or_else(|_| Bytes::from_static(b": keep-alive\n\n")))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(alive)).into_response()
}
