//! FastChat's worker API, so that FastChat's controller and gateway can use this worker.
//!
//! Errors travel as frames with status 200, as FastChat's gateway expects. Unlike FastChat's own worker this one
//! counts every token, never truncates a prompt without saying so, and gives its slot back however a request ends.

mod conversation;
mod frames;

use std::sync::Arc;

use axum::body::Body as ResponseBody;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::StreamExt as _;
use muster_shared::control::ModelKind;
use muster_shared::embed::{EmbedInput, EmbedRequest, Vector};
use muster_shared::fastchat::{
    ConversationReply, CountTokenParams, EmbeddingsParams, Frame, GenerateParams, ModelDetails, ModelQuery,
    StringOrList, TokenCount, WorkerStatus, error_code,
};
use muster_shared::generate::{GenerateRequest, Prompt, Sampling};
use muster_shared::problem::{Kind, Problem};
use muster_shared::serve::Body;

use crate::calls::blocking;
use crate::catalog::{Ability, Served};
use crate::language::{Excess, LanguageModel};
use crate::state::State;
use crate::text::TextModel;
pub(crate) use conversation::Markers;
use frames::Frames;

/// The seven routes.
pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/worker_generate_stream", post(generate_stream))
        .route("/worker_generate", post(generate))
        .route("/worker_get_embeddings", post(embeddings))
        .route("/worker_get_status", post(status))
        .route("/count_token", post(count_token))
        .route("/worker_get_conv_template", post(conversation_template))
        .route("/model_details", post(model_details))
}

/// What FastChat's peers are told of this worker.
pub(crate) fn worker_status(state: &State) -> WorkerStatus {
    let catalog = state.catalog().ok();
    let load = catalog.map(|catalog| catalog.load_report()).unwrap_or_default();
    WorkerStatus {
        model_names: catalog
            .map(|catalog| catalog.cards())
            .unwrap_or_default()
            .into_iter()
            .map(|card| card.name)
            .collect(),
        speed: state.stated_speed,
        queue_length: load.iter().map(|load| u64::from(load.running) + u64::from(load.waiting)).sum(),
    }
}

async fn status(Shared(state): Shared<Arc<State>>) -> Json<WorkerStatus> {
    Json(worker_status(&state))
}

async fn generate_stream(Shared(state): Shared<Arc<State>>, Body(params): Body<GenerateParams>) -> Response {
    match start(&state, params).await {
        Ok(frames) => {
            let body = frames.into_stream().map(|frame| Ok::<_, std::convert::Infallible>(encode(&frame)));
            ResponseBody::from_stream(body).into_response()
        }
        Err(problem) => ResponseBody::from(encode(&error_frame(&problem))).into_response(),
    }
}

async fn generate(Shared(state): Shared<Arc<State>>, Body(params): Body<GenerateParams>) -> Json<Frame> {
    match start(&state, params).await {
        Ok(frames) => Json(frames.last().await),
        Err(problem) => Json(error_frame(&problem)),
    }
}

/// Starts an answer.
async fn start(state: &Arc<State>, params: GenerateParams) -> Result<Frames, Problem> {
    let model = language(state, &params.model)?;
    let request = request(&model, &params, state.markers(&model.name).parse(&params.prompt))?;
    model.check_room()?;
    let (model, prepared) = blocking(move || {
        // FastChat's gateway asks for all that is left of the context as it counts.
        let prepared = model.prepare(&request, Excess::Cut)?;
        Ok((model, prepared))
    })
    .await?;
    let echo = if params.echo { params.prompt } else { String::new() };
    Ok(Frames::new(model.generate(prepared)?.boxed(), echo, params.logprobs.is_some()))
}

/// Translates FastChat's parameters.
fn request(model: &LanguageModel, params: &GenerateParams, prompt: Prompt) -> Result<GenerateRequest, Problem> {
    let greedy = params.temperature < 1e-5 || params.top_p < 1e-8;
    let top_k = match params.top_k {
        -1 | 0 => 0,
        k => u32::try_from(k)
            .map_err(|_| Problem::invalid("top_k", format!("top_k is {k}; it must be -1 or at least 1")))?,
    };
    Ok(GenerateRequest {
        sampling: Sampling {
            temperature: if greedy { 0.0 } else { params.temperature },
            top_p: params.top_p,
            top_k,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            ..Sampling::default()
        },
        max_tokens: Some(params.max_new_tokens),
        stop: params.stop.clone().map(StringOrList::into_vec).unwrap_or_default(),
        stop_token_ids: params.stop_token_ids.clone().unwrap_or_default(),
        logprobs: params.logprobs.map(|_| 0),
        ..GenerateRequest::new(model.name.clone(), prompt)
    })
}

