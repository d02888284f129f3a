//! What servers say of their models. Pure: bytes come in.

use muster_shared::control::{ModelCard, ModelKind};
use muster_shared::fastchat::WorkerStatus;
use serde::Deserialize;

use crate::config::Offer;

/// OpenAI's list, with what muster, vLLM and llama.cpp say besides.
#[derive(Deserialize)]
struct OpenAiList {
    data: Vec<OpenAiModel>,
}

#[derive(Deserialize)]
struct OpenAiModel {
    id: String,
    /// Muster's.
    #[serde(default, deserialize_with = "lenient")]
    kind: Option<ModelKind>,
    /// Muster's.
    #[serde(default, deserialize_with = "lenient")]
    context_length: Option<u32>,
    /// vLLM's.
    #[serde(default, deserialize_with = "lenient")]
    max_model_len: Option<u32>,
    /// llama.cpp's.
    #[serde(default, deserialize_with = "lenient")]
    meta: Option<Meta>,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default, deserialize_with = "lenient")]
    n_ctx: Option<u32>,
}

/// A field that others may use for something else.
fn lenient<'de, D: serde::Deserializer<'de>, T: serde::de::DeserializeOwned>(value: D) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(value)?;
    Ok(serde_json::from_value(value).ok())
}

/// Reads the answer to `GET /v1/models`.
///
/// # Errors
/// Why it is none.
pub(super) fn openai(body: &[u8]) -> Result<Vec<ModelCard>, String> {
    let list: OpenAiList = read(body, "OpenAI's list of models")?;
    let card = |model: OpenAiModel| {
        let said = model.context_length.or(model.max_model_len);
        let context_length = said.or(model.meta.and_then(|meta| meta.n_ctx));
        ModelCard { kind: model.kind, context_length, ..ModelCard::bare(model.id) }
    };
    Ok(list.data.into_iter().map(card).collect())
}

/// Reads the answer to `POST /worker_get_status`.
///
/// # Errors
/// Why it is none.
pub(super) fn fastchat(body: &[u8]) -> Result<Vec<ModelCard>, String> {
    let status: WorkerStatus = read(body, "the state of a FastChat worker")?;
    Ok(status.model_names.into_iter().map(ModelCard::bare).collect())
}

/// Reads the answer to `GET /models`.
///
/// # Errors
/// Why it is none.
pub(super) fn native(body: &[u8]) -> Result<Vec<ModelCard>, String> {
    read(body, "the models of a muster worker")
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8], what: &str) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("something else than {what} ({error})"))
}

/// What is offered of a server that lists those models: the ones that the user names, or all, each once, by name.
pub(super) fn offered(listed: Vec<ModelCard>, offer: &Offer) -> Vec<ModelCard> {
    let mut cards = match offer.models.as_slice() {
        [] => listed,
        // A server may answer to names that it does not list.
        names => names.iter().map(|name| known(&listed, name)).collect(),
    };
    cards.retain(|card| !card.name.is_empty());
    cards.sort_by(|one, other| one.name.cmp(&other.name)); // an order that changes is no change
    cards.dedup_by(|one, other| one.name == other.name);
    for card in &mut cards {
        card.capacity = offer.capacity.or(card.capacity);
    }
    cards
}

fn known(listed: &[ModelCard], name: &str) -> ModelCard {
    let card = listed.iter().find(|card| card.name == name);
    card.cloned().unwrap_or_else(|| ModelCard::bare(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use muster_shared::control::Capacity;
    use muster_shared::transport::Transport;
    use serde_json::json;

    use super::*;

    fn offer(models: &[&str]) -> Offer {
        let models = models.iter().map(|&name| name.to_owned()).collect();
        Offer { transport: Transport::OpenAi, models, capacity: None, speed: 1.0 }
    }

    fn card(name: &str, kind: Option<ModelKind>, context_length: Option<u32>) -> ModelCard {
        ModelCard { kind, context_length, ..ModelCard::bare(name.to_owned()) }
    }

    #[test]
    fn lists_of_many_servers_are_read() {
        let list = json!({ "object": "list", "data": [
            { "id": "muster", "object": "model", "kind": "embed", "context_length": 512 },
            { "id": "vllm", "object": "model", "max_model_len": 4096, "permission": [] },
            { "id": "llama.cpp", "meta": { "n_ctx": 8192, "n_ctx_train": 32768 } },
            { "id": "other", "kind": "chat.large", "context_length": "long", "meta": null },
        ]});
        let expected = [
            card("muster", Some(ModelKind::Embed), Some(512)),
            card("vllm", None, Some(4096)),
            card("llama.cpp", None, Some(8192)),
            card("other", None, None),
        ];
        assert_eq!(openai(list.to_string().as_bytes()).expect("a list"), expected);
    }

    #[test]
    fn what_is_no_list_is_said_to_be_none() {
        for body in ["", "<html>", "[]", "{}", r#"{"data": [{"name": "x"}]}"#, r#"{"data": "x"}"#] {
            let error = openai(body.as_bytes()).expect_err(body);
            assert!(error.contains("OpenAI's list of models"), "{error}");
        }
        assert!(fastchat(b"{}").expect_err("no state").contains("FastChat"));
        assert!(native(b"{}").expect_err("no models").contains("muster worker"));
    }

    #[test]
    fn the_models_of_workers_are_read() {
        let status = br#"{"model_names": ["a", "b"], "speed": 1, "queue_length": 0}"#;
        assert_eq!(fastchat(status).expect("a state"), [ModelCard::bare("a"), ModelCard::bare("b")]);
        let models = br#"[{"name": "a", "kind": "generate", "capacity": {"running": 1, "waiting": 2}}]"#;
        let capacity = Some(Capacity { running: 1, waiting: 2 });
        assert_eq!(
            native(models).expect("models"),
            [ModelCard { capacity, ..card("a", Some(ModelKind::Generate), None) }]
        );
    }

    #[test]
    fn all_that_is_listed_is_offered_once_and_in_order() {
        let listed = ["b", "", "a", "b"].map(|name| ModelCard::bare(name.to_owned())).to_vec();
        let names: Vec<_> = offered(listed, &offer(&[])).into_iter().map(|card| card.name).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn named_models_are_offered_with_what_the_server_says_of_them() {
        let listed = vec![card("a", None, Some(7)), card("b", None, None)];
        let capacity = Some(Capacity { running: 2, waiting: 0 });
        let offer = Offer { capacity, ..offer(&["a", "alias"]) };
        let expected =
            [ModelCard { capacity, ..card("a", None, Some(7)) }, ModelCard { capacity, ..ModelCard::bare("alias") }];
        assert_eq!(offered(listed, &offer), expected);
    }
}
