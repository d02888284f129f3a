//! `muster chat`: a conversation in the terminal, with any OpenAI-compatible gateway.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use muster_shared::sse::{DONE, Decoder};
use muster_shared::tls::hint;
use serde_json::{Value, json};

use crate::cli::ChatArgs;

/// Longest event of an answer, in bytes.
const EVENT_LIMIT: usize = 1 << 20;

/// Answers one question, or talks until the end of the input.
pub(crate) async fn run(args: ChatArgs) -> anyhow::Result<()> {
    let gateway = Gateway::new(&args)?;
    let model = match args.model {
        Some(model) => model,
        None => gateway.first_model().await?,
    };
    let mut talk = Talk { gateway, model, temperature: args.temperature, messages: Vec::new() };
    if let Some(system) = args.system {
        talk.messages.push(json!({ "role": "system", "content": system }));
    }
    match args.message {
        Some(message) => talk.ask(message).await,
        None => talk.go_on().await,
    }
}

/// An OpenAI-compatible address.
struct Gateway {
    http: reqwest::Client,
    base: String,
    key: Option<muster_shared::secret::Secret>,
}

impl Gateway {
    fn new(args: &ChatArgs) -> anyhow::Result<Self> {
        let given = args.base_url.trim_end_matches('/');
        let base = if given.ends_with("/v1") { given.to_owned() } else { format!("{given}/v1") };
        let is_url = ["http://", "https://"].iter().any(|scheme| base.starts_with(scheme));
        anyhow::ensure!(is_url, "`{given}` must begin with http:// or https://");
        let http = reqwest::Client::builder().tls_backend_preconfigured(args.tls.load()?.client_config());
        let http = http.connect_timeout(Duration::from_secs(5)).build()?;
        Ok(Self { http, base, key: args.api_key.clone() })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        };
        let response = request.send().await.map_err(|error| {
            let way_out = hint(&error).unwrap_or("is a gateway running there? (--base-url)");
            anyhow::Error::from(error).context(format!("cannot reach {}; {way_out}", self.base))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body: Value = response.json().await.unwrap_or_default();
        bail!("the gateway answered {status}: {}", body["error"]["message"].as_str().unwrap_or("no reason given"))
    }

    /// The first model that answers chats, as far as the gateway tells.
    async fn first_model(&self) -> anyhow::Result<String> {
        let models: Value = self.send(self.http.get(format!("{}/models", self.base))).await?.json().await?;
        let models = models["data"].as_array().cloned().unwrap_or_default();
        let embeds = |model: &&Value| model["kind"] == "embed";
        let chosen = models.iter().find(|model| !embeds(model)).and_then(|model| model["id"].as_str());
        chosen.map(str::to_owned).context("the gateway serves no model that answers chats")
    }
}

/// A conversation so far.
struct Talk {
    gateway: Gateway,
    model: String,
    temperature: f32,
    messages: Vec<Value>,
}

impl Talk {
    /// Reads questions until the end of the input.
    async fn go_on(&mut self) -> anyhow::Result<()> {
        let terminal = std::io::stdin().is_terminal();
        if terminal {
            println!("Talking with {}. Ctrl-D ends it.", self.model);
        }
        let mut failed = 0;
        while let Some(line) = read_line(terminal).await? {
            if line.trim().is_empty() {
                continue;
            }
            if let Err(error) = self.ask(line.trim().to_owned()).await {
                eprintln!("muster: {error:#}");
                self.messages.pop(); // the question without an answer
                failed += 1;
            }
        }
        // Who types has seen it; a script sees the exit code.
        anyhow::ensure!(terminal || failed == 0, "{failed} questions have no answer");
        Ok(())
    }

    /// Asks one question, and prints the answer as it comes.
    async fn ask(&mut self, question: String) -> anyhow::Result<()> {
        self.messages.push(json!({ "role": "user", "content": question }));
        let body = json!({
            "model": self.model, "messages": self.messages, "temperature": self.temperature, "stream": true,
        });
        let request = self.gateway.http.post(format!("{}/chat/completions", self.gateway.base)).json(&body);
        let answer = print_stream(self.gateway.send(request).await?).await?;
        self.messages.push(json!({ "role": "assistant", "content": answer }));
        Ok(())
    }
}

/// A line of the input, or `None` at its end.
async fn read_line(terminal: bool) -> anyhow::Result<Option<String>> {
    if terminal {
        print!("> ");
        std::io::stdout().flush()?;
    }
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|length| (length > 0).then_some(line))
    });
    Ok(read.await??)
}

/// Prints a streamed answer; gives its text.
async fn print_stream(mut response: reqwest::Response) -> anyhow::Result<String> {
    let (mut decoder, mut answer, mut out) = (Decoder::new(EVENT_LIMIT), String::new(), std::io::stdout());
    while let Some(bytes) = response.chunk().await? {
        for data in decoder.push(&bytes)? {
            if data == DONE {
                writeln!(out)?;
                return Ok(answer);
            }
            let event: Value = serde_json::from_str(&data).context("the gateway sent an event that is no JSON")?;
            if let Some(message) = event["error"]["message"].as_str() {
                bail!("the answer broke off: {message}");
            }
            if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
                answer.push_str(text);
                write!(out, "{text}")?;
                out.flush()?;
            }
        }
    }
    bail!("the answer broke off before its end")
}
