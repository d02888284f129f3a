//! Typed clients of the controller and of a worker.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::{Dispatch, Fleet, Grant, Heartbeat, HeartbeatReply, Lease, Leave, Registration, Releases, Renew};
use crate::embed::{EmbedRequest, EmbedResponse};
use crate::generate::{Event, GenerateRequest};
use crate::journal::{self, Explanation};
use crate::problem::{BoxError, Problem};
use crate::secret::Secret;
use crate::sse;
use crate::tls::Tls;
use crate::topology::{self, Topology};

/// Longest event a worker may send, in bytes: room for the log-probabilities of one step, many times over.
pub(crate) const EVENT_LIMIT: usize = 4 << 20;
/// Longest event of a controller, in bytes: ten thousand workers, several times over.
const TOPOLOGY_LIMIT: usize = 64 << 20;
/// Longest error body that is read, in bytes.
const PROBLEM_LIMIT: usize = 64 << 10;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made: nothing of the request has been seen by anyone.
    #[error("cannot reach {address}")]
    Unreachable {
        /// The base URL that was called.
        address: String,
        /// The network's own words.
        #[source]
        source: BoxError,
    },
    /// The connection broke, or the time ran out, after it was made.
    #[error("{address} broke off")]
    Broken {
        /// The base URL that was called.
        address: String,
        /// The network's own words; absent when a stream ended before its last event.
        #[source]
        source: Option<BoxError>,
    },
    /// The service answered with an error in our own words.
    #[error("{address} refused: {problem}")]
    Refused {
        /// The base URL that was called.
        address: String,
        /// Its words.
        problem: Problem,
    },
    /// The service answered with something that is not ours.
    #[error("{address} answered {status} with an unexpected body: {detail}")]
    Unexpected {
        /// The base URL that was called.
        address: String,
        /// The HTTP status.
        status: u16,
        /// What is wrong with the body.
        detail: String,
    },
}

impl ClientError {
    /// Tells a connection that was never made from one that broke.
    pub fn from_reqwest(address: &str, source: reqwest::Error) -> Self {
        let address = address.to_owned();
        if source.is_connect() {
            Self::Unreachable { address, source: source.into() }
        } else {
            Self::Broken { address, source: Some(source.into()) }
        }
    }
}

/// How long calls may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To make a connection.
    pub connect: Duration,
    /// Silence on a connection before it is given up.
    pub read: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(2), read: Duration::from_secs(100) }
    }
}

/// A connection pool for calls between our processes. Cheap to clone. By https it trusts whom the system trusts.
///
/// # Panics
/// See [`fleet_client`].
pub fn http_client(timeouts: Timeouts) -> reqwest::Client {
    fleet_client(&Tls::default(), timeouts)
}

/// The same with a fleet's own authorities and certificate.
///
/// # Panics
/// When the HTTP client cannot be built, which needs neither files nor network.
pub fn fleet_client(tls: &Tls, timeouts: Timeouts) -> reqwest::Client {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.client_config())
        .connect_timeout(timeouts.connect)
        .read_timeout(timeouts.read)
        .tcp_nodelay(true)
        .no_proxy() // services of one fleet; a proxy in the environment is for the outside world
        .redirect(reqwest::redirect::Policy::none()) // ours never do, and a token must not go elsewhere
        .build()
        .expect("a plain HTTP client needs nothing from outside")
}

/// Calls the controller.
#[derive(Debug, Clone)]
pub struct ControllerClient {
    peer: Peer,
}

impl ControllerClient {
    /// A client of the controller at a base URL.
    pub fn new(http: reqwest::Client, address: impl Into<String>, token: Option<Secret>) -> Self {
        Self { peer: Peer { http, address: trimmed(address), token } }
    }

    /// The controller's base URL.
    pub fn address(&self) -> &str {
        &self.peer.address
    }

    /// A request to whatever answers at the controller's address, which is not shown the token.
    pub fn open_get(&self, path: &str) -> reqwest::RequestBuilder {
        self.peer.http.get(self.peer.url(path))
    }

    /// Offers a worker's models.
    ///
    /// # Errors
    /// See [`ClientError`]; so do all calls below.
    pub async fn register(&self, registration: &Registration) -> Result<Lease, ClientError> {
        self.peer.post("/register", registration).await
    }

