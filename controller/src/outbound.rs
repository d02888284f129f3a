//! Calls to workers. An error says in words for the caller why there is no answer.

use std::time::Duration;

use muster_shared::client::{Timeouts, fleet_client};
use muster_shared::control::{Health, Identity};
use muster_shared::fastchat::WorkerStatus;
use muster_shared::problem::chain;
use muster_shared::secret::Secret;
use muster_shared::tls::Tls;
use reqwest::{Client, RequestBuilder, Response, Url};
use tokio::net::TcpStream;

/// Time in which a worker must show that it can be reached.
const REACHABLE: Duration = Duration::from_secs(2);
/// Time in which a FastChat worker must tell its state.
const STATUS: Duration = Duration::from_secs(5);
/// Longest state that is read, in bytes.
const STATUS_LIMIT: usize = 1 << 20;
/// Longest answer of `/health` that is read, in bytes.
const HEALTH_LIMIT: usize = 1 << 16;

/// Calls workers.
#[derive(Debug)]
pub(crate) struct Outbound {
    http: Client,
    /// The fleet's authorities and certificate.
    tls: Tls,
    /// Shown to workers, which want it of all callers. Whoever registers has shown it first.
    token: Option<Secret>,
}

impl Outbound {
    /// A pool of connections to workers that want that token.
    #[cfg(test)]
    pub(crate) fn new(token: Option<Secret>) -> Self {
        Self::of_fleet(&Tls::default(), token)
    }

    /// The same, of a fleet with its own authorities and certificates.
    pub(crate) fn of_fleet(tls: &Tls, token: Option<Secret>) -> Self {
        Self { http: fleet_client(tls, Timeouts::default()), tls: tls.clone(), token }
    }

    /// The fleet's authorities and certificate.
    pub(crate) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Whether a worker answers at a path. The token is not shown: our workers' health is open to all, and a server
    /// that speaks OpenAI's API is a stranger, who has no business with it.
    ///
    /// # Errors
    /// The reason why not.
    pub(crate) async fn reach(&self, address: &str, path: &str) -> Result<(), String> {
        let url = format!("{address}{path}");
        answered(self.http.get(&url).timeout(REACHABLE), &url).await.map(drop)
    }

    /// Who answers at an address; `None` where it does not say.
    ///
    /// # Errors
    /// The reason why nobody answers.
    pub(crate) async fn identify(&self, address: &str) -> Result<Option<Identity>, String> {
        let url = format!("{address}/health");
        let response = answered(self.http.get(&url).timeout(REACHABLE), &url).await?;
        let body = whole(response, HEALTH_LIMIT, &url).await?;
        // A worker of another make says what it likes.
        Ok(serde_json::from_slice(&body).ok().and_then(|Health { worker, .. }| worker))
    }

    /// Whether something listens at a worker's address.
    ///
    /// # Errors
    /// The reason why not.
    pub(crate) async fn connect(&self, address: &str) -> Result<(), String> {
        let url = Url::parse(address).map_err(|error| format!("`{address}` is not a URL: {error}"))?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(format!("`{address}` has no host or no port"));
        };
        let host = host.trim_matches(['[', ']']); // of an IPv6 address
        match tokio::time::timeout(REACHABLE, TcpStream::connect((host, port))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("cannot reach {address}: {error}")),
            Err(_) => Err(format!("cannot reach {address} within {} seconds", REACHABLE.as_secs())),
        }
    }

    /// Asks a FastChat worker for its state.
    ///
    /// # Errors
    /// The reason why there is none.
    pub(crate) async fn ask_status(&self, address: &str) -> Result<WorkerStatus, String> {
        let url = format!("{address}/worker_get_status");
        let response = answered(self.post(&url).timeout(STATUS), &url).await?;
        let body = whole(response, STATUS_LIMIT, &url).await?;
        serde_json::from_slice(&body)
            .map_err(|error| format!("{url} answered with something else than a state: {error}"))
    }

    /// A request that a worker answers to everyone.
    pub(crate) fn get(&self, url: &str) -> RequestBuilder {
        self.http.get(url)
    }

    /// The same that sends something.
    pub(crate) fn open_post(&self, url: &str) -> RequestBuilder {
        self.http.post(url)
    }

    /// Whether there is a token to show.
    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// A request that a worker answers only to its fleet.
    pub(crate) fn post(&self, url: &str) -> RequestBuilder {
        self.authorized(self.http.post(url))
    }

    /// The same request with the fleet's token.
    pub(crate) fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }
}

/// A body of at most `limit` bytes.
///
/// # Errors
/// Why there is none.
pub(crate) async fn whole(mut response: Response, limit: usize, url: &str) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| format!("{url} broke off: {}", chain(&error)))? {
        body.extend_from_slice(&chunk);
        if body.len() > limit {
            return Err(format!("{url} answered with more than {limit} bytes"));
        }
    }
    Ok(body)
}

async fn answered(request: RequestBuilder, url: &str) -> Result<Response, String> {
    let response = request.send().await.map_err(|error| format!("cannot reach {url}: {}", chain(&error)))?;
    let status = response.status();
    if status.is_success() {
        Ok(response)
    } else {
        Err(format!("{url} answered {status}; a worker must answer with 200 there before it can register"))
    }
}
