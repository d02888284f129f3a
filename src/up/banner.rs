//! What `muster up` prints when it is ready.

use std::fmt::Write as _;

use muster_shared::control::{ModelKind, ModelStatus};

use crate::services::speaks_grpc;

/// A fleet as its user sees it.
pub(super) struct Banner<'a> {
    /// How this program was called.
    pub(super) program: &'a str,
    /// The gateway's base URL.
    pub(super) gateway: &'a str,
    /// Where the gateway speaks gRPC, if it does.
    pub(super) grpc: Option<&'a str>,
    /// The controller's base URL.
    pub(super) controller: &'a str,
    /// Whether clients must show a key.
    pub(super) keyed: bool,
    /// What is served.
    pub(super) models: &'a [ModelStatus],
}

impl Banner<'_> {
    /// Where everything is, and what to try.
    pub(super) fn text(&self) -> String {
        let Self { gateway, controller, .. } = self;
        let mut text = format!("muster is ready: OpenAI API at {gateway}/v1, controller at {controller}\n");
        if let Some(grpc) = self.grpc {
            let _ = writeln!(text, "{}", speaks_grpc("gateway", grpc));
        }
        let _ = writeln!(text, "in a browser: {gateway}/ to try the models, {controller}/ to see the fleet");
        for model in self.models {
            let _ = writeln!(text, "  model {} ({})", model.name, uses(model.kind));
        }
        text.push_str("\nTry it:\n");
        match self.models.iter().find(|model| is_language(model.kind)) {
            Some(model) => text.push_str(&self.chat(&model.name)),
            None => self.models.iter().for_each(|model| text.push_str(&self.example(model))),
        }
        text.push_str("\nCtrl-C stops it.");
        text
    }

    fn chat(&self, model: &str) -> String {
        let Self { gateway, program, .. } = self;
        let (question, key) = ("What is muster?", if self.keyed { "YOUR_KEY" } else { "none" });
        let own = if self.keyed { " --api-key YOUR_KEY" } else { "" };
        let curl = self.curl(
            "chat/completions",
            &format!(r#"{{"model": "{model}", "messages": [{{"role": "user", "content": "{question}"}}]}}"#),
        );
        format!(
            "{curl}  {program} chat --base-url {gateway}{own} \"{question}\"\n  \
             python3 -c \"from openai import OpenAI; c = OpenAI(base_url='{gateway}/v1', api_key='{key}'); \
             print(c.chat.completions.create(model='{model}', messages=[dict(role='user', content='{question}')])\
             .choices[0].message.content)\"   # pip install openai\n"
        )
    }

    /// What to ask a model that does not chat.
    fn example(&self, model: &ModelStatus) -> String {
        let name = &model.name;
        let of = |input: &str| format!(r#"{{"model": "{name}", "input": {input}}}"#);
        match model.kind {
            Some(ModelKind::Rerank) => self.curl(
                "rerank",
                &format!(
                    r#"{{"model": "{name}", "query": "a kitten", "documents": ["a young cat", "the stock market"]}}"#
                ),
            ),
            Some(ModelKind::Classify) => self.curl("classify", &of(r#"["what a lovely day", "it broke again"]"#)),
            Some(ModelKind::Moderate) => self.curl("moderations", &of(r#"["what a lovely day", "go away, you fool"]"#)),
            Some(ModelKind::Entities) => self.curl("classify", &of(r#""Ada Lovelace was born in London""#)),
            Some(ModelKind::Tensor) => {
                let key = if self.keyed { "-H 'authorization: Bearer YOUR_KEY' " } else { "" };
                format!("  curl {key}{}/v2/models/{name}   # its inputs and outputs\n", self.gateway)
            }
            Some(ModelKind::Embed | ModelKind::SparseEmbed | ModelKind::Generate) | None => {
                self.curl("embeddings", &of(r#"["a cat", "a kitten"]"#))
            }
        }
    }

    fn curl(&self, path: &str, body: &str) -> String {
        let key = if self.keyed { "-H 'authorization: Bearer YOUR_KEY' " } else { "" };
        format!("  curl {}/v1/{path} {key}-H 'content-type: application/json' -d '{body}'\n", self.gateway)
    }
}

/// A model of which nothing is known is most likely one, too.
fn is_language(kind: Option<ModelKind>) -> bool {
    matches!(kind, None | Some(ModelKind::Generate))
}

fn uses(kind: Option<ModelKind>) -> &'static str {
    match kind {
        None | Some(ModelKind::Generate) => "chat and completions",
        Some(ModelKind::Embed) => "embeddings",
        Some(ModelKind::SparseEmbed) => "sparse embeddings",
        Some(ModelKind::Rerank) => "rerank",
        Some(ModelKind::Classify) => "classify",
        Some(ModelKind::Moderate) => "moderations and classify",
        Some(ModelKind::Entities) => "classify: entities",
        Some(ModelKind::Tensor) => "tensors",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(keyed: bool, models: &[(&str, ModelKind)]) -> String {
        let status = |&(name, kind): &(&str, ModelKind)| ModelStatus { kind: Some(kind), ..ModelStatus::bare(name, 1) };
        let models: Vec<ModelStatus> = models.iter().map(status).collect();
        let (program, gateway, controller) = ("muster", "http://g", "http://c");
        Banner { program, gateway, grpc: None, controller, keyed, models: &models }.text()
    }

    #[test]
    fn the_hints_fit_what_is_served() {
        let chat = text(false, &[("e", ModelKind::Embed), ("c", ModelKind::Generate)]);
        assert!(chat.contains("curl http://g/v1/chat/completions") && chat.contains("model='c'"), "{chat}");
        assert!(!chat.contains("YOUR_KEY"), "{chat}");
        let embeddings = text(true, &[("e", ModelKind::Embed)]);
        assert!(embeddings.contains("curl http://g/v1/embeddings -H 'authorization: Bearer YOUR_KEY'"), "{embeddings}");
        assert!(embeddings.ends_with("Ctrl-C stops it."), "{embeddings}");
        for (kind, path) in [
            (ModelKind::SparseEmbed, "/v1/embeddings"),
            (ModelKind::Rerank, "/v1/rerank"),
            (ModelKind::Classify, "/v1/classify"),
            (ModelKind::Moderate, "/v1/moderations"),
            (ModelKind::Entities, "/v1/classify"),
            (ModelKind::Tensor, "/v2/models/m"),
        ] {
            let hints = text(true, &[("m", kind)]);
            assert!(hints.contains(path) && hints.contains("YOUR_KEY") && !hints.contains("chat"), "{kind:?}: {hints}");
        }
    }

    #[test]
    fn the_address_for_grpc_is_told_where_there_is_one() {
        assert!(!text(false, &[]).contains("gRPC"));
        let banner = Banner {
            program: "muster",
            gateway: "http://g",
            grpc: Some("http://g:1"),
            controller: "http://c",
            keyed: false,
            models: &[],
        };
        assert_eq!(banner.text().lines().nth(1), Some("gateway speaks gRPC on http://g:1"));
    }

    #[test]
    fn bodies_of_hints_are_json() {
        for kind in ModelKind::ALL {
            let hints = text(false, &[("m", kind)]);
            for body in hints.lines().filter_map(|line| line.split_once("-d '")?.1.strip_suffix('\'')) {
                let body: serde_json::Value = serde_json::from_str(body).expect(body);
                assert_eq!(body["model"], "m", "{kind:?}");
            }
        }
    }
}