    /// Renews a worker's lease.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<HeartbeatReply, ClientError> {
        self.peer.post("/heartbeat", heartbeat).await
    }

    /// Stops requests to a worker.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn drain(&self, leave: &Leave) -> Result<(), ClientError> {
        self.peer.post::<serde_json::Value>("/drain", leave).await.map(drop)
    }

    /// Lets a worker have requests again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn resume(&self, leave: &Leave) -> Result<(), ClientError> {
        self.peer.post::<serde_json::Value>("/resume", leave).await.map(drop)
    }

    /// Ends a worker's lease.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn deregister(&self, leave: &Leave) -> Result<(), ClientError> {
        self.peer.post::<serde_json::Value>("/deregister", leave).await.map(drop)
    }

    /// Asks for a worker.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn dispatch(&self, dispatch: &Dispatch) -> Result<Grant, ClientError> {
        self.peer.post("/dispatch", dispatch).await
    }

    /// Gives tickets back.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn release(&self, releases: &Releases) -> Result<(), ClientError> {
        self.peer.post::<serde_json::Value>("/release", releases).await.map(drop)
    }

    /// Renews a gateway's tickets, and tells it the fleet.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn renew(&self, renew: &Renew) -> Result<Fleet, ClientError> {
        self.peer.post("/renew", renew).await
    }

    /// Opens the link over which a gateway dispatches.
    ///
    /// # Errors
    /// See [`ClientError`].
    #[cfg(feature = "link")]
    pub async fn link(&self) -> Result<crate::link::Link<reqwest::Upgraded>, ClientError> {
        let request = self.peer.http.get(self.peer.url("/link"));
        let request = request.header("connection", "upgrade").header("upgrade", crate::link::PROTOCOL);
        let response = self.peer.ask(request).await?;
        let status = response.status();
        if status != reqwest::StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.peer.refusal(response).await);
        }
        let upgraded = response.upgrade().await;
        upgraded.map(crate::link::Link::new).map_err(|source| ClientError::from_reqwest(self.address(), source))
    }

    /// Why the workers of a request were chosen.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn explain(&self, request: &str) -> Result<Explanation, ClientError> {
        let mut url = self.peer.url("/explain/");
        // Ids come from clients; whatever is not plain must not become another path.
        for byte in request.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => url.push(char::from(byte)),
                other => url.push_str(&format!("%{other:02X}")),
            }
        }
        let response = self.peer.send(self.peer.http.get(url)).await?;
        self.peer.read(response).await
    }

    /// The journal of decisions, piece by piece.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn journal(
        &self,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes, ClientError>> + Send + use<>, ClientError> {
        let response = self.peer.send(self.peer.http.get(self.peer.url("/journal"))).await?;
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
        if kind != Some(journal::CONTENT_TYPE) {
            let detail = format!("its content type is `{}`, not `{}`", kind.unwrap_or_default(), journal::CONTENT_TYPE);
            return Err(self.peer.unexpected(response.status().as_u16(), detail));
        }
        let address = self.peer.address.clone();
        Ok(stream::unfold(response, move |mut response| {
            let address = address.clone();
            async move {
                let chunk = response.chunk().await.map_err(|source| ClientError::from_reqwest(&address, source));
                chunk.transpose().map(|chunk| (chunk, response))
            }
        }))
    }

    /// The state of everything.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn fleet(&self) -> Result<Fleet, ClientError> {
        let request = self.peer.http.get(self.peer.url("/fleet"));
        let response = self.peer.send(request).await?;
        self.peer.read(response).await
    }

    /// The fleet as a picture.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn topology(&self) -> Result<Topology, ClientError> {
        let response = self.peer.send(self.peer.http.get(self.peer.url("/topology"))).await?;
        self.peer.read(response).await
    }

    /// The same, and then what changes about it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self) -> Result<TopologyEvents, ClientError> {
        let response = self.peer.send(self.peer.http.get(self.peer.url("/events"))).await?;
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            return Err(self.peer.refusal(response).await); // somebody else's page
        }
        let address = self.peer.address.clone();
        Ok(TopologyEvents { response, address, decoder: sse::Decoder::new(TOPOLOGY_LIMIT), came: VecDeque::new() })
    }
}

/// What a controller tells those who look.
#[derive(Debug)]
pub struct TopologyEvents {
    response: reqwest::Response,
    address: String,
    decoder: sse::Decoder,
    came: VecDeque<String>,
}

impl TopologyEvents {
    /// The next event.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ClientError::Broken`] when the controller stops, too.
    pub async fn next(&mut self) -> Result<topology::Event, ClientError> {
        let unexpected = |address: &str, detail: String| {
            let address = address.to_owned();
            ClientError::Unexpected { address, status: 200, detail }
        };
        loop {
            if let Some(data) = self.came.pop_front() {
                return serde_json::from_str(&data).map_err(|error| unexpected(&self.address, error.to_string()));
            }
            let chunk = self.response.chunk().await;
            let chunk = chunk.map_err(|source| ClientError::from_reqwest(&self.address, source))?;
            let chunk = chunk.ok_or_else(|| ClientError::Broken { address: self.address.clone(), source: None })?;
            let came = self.decoder.push(&chunk).map_err(|error| unexpected(&self.address, error.to_string()))?;
            self.came.extend(came);
        }
    }
}

