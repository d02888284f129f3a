//! What a worker is asked in one message, and answers in one.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use muster_shared::client::ClientError;
use muster_shared::control::Outcome;
use muster_shared::embed::{EmbedRequest, EmbedResponse};
use muster_shared::generate::Usage;
use muster_shared::grpc::GrpcWorkerClient;
use muster_shared::problem::Problem;
use muster_shared::text::{
    ClassifyRequest, ClassifyResponse, DetokenizeRequest, DetokenizeResponse, EntitiesRequest, EntitiesResponse,
    RerankRequest, RerankResponse, TokenizeRequest, TokenizeResponse,
};
use muster_shared::transport::Transport;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fastchat::FastChatClient;
use super::job::Job;
use super::peer::Peer;
use super::{Begun, Filled, Opened, Question, TRANSLATED, Upstream, Whole, native, untranslated};
use crate::cache::{Place, size};

/// One call of the worker protocol.
pub(crate) trait Call: Serialize + Clone + Send + Sync + 'static {
    /// What it is answered with.
    type Answer: DeserializeOwned + Serialize + Clone + Send + Sync + 'static;
    /// Where a worker takes it over HTTP.
    const PATH: &'static str;
    /// What it does, for errors: `this model cannot …`.
    const DEED: &'static str;
    /// Whether FastChat has words for it.
    const IN_FASTCHAT: bool = false;
    /// Whether its answers are worth keeping: all are the same each time.
    const IS_KEPT: bool = true;

    /// The model's name.
    fn model(&self) -> &str;

    /// The same, to be changed.
    fn model_mut(&mut self) -> &mut String;

    /// The name for logs, where it has one.
    fn request_id(&mut self) -> Option<&mut String>;

    /// The request with the time that a worker has for it, where the protocol can say it.
    fn within(&self, timeout_ms: Option<u64>) -> Option<Self>;

    /// Asks a worker that speaks gRPC.
    fn over_grpc(&self, worker: &GrpcWorkerClient) -> impl Future<Output = Result<Self::Answer, ClientError>> + Send;

    /// Asks the FastChat worker at an address, where FastChat has words for it.
    fn over_fastchat(
        &self,
        _: &FastChatClient,
        address: &str,
    ) -> impl Future<Output = Result<Self::Answer, ClientError>> + Send {
        let refused = ClientError::Refused { address: address.to_owned(), problem: not_in_fastchat::<Self>() };
        std::future::ready(Err(refused))
    }

    /// Whether an answer has what was asked for.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&self, answer: &Self::Answer) -> Result<(), String>;

    /// Tokens that the worker has read for it.
    fn prompt_tokens(answer: &Self::Answer) -> u32;
}

impl Upstream {
    /// Asks what is answered in one message.
    ///
    /// # Errors
    /// Why no worker answered, in words for the client.
    pub(crate) async fn ask<C: Call>(
        &self,
        question: &mut impl Question<Ours = C>,
        mut job: Job,
    ) -> Result<Begun<Whole<C::Answer>>, Problem> {
        if !C::IN_FASTCHAT && self.0.view.model(&job.model).is_some_and(|model| model.only_fastchat) {
            return Err(not_in_fastchat::<C>());
        }
        job.whole = true;
        job.transports = transports::<C>(question.raw().is_some());
        let place = match question.raw() {
            Some(_) => None,
            None => self.place_of_call(&job, &*question.read().await?),
        };
        if let Some(kept) = place.as_ref().and_then(Place::look::<C::Answer>) {
            job.account.kept(&job.model);
            return Ok(Begun::Ours(Whole { model: job.model, answer: (*kept).clone() }));
        }
        match Box::pin(self.begin(question, &mut job, Self::open_answer)).await? {
            Opened::Passed(passed, ticket) => Ok(Begun::Passed(self.passed(*passed, job, ticket))),
            Opened::Ours(answer, mut ticket) => {
                ticket.end(Outcome::Done);
                let usage = Usage { prompt_tokens: C::prompt_tokens(&answer), ..Usage::default() };
                job.account.usage(&usage);
                if let Some(model) = self.0.view.model(ticket.model()) {
                    model.metrics.usage(&usage);
                }
                if let Some(place) = place.filter(|_| *ticket.model() == job.model) {
                    place.keep(Arc::new(answer.clone()), size(&answer));
                }
                Ok(Begun::Ours(Whole { model: Arc::clone(ticket.model()), answer }))
            }
        }
    }

