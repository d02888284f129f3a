//! The gateway's section.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use muster_gateway::Config;
use muster_shared::secret::Secret;
use serde::{Deserialize, Serialize};

use super::{Span, base_url, one_secret, or, secrets_of_file};

/// What a gateway can be told.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GatewaySection {
    /// Interface to listen on.
    #[arg(long, env = "MUSTER_GATEWAY_HOST")]
    pub(crate) host: Option<String>,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, env = "MUSTER_GATEWAY_PORT")]
    pub(crate) port: Option<u16>,
    /// Base URL of the controller.
    #[arg(long, env = "MUSTER_CONTROLLER_ADDRESS")]
    pub(crate) controller_address: Option<String>,
    /// Key that clients must show; may be given several times.
    #[arg(
        long,
        visible_alias = "api-keys",
        env = "MUSTER_API_KEY",
        hide_env_values = true,
        value_parser = super::SecretParser,
        value_delimiter = ',',
    )]
    #[serde(alias = "api_keys")]
    pub(crate) api_key: Option<Vec<Secret>>,
    /// File that holds keys, one a line.
    #[arg(long, env = "MUSTER_API_KEY_FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Token that every service of the fleet shows to the others.
    #[arg(long, env = "MUSTER_FLEET_TOKEN", hide_env_values = true, value_parser = super::SecretParser)]
    pub(crate) fleet_token: Option<Secret>,
    /// File that holds the fleet's token.
    #[arg(long, env = "MUSTER_FLEET_TOKEN_FILE")]
    pub(crate) fleet_token_file: Option<PathBuf>,
    /// Key shown to workers of the transport `openai`, which never see the fleet's token.
    #[arg(long, env = "MUSTER_OPENAI_KEY", hide_env_values = true, value_parser = super::SecretParser)]
    pub(crate) openai_key: Option<Secret>,
    /// File whose first line is that key.
    #[arg(long, env = "MUSTER_OPENAI_KEY_FILE")]
    pub(crate) openai_key_file: Option<PathBuf>,
    /// Origin whose pages may ask, as `https://app.example`, or `*` for any; may be given several times.
    #[arg(
        long = "cors-origin",
        visible_alias = "allowed-origins",
        env = "MUSTER_GATEWAY_CORS_ORIGINS",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    #[serde(alias = "allowed_origins")]
    pub(crate) cors_origins: Option<Vec<String>>,
    /// Workers tried for one request.
    #[arg(long, env = "MUSTER_GATEWAY_ATTEMPTS")]
    pub(crate) attempts: Option<NonZeroU32>,
    /// Longest wait for room on a worker.
    #[arg(long, env = "MUSTER_GATEWAY_DISPATCH_WAIT")]
    pub(crate) dispatch_wait: Option<Span>,
    /// Longest wait for a connection.
    #[arg(long, env = "MUSTER_GATEWAY_CONNECT_TIMEOUT")]
    pub(crate) connect_timeout: Option<Span>,
    /// Longest wait for a worker's first token, its queue included.
    #[arg(long, env = "MUSTER_GATEWAY_FIRST_TOKEN_TIMEOUT")]
    pub(crate) first_token_timeout: Option<Span>,
    /// Longest time between two tokens of a worker.
    #[arg(long, env = "FASTCHAT_WORKER_API_TIMEOUT")]
    pub(crate) inter_token_timeout: Option<Span>,
    /// Time in which an answer that broke off must have found another worker.
    #[arg(long, env = "MUSTER_GATEWAY_RESUME_TIMEOUT")]
    pub(crate) resume_timeout: Option<Span>,
    /// Requests that may be tried again, as a part of all (0 to 1); a hundred a second always may.
    #[arg(long, env = "MUSTER_GATEWAY_RETRY_BUDGET")]
    pub(crate) retry_budget: Option<f32>,
    /// Ask a second worker when the first has not begun to answer after this time; off unless set.
    #[arg(long, env = "MUSTER_GATEWAY_HEDGE_AFTER")]
    pub(crate) hedge_after: Option<Span>,
    /// Longest time for which a client may read nothing of its answer.
    #[arg(long, env = "MUSTER_GATEWAY_CLIENT_TIMEOUT")]
    pub(crate) client_timeout: Option<Span>,
    /// Longest wait for the first byte of an answer.
    #[arg(long, env = "MUSTER_GATEWAY_REQUEST_TIMEOUT")]
    pub(crate) request_timeout: Option<Span>,
    /// Longest request body.
    #[arg(long, env = "MUSTER_GATEWAY_BODY_LIMIT")]
    pub(crate) body_limit: Option<ByteSize>,
    /// Time between two looks at the fleet.
    #[arg(long, env = "MUSTER_GATEWAY_SYNC_INTERVAL")]
    pub(crate) sync_interval: Option<Span>,
    /// Texts sent to a FastChat worker in one embeddings call.
    #[arg(long, env = "FASTCHAT_WORKER_API_EMBEDDING_BATCH_SIZE")]
    pub(crate) fastchat_embedding_batch: Option<NonZeroUsize>,
    /// Threads that serve clients; half of the processors that the process may use, unless said otherwise.
    #[arg(id = "gateway_threads", long = "threads", env = "MUSTER_GATEWAY_THREADS", value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Time that running requests get when the gateway stops.
    #[arg(long, env = "MUSTER_GATEWAY_DRAIN")]
    pub(crate) drain: Option<Span>,
    /// Listen on an open interface without a key.
    #[arg(
        long,
        env = "MUSTER_INSECURE",
        value_parser = super::switch(),
        num_args = 0..=1,
        default_missing_value = "true",
    )]
    pub(crate) insecure: Option<bool>,
}

