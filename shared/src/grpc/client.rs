//! A client of a worker that speaks gRPC.

mod tensor;
#[cfg(test)]
mod tests;

use std::error::Error as _;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tonic::codegen::http::Uri;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Response, Status, Streaming};

use super::connection::{Connection, GrpcPool};
use super::proto::worker_client::WorkerClient;
use super::{Malformed, problem, proto};
use crate::client::{ClientError, EVENT_LIMIT, trimmed};
use crate::embed::{EmbedRequest, EmbedResponse};
use crate::generate::{Event, GenerateRequest};
use crate::problem::BoxError;
use crate::secret::Secret;
use crate::text::{
    ClassifyRequest, ClassifyResponse, DetokenizeRequest, DetokenizeResponse, EntitiesRequest, EntitiesResponse,
    RerankRequest, RerankResponse, TokenizeRequest, TokenizeResponse,
};
use crate::trace::Context;

/// Longest answer in one message, in bytes: far more than any model gives for the longest request.
const ANSWER_LIMIT: usize = 256 << 20;
/// What an answer that is not ours is reported with: HTTP was content, and gRPC has statuses of its own.
const HTTP_OK: u16 = 200;

/// Calls one worker that speaks our own protocol over gRPC.
#[derive(Debug, Clone)]
pub struct GrpcWorkerClient {
    pool: GrpcPool,
    address: String,
    authorization: Option<MetadataValue<Ascii>>,
    trace: Option<Context>,
    read: Duration,
}

impl GrpcWorkerClient {
    /// A client of the worker at a base URL, `http://HOST:PORT`. `read`: silence after which a call is given up.
    pub fn new(pool: GrpcPool, address: impl Into<String>, token: Option<&Secret>, read: Duration) -> Self {
        Self { pool, address: trimmed(address), authorization: token.and_then(authorization), trace: None, read }
    }

    /// The same, whose calls belong to that span.
    #[must_use]
    pub fn traced(self, trace: Option<Context>) -> Self {
        Self { trace, ..self }
    }