    fn open_answer<C: Call>(
        self,
        peer: Arc<Peer>,
        request: Arc<C>,
        filled: Filled,
    ) -> BoxFuture<'static, Result<C::Answer, ClientError>> {
        Box::pin(async move {
            let mut request = request.within(filled.timeout_ms).map_or(request, Arc::new);
            if *request.model() != *filled.model {
                *Arc::make_mut(&mut request).model_mut() = filled.model.to_string();
            }
            let answer = match peer.transport {
                Transport::Http => native::ask(&peer, (self.authorization(), filled.trace.as_ref()), &*request).await?,
                Transport::FastChat => request.over_fastchat(&self.0.fastchat, &peer.address).await?,
                Transport::Grpc => {
                    let worker = self.grpc(&peer.address, self.0.config.request_timeout).traced(filled.trace);
                    request.over_grpc(&worker).await?
                }
                Transport::OpenAi => return Err(untranslated(&peer)),
            };
            let unexpected = |detail| ClientError::Unexpected { address: peer.address.clone(), status: 200, detail };
            request.check(&answer).map_err(unexpected)?;
            Ok(answer)
        })
    }
}

/// What a client hears that asks a FastChat worker for what FastChat does not know.
fn not_in_fastchat<C: Call>() -> Problem {
    let message = format!("this model is served by FastChat workers only, and FastChat has no words to {}", C::DEED);
    Problem::invalid("model", message)
}

/// The protocols in which a call can be said. `as_it_came`: a client's own words can be passed on besides.
fn transports<C: Call>(as_it_came: bool) -> &'static [Transport] {
    match (C::IN_FASTCHAT, as_it_came) {
        (true, true) => &[],
        (true, false) => TRANSLATED,
        (false, true) => &[Transport::Http, Transport::Grpc, Transport::OpenAi],
        (false, false) => &[Transport::Http, Transport::Grpc],
    }
}

/// Whether there is one answer for each question.
fn one_each(what: &str, got: usize, wanted: usize) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(format!("{got} {what} for {wanted}")) }
}

/// Whether numbers can be told to a client: JSON has no others.
fn finite<'a>(mut numbers: impl Iterator<Item = &'a f32>) -> Result<(), String> {
    match numbers.find(|number| !number.is_finite()) {
        Some(number) => Err(format!("{number} among the scores")),
        None => Ok(()),
    }
}

impl Call for EmbedRequest {
    type Answer = EmbedResponse;
    const PATH: &'static str = "/embed";
    const DEED: &'static str = "embed texts";
    const IN_FASTCHAT: bool = true;

    fn model(&self) -> &str {
        &self.model
    }

    fn model_mut(&mut self) -> &mut String {
        &mut self.model
    }

    fn request_id(&mut self) -> Option<&mut String> {
        Some(&mut self.request_id)
    }

    fn within(&self, timeout_ms: Option<u64>) -> Option<Self> {
        Some(Self { timeout_ms, ..self.clone() })
    }

    async fn over_grpc(&self, worker: &GrpcWorkerClient) -> Result<EmbedResponse, ClientError> {
        worker.embed(self).await
    }

    async fn over_fastchat(&self, client: &FastChatClient, address: &str) -> Result<EmbedResponse, ClientError> {
        client.embed(address, self).await
    }

    fn check(&self, answer: &EmbedResponse) -> Result<(), String> {
        let ragged = answer.sparse.iter().any(|vector| vector.indices.len() != vector.values.len());
        if ragged {
            return Err("a sparse vector with more places than numbers, or fewer".to_owned());
        }
        one_each("vectors", answer.vectors.len() + answer.sparse.len(), self.inputs.len())
    }

    fn prompt_tokens(answer: &EmbedResponse) -> u32 {
        answer.prompt_tokens
    }
}

impl Call for RerankRequest {
    type Answer = RerankResponse;
    const PATH: &'static str = "/rerank";
    const DEED: &'static str = "rerank documents";

    fn model(&self) -> &str {
        &self.model
    }

    fn model_mut(&mut self) -> &mut String {
        &mut self.model
    }

    fn request_id(&mut self) -> Option<&mut String> {
        Some(&mut self.request_id)
    }

    fn within(&self, timeout_ms: Option<u64>) -> Option<Self> {
        Some(Self { timeout_ms, ..self.clone() })
    }

    async fn over_grpc(&self, worker: &GrpcWorkerClient) -> Result<RerankResponse, ClientError> {
        worker.rerank(self).await
    }

