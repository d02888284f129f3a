//! What `muster up` prints when it is ready.

use std::fmt::Write as _;

use muster_shared::control::{ModelKind, ModelStatus};

/// A fleet as its user sees it.
pub(super) struct Banner<'a> {
    /// How this program was called.
    pub(super) program: &'a str,
    /// The gateway's base URL.
    pub(super) gateway: &'a str,
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
        for model in self.models {
            let kind = if embeds(model) { "embeddings" } else { "chat and completions" };
            let _ = writeln!(text, "  model {} ({kind})", model.name);
        }
        text.push_str("\nTry it:\n");
        match self.models.iter().find(|model| !embeds(model)) {
            Some(model) => text.push_str(&self.chat(&model.name)),
            None => self.models.iter().for_each(|model| text.push_str(&self.embeddings(&model.name))),
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

    fn embeddings(&self, model: &str) -> String {
        self.curl("embeddings", &format!(r#"{{"model": "{model}", "input": ["a cat", "a kitten"]}}"#))
    }

    fn curl(&self, path: &str, body: &str) -> String {
        let key = if self.keyed { "-H 'authorization: Bearer YOUR_KEY' " } else { "" };
        format!("  curl {}/v1/{path} {key}-H 'content-type: application/json' -d '{body}'\n", self.gateway)
    }
}

fn embeds(model: &ModelStatus) -> bool {
    model.kind == Some(ModelKind::Embed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(keyed: bool, models: &[(&str, ModelKind)]) -> String {
        let status = |&(name, kind): &(&str, ModelKind)| ModelStatus {
            name: name.to_owned(),
            kind: Some(kind),
            context_length: None,
            workers: 1,
        };
        let models: Vec<ModelStatus> = models.iter().map(status).collect();
        Banner { program: "muster", gateway: "http://g", controller: "http://c", keyed, models: &models }.text()
    }

    #[test]
    fn the_hints_fit_what_is_served() {
        let chat = text(false, &[("e", ModelKind::Embed), ("c", ModelKind::Generate)]);
        assert!(chat.contains("curl http://g/v1/chat/completions") && chat.contains("model='c'"), "{chat}");
        assert!(!chat.contains("YOUR_KEY"), "{chat}");
        let embeddings = text(true, &[("e", ModelKind::Embed)]);
        assert!(embeddings.contains("curl http://g/v1/embeddings -H 'authorization: Bearer YOUR_KEY'"), "{embeddings}");
        assert!(embeddings.ends_with("Ctrl-C stops it."), "{embeddings}");
    }
}
