//! The calls.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use muster_shared::grpc::open_inference::proto::grpc_inference_service_server::GrpcInferenceService;
use muster_shared::grpc::open_inference::{length, proto, read_request, response};
use muster_shared::grpc::problem::{of_status, to_status};
use muster_shared::problem::{Kind, Problem};
use tonic::codegen::http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::door;
use crate::body::beside;
use crate::inference::calls;
use crate::keys::ApiKey;
use crate::observe::{Observed, Route};
use crate::state::{Caller, State};
use crate::upstream::tensor::{About, Change, Found, Lookup};
use crate::{auth, front, limits};

/// Requests of one stream that run at the same time; their answers keep their order.
const IN_FLIGHT: usize = 8;
/// What is not here.
const MEMORY: &str = "memory that it shares with clients";

type Answer<T> = Result<Response<T>, Status>;

/// The service. A call that is cancelled is dropped, and all that it costs with it.
#[derive(Clone)]
pub(super) struct Calls(pub(super) State);

impl Calls {
    async fn infer(
        &self,
        message: proto::ModelInferRequest,
        caller: &Caller,
    ) -> Result<proto::ModelInferResponse, Problem> {
        let mut request = beside(length(&message), move || read_request(message)).await?;
        request.request_id = caller.id.to_string();
        self.0.upstream.infer(request, caller).await.map(response)
    }

    /// One request of a stream: what is wrong with it is said in its answer, and ends nothing; but whose key is not good
    /// any more has no stream. `is_paid`: it has been taken out of the bucket of its key.
    async fn infer_one(
        self,
        message: proto::ModelInferRequest,
        (metadata, peer): (Arc<MetadataMap>, Option<IpAddr>),
        is_paid: bool,
    ) -> Result<proto::ModelStreamInferResponse, Status> {
        let (model_name, id) = (message.model_name.clone(), message.id.clone());
        let headers: &HeaderMap = (*metadata).as_ref();
        let key = auth::key(&self.0, headers, peer).map_err(|problem| door::refused(headers, None, problem))?;
        let observed = Observed::begin(Route::Infer, headers);
        key.iter().for_each(|key| door::observe(&observed, key));
        let caller = door::caller(&observed, headers, key);
        let paid = if is_paid { Ok(()) } else { limits::knock(&self.0, caller.key.as_deref(), peer) };
        let work = |caller| async move { self.infer(message, &caller).await };
        let answered = match paid {
            Ok(()) => run(caller, Route::Infer, work).instrument(observed.span.clone()).await,
            Err(problem) => Err(problem),
        };
        match answered {
            Ok(response) => {
                observed.end(200, false);
                Ok(proto::ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) })
            }
            Err(problem) => {
                door::failed(&observed, problem.kind);
                let infer_response = Some(proto::ModelInferResponse { model_name, id, ..Default::default() });
                let error_message = status(problem).message().to_owned();
                Ok(proto::ModelStreamInferResponse { error_message, infer_response })
            }
        }
    }

    /// What ends a stream whose next message cannot be read.
    fn unread(&self, metadata: &MetadataMap, key: Option<&Arc<ApiKey>>, status: Status) -> Status {
        let problem = door::too_long(&status, self.0.body_limit).or_else(|| of_status(&status));
        problem.map_or(status, |problem| door::refused(metadata.as_ref(), key, problem))
    }

    async fn look_up(&self, caller: &Caller, name: String, version: String, about: About) -> Result<Found, Problem> {
        if name.is_empty() {
            return Err(Problem::invalid("name", "`name` is missing: the name of the model"));
        }
        let version = (!version.is_empty()).then_some(version);
        self.0.upstream.look_up(Lookup { model: name, version, about }, caller).await
    }

    async fn change<'a>(
        &self,
        caller: &Caller,
        model: &str,
        change: Change,
        parameters: impl Iterator<Item = &'a str>,
    ) -> Result<(), Problem> {
        if model.is_empty() {
            return Err(Problem::invalid("model_name", "`model_name` is missing: the name of the model"));
        }
        calls::change(&self.0, caller, model, change, parameters).await
    }
}

/// Answers a call that the door has let in.
async fn answer<T, F>(extensions: &mut Extensions, route: Route, work: impl FnOnce(Caller) -> F) -> Answer<T>
where
    F: Future<Output = Result<T, Problem>>,
{
    let stranger = || Status::internal("a call came in beside the door");
    let caller = extensions.remove::<Caller>().ok_or_else(stranger)?;
    run(caller, route, work).await.map(Response::new).map_err(status)
}

