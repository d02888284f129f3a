//! `POST /v1/moderations`.

use std::time::Instant;

use axum::http::HeaderMap;
use bytes::Bytes;
use hyper::Response;
use muster_shared::control::{ModelKind, ModelStatus};
use muster_shared::problem::{Kind, Problem};
use serde_json::Value;

use crate::body::parse;
use crate::once;
use crate::openai::moderation::{ModerationBody, named};
use crate::openai::peek;
use crate::outgoing::Outgoing;
use crate::state::{Caller, State};

/// Judges texts. OpenAI has a model for whoever names none; here it is the only one that the fleet has.
///
/// # Errors
/// In words for the client.
pub(crate) async fn create(
    state: &State,
    caller: &Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Outgoing>, Problem> {
    let body = match peek::model(&body) {
        Some(_) => body,
        None => match parse(body.clone(), named).await? {
            Some(_) => body, // by a name that is none, as will be said
            None => {
                let model = usual(state, caller).await?;
                parse(body, move |body| with_model(body, model)).await?
            }
        },
    };
    once::answer::<ModerationBody>(state, caller, headers, body).await
}

/// The same request with a model.
fn with_model(body: &[u8], model: String) -> Result<Bytes, Problem> {
    let mut body: Value =
        serde_json::from_slice(body).map_err(|error| Problem::new(Kind::Invalid, error.to_string()))?;
    body["model"] = Value::String(model);
    Ok(body.to_string().into())
}

/// The only moderation model of the fleet that the key may use.
async fn usual(state: &State, caller: &Caller) -> Result<String, Problem> {
    let only = |mut models: Vec<ModelStatus>| {
        models.retain(|model| caller.key.as_ref().is_none_or(|key| key.may_use(&model.name)));
        only(models)
    };
    let known = only(state.upstream.view().models(Instant::now()));
    match known {
        Err(problem) if problem.kind == Kind::UnknownModel => only(state.upstream.models().await?),
        known => known,
    }
}

fn only(models: Vec<ModelStatus>) -> Result<String, Problem> {
    let mut names = models
        .into_iter()
        // An alias is no other model than those that it stands for.
        .filter(|model| model.kind == Some(ModelKind::Moderate) && model.stands_for.is_empty())
        .map(|model| model.name);
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name),
        (Some(first), Some(second)) => {
            let names = [first, second].into_iter().chain(names).map(|name| format!("`{name}`"));
            let names = names.collect::<Vec<_>>().join(", ");
            let message = format!("'model' is required, as there are several moderation models: {names}");
            Err(Problem::invalid("model", message))
        }
        (None, _) => {
            let message = "no moderation model is served; GET /v1/models lists what is";
            Err(Problem::new(Kind::UnknownModel, message).with_param("model"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(name: &str, kind: ModelKind) -> ModelStatus {
        ModelStatus { kind: Some(kind), ..ModelStatus::bare(name, 1) }
    }

    #[test]
    fn who_names_no_model_gets_the_only_one() {
        let (other, one) = (status("c", ModelKind::Classify), status("a", ModelKind::Moderate));
        assert_eq!(only(vec![other.clone(), one.clone()]), Ok("a".to_owned()));
        let problem = only(vec![one, status("b", ModelKind::Moderate)]).expect_err("two");
        assert!(problem.kind == Kind::Invalid && problem.message.contains("`a`, `b`"), "{problem}");
        assert_eq!(only(vec![other]).expect_err("none").kind, Kind::UnknownModel);
    }

    #[test]
    fn a_model_is_put_into_the_request() {
        let body = with_model(br#"{"input":"x","model":null}"#, "m".to_owned()).expect("an object");
        assert_eq!(body, r#"{"input":"x","model":"m"}"#);
    }
}
