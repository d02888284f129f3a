//! The bodies of `/v1/models`.

use muster_shared::control::{ModelKind, ModelStatus};
use serde::Serialize;

use crate::endpoints;

/// `{"object": "list", "data": […]}`.
#[derive(Debug, Serialize)]
pub(crate) struct ModelList<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

/// One model. `kind`, `endpoints` and `context_length` are ours, the rest is OpenAI's and vLLM's.
#[derive(Debug, Serialize)]
pub(crate) struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    parent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<ModelKind>,
    /// The paths at which it can be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u32>,
}

/// All models, in the order given. `created`: seconds since 1970.
pub(crate) fn list(models: &[ModelStatus], created: u64) -> ModelList<'_> {
    ModelList { object: "list", data: models.iter().map(|model| one(model, created)).collect() }
}

/// One model. `created`: seconds since 1970.
pub(crate) fn one(model: &ModelStatus, created: u64) -> Model<'_> {
    Model {
        id: &model.name,
        object: "model",
        created,
        owned_by: "muster",
        root: &model.name,
        parent: None,
        kind: model.kind,
        endpoints: model.kind.map(|kind| endpoints::paths(&model.name, kind)),
        context_length: model.context_length,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn models_are_listed_with_what_is_known_of_them() {
        let model =
            |name: &str, kind, context_length| ModelStatus { kind, context_length, ..ModelStatus::bare(name, 1) };
        let models = [model("chat", Some(ModelKind::Generate), Some(2048)), model("other", None, None)];
        let expected = json!({ "object": "list", "data": [
            { "id": "chat", "object": "model", "created": 7, "owned_by": "muster", "root": "chat", "parent": null,
              "kind": "generate", "context_length": 2048,
              "endpoints": ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"] },
            { "id": "other", "object": "model", "created": 7, "owned_by": "muster", "root": "other", "parent": null },
        ]});
        assert_eq!(serde_json::to_value(list(&models, 7)).unwrap(), expected);
    }
}