/// Does what a request asks for, as far as its key may.
async fn run<T, F>(caller: Caller, route: Route, work: impl FnOnce(Caller) -> F) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    limits::admit(&caller, route, &[])?;
    let work = AssertUnwindSafe(work(caller)).catch_unwind().await;
    work.unwrap_or_else(|panic| Err(front::panicked(&*panic)))
}

fn status(problem: Problem) -> Status {
    let message = calls::told(&problem);
    to_status(Problem { message, ..problem })
}

fn mismatched() -> Problem {
    Problem::new(Kind::Bug, "something else was found than was looked for")
}

fn absent<T>(what: &str) -> Answer<T> {
    Err(Status::unimplemented(calls::absent(what)))
}

#[tonic::async_trait]
impl GrpcInferenceService for Calls {
    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<proto::ModelStreamInferResponse, Status>> + Send>>;

    /// Whoever watches over a server has no key; so with the next one.
    async fn server_live(&self, _: Request<proto::ServerLiveRequest>) -> Answer<proto::ServerLiveResponse> {
        Ok(Response::new(proto::ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<proto::ServerReadyRequest>) -> Answer<proto::ServerReadyResponse> {
        Ok(Response::new(proto::ServerReadyResponse { ready: calls::ready(&self.0).is_ok() }))
    }

    async fn model_ready(&self, call: Request<proto::ModelReadyRequest>) -> Answer<proto::ModelReadyResponse> {
        let (_, mut extensions, asked) = call.into_parts();
        let work = |caller| async move {
            match self.look_up(&caller, asked.name, asked.version, About::Ready).await {
                Ok(Found::Ready(ready)) => Ok(proto::ModelReadyResponse { ready }),
                Ok(_) => Err(mismatched()),
                Err(problem) if matches!(problem.kind, Kind::UnknownModel | Kind::NoWorker) => {
                    Ok(proto::ModelReadyResponse { ready: false })
                }
                Err(problem) => Err(problem),
            }
        };
        answer(&mut extensions, Route::Inference, work).await
    }

    async fn server_metadata(
        &self,
        mut call: Request<proto::ServerMetadataRequest>,
    ) -> Answer<proto::ServerMetadataResponse> {
        let work = |_| async { Ok(calls::server().into()) };
        answer(call.extensions_mut(), Route::Inference, work).await
    }

    async fn model_metadata(&self, call: Request<proto::ModelMetadataRequest>) -> Answer<proto::ModelMetadataResponse> {
        let (_, mut extensions, asked) = call.into_parts();
        let work = |caller| async move {
            match self.look_up(&caller, asked.name, asked.version, About::Metadata).await? {
                Found::Metadata(metadata) => Ok(metadata.into()),
                _ => Err(mismatched()),
            }
        };
        answer(&mut extensions, Route::Inference, work).await
    }

    async fn model_infer(&self, call: Request<proto::ModelInferRequest>) -> Answer<proto::ModelInferResponse> {
        let (_, mut extensions, message) = call.into_parts();
        answer(&mut extensions, Route::Infer, |caller| async move { self.infer(message, &caller).await }).await
    }

    /// A stream ends with its client's requests, when all of them are answered; or when its client leaves, or its key is
    /// not good any more.
    async fn model_stream_infer(
        &self,
        call: Request<Streaming<proto::ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        let (metadata, mut extensions, messages) = call.into_parts();
        let key = extensions.remove().and_then(|auth::Shown(key)| key);
        let peer = extensions.get().map(|auth::Peer(peer)| *peer);
        let refuse = |problem| door::refused(metadata.as_ref(), key.as_ref(), problem);
        let place = limits::enter(key.as_ref()).map_err(refuse)?;
        let (calls, metadata) = (self.clone(), Arc::new(metadata));
        let answers = messages.enumerate().map(move |(number, message)| {
            let _held = &place; // until the stream has ended, or its client has left
            let (calls, metadata) = (calls.clone(), Arc::clone(&metadata));
            let message = message.map_err(|status| calls.unread(&metadata, key.as_ref(), status));
            async move { calls.infer_one(message?, (metadata, peer), number == 0).await } // the stream itself has paid
        });
        Ok(Response::new(Box::pin(answers.buffered(IN_FLIGHT))))
    }

    async fn model_config(&self, call: Request<proto::ModelConfigRequest>) -> Answer<proto::ModelConfigResponse> {
        let (_, mut extensions, asked) = call.into_parts();
        let work = |caller| async move {
            match self.look_up(&caller, asked.name, asked.version, About::Config).await? {
                Found::Config(config) => Ok(proto::ModelConfigResponse { config: Some((*config).into()) }),
                _ => Err(mismatched()),
            }
        };
        answer(&mut extensions, Route::Inference, work).await
    }

    async fn model_statistics(
        &self,
        call: Request<proto::ModelStatisticsRequest>,
    ) -> Answer<proto::ModelStatisticsResponse> {
        let (_, mut extensions, asked) = call.into_parts();
        let work = |caller: Caller| async move {
            let said = |text: String| (!text.is_empty()).then_some(text);
            let (model, version) = (said(asked.name), said(asked.version));
            let statistics = calls::statistics(&self.0, &caller, model.as_deref(), version.as_deref()).await?;
            Ok(proto::ModelStatisticsResponse { model_stats: statistics.into_iter().map(Into::into).collect() })
        };
        answer(&mut extensions, Route::Inference, work).await
    }

    async fn repository_index(
        &self,
        call: Request<proto::RepositoryIndexRequest>,
    ) -> Answer<proto::RepositoryIndexResponse> {
        let (_, mut extensions, asked) = call.into_parts();
        let work = |caller: Caller| async move {
            let index = calls::index(&self.0, &caller, asked.ready).await?;
            Ok(proto::RepositoryIndexResponse { models: index.into_iter().map(Into::into).collect() })
        };
        answer(&mut extensions, Route::Inference, work).await
    }

    async fn repository_model_load(
        &self,
        call: Request<proto::RepositoryModelLoadRequest>,
    ) -> Answer<proto::RepositoryModelLoadResponse> {
        let (_, mut extensions, asked) = call.into_parts();
        let work = |caller: Caller| async move {
            self.change(&caller, &asked.model_name, Change::Load, asked.parameters.keys().map(String::as_str)).await?;
            Ok(proto::RepositoryModelLoadResponse {})
        };
        answer(&mut extensions, Route::Inference, work).await
    }

    async fn repository_model_unload(
        &self,
        call: Request<proto::RepositoryModelUnloadRequest>,
    ) -> Answer<proto::RepositoryModelUnloadResponse> {
        let (_, mut extensions, asked) = call.into_parts();
        let work = |caller: Caller| async move {
            self.change(&caller, &asked.model_name, Change::Unload, asked.parameters.keys().map(String::as_str))
                .await?;
            Ok(proto::RepositoryModelUnloadResponse {})
        };
        answer(&mut extensions, Route::Inference, work).await
    }

    async fn system_shared_memory_status(
        &self,
        _: Request<proto::SystemSharedMemoryStatusRequest>,
    ) -> Answer<proto::SystemSharedMemoryStatusResponse> {
        absent(MEMORY)
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<proto::SystemSharedMemoryRegisterRequest>,
    ) -> Answer<proto::SystemSharedMemoryRegisterResponse> {
        absent(MEMORY)
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<proto::SystemSharedMemoryUnregisterRequest>,
    ) -> Answer<proto::SystemSharedMemoryUnregisterResponse> {
        absent(MEMORY)
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<proto::CudaSharedMemoryStatusRequest>,
    ) -> Answer<proto::CudaSharedMemoryStatusResponse> {
        absent(MEMORY)
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<proto::CudaSharedMemoryRegisterRequest>,
    ) -> Answer<proto::CudaSharedMemoryRegisterResponse> {
        absent(MEMORY)
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<proto::CudaSharedMemoryUnregisterRequest>,
    ) -> Answer<proto::CudaSharedMemoryUnregisterResponse> {
        absent(MEMORY)
    }

    async fn trace_setting(&self, _: Request<proto::TraceSettingRequest>) -> Answer<proto::TraceSettingResponse> {
        absent("settings for traces")
    }

    async fn log_settings(&self, _: Request<proto::LogSettingsRequest>) -> Answer<proto::LogSettingsResponse> {
        absent("settings for logs over this protocol")
    }
}