async fn embeddings(Shared(state): Shared<Arc<State>>, Body(params): Body<EmbeddingsParams>) -> Response {
    match embed(&state, params).await {
        Ok(reply) => Json(reply).into_response(),
        Err(problem) => Json(error_frame(&problem)).into_response(),
    }
}

async fn embed(state: &Arc<State>, params: EmbeddingsParams) -> Result<serde_json::Value, Problem> {
    let model = embedding(state, &params.model)?;
    if model.task.kind() == ModelKind::SparseEmbed {
        let message = format!("model `{}` gives sparse vectors, for which FastChat has no words", model.name);
        return Err(Problem::invalid("model", message));
    }
    let base64 = params.encoding_format.as_deref() == Some("base64");
    let request = EmbedRequest {
        model: model.name.clone(),
        inputs: params.input.into_iter().map(EmbedInput::Text).collect(),
        ..EmbedRequest::default()
    };
    let response = model.embed(request).await?;
    let encode = |Vector(numbers): Vector| {
        if base64 { Vector(numbers).to_base64().into() } else { serde_json::Value::from(numbers) }
    };
    let vectors: Vec<serde_json::Value> = response.vectors.into_iter().map(encode).collect();
    Ok(serde_json::json!({ "embedding": vectors, "token_num": response.prompt_tokens }))
}

async fn count_token(Shared(state): Shared<Arc<State>>, Body(params): Body<CountTokenParams>) -> Response {
    let count = async {
        let model = language(&state, &params.model)?;
        let prompt = state.markers(&model.name).parse(&params.prompt);
        blocking(move || model.count(&prompt)).await
    };
    match count.await {
        Ok(count) => Json(TokenCount { count, error_code: 0 }).into_response(),
        Err(problem) => Json(error_frame(&problem)).into_response(),
    }
}

async fn conversation_template(
    Shared(state): Shared<Arc<State>>,
    Body(query): Body<ModelQuery>,
) -> Result<Json<ConversationReply>, Problem> {
    let name = language(&state, &query.model)?.name.clone();
    Ok(Json(ConversationReply { conv: state.markers(&name).conversation(&name) }))
}

async fn model_details(
    Shared(state): Shared<Arc<State>>,
    Body(query): Body<ModelQuery>,
) -> Result<Json<ModelDetails>, Problem> {
    let context = match language(&state, &query.model) {
        Ok(model) => model.context(),
        Err(_) => text(&state, &query.model)?.max_tokens,
    };
    Ok(Json(ModelDetails { context_length: u32::try_from(context).unwrap_or(u32::MAX) }))
}

/// A language model by name; without a name the only one, as FastChat's single-model worker ignores the name.
fn language(state: &State, name: &str) -> Result<Arc<LanguageModel>, Problem> {
    let catalog = state.catalog()?;
    if name.is_empty() {
        let mut models = catalog.models().filter_map(|served| match served {
            Served::Language(model) => Some(model),
            Served::Text(_) => None,
        });
        if let (Some(only), None) = (models.next(), models.next()) {
            return Ok(Arc::clone(only));
        }
    }
    catalog.language(name).cloned()
}

/// An embedding model by name; without a name the only one.
fn embedding(state: &State, name: &str) -> Result<Arc<TextModel>, Problem> {
    let catalog = state.catalog()?;
    if name.is_empty() {
        let mut models = catalog.texts().filter(|model| Ability::Embed.is_of(model.task.kind()));
        if let (Some(only), None) = (models.next(), models.next()) {
            return Ok(Arc::clone(only));
        }
    }
    catalog.text(name, Ability::Embed).cloned()
}

/// A model that reads whole texts, by name; without a name the only one.
fn text(state: &State, name: &str) -> Result<Arc<TextModel>, Problem> {
    let catalog = state.catalog()?;
    let mut models = catalog.texts().filter(|model| name.is_empty() || model.name == name);
    match (models.next(), models.next()) {
        (Some(only), None) => Ok(Arc::clone(only)),
        _ => catalog.text(name, Ability::Embed).cloned(),
    }
}

/// A frame as it travels: JSON and a byte 0.
fn encode(frame: &Frame) -> Bytes {
    let mut bytes = serde_json::to_vec(frame).expect("our own types are JSON");
    bytes.push(0);
    bytes.into()
}

/// An error as FastChat's peers understand it.
fn error_frame(problem: &Problem) -> Frame {
    let error_code = match problem.kind {
        Kind::PromptTooLong => error_code::CONTEXT_OVERFLOW,
        Kind::UnknownModel => error_code::INVALID_MODEL,
        Kind::Invalid => error_code::PARAM_OUT_OF_RANGE,
        Kind::Overloaded | Kind::NoWorker => error_code::ENGINE_OVERLOADED,
        _ => error_code::INTERNAL,
    };
    Frame { text: problem.message.clone(), error_code, usage: None, finish_reason: None, logprobs: None }
}
