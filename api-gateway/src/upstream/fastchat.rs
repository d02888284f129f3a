//! Calls FastChat workers: what their own gateway does, without what it loses on the way.
//!
//! FastChat's gateway renders prompts, counts their tokens at the worker, and reads answers as frames of cumulative
//! text. All of that is translated here, so that the rest of the gateway sees the same events as of our own workers.
//! What FastChat's words cannot say is refused by name, never dropped.

mod answer;
mod call;
mod conversation;
pub(crate) mod frames;
mod request;
mod templates;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future;
use futures_util::stream::BoxStream;
use muster_shared::client::ClientError;
use muster_shared::embed::{EmbedRequest, EmbedResponse, Vector};
use muster_shared::fastchat::{
    Conversation, ConversationReply, CountTokenParams, EmbeddingsParams, GenerateParams, ModelDetails, ModelQuery,
    TokenCount,
};
use muster_shared::generate::{Event, GenerateRequest, Prompt};
use muster_shared::secret::Secret;
use serde::Deserialize;

use call::Worker;
use templates::Templates;

/// Calls FastChat workers; one for the gateway, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct FastChatClient {
    http: reqwest::Client,
    embed_http: reqwest::Client,
    token: Option<Secret>,
    embedding_batch: NonZeroUsize,
    templates: Arc<Templates>,
}

impl FastChatClient {
    /// A client that sends `token`, if any, as a bearer, and at most `embedding_batch` texts in one call, through
    /// `embed_http`: its silences are long.
    pub(crate) fn new(
        http: reqwest::Client,
        embed_http: reqwest::Client,
        token: Option<Secret>,
        embedding_batch: NonZeroUsize,
    ) -> Self {
        Self { http, embed_http, token, embedding_batch, templates: Arc::default() }
    }

    /// Continues a prompt on the worker at `address`. Dropping the stream cancels: that closes the connection.
    ///
    /// Returns when the first frame is there, so that a refusal can be answered by asking another worker.
    ///
    /// # Errors
    /// See [`ClientError`]; what FastChat cannot do is [`ClientError::Refused`], before anything is sent.
    pub(crate) async fn generate(
        &self,
        address: &str,
        request: &GenerateRequest,
    ) -> Result<BoxStream<'static, Result<Event, ClientError>>, ClientError> {
        let worker = Worker::new(self.http.clone(), address, self.token.clone());
        request::check(request).map_err(|problem| worker.refused(problem))?;
        let (params, prompt_tokens) = self.params(&worker, request).await?;
        let params = Arc::new(params);
        let choices = (0..request.choices.max(1)).map(|choice| answer::choice(worker.clone(), params.clone(), choice));
        answer::events(&worker, choices, prompt_tokens).await
    }

    /// Embeds texts on the worker at `address`, batch after batch.
    ///
    /// The worker decides itself what becomes of a text that is too long; FastChat has no word for it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn embed(&self, address: &str, request: &EmbedRequest) -> Result<EmbedResponse, ClientError> {
        let worker = Worker::new(self.embed_http.clone(), address, self.token.clone());
        let texts = request::embedding_texts(request).map_err(|problem| worker.refused(problem))?;
        let mut response = EmbedResponse { vectors: Vec::with_capacity(texts.len()), ..EmbedResponse::default() };
        for batch in texts.chunks(self.embedding_batch.get()) {
            let params = EmbeddingsParams {
                model: request.model.clone(),
                input: batch.to_vec(),
                encoding_format: Some("base64".to_owned()),
            };
            let reply: EmbeddingsReply = worker.ask("/worker_get_embeddings", &params).await?;
            response.prompt_tokens = response.prompt_tokens.saturating_add(reply.token_num);
            if reply.embedding.len() != batch.len() {
                return Err(worker.junk(format!("{} vectors for {} inputs", reply.embedding.len(), batch.len())));
            }
            for vector in reply.embedding {
                response
                    .vectors
                    .push(vector.decode().ok_or_else(|| worker.junk("a vector that is no base64 of floats"))?);
            }
        }
        Ok(response)
    }

    /// What the worker is to be sent, and the length of the prompt in tokens.
    async fn params(&self, worker: &Worker, request: &GenerateRequest) -> Result<(GenerateParams, u32), ClientError> {
        let template = self.template(worker, &request.model).await?;
        let prompt = match &request.prompt {
            Prompt::Chat(chat) => conversation::render(&template, chat),
            Prompt::Text(text) => Ok(text.clone()),
            Prompt::Tokens(_) => Err(request::no_tokens("prompt")),
        };
        let prompt = prompt.map_err(|problem| worker.refused(problem))?;
        let count = CountTokenParams { model: request.model.clone(), prompt: prompt.clone() };
        let query = ModelQuery { model: request.model.clone() };
        let (counted, details): (TokenCount, ModelDetails) =
            future::try_join(worker.ask("/count_token", &count), worker.ask("/model_details", &query)).await?;
        let room = request::room(request, counted.count, details.context_length);
        let max_new_tokens = room.map_err(|problem| worker.refused(problem))?;
        Ok((request::params(request, &template, prompt, max_new_tokens), counted.count))
    }

    /// The worker's conversation template, which also says where its answers stop.
    async fn template(&self, worker: &Worker, model: &str) -> Result<Arc<Conversation>, ClientError> {
        if let Some(template) = self.templates.get(&worker.address, model, Instant::now()) {
            return Ok(template);
        }
        let query = ModelQuery { model: model.to_owned() };
        let reply: ConversationReply = worker.ask("/worker_get_conv_template", &query).await?;
        let template = Arc::new(reply.conv);
        self.templates.put(&worker.address, model, Arc::clone(&template), Instant::now());
        Ok(template)
    }
}

/// Answer of the worker's `/worker_get_embeddings`.
#[derive(Debug, Deserialize)]
struct EmbeddingsReply {
    embedding: Vec<AnyVector>,
    token_num: u32,
}

/// A vector in either of FastChat's forms: older workers do not know base64.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum AnyVector {
    Base64(String),
    Numbers(Vec<f32>),
}

impl AnyVector {
    fn decode(self) -> Option<Vector> {
        match self {
            Self::Base64(text) => Vector::from_base64(&text),
            Self::Numbers(numbers) => Some(Vector(numbers)),
        }
    }
}
