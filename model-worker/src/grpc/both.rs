//! Two services on one port: the path of a call says whose it is.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::Either;
use tonic::body::Body;
use tonic::codegen::http;
use tower::Service;

/// Calls below a path go to the first, all others to the second.
#[derive(Debug, Clone)]
pub(super) struct Both<A, B> {
    /// Beginning of the first one's paths.
    pub(super) path: &'static str,
    pub(super) first: A,
    pub(super) second: B,
}

type Call = http::Request<Body>;
type Answer = http::Response<Body>;

impl<A, B> Service<Call> for Both<A, B>
where
    A: Service<Call, Response = Answer, Error = Infallible>,
    B: Service<Call, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Either<A::Future, B::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match self.first.poll_ready(context) {
            Poll::Ready(Ok(())) => self.second.poll_ready(context),
            other => other,
        }
    }

    fn call(&mut self, call: Call) -> Self::Future {
        if call.uri().path().starts_with(self.path) {
            Either::Left(self.first.call(call))
        } else {
            Either::Right(self.second.call(call))
        }
    }
}
