//! Makes the fake worker known to a controller, and keeps it so.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use muster_shared::client::{ClientError, ControllerClient, Timeouts, http_client};
use muster_shared::control::{Heartbeat, HeartbeatReply, Leave, Registration};
use muster_shared::fastchat::{HeartBeat, HeartBeatReply, RegisterWorker};
use muster_shared::problem::chain;
use muster_shared::secret::Secret;
use muster_shared::transport::Transport;
use serde::Serialize;
use tokio::time::sleep;

use super::worker::Worker;

/// Pause between two attempts to register.
const PAUSE: Duration = Duration::from_millis(500);
/// Time between heartbeats to FastChat's controller, which forgets a worker after 90 s.
const FASTCHAT_BEAT: Duration = Duration::from_secs(15);
/// Time a call to the controller may take.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), read: Duration::from_secs(5) };

/// A registration, and whom it is meant for.
#[derive(Debug)]
pub(super) struct Registrar {
    client: ControllerClient,
    http: reqwest::Client,
    worker: Arc<Worker>,
    registration: Registration,
}

/// A registration that holds.
#[derive(Debug, Clone, Copy)]
struct Membership {
    /// Whether the controller is FastChat's.
    fastchat: bool,
    heartbeat: Duration,
}

impl Registrar {
    pub(super) fn new(
        controller: &str,
        token: Option<Secret>,
        worker: Arc<Worker>,
        registration: Registration,
    ) -> Self {
        let http = http_client(TIMEOUTS);
        Self { client: ControllerClient::new(http.clone(), controller, token), http, worker, registration }
    }

    /// Registers and beats for ever.
    pub(super) async fn stay(&self) -> Infallible {
        loop {
            match self.register().await {
                Ok(membership) => {
                    tracing::info!(controller = self.client.address(), fastchat = membership.fastchat, "registered");
                    self.beat(membership).await;
                }
                Err(error) => {
                    let (controller, reason) = (self.client.address(), chain(&error));
                    tracing::warn!(controller, reason, "cannot register; will try again");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn register(&self) -> Result<Membership, ClientError> {
        match self.client.register(&self.registration).await {
            Ok(lease) => {
                Ok(Membership { fastchat: false, heartbeat: Duration::from_millis(lease.heartbeat_ms.max(1)) })
            }
            // A controller without `/register` is FastChat's, which knows workers of its own kind only.
            Err(ClientError::Unexpected { status: 404 | 405, .. })
                if self.registration.transport == Transport::FastChat =>
            {
                let body = RegisterWorker {
                    worker_name: self.registration.address.clone(),
                    check_heart_beat: true,
                    worker_status: Some(self.worker.status()),
                    multimodal: false,
                };
                self.post("/register_worker", &body).await?;
                Ok(Membership { fastchat: true, heartbeat: FASTCHAT_BEAT })
            }
            Err(error) => Err(error),
        }
    }

    /// Beats until the controller has forgotten this worker.
    async fn beat(&self, membership: Membership) {
        loop {
            sleep(membership.heartbeat).await;
            let known = if membership.fastchat { self.beat_fastchat().await } else { self.beat_muster().await };
            match known {
                Ok(true) => {}
                Ok(false) => return,
                // The lease outlives a lost beat.
                Err(error) => tracing::warn!(error = chain(&error), "heartbeat failed"),
            }
        }
    }

    async fn beat_muster(&self) -> Result<bool, ClientError> {
        let Registration { id, incarnation, .. } = self.registration.clone();
        let heartbeat = Heartbeat { load: Some(self.worker.load()), ..Heartbeat::bare(id, incarnation) };
        Ok(matches!(self.client.heartbeat(&heartbeat).await?, HeartbeatReply::Renewed(_)))
    }

    async fn beat_fastchat(&self) -> Result<bool, ClientError> {
        let worker_name = self.registration.address.clone();
        let body = HeartBeat { worker_name, queue_length: self.worker.status().queue_length };
        let response = self.post("/receive_heart_beat", &body).await?;
        let reply: HeartBeatReply = response.json().await.map_err(|error| self.network(error))?;
        Ok(reply.exist)
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<reqwest::Response, ClientError> {
        let request = self.http.post(format!("{}{path}", self.client.address())).json(body);
        let response = request.send().await.and_then(reqwest::Response::error_for_status);
        response.map_err(|error| self.network(error))
    }

    fn network(&self, error: reqwest::Error) -> ClientError {
        ClientError::from_reqwest(self.client.address(), error)
    }

    /// Asks for no more requests. FastChat's controller has no word for it, nor for the end; its lease runs out.
    pub(super) async fn drain(&self) {
        if let Err(error) = self.client.drain(&self.leave()).await {
            tracing::debug!(error = chain(&error), "could not tell the controller to drain");
        }
    }

    /// Ends the lease, after the last request.
    pub(super) async fn deregister(&self) {
        if let Err(error) = self.client.deregister(&self.leave()).await {
            tracing::debug!(error = chain(&error), "could not deregister");
        }
    }

    fn leave(&self) -> Leave {
        Leave { id: self.registration.id.clone(), incarnation: Some(self.registration.incarnation) }
    }
}
