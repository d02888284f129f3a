//! The Open Inference Protocol over gRPC: what `tensor::http` answers, on the worker's port for gRPC.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use muster_shared::grpc::open_inference::proto::grpc_inference_service_server::GrpcInferenceService;
use muster_shared::grpc::open_inference::proto::{self, infer_parameter::ParameterChoice};
use muster_shared::grpc::open_inference::{length, read_request, response};
use muster_shared::grpc::problem::to_status;
use muster_shared::problem::Problem;
use tonic::{Request, Response, Status, Streaming};

use crate::calls::blocking;
use crate::state::State;
use crate::tensor::calls;

/// Requests of one stream that are worked on at a time; answers come in their order all the same.
const AT_A_TIME: usize = 16;
/// A client that wants to know which answer of a request is the last asks with the first, and is told with the second.
const WANTS_FINAL: &str = "triton_enable_empty_final_response";
const IS_FINAL: &str = "triton_final_response";

/// Messages shorter than this, in bytes, are read where they arrive.
const AT_ONCE: usize = 64 << 10;

/// The protocol's calls.
pub(super) struct Tensors(pub(super) Arc<State>);

fn version(version: &str) -> Option<&str> {
    Some(version).filter(|version| !version.is_empty())
}

async fn infer(state: &State, request: proto::ModelInferRequest) -> Result<proto::ModelInferResponse, Problem> {
    let wants_final = matches!(
        request.parameters.get(WANTS_FINAL).and_then(|parameter| parameter.parameter_choice.as_ref()),
        Some(ParameterChoice::BoolParam(true))
    );
    let request = match length(&request) {
        ..AT_ONCE => read_request(request)?,
        _ => blocking(move || read_request(request)).await?,
    };
    let mut answer = response(calls::infer(state, request).await?);
    if wants_final {
        let choice = ParameterChoice::BoolParam(true);
        answer.parameters.insert(IS_FINAL.to_owned(), proto::InferParameter { parameter_choice: Some(choice) });
    }
    Ok(answer)
}

/// One answer of a stream; a request that fails ends no stream.
async fn one(
    state: Arc<State>,
    request: Result<proto::ModelInferRequest, Status>,
) -> Result<proto::ModelStreamInferResponse, Status> {
    let request = request?;
    let (id, model_name) = (request.id.clone(), request.model_name.clone());
    Ok(match infer(&state, request).await {
        Ok(answer) => proto::ModelStreamInferResponse { error_message: String::new(), infer_response: Some(answer) },
        Err(problem) => proto::ModelStreamInferResponse {
            error_message: problem.message,
            infer_response: Some(proto::ModelInferResponse { id, model_name, ..Default::default() }),
        },
    })
}

#[tonic::async_trait]
impl GrpcInferenceService for Tensors {
    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<proto::ModelStreamInferResponse, Status>> + Send>>;

