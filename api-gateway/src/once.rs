//! Requests that a worker answers in one message: embeddings, scores, classes, entities, tokens.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use hyper::Response;
use muster_shared::control::ModelKind;
use muster_shared::problem::{Kind, Problem};

use crate::body::parse;
use crate::chat::head;
use crate::openai::endpoint::Endpoint;
use crate::openai::peek;
use crate::outgoing::{Outgoing, json};
use crate::state::{Caller, State};
use crate::upstream::call::Call;
use crate::upstream::passthrough::Raw;
use crate::upstream::{Begun, Question, Whole};

/// Answers a request.
///
/// # Errors
/// In words for the client.
pub(crate) async fn answer<E: Endpoint>(
    state: &State,
    caller: &Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Outgoing>, Problem> {
    let named = peek::model(&body);
    if let Some(model) = &named {
        state.upstream.check(model, E::ROUTE)?;
    }
    let kind = named.as_deref().and_then(|model| state.upstream.kind(model));
    let mut asked = Asked::<E> { id: Arc::clone(&caller.id.0), body: body.clone(), kind, raw: None, read: None };
    let model = match named.filter(|model| state.upstream.may_pass(model)) {
        Some(model) => {
            asked.raw = Some(Raw::new(E::ROUTE.passed_to(), headers, body, false));
            model
        }
        None => asked.read().await?.model().to_owned(),
    };
    let job = state.upstream.job(caller, &model)?;
    let Whole { model, answer } = match state.upstream.ask(&mut asked, job).await? {
        Begun::Passed(response) => return Ok(response),
        Begun::Ours(whole) => whole,
    };
    let Some((call, form)) = asked.read else {
        return Err(Problem::new(Kind::Bug, "an answer came to a request that was not read"));
    };
    Ok(json(StatusCode::OK, &E::reply(head(E::PREFIX, &model), &call, form, answer)?))
}

/// A request as a client sent it, read when a worker wants it in our words.
struct Asked<E: Endpoint> {
    id: Arc<str>,
    body: Bytes,
    /// What the model can be asked for, where known.
    kind: Option<ModelKind>,
    raw: Option<Raw>,
    read: Option<(Arc<E::Call>, E::Form)>,
}

impl<E: Endpoint> Question for Asked<E> {
    type Ours = E::Call;

    fn raw(&self) -> Option<&Raw> {
        self.raw.as_ref()
    }

    async fn read(&mut self) -> Result<Arc<E::Call>, Problem> {
        if let Some((call, _)) = &self.read {
            return Ok(Arc::clone(call));
        }
        let (mut call, mut form) = parse(self.body.clone(), E::parse).await?;
        if let Some(kind) = self.kind {
            E::suit(&mut form, kind)?;
        }
        if let Some(id) = call.request_id() {
            *id = self.id.to_string();
        }
        let call = Arc::new(call);
        self.read = Some((Arc::clone(&call), form));
        Ok(call)
    }
}