    fn check(&self, answer: &RerankResponse) -> Result<(), String> {
        one_each("scores", answer.scores.len(), self.documents.len())?;
        finite(answer.scores.iter())
    }

    fn prompt_tokens(answer: &RerankResponse) -> u32 {
        answer.prompt_tokens
    }
}

impl Call for ClassifyRequest {
    type Answer = ClassifyResponse;
    const PATH: &'static str = "/classify";
    const DEED: &'static str = "classify texts";

    fn model(&self) -> &str {
        &self.model
    }

    fn model_mut(&mut self) -> &mut String {
        &mut self.model
    }

    fn request_id(&mut self) -> Option<&mut String> {
        Some(&mut self.request_id)
    }

    fn within(&self, timeout_ms: Option<u64>) -> Option<Self> {
        Some(Self { timeout_ms, ..self.clone() })
    }

    async fn over_grpc(&self, worker: &GrpcWorkerClient) -> Result<ClassifyResponse, ClientError> {
        worker.classify(self).await
    }

    fn check(&self, answer: &ClassifyResponse) -> Result<(), String> {
        one_each("results", answer.scores.len(), self.inputs.len())?;
        if answer.labels.is_empty() {
            return Err("no classes".to_owned());
        }
        answer.scores.iter().try_for_each(|scores| one_each("numbers", scores.len(), answer.labels.len()))?;
        finite(answer.scores.iter().flatten())
    }

    fn prompt_tokens(answer: &ClassifyResponse) -> u32 {
        answer.prompt_tokens
    }
}

impl Call for EntitiesRequest {
    type Answer = EntitiesResponse;
    const PATH: &'static str = "/entities";
    const DEED: &'static str = "find entities";

    fn model(&self) -> &str {
        &self.model
    }

    fn model_mut(&mut self) -> &mut String {
        &mut self.model
    }

    fn request_id(&mut self) -> Option<&mut String> {
        Some(&mut self.request_id)
    }

    fn within(&self, timeout_ms: Option<u64>) -> Option<Self> {
        Some(Self { timeout_ms, ..self.clone() })
    }

    async fn over_grpc(&self, worker: &GrpcWorkerClient) -> Result<EntitiesResponse, ClientError> {
        worker.entities(self).await
    }

    fn check(&self, answer: &EntitiesResponse) -> Result<(), String> {
        one_each("results", answer.entities.len(), self.inputs.len())?;
        finite(answer.entities.iter().flatten().map(|entity| &entity.score))
    }

    fn prompt_tokens(answer: &EntitiesResponse) -> u32 {
        answer.prompt_tokens
    }
}

impl Call for TokenizeRequest {
    type Answer = TokenizeResponse;
    const PATH: &'static str = "/tokenize";
    const IS_KEPT: bool = false;
    const DEED: &'static str = "tell tokens";

    fn model(&self) -> &str {
        &self.model
    }

    fn model_mut(&mut self) -> &mut String {
        &mut self.model
    }

    fn request_id(&mut self) -> Option<&mut String> {
        None
    }

    fn within(&self, _: Option<u64>) -> Option<Self> {
        None // it takes no time
    }

    async fn over_grpc(&self, worker: &GrpcWorkerClient) -> Result<TokenizeResponse, ClientError> {
        worker.tokenize(self).await
    }

    fn check(&self, answer: &TokenizeResponse) -> Result<(), String> {
        one_each("pieces", answer.pieces.len(), answer.tokens.len())
    }

    fn prompt_tokens(_: &TokenizeResponse) -> u32 {
        0 // no model has read them
    }
}

impl Call for DetokenizeRequest {
    type Answer = DetokenizeResponse;
    const PATH: &'static str = "/detokenize";
    const IS_KEPT: bool = false;
    const DEED: &'static str = "tell the text of tokens";

    fn model(&self) -> &str {
        &self.model
    }

    fn model_mut(&mut self) -> &mut String {
        &mut self.model
    }

    fn request_id(&mut self) -> Option<&mut String> {
        None
    }

    fn within(&self, _: Option<u64>) -> Option<Self> {
        None // it takes no time
    }

    async fn over_grpc(&self, worker: &GrpcWorkerClient) -> Result<DetokenizeResponse, ClientError> {
        worker.detokenize(self).await
    }

    fn check(&self, _: &DetokenizeResponse) -> Result<(), String> {
        Ok(())
    }

    fn prompt_tokens(_: &DetokenizeResponse) -> u32 {
        0
    }
}