    async fn server_live(
        &self,
        _: Request<proto::ServerLiveRequest>,
    ) -> Result<Response<proto::ServerLiveResponse>, Status> {
        Ok(Response::new(proto::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<proto::ServerReadyRequest>,
    ) -> Result<Response<proto::ServerReadyResponse>, Status> {
        Ok(Response::new(proto::ServerReadyResponse { ready: self.0.ready().is_ok() }))
    }

    async fn model_ready(
        &self,
        request: Request<proto::ModelReadyRequest>,
    ) -> Result<Response<proto::ModelReadyResponse>, Status> {
        let asked = request.into_inner();
        let ready = calls::is_ready(&self.0, &asked.name, version(&asked.version)).map_err(to_status)?;
        Ok(Response::new(proto::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<proto::ServerMetadataRequest>,
    ) -> Result<Response<proto::ServerMetadataResponse>, Status> {
        Ok(Response::new(calls::server().into()))
    }

    async fn model_metadata(
        &self,
        request: Request<proto::ModelMetadataRequest>,
    ) -> Result<Response<proto::ModelMetadataResponse>, Status> {
        let asked = request.into_inner();
        let tensors = calls::tensors(&self.0).map_err(to_status)?;
        let metadata = tensors.metadata(&asked.name, version(&asked.version)).map_err(to_status)?;
        Ok(Response::new(metadata.into()))
    }

    async fn model_infer(
        &self,
        request: Request<proto::ModelInferRequest>,
    ) -> Result<Response<proto::ModelInferResponse>, Status> {
        Ok(Response::new(infer(&self.0, request.into_inner()).await.map_err(to_status)?))
    }

    /// The stream owns its requests: a call that is cancelled drops those that have not begun.
    async fn model_stream_infer(
        &self,
        request: Request<Streaming<proto::ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let state = Arc::clone(&self.0);
        let answers = request.into_inner().map(move |request| one(Arc::clone(&state), request)).buffered(AT_A_TIME);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn model_config(
        &self,
        request: Request<proto::ModelConfigRequest>,
    ) -> Result<Response<proto::ModelConfigResponse>, Status> {
        let asked = request.into_inner();
        let tensors = calls::tensors(&self.0).map_err(to_status)?;
        let config = tensors.config(&asked.name, version(&asked.version)).map_err(to_status)?;
        Ok(Response::new(proto::ModelConfigResponse { config: Some(config.into()) }))
    }

    async fn model_statistics(
        &self,
        request: Request<proto::ModelStatisticsRequest>,
    ) -> Result<Response<proto::ModelStatisticsResponse>, Status> {
        let asked = request.into_inner();
        let tensors = calls::tensors(&self.0).map_err(to_status)?;
        let statistics = tensors.statistics(version(&asked.name), version(&asked.version)).map_err(to_status)?;
        let model_stats = statistics.into_iter().map(Into::into).collect();
        Ok(Response::new(proto::ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<proto::RepositoryIndexRequest>,
    ) -> Result<Response<proto::RepositoryIndexResponse>, Status> {
        let only_ready = request.into_inner().ready;
        let tensors = Arc::clone(calls::tensors(&self.0).map_err(to_status)?);
        let index = blocking(move || Ok(tensors.index(only_ready))).await.map_err(to_status)?;
        Ok(Response::new(proto::RepositoryIndexResponse { models: index.into_iter().map(Into::into).collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<proto::RepositoryModelLoadRequest>,
    ) -> Result<Response<proto::RepositoryModelLoadResponse>, Status> {
        let asked = request.into_inner();
        let parameters: Vec<String> = asked.parameters.into_keys().collect();
        calls::load(&self.0, asked.model_name, &parameters).await.map_err(to_status)?;
        Ok(Response::new(proto::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<proto::RepositoryModelUnloadRequest>,
    ) -> Result<Response<proto::RepositoryModelUnloadResponse>, Status> {
        calls::unload(&self.0, request.into_inner().model_name).await.map_err(to_status)?;
        Ok(Response::new(proto::RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        _: Request<proto::SystemSharedMemoryStatusRequest>,
    ) -> Result<Response<proto::SystemSharedMemoryStatusResponse>, Status> {
        Err(no_shared_memory())
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<proto::SystemSharedMemoryRegisterRequest>,
    ) -> Result<Response<proto::SystemSharedMemoryRegisterResponse>, Status> {
        Err(no_shared_memory())
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<proto::SystemSharedMemoryUnregisterRequest>,
    ) -> Result<Response<proto::SystemSharedMemoryUnregisterResponse>, Status> {
        Err(no_shared_memory())
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<proto::CudaSharedMemoryStatusRequest>,
    ) -> Result<Response<proto::CudaSharedMemoryStatusResponse>, Status> {
        Err(no_shared_memory())
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<proto::CudaSharedMemoryRegisterRequest>,
    ) -> Result<Response<proto::CudaSharedMemoryRegisterResponse>, Status> {
        Err(no_shared_memory())
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<proto::CudaSharedMemoryUnregisterRequest>,
    ) -> Result<Response<proto::CudaSharedMemoryUnregisterResponse>, Status> {
        Err(no_shared_memory())
    }

    async fn trace_setting(
        &self,
        _: Request<proto::TraceSettingRequest>,
    ) -> Result<Response<proto::TraceSettingResponse>, Status> {
        Err(Status::unimplemented("there is nothing to set about traces"))
    }

    async fn log_settings(
        &self,
        _: Request<proto::LogSettingsRequest>,
    ) -> Result<Response<proto::LogSettingsResponse>, Status> {
        Err(Status::unimplemented("what is logged is set when the worker starts"))
    }
}

fn no_shared_memory() -> Status {
    Status::unimplemented("shared memory is not supported: send tensors themselves")
}