impl GatewaySection {
    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other; host, port, controller_address, cors_origins, attempts,
            dispatch_wait, connect_timeout, first_token_timeout, inter_token_timeout, resume_timeout, retry_budget,
            hedge_after, client_timeout, request_timeout, body_limit, sync_interval, fastchat_embedding_batch, threads,
            drain, insecure; (api_key, api_key_file), (fleet_token, fleet_token_file),
            (openai_key, openai_key_file))
    }

    /// Everything said.
    pub(crate) fn defaults() -> Self {
        let usual = Config::default();
        Self {
            host: Some("127.0.0.1".to_owned()),
            port: Some(8000),
            controller_address: Some(usual.controller),
            api_key: None,
            api_key_file: None,
            fleet_token: None,
            fleet_token_file: None,
            openai_key: None,
            openai_key_file: None,
            cors_origins: Some(usual.cors_origins),
            attempts: Some(usual.attempts),
            dispatch_wait: Some(Span(usual.dispatch_wait)),
            connect_timeout: Some(Span(usual.connect_timeout)),
            first_token_timeout: Some(Span(usual.first_token_timeout)),
            inter_token_timeout: Some(Span(usual.inter_token_timeout)),
            resume_timeout: Some(Span(usual.resume_timeout)),
            retry_budget: Some(usual.retry_budget),
            hedge_after: usual.hedge_after.map(Span),
            client_timeout: Some(Span(usual.client_timeout)),
            request_timeout: Some(Span(usual.request_timeout)),
            body_limit: Some(ByteSize(usual.body_limit as u64)),
            sync_interval: Some(Span(usual.sync_interval)),
            fastchat_embedding_batch: Some(usual.fastchat_embedding_batch),
            threads: Some(usual.threads),
            drain: Some(Span(usual.drain)),
            insecure: Some(false),
        }
    }

    /// Checks everything, and makes it the gateway's configuration.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let usual = Config::default();
        let span = |given: Option<Span>, usual| given.map_or(usual, |Span(duration)| duration);
        let mut keys = self.api_key.clone().unwrap_or_default();
        if let Some(path) = &self.api_key_file {
            keys.extend(secrets_of_file(path)?);
        }
        let sync_interval = span(self.sync_interval, usual.sync_interval);
        anyhow::ensure!(!sync_interval.is_zero(), "sync_interval is 0; it must be longer");
        let retry_budget = self.retry_budget.unwrap_or(usual.retry_budget);
        anyhow::ensure!(
            (0.0..=1.0).contains(&retry_budget),
            "retry_budget is {retry_budget}; it must be a part of all requests, from 0 to 1"
        );
        Ok(Config {
            controller: match &self.controller_address {
                Some(url) => base_url("controller_address", url)?,
                None => usual.controller,
            },
            token: one_secret(self.fleet_token.clone(), self.fleet_token_file.as_deref())?,
            openai_key: one_secret(self.openai_key.clone(), self.openai_key_file.as_deref())?,
            keys,
            cors_origins: match &self.cors_origins {
                Some(origins) => origins.iter().map(|text| origin(text)).collect::<anyhow::Result<_>>()?,
                None => usual.cors_origins,
            },
            attempts: self.attempts.unwrap_or(usual.attempts),
            dispatch_wait: span(self.dispatch_wait, usual.dispatch_wait),
            connect_timeout: span(self.connect_timeout, usual.connect_timeout),
            first_token_timeout: span(self.first_token_timeout, usual.first_token_timeout),
            inter_token_timeout: span(self.inter_token_timeout, usual.inter_token_timeout),
            resume_timeout: span(self.resume_timeout, usual.resume_timeout),
            retry_budget,
            hedge_after: self.hedge_after.map(|Span(duration)| duration),
            client_timeout: span(self.client_timeout, usual.client_timeout),
            request_timeout: span(self.request_timeout, usual.request_timeout),
            body_limit: self.body_limit.map_or(usual.body_limit, |size| size.0 as usize),
            sync_interval,
            fastchat_embedding_batch: self.fastchat_embedding_batch.unwrap_or(usual.fastchat_embedding_batch),
            threads: self.threads.unwrap_or(usual.threads),
            drain: span(self.drain, usual.drain),
        })
    }
}

