//! A service whose calls have spans, where whoever calls is traced.

use std::pin::Pin;
use std::task::{Context as Task, Poll};

use axum::extract::MatchedPath;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
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
                let refused = answer.headers().get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
                if let Some(status @ 1_i64..) = refused {
                    span.set("rpc.grpc.status_code", status);
                    span.fail("grpc_error");
                }
            }
            Ok(answer.map(|body| Spanned { body, span }))
        })
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
    span: Option<Span>,
}

impl<R: Body + Unpin> Body for Spanned<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(task);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.span = None; // the end is now, whenever the body is dropped
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
