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
use crate::upstream::job::stopping;

/// Silence after which a stream gets a comment, so that proxies and clients keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a client may send beyond the limit before the connection is cut: it is read and thrown away, since a client
/// that is still sending does not hear the answer.
const PATIENCE_BYTES: usize = 64 << 20;
/// Time a client has to send that.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest time without progress while a body comes.
const SILENCE: Duration = Duration::from_secs(30);
/// Largest body that is read as JSON where it arrives: a larger one would hold up the other requests of its thread.
const AT_ONCE: usize = 256 << 10;

/// The bytes of a body, whatever its `Content-Type` says.
pub(crate) struct Raw(pub(crate) Bytes);

impl FromRequest<State> for Raw {
    type Rejection = Response;

    async fn from_request(request: Request, state: &State) -> Result<Self, Self::Rejection> {
        let chunks = request.into_body().into_data_stream();
        let body = state.upstream.cut().run_until_cancelled(read(chunks, state.body_limit)).await;
        body.unwrap_or_else(|| Err(stopping())).map(Self).map_err(|problem| error::response(&problem))
    }
}

async fn read(mut chunks: BodyDataStream, limit: usize) -> Result<Bytes, Problem> {
    let mut body = BytesMut::new();
    loop {
        let Ok(chunk) = tokio::time::timeout(SILENCE, chunks.next()).await else {
            let message = format!("nothing came of the rest of the body for {} seconds", SILENCE.as_secs());
            return Err(Problem::new(Kind::Invalid, message));
        };
        let Some(chunk) = chunk else { return Ok(body.freeze()) };
        let chunk = chunk.map_err(|_| Problem::new(Kind::Invalid, "the body could not be read"))?;
        if body.len() + chunk.len() > limit {
            drop(body);
            // However that ends, the answer is the same.
            let _ = tokio::time::timeout(PATIENCE, discard(chunks)).await;
            let message = format!("the body is larger than the {limit} bytes this gateway takes; send less at once");
            return Err(Problem::new(Kind::TooLarge, message));
        }
        body.extend_from_slice(&chunk);
    }
}

/// Reads and checks a body, beside other requests where it is large.
///
/// # Errors
/// What is wrong with it.
pub(crate) async fn parse<T: Send + 'static>(
    body: Bytes,
    parse: fn(&[u8]) -> Result<T, Problem>,
) -> Result<T, Problem> {
    if body.len() <= AT_ONCE {
        return parse(&body);
    }
    let parsed = tokio::task::spawn_blocking(move || parse(&body)).await;
    parsed.unwrap_or_else(|panic| Err(Problem::new(Kind::Bug, panic.to_string())))
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

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn chunks(body: impl Stream<Item = &'static str> + Send + 'static) -> BodyDataStream {
        Body::from_stream(futures_util::StreamExt::map(body, Ok::<_, Infallible>)).into_data_stream()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_be_slow_but_not_stand_still() {
        let slow = stream::unfold(0, |sent| async move {
            tokio::time::sleep(SILENCE / 2).await;
            (sent < 10).then_some(("x", sent + 1))
        });
        assert_eq!(read(chunks(slow), 100).await.as_deref(), Ok(&b"xxxxxxxxxx"[..]));
        let stuck = futures_util::StreamExt::chain(stream::iter(["x"]), stream::pending());
        assert_eq!(read(chunks(stuck), 100).await.map_err(|problem| problem.kind), Err(Kind::Invalid));
    }

    #[tokio::test]
    async fn a_large_body_is_read_as_a_small_one_is() {
        let length = |bytes: &[u8]| Ok(bytes.len());
        for size in [1, AT_ONCE, AT_ONCE + 1] {
            assert_eq!(parse(vec![0; size].into(), length).await, Ok(size));
        }
        let panics = |_: &[u8]| -> Result<(), Problem> { panic!("on purpose") };
        let problem = parse(vec![0; AT_ONCE + 1].into(), panics).await.expect_err("it panics");
        assert_eq!(problem.kind, Kind::Bug);
    }
}
