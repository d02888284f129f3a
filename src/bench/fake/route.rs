//! What a path means to a worker of each transport.

use crate::cli::FakeTransport;

/// One thing that a worker can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Whether it lives, and how much it has answered.
    Health,
    /// What it serves.
    Models,
    /// A chat, in OpenAI's words.
    Chat,
    /// A continued text, in OpenAI's words.
    Completion,
    /// Vectors, in the words of whichever transport.
    Embed,
    /// A continued prompt: in muster's words, or in FastChat's as a stream.
    Generate,
    /// The same in FastChat's words, whole.
    GenerateWhole,
    /// FastChat's: the length of a prompt.
    CountToken,
    /// FastChat's: the length of the context.
    ModelDetails,
    /// FastChat's: how a conversation becomes a prompt.
    Template,
    /// Nothing.
    Unknown,
}

impl Route {
    pub(super) fn of(transport: FakeTransport, path: &str) -> Self {
        match (transport, path) {
            (_, "/health" | "/healthz" | "/livez" | "/ready" | "/readyz") => Self::Health,
            (FakeTransport::Openai, "/v1/models")
            | (FakeTransport::Http, "/models")
            | (FakeTransport::Fastchat, "/worker_get_status") => Self::Models,
            (FakeTransport::Openai, "/v1/chat/completions") => Self::Chat,
            (FakeTransport::Openai, "/v1/completions") => Self::Completion,
            (FakeTransport::Openai, "/v1/embeddings")
            | (FakeTransport::Http, "/embed")
            | (FakeTransport::Fastchat, "/worker_get_embeddings") => Self::Embed,
            (FakeTransport::Http, "/generate") | (FakeTransport::Fastchat, "/worker_generate_stream") => Self::Generate,
            (FakeTransport::Fastchat, "/worker_generate") => Self::GenerateWhole,
            (FakeTransport::Fastchat, "/count_token") => Self::CountToken,
            (FakeTransport::Fastchat, "/model_details") => Self::ModelDetails,
            (FakeTransport::Fastchat, "/worker_get_conv_template") => Self::Template,
            _ => Self::Unknown,
        }
    }
}