    /// Continues a prompt. Dropping the stream cancels the request.
    ///
    /// The stream ends after [`Event::Done`] or [`Event::Failed`]; ending before them is [`ClientError::Broken`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn generate(
        &self,
        request: &GenerateRequest,
    ) -> Result<impl Stream<Item = Result<Event, ClientError>> + Send + use<>, ClientError> {
        let mut worker = self.worker(EVENT_LIMIT).await?;
        let request = self.authorized(request.clone().into());
        let stream = self.answer(worker.generate(request)).await?;
        let events = Events { client: self.clone(), stream, ended: false };
        Ok(stream::unfold(events, |mut events| async move { Some((events.next().await?, events)) }))
    }

    /// Embeds texts.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn embed(&self, request: &EmbedRequest) -> Result<EmbedResponse, ClientError> {
        let mut worker = self.worker(ANSWER_LIMIT).await?;
        let request = self.authorized(request.clone().into());
        Ok(self.answer(worker.embed(request)).await?.into())
    }

    /// Judges how well texts answer a query.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rerank(&self, request: &RerankRequest) -> Result<RerankResponse, ClientError> {
        let mut worker = self.worker(ANSWER_LIMIT).await?;
        let request = self.authorized(request.clone().into());
        Ok(self.answer(worker.rerank(request)).await?.into())
    }

    /// Tells of which classes texts are.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn classify(&self, request: &ClassifyRequest) -> Result<ClassifyResponse, ClientError> {
        let mut worker = self.worker(ANSWER_LIMIT).await?;
        let request = self.authorized(request.clone().into());
        Ok(self.answer(worker.classify(request)).await?.into())
    }

    /// Finds the names of something in texts.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn entities(&self, request: &EntitiesRequest) -> Result<EntitiesResponse, ClientError> {
        let mut worker = self.worker(ANSWER_LIMIT).await?;
        let request = self.authorized(request.clone().into());
        Ok(self.answer(worker.entities(request)).await?.into())
    }

    /// Tells the tokens of a prompt.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tokenize(&self, request: &TokenizeRequest) -> Result<TokenizeResponse, ClientError> {
        let mut worker = self.worker(ANSWER_LIMIT).await?;
        let request = self.authorized(request.clone().into());
        Ok(self.answer(worker.tokenize(request)).await?.into())
    }

    /// Tells the text of tokens.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn detokenize(&self, request: &DetokenizeRequest) -> Result<DetokenizeResponse, ClientError> {
        let mut worker = self.worker(ANSWER_LIMIT).await?;
        let request = self.authorized(request.clone().into());
        Ok(self.answer(worker.detokenize(request)).await?.into())
    }

    async fn worker(&self, message_limit: usize) -> Result<WorkerClient<Connection>, ClientError> {
        let (connection, address) = self.reached().await?;
        Ok(WorkerClient::with_origin(connection, address).max_decoding_message_size(message_limit))
    }

    async fn reached(&self) -> Result<(Connection, Uri), ClientError> {
        let unreachable = |source: BoxError| ClientError::Unreachable { address: self.address.clone(), source };
        let address: Uri = self.address.parse().map_err(|error| unreachable(BoxError::from(error)))?;
        let connection = self.pool.connection(&address).await.map_err(|error| unreachable(error.into()))?;
        Ok((connection, address))
    }

    fn authorized<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        if let Some(trace) = &self.trace {
            trace.write(request.metadata_mut().as_mut());
        }
        request
    }

    async fn answer<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, ClientError> {
        self.in_time(call).await.map(Response::into_inner)
    }

    /// Waits for the worker's next word, as long as it may be silent.
    async fn in_time<T>(&self, word: impl Future<Output = Result<T, Status>>) -> Result<T, ClientError> {
        match tokio::time::timeout(self.read, word).await {
            Ok(word) => word.map_err(|status| self.failed(status)),
            Err(_) => Err(self.broken(Some(format!("it was silent for {:?}", self.read).into()))),
        }
    }

    /// Tells a worker's refusal from a connection that broke.
    fn failed(&self, status: Status) -> ClientError {
        // Whatever was made of an error on this side has that error behind it.
        if status.source().is_some() || status.code() == Code::Cancelled {
            return self.broken(Some(status.into()));
        }
        match problem::of_status(&status) {
            Some(problem) => ClientError::Refused { address: self.address.clone(), problem },
            None => self.unexpected(format!("gRPC status {:?}, {}", status.code(), status.message())),
        }
    }

    fn broken(&self, source: Option<BoxError>) -> ClientError {
        ClientError::Broken { address: self.address.clone(), source }
    }

    fn unexpected(&self, detail: String) -> ClientError {
        ClientError::Unexpected { address: self.address.clone(), status: HTTP_OK, detail }
    }
}

fn authorization(token: &Secret) -> Option<MetadataValue<Ascii>> {
    // A token that no header can carry is no worker's token: it will refuse the call.
    let mut value = MetadataValue::try_from(format!("Bearer {}", token.expose()).as_bytes()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The events of one answer, up to the last one.
struct Events {
    client: GrpcWorkerClient,
    stream: Streaming<proto::Event>,
    ended: bool,
}

impl Events {
    async fn next(&mut self) -> Option<Result<Event, ClientError>> {
        if self.ended {
            return None;
        }
        let event = self.read().await;
        self.ended = matches!(event, Err(_) | Ok(Event::Done { .. } | Event::Failed { .. }));
        Some(event)
    }

    async fn read(&mut self) -> Result<Event, ClientError> {
        loop {
            let Some(event) = self.client.in_time(self.stream.message()).await? else {
                return Err(self.client.broken(None));
            };
            let event = event.into_event().map_err(|error: Malformed| self.client.unexpected(error.to_string()))?;
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }
}