/// Calls one worker that speaks our own protocol.
#[derive(Debug, Clone)]
pub struct WorkerClient {
    peer: Peer,
}

impl WorkerClient {
    /// A client of the worker at a base URL.
    pub fn new(http: reqwest::Client, address: impl Into<String>, token: Option<Secret>) -> Self {
        Self { peer: Peer { http, address: trimmed(address), token } }
    }

    /// Continues a prompt. Dropping the stream cancels the request.
    ///
    /// The stream ends after [`Event::Done`] or [`Event::Failed`]; ending before them is [`ClientError::Broken`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn generate(
        &self,
        request: &GenerateRequest,
    ) -> Result<impl Stream<Item = Result<Event, ClientError>> + Send + use<>, ClientError> {
        let response = self.peer.send(self.peer.http.post(self.peer.url("/generate")).json(request)).await?;
        Ok(events(response, self.peer.address.clone()))
    }

    /// Embeds texts.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn embed(&self, request: &EmbedRequest) -> Result<EmbedResponse, ClientError> {
        self.peer.post("/embed", request).await
    }
}

/// A base URL without the slash at its end.
pub(crate) fn trimmed(address: impl Into<String>) -> String {
    let mut address = address.into();
    address.truncate(address.trim_end_matches('/').len());
    address
}

/// Reads a response's body as events, up to the last one.
fn events(
    response: reqwest::Response,
    address: String,
) -> impl Stream<Item = Result<Event, ClientError>> + Send + use<> {
    let reader = EventReader { response, address, decoder: sse::Decoder::new(EVENT_LIMIT), ended: false };
    stream::unfold(reader, |mut reader| async move {
        if reader.ended {
            return None;
        }
        let batch = match reader.next_batch().await {
            Ok(batch) => batch.into_iter().map(Ok).collect(),
            Err(error) => {
                reader.ended = true;
                vec![Err(error)]
            }
        };
        Some((stream::iter(batch), reader))
    })
    .flatten()
}

struct EventReader {
    response: reqwest::Response,
    address: String,
    decoder: sse::Decoder,
    ended: bool,
}

impl EventReader {
    async fn next_batch(&mut self) -> Result<Vec<Event>, ClientError> {
        let chunk = self.response.chunk().await.map_err(|source| ClientError::from_reqwest(&self.address, source))?;
        let Some(chunk) = chunk else {
            return Err(ClientError::Broken { address: self.address.clone(), source: None });
        };
        let data = self.decoder.push(&chunk).map_err(|error| self.unexpected(error.to_string()))?;
        let mut batch = Vec::with_capacity(data.len());
        for event in data {
            let event: Event = serde_json::from_str(&event).map_err(|error| self.unexpected(error.to_string()))?;
            self.ended |= matches!(event, Event::Done { .. } | Event::Failed { .. });
            batch.push(event);
        }
        Ok(batch)
    }

    fn unexpected(&self, detail: String) -> ClientError {
        ClientError::Unexpected { address: self.address.clone(), status: self.response.status().as_u16(), detail }
    }
}

/// One service of ours at a base URL.
#[derive(Debug, Clone)]
struct Peer {
    http: reqwest::Client,
    address: String,
    token: Option<Secret>,
}

impl Peer {
    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    async fn post<Reply: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<Reply, ClientError> {
        let response = self.send(self.http.post(self.url(path)).json(body)).await?;
        self.read(response).await
    }

    /// Sends a request; an error status becomes [`ClientError::Refused`] or [`ClientError::Unexpected`].
    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, ClientError> {
        let response = self.ask(request).await?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    /// Sends a request, whatever the answer is.
    async fn ask(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, ClientError> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        };
        request.send().await.map_err(|source| ClientError::from_reqwest(&self.address, source))
    }

    async fn read<Reply: DeserializeOwned>(&self, response: reqwest::Response) -> Result<Reply, ClientError> {
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(|source| ClientError::from_reqwest(&self.address, source))?;
        serde_json::from_slice(&body).map_err(|error| self.unexpected(status, error.to_string()))
    }

    async fn refusal(&self, mut response: reqwest::Response) -> ClientError {
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while body.len() < PROBLEM_LIMIT
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(&chunk);
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => ClientError::Refused { address: self.address.clone(), problem },
            Err(_) => self.unexpected(status, String::from_utf8_lossy(&body).chars().take(200).collect()),
        }
    }

    fn unexpected(&self, status: u16, detail: String) -> ClientError {
        ClientError::Unexpected { address: self.address.clone(), status, detail }
    }
}
