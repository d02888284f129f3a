//! A service whose calls have spans, where whoever calls is traced.

use std::pin::Pin;
use std::task::{Context as Task, Poll};

use axum::extract::MatchedPath;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use hyper::HeaderMap;
use hyper::http::{Request, Response};
use tower::{Layer, Service};

use super::{Context, Span};

/// Longest name of a span.
const NAME: usize = 80;

/// Puts [`Served`] around a service.
#[derive(Debug, Clone, Copy)]
pub struct Traced;

/// Gives a call its span, which ends with the answer's body; handlers find its [`Context`] among the request's extensions.
///
/// Calls that belong to no trace begin none: probes come every second.
#[derive(Debug, Clone)]
pub struct Served<S>(S);

impl<S> Layer<S> for Traced {
    type Service = Served<S>;

    fn layer(&self, service: S) -> Served<S> {
        Served(service)
    }
}

impl<S, B, R> Service<Request<B>> for Served<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    R: 'static,
{
    type Response = Response<Spanned<R>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(task)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let mut span = span(&request);
        if let Some(span) = &span {
            request.extensions_mut().insert(span.context());
        }
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(span) = &mut span {
                span.set("http.response.status_code", i64::from(answer.status().as_u16()));
                if answer.status().is_server_error() {
                    span.fail("server_error");
                }
                refuse(span, answer.headers());
            }
            Ok(answer.map(|body| Spanned { body, open: Open(span) }))
        })
    }
}

/// Fails a span whose answer has, at its end, a status of gRPC other than 0.
fn refuse(span: &mut Span, headers: &HeaderMap) {
    let status = headers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
    if let Some(status @ 1_i64..) = status {
        span.set("rpc.grpc.status_code", status);
        span.fail("grpc_error");
    }
}

fn span<B>(request: &Request<B>) -> Option<Span> {
    if !super::is_on() {
        return None;
    }
    Context::of(request.headers())?;
    // A path without a route, as gRPC's are, is one of a few, or nobody's.
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let name = route.unwrap_or_else(|| request.uri().path());
    super::serve(name.chars().take(NAME).collect::<String>(), request.headers())
}

/// A body that owns the span of its call.
#[derive(Debug)]
pub struct Spanned<R> {
    body: R,
    open: Open,
}

/// A span whose call has not ended.
#[derive(Debug)]
struct Open(Option<Span>);

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(span) = &mut self.0 {
            span.set("error.type", "cancelled"); // whoever asked went away
        }
    }
}

impl<R: Body + Unpin> Body for Spanned<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(task);
        let has_ended = match (&polled, &mut self.open.0) {
            (Poll::Ready(Some(Err(_))), Some(span)) => {
                span.fail("broken");
                true
            }
            (Poll::Ready(Some(Ok(frame))), Some(span)) => {
                frame.trailers_ref().map(|trailers| refuse(span, trailers)).is_some() || self.body.is_end_stream()
            }
            (Poll::Ready(None), _) => true,
            _ => false,
        };
        if has_ended {
            drop(self.open.0.take()); // the end is now, whenever the body is dropped
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use hyper::http::HeaderValue;
    use opentelemetry::trace::{Status, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanProcessor};

    use super::*;

    /// Keeps what has ended.
    #[derive(Debug, Default, Clone)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Kept {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().expect("nobody panics").push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    /// Frames and errors, as they are taken from the front.
    struct Scripted(VecDeque<Result<Frame<&'static [u8]>, &'static str>>);

    impl Body for Scripted {
        type Data = &'static [u8];
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Task<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    fn trailers(status: &'static str) -> Frame<&'static [u8]> {
        Frame::trailers(HeaderMap::from_iter([(
            "grpc-status".parse().expect("a name"),
            HeaderValue::from_static(status),
        )]))
    }

    /// What becomes of the span of a body of which so many frames are read.
    fn ended(frames: Vec<Result<Frame<&'static [u8]>, &'static str>>, reads: usize) -> (Status, Vec<String>) {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder().with_span_processor(kept.clone()).build();
        let span = Span(provider.tracer("a test").start("a call"));
        let mut body = Spanned { body: Scripted(frames.into()), open: Open(Some(span)) };
        for _ in 0..reads {
            let _ = Pin::new(&mut body).poll_frame(&mut Task::from_waker(std::task::Waker::noop()));
        }
        drop(body);
        let spans = kept.0.lock().expect("nobody panics");
        let [span] = &spans[..] else { panic!("one span ends: {spans:?}") };
        (span.status.clone(), span.attributes.iter().map(|said| format!("{}={}", said.key, said.value)).collect())
    }

    #[test]
    fn a_span_tells_how_its_stream_has_ended() {
        let data = || Ok(Frame::data(&b"a"[..]));
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(ended(vec![data(), data()], 3), (Status::Unset, vec![]));
        assert_eq!(ended(vec![data(), Ok(trailers("0"))], 2), (Status::Unset, vec![]));
        assert_eq!(ended(vec![data(), Err("it broke")], 2), (Status::error("broken"), texts(&["error.type=broken"])));
        let refused = texts(&["rpc.grpc.status_code=13", "error.type=grpc_error"]);
        assert_eq!(ended(vec![data(), Ok(trailers("13"))], 2), (Status::error("grpc_error"), refused));
        assert_eq!(ended(vec![data(), data()], 1), (Status::Unset, texts(&["error.type=cancelled"])));
    }
}
