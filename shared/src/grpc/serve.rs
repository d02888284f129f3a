//! Being called: a service that speaks gRPC, behind the doors that every service has.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode, Version};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use super::messages::Messages;
use crate::serve::{Accept, Patience, serve_requests};

/// The calls that bring a stream of messages, after each of which a client may rest.
pub const STREAMED: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
/// What a client hears that speaks HTTP/1.
const NO_GRPC: &str = "this port speaks gRPC, over HTTP/2\n";

/// Serves calls until `shutdown`; then takes no more connections, and gives those that run time to end. `serving`: what
/// answers those of a connection from an address, which should look at a call's head before it reads the message.
pub async fn serve<S>(
    door: impl Accept,
    serving: impl Fn(Option<SocketAddr>) -> S,
    shutdown: CancellationToken,
    patience: Patience,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let serving = |peer| Timed { calls: serving(peer), pause: patience.body };
    serve_requests(door, serving, shutdown, patience).await;
}

/// Calls whose messages must come in time.
#[derive(Clone)]
struct Timed<S> {
    calls: S,
    pause: Duration,
}

impl<S> Service<Request<Incoming>> for Timed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.calls.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        if request.version() != Version::HTTP_2 {
            return Either::Right(ready(Ok(no_grpc())));
        }
        let rests = request.uri().path() == STREAMED;
        Either::Left(self.calls.call(request.map(|body| Body::new(Messages::new(body, self.pause, rests)))))
    }
}

fn no_grpc() -> Response<Body> {
    let mut response = Response::new(Body::new(NO_GRPC.to_owned()));
    *response.status_mut() = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
