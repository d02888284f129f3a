//! What a worker is asked over the Open Inference Protocol.

use std::error::Error as _;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::super::Malformed;
use super::super::open_inference::proto::grpc_inference_service_client::GrpcInferenceServiceClient;
use super::super::open_inference::{Contents, proto, read_response, request as message};
use super::{Connection, GrpcWorkerClient};
use crate::client::ClientError;
use crate::tensor::{IndexEntry, InferRequest, InferResponse, ModelConfig, ModelMetadata, ModelStatistics};

/// Longest answer with tensors, in bytes.
const TENSORS_LIMIT: usize = 256 << 20;
/// Longest answer without any, in bytes.
const WORD_LIMIT: usize = 1 << 16;
/// What tonic says of an answer of HTTP that is none of gRPC.
const FOREIGN: &str = "grpc-status header missing";

impl GrpcWorkerClient {
    /// Runs a model once. Dropping the future cancels the run.
    ///
    /// # Errors
    /// See [`ClientError`]; so do all calls below.
    pub async fn infer(&self, request: &InferRequest) -> Result<InferResponse, ClientError> {
        let unfit = |problem: crate::problem::Problem| self.unexpected(problem.message);
        let mut call = self.authorized(message(request.clone(), Contents::Raw).map_err(unfit)?);
        if let Ok(name) = MetadataValue::try_from(&request.request_id) {
            call.metadata_mut().insert("x-request-id", name);
        }
        let mut server = self.inference().await?;
        read_response(self.answer(server.model_infer(call)).await?).map_err(unfit)
    }

    /// What a model takes and gives.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn model_metadata(&self, model: &str, version: Option<&str>) -> Result<ModelMetadata, ClientError> {
        let (name, version) = named(model, version);
        let call = self.authorized(proto::ModelMetadataRequest { name, version });
        let answer = self.answer(self.inference().await?.model_metadata(call)).await?;
        answer.try_into().map_err(|error| self.malformed(&error))
    }

    /// How a model is set up.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn model_config(&self, model: &str, version: Option<&str>) -> Result<ModelConfig, ClientError> {
        let (name, version) = named(model, version);
        let call = self.authorized(proto::ModelConfigRequest { name, version });
        let answer = self.answer(self.inference().await?.model_config(call)).await?;
        let config = answer.config.ok_or_else(|| self.malformed(&Malformed::missing("config")))?;
        config.try_into().map_err(|error| self.malformed(&error))
    }

    /// Whether a model can be run.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn model_ready(&self, model: &str, version: Option<&str>) -> Result<bool, ClientError> {
        let (name, version) = named(model, version);
        let call = self.authorized(proto::ModelReadyRequest { name, version });
        Ok(self.answer(self.inference().await?.model_ready(call)).await?.ready)
    }

    /// What the runs of a model have cost; of all models, where none is named.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn model_statistics(
        &self,
        model: Option<&str>,
        version: Option<&str>,
    ) -> Result<Vec<ModelStatistics>, ClientError> {
        let (name, version) = named(model.unwrap_or_default(), version);
        let call = self.authorized(proto::ModelStatisticsRequest { name, version });
        let answer = self.answer(self.inference().await?.model_statistics(call)).await?;
        Ok(answer.model_stats.into_iter().map(Into::into).collect())
    }

    /// Which models the worker has.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn repository_index(&self) -> Result<Vec<IndexEntry>, ClientError> {
        let call = self.authorized(proto::RepositoryIndexRequest::default());
        let answer = self.answer(self.inference().await?.repository_index(call)).await?;
        let entries = answer.models.into_iter().map(TryInto::try_into).collect::<Result<_, _>>();
        entries.map_err(|error| self.malformed(&error))
    }

    /// Loads a model, or loads it again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn load_model(&self, model: &str) -> Result<(), ClientError> {
        let model_name = model.to_owned();
        let call = self.authorized(proto::RepositoryModelLoadRequest { model_name, ..Default::default() });
        self.answer(self.inference().await?.repository_model_load(call)).await.map(drop)
    }

    /// Unloads a model.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn unload_model(&self, model: &str) -> Result<(), ClientError> {
        let model_name = model.to_owned();
        let call = self.authorized(proto::RepositoryModelUnloadRequest { model_name, ..Default::default() });
        self.answer(self.inference().await?.repository_model_unload(call)).await.map(drop)
    }

    /// Whether the server says that it lives; `None`: it speaks gRPC, but has no word for that, or none for the caller.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn server_live(&self) -> Result<Option<bool>, ClientError> {
        let mut server = self.inference().await?.max_decoding_message_size(WORD_LIMIT);
        let call = self.authorized(proto::ServerLiveRequest::default());
        match self.in_time(async { Ok(server.server_live(call).await) }).await? {
            Ok(answer) => Ok(Some(answer.into_inner().live)),
            Err(status) if is_refusal(&status) => Ok(None),
            Err(status) => Err(self.failed(status)),
        }
    }

    async fn inference(&self) -> Result<GrpcInferenceServiceClient<Connection>, ClientError> {
        let (connection, address) = self.reached().await?;
        Ok(GrpcInferenceServiceClient::with_origin(connection, address).max_decoding_message_size(TENSORS_LIMIT))
    }

    fn malformed(&self, error: &Malformed) -> ClientError {
        self.unexpected(error.to_string())
    }
}

/// Whether a server of gRPC lives and will not, or cannot, answer that call.
fn is_refusal(status: &Status) -> bool {
    let is_own = status.source().is_none() && !status.message().contains(FOREIGN);
    is_own && matches!(status.code(), Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied)
}

fn named(model: &str, version: Option<&str>) -> (String, String) {
    (model.to_owned(), version.unwrap_or_default().to_owned())
}
