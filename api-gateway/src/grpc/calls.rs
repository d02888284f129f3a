//! The calls.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use muster_shared::grpc::open_inference::proto::grpc_inference_service_server::GrpcInferenceService;
use muster_shared::grpc::open_inference::{length, proto, read_request, response};
use muster_shared::grpc::problem::to_status;
use muster_shared::problem::{Kind, Problem};
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Extensions, Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::account::Outcome;
use crate::body::beside;
use crate::inference::calls;
use crate::keys::ApiKey;
use crate::observe::{Observed, Route};
use crate::state::{Caller, State};
use crate::upstream::tensor::{About, Change, Found, Lookup};
use crate::{auth, front, limits, patience, via};

/// Requests of one stream that run at the same time; their answers keep their order.
const IN_FLIGHT: usize = 8;
/// What is not here.
const MEMORY: &str = "memory that it shares with clients";

type Answer<T> = Result<Response<T>, Status>;

/// The service. A call that is cancelled is dropped, and all that it costs with it.
#[derive(Clone)]
pub(super) struct Calls(pub(super) State);

impl Calls {
    /// Answers a call of whoever shows a key.
    async fn answer<T, F>(
        &self,
        (metadata, extensions): (&MetadataMap, &Extensions),
        work: impl FnOnce(Caller) -> F,
    ) -> Answer<T>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        let key = self.check(metadata, extensions).map_err(to_status)?;
        answer(Route::Inference, metadata, key, work).await
    }

    fn check(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<Option<Arc<ApiKey>>, Problem> {
        let key = auth::check(&self.0.keys.now(), metadata.as_ref())?;
        let address = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        limits::knock(&self.0, key.as_deref(), address.map(|address| address.ip()))?;
        via::check(metadata.as_ref(), self.0.upstream.via())?;
        Ok(key)
    }

    async fn infer(
        &self,
        message: proto::ModelInferRequest,
        caller: &Caller,
    ) -> Result<proto::ModelInferResponse, Problem> {
        let mut request = beside(length(&message), move || read_request(message)).await?;
        request.request_id = caller.id.to_string();
        self.0.upstream.infer(request, caller).await.map(response)
    }

    /// One request of a stream: what is wrong with it is said in its answer, and ends nothing.
    async fn infer_one(
        self,
        message: proto::ModelInferRequest,
        (metadata, key): (Arc<MetadataMap>, Option<Arc<ApiKey>>),
    ) -> proto::ModelStreamInferResponse {
        let (model_name, id) = (message.model_name.clone(), message.id.clone());
        let work = |caller| async move { self.infer(message, &caller).await };
        let answered = answer(Route::Infer, &metadata, key, work).await;
        match answered {
            Ok(response) => proto::ModelStreamInferResponse {
                error_message: String::new(),
                infer_response: Some(response.into_inner()),
            },
            Err(status) => proto::ModelStreamInferResponse {
                error_message: status.message().to_owned(),
                infer_response: Some(proto::ModelInferResponse { model_name, id, ..Default::default() }),
            },
        }
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

/// Names a call, times it, counts it, and says what went wrong.
async fn answer<T, F>(
    route: Route,
    metadata: &MetadataMap,
    key: Option<Arc<ApiKey>>,
    work: impl FnOnce(Caller) -> F,
) -> Answer<T>
where
    F: Future<Output = Result<T, Problem>>,
{
    let observed = Observed::begin(route, metadata.as_ref());
    auth::note(|| observed.span.clone(), key.as_deref());
    let account = observed.account.clone();
    key.iter().for_each(|key| account.shown(key));
    let until = patience::of(metadata.as_ref(), account.begun());
    let caller = Caller { id: account.id().clone(), account, key, until };
    let work = match limits::admit(&caller, route, &[]) {
        Ok(()) => AssertUnwindSafe(work(caller).instrument(observed.span.clone())).catch_unwind().await,
        Err(problem) => Ok(Err(problem)),
    };
    let answered = work.unwrap_or_else(|panic| Err(front::panicked(&*panic)));
    let failed = answered.as_ref().err().map(|problem| problem.kind);
    failed.into_iter().for_each(|kind| observed.account.end(Outcome::Failed(kind)));
    observed.end(failed.map_or(200, Kind::status), false);
    answered.map(Response::new).map_err(|problem| {
        let message = calls::told(&problem);
        to_status(Problem { message, ..problem })
    })
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
        let (metadata, extensions, asked) = call.into_parts();
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
        self.answer((&metadata, &extensions), work).await
    }

    async fn server_metadata(
        &self,
        call: Request<proto::ServerMetadataRequest>,
    ) -> Answer<proto::ServerMetadataResponse> {
        self.answer((call.metadata(), call.extensions()), |_| async { Ok(calls::server().into()) }).await
    }

    async fn model_metadata(&self, call: Request<proto::ModelMetadataRequest>) -> Answer<proto::ModelMetadataResponse> {
        let (metadata, extensions, asked) = call.into_parts();
        let work = |caller| async move {
            match self.look_up(&caller, asked.name, asked.version, About::Metadata).await? {
                Found::Metadata(metadata) => Ok(metadata.into()),
                _ => Err(mismatched()),
            }
        };
        self.answer((&metadata, &extensions), work).await
    }

    async fn model_infer(&self, call: Request<proto::ModelInferRequest>) -> Answer<proto::ModelInferResponse> {
        let (metadata, extensions, message) = call.into_parts();
        let key = self.check(&metadata, &extensions).map_err(to_status)?;
        answer(Route::Infer, &metadata, key, |caller| async move { self.infer(message, &caller).await }).await
    }

    /// A stream ends with its client's requests, when all of them are answered; or when its client leaves.
    async fn model_stream_infer(
        &self,
        call: Request<Streaming<proto::ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        let (metadata, extensions, messages) = call.into_parts();
        let key = self.check(&metadata, &extensions).map_err(to_status)?;
        let place = limits::enter(key.as_ref()).map_err(to_status)?;
        let (calls, metadata) = (self.clone(), Arc::new(metadata));
        let answers = messages.map(move |message| {
            let _held = &place; // until the stream has ended, or its client has left
            let (calls, metadata, key) = (calls.clone(), Arc::clone(&metadata), key.clone());
            async move { Ok(calls.infer_one(message?, (metadata, key)).await) }
        });
        Ok(Response::new(Box::pin(answers.buffered(IN_FLIGHT))))
    }

    async fn model_config(&self, call: Request<proto::ModelConfigRequest>) -> Answer<proto::ModelConfigResponse> {
        let (metadata, extensions, asked) = call.into_parts();
        let work = |caller| async move {
            match self.look_up(&caller, asked.name, asked.version, About::Config).await? {
                Found::Config(config) => Ok(proto::ModelConfigResponse { config: Some((*config).into()) }),
                _ => Err(mismatched()),
            }
        };
        self.answer((&metadata, &extensions), work).await
    }

    async fn model_statistics(
        &self,
        call: Request<proto::ModelStatisticsRequest>,
    ) -> Answer<proto::ModelStatisticsResponse> {
        let (metadata, extensions, asked) = call.into_parts();
        let work = |caller: Caller| async move {
            let said = |text: String| (!text.is_empty()).then_some(text);
            let (model, version) = (said(asked.name), said(asked.version));
            let statistics = calls::statistics(&self.0, &caller, model.as_deref(), version.as_deref()).await?;
            Ok(proto::ModelStatisticsResponse { model_stats: statistics.into_iter().map(Into::into).collect() })
        };
        self.answer((&metadata, &extensions), work).await
    }

    async fn repository_index(
        &self,
        call: Request<proto::RepositoryIndexRequest>,
    ) -> Answer<proto::RepositoryIndexResponse> {
        let (metadata, extensions, asked) = call.into_parts();
        let work = |caller: Caller| async move {
            let index = calls::index(&self.0, &caller, asked.ready).await?;
            Ok(proto::RepositoryIndexResponse { models: index.into_iter().map(Into::into).collect() })
        };
        self.answer((&metadata, &extensions), work).await
    }

    async fn repository_model_load(
        &self,
        call: Request<proto::RepositoryModelLoadRequest>,
    ) -> Answer<proto::RepositoryModelLoadResponse> {
        let (metadata, extensions, asked) = call.into_parts();
        let work = |caller: Caller| async move {
            self.change(&caller, &asked.model_name, Change::Load, asked.parameters.keys().map(String::as_str)).await?;
            Ok(proto::RepositoryModelLoadResponse {})
        };
        self.answer((&metadata, &extensions), work).await
    }

    async fn repository_model_unload(
        &self,
        call: Request<proto::RepositoryModelUnloadRequest>,
    ) -> Answer<proto::RepositoryModelUnloadResponse> {
        let (metadata, extensions, asked) = call.into_parts();
        let work = |caller: Caller| async move {
            self.change(&caller, &asked.model_name, Change::Unload, asked.parameters.keys().map(String::as_str))
                .await?;
            Ok(proto::RepositoryModelUnloadResponse {})
        };
        self.answer((&metadata, &extensions), work).await
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
