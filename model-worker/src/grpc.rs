//! The worker's own protocol over gRPC, and the Open Inference Protocol beside it, on a port of their own.

mod both;
mod tensors;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use muster_shared::embed::EmbedRequest;
use muster_shared::generate::GenerateRequest;
use muster_shared::grpc;
use muster_shared::grpc::open_inference::proto::grpc_inference_service_server::GrpcInferenceServiceServer;
use muster_shared::grpc::problem::to_status;
use muster_shared::grpc::proto;
use muster_shared::grpc::proto::worker_server::{Worker, WorkerServer};
use muster_shared::problem::{BoxError, Kind, Problem};
use muster_shared::secret::Secret;
use muster_shared::serve::{Met, Patience, check_token};
use muster_shared::text::{ClassifyRequest, EntitiesRequest, TokenizeRequest};
use muster_shared::tls::{Protocols, Tls};
use muster_shared::trace::Context;
use muster_shared::trace::served::Traced;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};
use tower::{Layer as _, ServiceExt};

use crate::calls;
use crate::state::State;
use both::Both;
use tensors::Tensors;

/// Beginning of the paths of the Open Inference Protocol.
const TENSORS: &str = "/inference.GRPCInferenceService/";
/// Requests that run at once on one connection: a gateway has no more than one to a worker for each of its threads.
const STREAMS: u32 = 4096;

/// What callers may send, and when it ends.
pub(crate) struct Service {
    pub(crate) state: Arc<State>,
    /// The fleet's token.
    pub(crate) token: Option<Secret>,
    /// How callers are met.
    pub(crate) tls: Tls,
    /// Longest request, in bytes.
    pub(crate) body_limit: usize,
    /// Time that running requests get after `closed`.
    pub(crate) drain: Duration,
    /// Cancelled when no more requests shall be taken.
    pub(crate) closed: CancellationToken,
}

/// Serves until `closed`; then takes no more requests, and gives those that run time to end.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(listener: TcpListener, service: Service) -> std::io::Result<()> {
    let Service { state, token, tls, body_limit, drain, closed } = service;
    let tensors = GrpcInferenceServiceServer::new(Tensors(Arc::clone(&state))).max_decoding_message_size(body_limit);
    let worker = WorkerServer::new(Calls(state)).max_decoding_message_size(body_limit);
    let both = Both { path: TENSORS, first: tensors, second: worker };
    // Strangers do not get as far as to name a span, or to send a message.
    let token = Arc::new(token);
    let guarded = InterceptedService::new(Traced.layer(both), move |request: Request<()>| {
        check_token((*token).as_ref(), request.metadata().as_ref()).map_err(to_status)?;
        Ok(request)
    });
    let explain = move |response| explain_size(response, body_limit);
    let explained = ServiceExt::<http::Request<Body>>::map_response(guarded, explain);
    tracing::info!(address = %listener.local_addr()?, "gRPC is spoken");
    let met = Met { door: listener, acceptor: tls.acceptor(Protocols::Grpc) };
    let patience = Patience { streams: STREAMS, ..Patience::draining(drain) };
    grpc::serve(met, move |_| explained.clone(), closed, patience).await;
    Ok(())
}

/// Puts our own words on tonic's refusal of a message that is too long.
fn explain_size<B>(response: http::Response<B>, limit: usize) -> http::Response<Body>
where
    B: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut response = response.map(Body::new);
    let refused = Status::from_header_map(response.headers()).is_some_and(|status| status.code() == Code::OutOfRange);
    if refused {
        let message = format!("the message is longer than this worker takes, {limit} bytes");
        // Should it not fit into headers, the refusal stays as it was.
        let _ = to_status(Problem::new(Kind::TooLarge, message)).add_header(response.headers_mut());
    }
    response
}

/// The calls of [`calls`], and which models there are.
struct Calls(Arc<State>);

#[tonic::async_trait]
impl Worker for Calls {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<proto::Event, Status>> + Send>>;

    /// The stream owns the request: a call that is cancelled drops it.
    async fn generate(
        &self,
        request: Request<proto::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let trace = request.extensions().get::<Context>().cloned();
        let request = GenerateRequest::try_from(request.into_inner()).map_err(malformed)?;
        let events = calls::generate(&self.0, request, trace).await.map_err(to_status)?;
        let events = events.map(|event| Ok(event.map_or_else(proto::Event::alive, Into::into)));
        Ok(Response::new(Box::pin(events)))
    }

    async fn embed(&self, request: Request<proto::EmbedRequest>) -> Result<Response<proto::EmbedResponse>, Status> {
        let request = EmbedRequest::try_from(request.into_inner()).map_err(malformed)?;
        let response = calls::embed(&self.0, request).await.map_err(to_status)?;
        Ok(Response::new(response.into()))
    }

    async fn rerank(&self, request: Request<proto::RerankRequest>) -> Result<Response<proto::RerankResponse>, Status> {
        let request = request.into_inner().into();
        let response = calls::rerank(&self.0, request).await.map_err(to_status)?;
        Ok(Response::new(response.into()))
    }

    async fn classify(
        &self,
        request: Request<proto::ClassifyRequest>,
    ) -> Result<Response<proto::ClassifyResponse>, Status> {
        let request = ClassifyRequest::try_from(request.into_inner()).map_err(malformed)?;
        let response = calls::classify(&self.0, request).await.map_err(to_status)?;
        Ok(Response::new(response.into()))
    }

    async fn entities(
        &self,
        request: Request<proto::EntitiesRequest>,
    ) -> Result<Response<proto::EntitiesResponse>, Status> {
        let request = EntitiesRequest::try_from(request.into_inner()).map_err(malformed)?;
        let response = calls::entities(&self.0, request).await.map_err(to_status)?;
        Ok(Response::new(response.into()))
    }

    async fn tokenize(
        &self,
        request: Request<proto::TokenizeRequest>,
    ) -> Result<Response<proto::TokenizeResponse>, Status> {
        let request = TokenizeRequest::try_from(request.into_inner()).map_err(malformed)?;
        let response = calls::tokenize(&self.0, request).await.map_err(to_status)?;
        Ok(Response::new(response.into()))
    }

    async fn detokenize(
        &self,
        request: Request<proto::DetokenizeRequest>,
    ) -> Result<Response<proto::DetokenizeResponse>, Status> {
        let request = request.into_inner().into();
        let response = calls::detokenize(&self.0, request).await.map_err(to_status)?;
        Ok(Response::new(response.into()))
    }

    async fn models(&self, _: Request<proto::ModelsRequest>) -> Result<Response<proto::ModelsResponse>, Status> {
        let cards = self.0.catalog().map_err(to_status)?.cards();
        Ok(Response::new(proto::ModelsResponse { models: cards.into_iter().map(Into::into).collect() }))
    }
}

fn malformed(error: muster_shared::grpc::Malformed) -> Status {
    to_status(error.into())
}
