//! What a worker can be asked in muster's own words, whichever transport brings them.

use std::sync::Arc;

use futures_util::stream::Stream;
use muster_shared::embed::{EmbedRequest, EmbedResponse};
use muster_shared::generate::{Event, GenerateRequest};
use muster_shared::problem::{Kind, Problem};
use muster_shared::text::{
    ClassifyRequest, ClassifyResponse, DetokenizeRequest, DetokenizeResponse, EntitiesRequest, EntitiesResponse,
    RerankRequest, RerankResponse, TokenizeRequest, TokenizeResponse,
};
use muster_shared::trace::Context;
use tokio::time::{Duration, Instant};
use tokio_stream::StreamExt as _;

use crate::catalog::Ability;
use crate::language::Excess;
use crate::state::State;
use crate::text::tokenize;

/// Silence after which a stream says that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// Continues a prompt. The stream owns the request: dropping it cancels. `None` is a sign of life: a request that waits,
/// or whose prompt is long, is not a dead one.
pub(crate) async fn generate(
    state: &State,
    request: GenerateRequest,
    trace: Option<Context>,
) -> Result<impl Stream<Item = Option<Event>> + Send + use<>, Problem> {
    let model = Arc::clone(state.catalog()?.language(&request.model)?);
    tracing::debug!(request_id = request.request_id, model = request.model, "generate");
    if request.resume.is_none() {
        model.check_room()?; // an answer that is resumed may need none: its tokens may end it
    }
    let (model, prepared) = blocking(move || {
        let prepared = model.prepare(&request, Excess::Refuse)?.traced(trace.as_ref());
        Ok((model, prepared))
    })
    .await?;
    let events = Box::pin(model.generate(prepared)?);
    let ticks = tokio::time::interval_at(Instant::now() + SIGN_OF_LIFE, SIGN_OF_LIFE);
    Ok(events.timeout_repeating(ticks).map(Result::ok))
}

/// Embeds texts.
pub(crate) async fn embed(state: &State, request: EmbedRequest) -> Result<EmbedResponse, Problem> {
    let model = Arc::clone(state.catalog()?.text(&request.model, Ability::Embed)?);
    tracing::debug!(request_id = request.request_id, model = request.model, "embed");
    model.embed(request).await
}

/// Scores texts by how well they answer a query.
pub(crate) async fn rerank(state: &State, request: RerankRequest) -> Result<RerankResponse, Problem> {
    let model = Arc::clone(state.catalog()?.text(&request.model, Ability::Rerank)?);
    tracing::debug!(request_id = request.request_id, model = request.model, "rerank");
    model.rerank(request).await
}

/// Classifies texts.
pub(crate) async fn classify(state: &State, request: ClassifyRequest) -> Result<ClassifyResponse, Problem> {
    let model = Arc::clone(state.catalog()?.text(&request.model, Ability::Classify)?);
    tracing::debug!(request_id = request.request_id, model = request.model, "classify");
    model.classify(request).await
}

/// Finds entities in texts.
pub(crate) async fn entities(state: &State, request: EntitiesRequest) -> Result<EntitiesResponse, Problem> {
    let model = Arc::clone(state.catalog()?.text(&request.model, Ability::Entities)?);
    tracing::debug!(request_id = request.request_id, model = request.model, "entities");
    model.entities(request).await
}

/// Tells the tokens of a prompt.
pub(crate) async fn tokenize(state: &State, request: TokenizeRequest) -> Result<TokenizeResponse, Problem> {
    let model = state.catalog()?.vocabulary(&request.model)?;
    blocking(move || tokenize::tokenize(&*model, &request)).await
}

/// Tells the text of tokens.
pub(crate) async fn detokenize(state: &State, request: DetokenizeRequest) -> Result<DetokenizeResponse, Problem> {
    let model = state.catalog()?.vocabulary(&request.model)?;
    blocking(move || tokenize::detokenize(&*model, &request)).await
}

/// Runs work that takes time in proportion to a prompt's length, off the threads that serve.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let crashed = |_| Problem::new(Kind::Bug, "preparing the request crashed");
    tokio::task::spawn_blocking(work).await.map_err(crashed)?
}
