//! Bodies of answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use bytes::BytesMut;
use futures_util::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::Response;
use muster_shared::problem::BoxError;
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use crate::account::{Account, Outcome};
use crate::upstream::relay::Relay;

/// Silence after which a stream gets a comment, so that proxies and clients keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const COMMENT: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// Bytes of a stream that are handed on at once.
const BATCH: usize = 16 << 10;

/// The body of an answer. Dropping it cancels the request that it answers.
pub(crate) enum Outgoing {
    /// All of it; `None` once it is sent.
    Whole(Option<Bytes>),
    /// A worker's own words.
    Relay(Box<Relay>),
    /// Events made here.
    Events(Box<Events>),
    /// What a rarely asked route answers.
    Plain(Body),
}

impl Outgoing {
    /// Whether it is made while it is sent, by whoever tells its end.
    pub(crate) fn is_streamed(&self) -> bool {
        matches!(self, Self::Relay(_) | Self::Events(_))
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let data = match &mut *self {
            Self::Whole(bytes) => bytes.take().filter(|bytes| !bytes.is_empty()),
            Self::Relay(relay) => ready!(relay.poll_bytes(cx)),
            Self::Events(events) => ready!(events.poll_bytes(cx)),
            Self::Plain(body) => return Pin::new(body).poll_frame(cx).map_err(Into::into),
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Plain(body) => body.is_end_stream(),
            Self::Relay(_) | Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Plain(body) => body.size_hint(),
            Self::Relay(_) | Self::Events(_) => SizeHint::default(),
        }
    }
}

/// Server-sent events as they come: all that are ready together, and a comment after a silence.
pub(crate) struct Events {
    events: Pin<Box<dyn Stream<Item = Bytes> + Send>>,
    /// Hears of the end.
    account: Account,
    /// Ends with the stream; it is not polled again then.
    ended: bool,
    silence: Pin<Box<Sleep>>,
    /// When something was sent last.
    last: Instant,
}

impl Events {
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut first: Option<Bytes> = None;
        let mut more: Option<BytesMut> = None;
        while !self.ended && more.as_ref().is_none_or(|batch| batch.len() < BATCH) {
            match self.events.as_mut().poll_next(cx) {
                Poll::Ready(Some(event)) => match &first {
                    None => first = Some(event),
                    Some(begun) => more.get_or_insert_with(|| BytesMut::from(&begun[..])).extend_from_slice(&event),
                },
                Poll::Ready(None) => {
                    self.ended = true;
                    self.account.end(Outcome::Done);
                }
                Poll::Pending => break,
            }
        }
        if let Some(bytes) = more.map(BytesMut::freeze).or(first) {
            self.last = Instant::now();
            return Poll::Ready(Some(bytes));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        ready!(self.poll_silence(cx));
        self.last = Instant::now();
        Poll::Ready(Some(COMMENT))
    }

    /// Ready when nothing was sent for long. The timer runs on while events come, and is set anew when it goes off.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.silence.as_mut().poll(cx));
            let until = self.last + KEEP_ALIVE;
            self.silence.as_mut().reset(until.max(Instant::now() + Duration::from_millis(1)));
            if until <= Instant::now() {
                return Poll::Ready(());
            }
        }
    }
}

/// An answer of server-sent events.
pub(crate) fn event_stream(
    events: impl Stream<Item = Bytes> + Send + 'static,
    account: &Account,
) -> Response<Outgoing> {
    let last = Instant::now();
    let silence = Box::pin(tokio::time::sleep_until(last + KEEP_ALIVE));
    let events = Events { events: Box::pin(events), account: account.clone(), ended: false, silence, last };
    let mut response = Response::new(Outgoing::Events(Box::new(events)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response<Outgoing> {
    let bytes = serde_json::to_vec(body).expect("our own types are JSON");
    let mut response = Response::new(Outgoing::Whole(Some(bytes.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The same answer for axum.
pub(crate) fn into_axum(response: Response<Outgoing>) -> Response<Body> {
    response.map(|body| match body {
        Outgoing::Plain(body) => body,
        Outgoing::Whole(bytes) => Body::from(bytes.unwrap_or_default()),
        streamed => Body::new(streamed),
    })
}

/// An answer of axum.
pub(crate) fn from_axum(response: Result<Response<Body>, Infallible>) -> Response<Outgoing> {
    match response {
        Ok(response) => response.map(Outgoing::Plain),
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::observe::Route;
    use crate::state::RequestId;

    async fn frames(events: impl Stream<Item = &'static str> + Send + 'static, count: usize) -> Vec<Bytes> {
        let account = Account::open(RequestId("r".into()), Route::Chat);
        let mut body = event_stream(events.map(|event| Bytes::from_static(event.as_bytes())), &account).into_body();
        let mut frames = Vec::new();
        while frames.len() < count
            && let Some(frame) = body.frame().await
        {
            frames.push(frame.expect("no error").into_data().expect("data"));
        }
        frames
    }

    #[tokio::test]
    async fn what_is_ready_together_leaves_together() {
        let later = stream::once(async {
            tokio::task::yield_now().await;
            "c"
        });
        let events = stream::iter(["a", "b"]).chain(later).chain(stream::iter(["d"]));
        assert_eq!(frames(events, 9).await, ["ab", "cd"]);
        assert!(frames(stream::iter([]), 9).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_says_that_it_lives() {
        let began = Instant::now();
        let slow = stream::once(async {
            tokio::time::sleep(KEEP_ALIVE / 2).await;
            "a"
        });
        let got = frames(slow.chain(stream::pending()), 3).await;
        assert_eq!(got, [Bytes::from_static(b"a"), COMMENT, COMMENT]);
        let took = began.elapsed();
        assert!(took >= KEEP_ALIVE * 5 / 2 && took < KEEP_ALIVE * 3, "{took:?}");
    }
}
