//! Looks at a server: whether it answers, and what it serves.

use std::fmt;
use std::time::Duration;

use muster_shared::control::ModelCard;
use muster_shared::problem::chain;
use muster_shared::secret::Secret;
use muster_shared::transport::Transport;
use reqwest::header::CONNECTION;
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use tokio::net::TcpStream;

use super::listing;
use crate::config::Offer;

/// Time in which a server must answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest list of models that is read, in bytes.
const LIST_LIMIT: usize = 4 << 20;

/// Why a server can serve nobody now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absence {
    /// It does not answer.
    Silent,
    /// It answers with an error.
    Refuses,
    /// It answers, and not in the protocol it is said to speak: a mistake, where all else may pass.
    Stranger,
    /// It serves no model.
    Empty,
}

/// An [`Absence`] with the reason, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Away {
    pub(super) absence: Absence,
    reason: String,
}

impl Away {
    fn new(absence: Absence, reason: impl Into<String>) -> Self {
        Self { absence, reason: reason.into() }
    }
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// What a look shows: models, at least one, or why there are none.
pub(super) type Sighting = Result<Vec<ModelCard>, Away>;

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) http: reqwest::Client,
    pub(super) address: String,
    pub(super) offer: Offer,
    /// For servers that belong to the fleet; others are not shown it.
    pub(super) token: Option<Secret>,
}

impl Server {
    /// Looks once.
    pub(super) async fn look(&self) -> Sighting {
        let url = |path: &str| format!("{}{path}", self.address);
        let listed = match self.offer.transport {
            Transport::OpenAi => self.ask(self.http.get(url("/v1/models")), listing::openai).await,
            Transport::Http => self.ask(self.in_fleet(self.http.get(url("/models"))), listing::native).await,
            Transport::FastChat => {
                self.ask(self.in_fleet(self.http.post(url("/worker_get_status"))), listing::fastchat).await
            }
            Transport::Grpc => self.connect().await.map(|()| Vec::new()),
        };
        let models = listing::offered(listed?, &self.offer);
        if models.is_empty() {
            return Err(Away::new(Absence::Empty, format!("{} serves no model now", self.address)));
        }
        Ok(models)
    }

    /// Asks for the models. Where the user has named them, an answer that lists none is one, too.
    async fn ask(
        &self,
        request: RequestBuilder,
        read: fn(&[u8]) -> Result<Vec<ModelCard>, String>,
    ) -> Result<Vec<ModelCard>, Away> {
        // An idle connection may be closed by the server just as it is used again, which would look like an absence.
        let request = request.header(CONNECTION, "close").timeout(PATIENCE);
        let response = request.send().await.map_err(|error| self.silent(&error))?;
        let (status, url) = (response.status(), response.url().clone());
        if !status.is_success() {
            return Err(Away::new(Absence::Refuses, format!("{url} answered {status}{}", self.hint(status))));
        }
        match read(&self.body(response).await?) {
            Ok(models) => Ok(models),
            Err(_) if !self.offer.models.is_empty() => Ok(Vec::new()),
            Err(reason) => Err(Away::new(
                Absence::Stranger,
                format!("{url} answered with {reason}; is this the right address, and --transport the right protocol?"),
            )),
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Away> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.silent(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > LIST_LIMIT {
                let reason = format!("{} answered with more than {LIST_LIMIT} bytes of models", self.address);
                return Err(Away::new(Absence::Stranger, reason));
            }
        }
        Ok(body)
    }

    /// Whether something listens there: over gRPC nothing can be asked yet.
    async fn connect(&self) -> Result<(), Away> {
        let silent = |reason: String| Away::new(Absence::Silent, format!("cannot reach {}: {reason}", self.address));
        let url = Url::parse(&self.address).map_err(|error| silent(error.to_string()))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']); // of an IPv6 address
        let port = url.port_or_known_default().unwrap_or_default();
        match tokio::time::timeout(PATIENCE, TcpStream::connect((host, port))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(silent(error.to_string())),
            Err(_) => Err(silent(format!("no answer within {} seconds", PATIENCE.as_secs()))),
        }
    }

    fn in_fleet(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    fn silent(&self, error: &reqwest::Error) -> Away {
        let reason = match error.is_timeout() {
            true => format!("no answer within {} seconds", PATIENCE.as_secs()),
            false => chain(error),
        };
        Away::new(Absence::Silent, format!("cannot reach {}: {reason}", self.address))
    }

    fn hint(&self, status: StatusCode) -> &'static str {
        let locked = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        match (locked, self.offer.transport) {
            (true, Transport::OpenAi) => "; servers that want a key cannot be attached yet",
            (true, _) => "; is it of this fleet? (--fleet-token-file)",
            (false, _) => "",
        }
    }
}
