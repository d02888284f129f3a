//! The server that is measured, and what it is sent.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use reqwest::Url;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli::{LoadArgs, LoadKind};
use crate::config::plain_url;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Words that fill a prompt.
const WORDS: &str = "please tell us in a few words what became of the old mill by the river ";

/// An OpenAI-compatible server.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// As the user wrote it.
    pub(super) url: String,
    /// Where it can be reached.
    pub(super) address: SocketAddr,
    /// What requests call it.
    host: String,
    /// What its paths begin with; ends with `/v1`.
    base: String,
}

impl Target {
    /// Looks for a server that takes connections.
    ///
    /// # Errors
    /// When the URL is none, or nobody listens there.
    pub(super) async fn find(url: &str) -> anyhow::Result<Self> {
        let url = plain_url("--url", url)?;
        let parsed = Url::parse(&url)?;
        let (name, port) = (parsed.host_str().unwrap_or_default(), parsed.port_or_known_default().unwrap_or(80));
        let host = format!("{name}:{port}");
        let base = parsed.path().trim_end_matches('/');
        let base = if base.ends_with("/v1") { base.to_owned() } else { format!("{base}/v1") };
        let unreachable = || format!("cannot reach {url}; is a server running there? (--url)");
        let address = reachable(&host).await.with_context(unreachable)?;
        Ok(Self { url, address, host, base })
    }

    /// A request as it goes over the wire: the same for all clients, since a server that knows it already is no matter
    /// to the gateway before it.
    pub(super) fn request(&self, args: &LoadArgs) -> Vec<u8> {
        let prompt = prompt(&args.prompt, args.prompt_bytes);
        let (path, body) = match args.kind {
            LoadKind::Embeddings => ("embeddings", json!({ "model": args.model, "input": prompt })),
            kind => {
                let mut body = json!({
                    "model": args.model,
                    "messages": [{ "role": "user", "content": prompt }],
                    "max_tokens": args.max_tokens,
                    "temperature": 0,
                });
                if kind == LoadKind::Stream {
                    body["stream"] = true.into();
                    body["stream_options"] = json!({ "include_usage": true });
                }
                ("chat/completions", body)
            }
        };
        let (body, key) = (body.to_string(), args.api_key.as_ref());
        let key = key.map(|key| format!("authorization: Bearer {}\r\n", key.expose())).unwrap_or_default();
        let head = format!(
            "POST {base}/{path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: muster-bench\r\naccept: */*\r\n{key}\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n",
            base = self.base,
            host = self.host,
            length = body.len(),
        );
        [head, body].concat().into_bytes()
    }
}

/// The first address of a host that takes a connection.
pub(in crate::bench) async fn reachable(host: &str) -> anyhow::Result<SocketAddr> {
    let mut failure = anyhow!("`{host}` has no address");
    for address in tokio::net::lookup_host(host).await? {
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Ok(address),
            Ok(Err(error)) => failure = error.into(),
            Err(_) => failure = anyhow!("no answer within {CONNECT:?}"),
        }
    }
    Err(failure)
}

/// Begins with `start`, and has at least so many bytes.
fn prompt(start: &str, bytes: u64) -> String {
    let missing = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(start.len());
    let words = WORDS.bytes().cycle().take(missing).map(char::from);
    start.chars().chain(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_filled_to_its_length() {
        assert_eq!(prompt("", 6), "please");
        assert_eq!(prompt("fake:n=2;", 12), "fake:n=2;ple");
        assert_eq!(prompt("long enough", 4), "long enough");
        assert_eq!(prompt("", 1000).len(), 1000);
    }
}