/// An origin as browsers write it. A piece of a JSON list is taken too: FastChat's `--allowed-origins` has those.
fn origin(text: &str) -> anyhow::Result<String> {
    let piece = text.trim().trim_start_matches('[').trim_start();
    let text = match piece.strip_prefix('"') {
        Some(quoted) => quoted.trim_end_matches([']', ' ']).trim_end_matches('"'),
        None => piece,
    };
    if text == "*" {
        return Ok(text.to_owned());
    }
    let wrong = || anyhow::anyhow!("cors_origins: `{text}` is no origin; write https://HOST, https://HOST:PORT or *");
    let url = reqwest::Url::parse(text).map_err(|_| wrong())?;
    let bare = url.username().is_empty() && matches!(url.path(), "" | "/");
    anyhow::ensure!(url.has_host() && bare && url.query().is_none() && url.fragment().is_none(), wrong());
    Ok(match url.scheme() {
        "http" | "https" => url.origin().ascii_serialization(),
        _ => text.trim_end_matches('/').to_owned(), // of an app or an extension
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_written_as_browsers_do() {
        for (text, expected) in [
            ("*", "*"),
            ("https://App.Example/", "https://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("http://[::1]", "http://[::1]"),
            ("tauri://localhost", "tauri://localhost"),
            ("[\"*\"]", "*"),
            ("[\"http://a:1\"", "http://a:1"),
            (" \"http://[::1]:2\" ]", "http://[::1]:2"),
        ] {
            assert_eq!(origin(text).expect(text), expected);
        }
        for text in ["", "app.example", "https://a/b", "https://a?b", "https://me@a", "null", "mailto:a@b"] {
            assert!(origin(text).is_err(), "{text}");
        }
    }
}
