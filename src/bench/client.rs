//! One request to an OpenAI-compatible server, and when each piece of the answer came.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use muster_shared::secret::Secret;
use muster_shared::sse::{DONE, Decoder};
use muster_shared::tls::Tls;
use serde_json::{Map, Value, json};

use super::prompts::Prompt;
use crate::cli::EngineArgs;
use crate::config::base_url;

/// Longest event of an answer, in bytes.
const EVENT_LIMIT: usize = 1 << 20;
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// A server.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    /// Ends with `/v1`.
    base: String,
    key: Option<Secret>,
    model: String,
    /// Fields that are added to each request.
    extra: Map<String, Value>,
}

/// When an answer came.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub(super) sent: Instant,
    /// When each piece of text came; at least one.
    pub(super) pieces: Vec<Instant>,
    /// Tokens as the server counts them, else one a piece.
    pub(super) tokens: usize,
    /// Tokens of the prompt as the server counts them.
    pub(super) prompt_tokens: Option<usize>,
}

impl Answer {
    /// Time to the first token.
    pub(super) fn first(&self) -> Duration {
        self.pieces.first().map_or(Duration::ZERO, |&first| first - self.sent)
    }
}

impl Client {
    /// Asks the server for a model when none is named.
    pub(super) async fn new(args: &EngineArgs, url: &str) -> anyhow::Result<Self> {
        let url = base_url("--url", url)?;
        let extra = match args.remote.extra.as_deref() {
            Some(text) => serde_json::from_str(text)
                .with_context(|| format!("--extra `{text}` is no JSON object; write '{{\"top_k\": 1}}', say"))?,
            None => Map::new(),
        };
        // A connection for each request: none waits for another's, whatever the server allows.
        let http = reqwest::Client::builder().tls_backend_preconfigured(Tls::default().client_config());
        let http = http.connect_timeout(CONNECT).pool_max_idle_per_host(0).build()?;
        let mut client = Self {
            http,
            base: if url.ends_with("/v1") { url } else { format!("{url}/v1") },
            key: args.remote.api_key.clone(),
            model: String::new(),
            extra,
        };
        client.model = match &args.model {
            Some(model) => model.clone(),
            None => client.first_model().await?,
        };
        Ok(client)
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    async fn first_model(&self) -> anyhow::Result<String> {
        let models: Value = self.send(self.http.get(format!("{}/models", self.base))).await?.json().await?;
        let models = models["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        let chosen = models.iter().find(|model| model["kind"] != "embed").and_then(|model| model["id"].as_str());
        chosen.map(str::to_owned).context("the server lists no model that generates text; name one with --model")
    }

    /// Has a prompt continued by `new` tokens; calls `arrived` with the number of pieces at each.
    ///
    /// # Errors
    /// When no whole answer comes.
    pub(super) async fn ask(
        &self,
        prompt: &Prompt,
        new: usize,
        mut arrived: impl FnMut(usize),
    ) -> anyhow::Result<Answer> {
        let mut body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": true,
            "stream": true, "stream_options": { "include_usage": true },
        });
        body.as_object_mut().into_iter().for_each(|body| body.extend(self.extra.clone()));
        let sent = Instant::now();
        let request = self.http.post(format!("{}/completions", self.base)).json(&body);
        let mut response = self.send(request).await?;
        let (mut decoder, mut reading) = (Decoder::new(EVENT_LIMIT), Reading::default());
        while let Some(bytes) = response.chunk().await.context("the answer broke off")? {
            let now = Instant::now();
            for data in decoder.push(&bytes)? {
                if data == DONE {
                    return reading.end(sent);
                }
                if reading.event(&data, now)? {
                    arrived(reading.pieces.len());
                }
            }
        }
        bail!("the answer broke off before its end")
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        };
        let unreachable = || format!("cannot reach {}; is a server running there? (--url)", self.base);
        let response = request.send().await.with_context(unreachable)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body: Value = response.json().await.unwrap_or_default();
        bail!("the server answered {status}: {}", body["error"]["message"].as_str().unwrap_or("no reason given"))
    }
}

/// An answer of which more may come.
#[derive(Debug, Default)]
struct Reading {
    pieces: Vec<Instant>,
    usage: Value,
}

impl Reading {
    /// Takes an event; tells whether it was a piece of the answer.
    ///
    /// A token may bring no text yet (half a character, say) and counts all the same; an event without text that says
    /// why the answer ends is no token.
    fn event(&mut self, data: &str, now: Instant) -> anyhow::Result<bool> {
        let event: Value = serde_json::from_str(data).context("the server sent an event that is no JSON")?;
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            bail!("the answer broke off: {}", error["message"].as_str().unwrap_or("no reason given"));
        }
        if event["usage"].is_object() {
            self.usage = event["usage"].clone();
        }
        let choice = &event["choices"][0];
        let piece = choice["text"].as_str().is_some_and(|text| !text.is_empty() || choice["finish_reason"].is_null());
        if piece {
            self.pieces.push(now);
        }
        Ok(piece)
    }

    fn end(self, sent: Instant) -> anyhow::Result<Answer> {
        anyhow::ensure!(!self.pieces.is_empty(), "the answer has no text");
        let count = |name: &str| self.usage[name].as_u64().and_then(|count| usize::try_from(count).ok());
        Ok(Answer {
            sent,
            tokens: count("completion_tokens").unwrap_or(self.pieces.len()),
            prompt_tokens: count("prompt_tokens"),
            pieces: self.pieces,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_without_text_counts_and_the_end_of_an_answer_does_not() {
        let (mut reading, now) = (Reading::default(), Instant::now());
        for (event, piece) in [
            (r#"{"choices":[{"text":"a","finish_reason":null}]}"#, true),
            (r#"{"choices":[{"text":""}]}"#, true),
            (r#"{"choices":[{"text":"b","finish_reason":"length"}]}"#, true),
            (r#"{"choices":[{"text":"","finish_reason":"length"}]}"#, false),
            (r#"{"choices":[],"usage":{"completion_tokens":4,"prompt_tokens":9}}"#, false),
        ] {
            assert_eq!(reading.event(event, now).expect("an event"), piece, "{event}");
        }
        let answer = reading.end(now).expect("an answer");
        assert_eq!((answer.pieces.len(), answer.tokens, answer.prompt_tokens), (3, 4, Some(9)));
    }

    #[test]
    fn an_error_in_the_stream_is_told_in_the_servers_words() {
        let event = r#"{"error":{"message":"out of room"}}"#;
        let error = Reading::default().event(event, Instant::now()).expect_err("an error");
        assert!(error.to_string().contains("out of room"), "{error}");
        assert!(Reading::default().end(Instant::now()).is_err());
    }
}
