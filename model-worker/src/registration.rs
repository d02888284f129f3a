//! Registers with the controller, beats, registers again when forgotten, and says goodbye.
//!
//! The controller may be muster's or FastChat's: one that has no `/register` is taken for FastChat's. It may come
//! later than the worker and may go away for as long as it likes; the worker tries for ever.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_shared::client::{ClientError, ControllerClient, Timeouts, fleet_client};
use muster_shared::control::{HeartbeatReply, Identity, Leave};
use muster_shared::fastchat::{HeartBeat, HeartBeatReply, RegisterWorker};
use muster_shared::secret::Secret;
use muster_shared::tls::Tls;
use tokio_util::sync::CancellationToken;

use crate::config::RegistrationConfig;
use crate::fastchat::worker_status;
use crate::metrics;
use crate::report::Terms;
use crate::resources::Observer;
use crate::state::State;
use muster_shared::problem::chain;

/// First and longest pause between two attempts to register.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// Time a call to the controller may take.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), read: Duration::from_secs(5) };

/// The words the controller understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Muster,
    FastChat,
}

/// A registration that holds: until when the next heartbeat is due, and in which words.
#[derive(Debug, Clone, Copy)]
struct Membership {
    dialect: Dialect,
    heartbeat: Duration,
}

/// Keeps this worker known to its controller.
#[derive(Debug)]
pub(crate) struct Registrar {
    config: RegistrationConfig,
    client: ControllerClient,
    http: reqwest::Client,
    state: Arc<State>,
    terms: Terms,
    /// Heartbeats sent.
    beats: AtomicU64,
    observer: Arc<Observer>,
    /// The registration that holds, if one does.
    membership: Mutex<Option<Membership>>,
}

impl Registrar {
    pub(crate) fn new(
        config: RegistrationConfig,
        (token, tls): (Option<Secret>, &Tls),
        terms: Terms,
        observer: Arc<Observer>,
    ) -> Self {
        let state = observer.state();
        let http = fleet_client(tls, TIMEOUTS);
        // There is one registrar in a worker.
        let _ = state.identity.set(Identity { id: terms.id.clone(), incarnation: terms.incarnation });
        Self {
            client: ControllerClient::new(http.clone(), &config.controller, token),
            http,
            state,
            terms,
            beats: AtomicU64::new(0),
            observer,
            config,
            membership: Mutex::new(None),
        }
    }

    /// Registers and beats for ever.
    pub(crate) async fn stay(&self) -> std::convert::Infallible {
        self.observer.look().await; // rates are told from the first heartbeat on
        loop {
            let membership = self.join().await;
            self.set_membership(Some(membership));
            self.beat(membership).await;
            self.set_membership(None);
        }
    }

    /// After [`Registrar::drain`]: keeps the lease until the last request has ended, then gives it up.
    pub(crate) async fn leave(&self, ended: &CancellationToken) {
        let membership = *self.membership.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(membership) = membership {
            tokio::select! {
                () = ended.cancelled() => {}
                () = self.beat(membership) => {} // forgotten already
            }
        }
        ended.cancelled().await;
        self.deregister().await;
    }

    fn set_membership(&self, membership: Option<Membership>) {
        *self.membership.lock().unwrap_or_else(PoisonError::into_inner) = membership;
    }

    /// Tries until the controller has taken the registration.
    async fn join(&self) -> Membership {
        let [mut pause, longest] = BACKOFF;
        loop {
            match self.register().await {
                Ok(None) => {
                    tracing::info!("there is no model yet, and FastChat's controller takes nobody without");
                    self.wait_for_models().await;
                    continue;
                }
                Ok(Some(membership)) => {
                    tracing::info!(controller = self.client.address(), dialect = ?membership.dialect, "registered");
                    return membership;
                }
                Err(reason) => {
                    tracing::warn!(
                        controller = self.client.address(),
                        reason,
                        ?pause,
                        "cannot register; will try again"
                    );
                }
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                () = self.state.models_changed() => {} // perhaps it is what the controller wants
            }
            pause = (pause * 2).min(longest);
        }
    }

    async fn wait_for_models(&self) {
        while !self.has_models() {
            self.state.models_changed().await;
            self.state.note_told();
        }
    }

    fn has_models(&self) -> bool {
        self.state.catalog().is_ok_and(|catalog| !catalog.cards().is_empty())
    }

    /// Beats until the controller has forgotten this worker, or knows other models than there are.
    async fn beat(&self, membership: Membership) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(jittered(membership.heartbeat)) => {}
                () = self.state.models_changed() => {
                    tracing::info!("the models have changed; registering again");
                    return;
                }
            }
            let known = match membership.dialect {
                Dialect::Muster => self.beat_muster().await,
                Dialect::FastChat => self.beat_fastchat().await,
            };
            match known {
                Ok(true) => metrics::heartbeat("renewed"),
                Ok(false) => {
                    metrics::heartbeat("unknown");
                    tracing::info!("the controller does not know this worker; registering again");
                    return;
                }
                // The lease outlives a lost beat; the next one is on its way.
                Err(error) => {
                    metrics::heartbeat("failed");
                    tracing::warn!(error = chain(&error), "heartbeat failed");
                }
            }
        }
    }

    /// `None` where there is no model yet and the controller is FastChat's.
    async fn register(&self) -> Result<Option<Membership>, String> {
        self.state.note_told(); // before the cards are made: a change in between is told once more
        let registration = self.terms.registration(&self.state).map_err(|problem| problem.message)?;
        match self.client.register(&registration).await {
            Ok(lease) => {
                let heartbeat = Duration::from_millis(lease.heartbeat_ms.max(1));
                Ok(Some(Membership { dialect: Dialect::Muster, heartbeat }))
            }
            Err(ClientError::Unexpected { status: 404 | 405, .. }) if registration.models.is_empty() => Ok(None),
            Err(ClientError::Unexpected { status: 404 | 405, .. }) => {
                self.register_fastchat().await.map_err(|error| chain(&error))?;
                Ok(Some(Membership { dialect: Dialect::FastChat, heartbeat: self.config.fastchat_heartbeat }))
            }
            Err(error) => Err(chain(&error)),
        }
    }

    async fn beat_muster(&self) -> Result<bool, ClientError> {
        let seen = self.observer.look().await;
        let sequence = self.beats.fetch_add(1, Ordering::Relaxed) + 1;
        let heartbeat = self.terms.heartbeat(&self.state, seen, Some(sequence));
        match self.client.heartbeat(&heartbeat).await? {
            HeartbeatReply::Renewed(renewal) => {
                if renewal.shed
                    && let Ok(catalog) = self.state.catalog()
                {
                    catalog.shed();
                }
                Ok(true)
            }
            HeartbeatReply::Unknown => Ok(false),
        }
    }

    async fn register_fastchat(&self) -> Result<(), ClientError> {
        let body = RegisterWorker {
            worker_name: self.state.addresses.http.clone(),
            check_heart_beat: true,
            worker_status: Some(worker_status(&self.state)),
            multimodal: false,
        };
        self.post_fastchat("/register_worker", &body).await.map(drop)
    }

    async fn beat_fastchat(&self) -> Result<bool, ClientError> {
        self.observer.look().await; // nobody is told, but operators may look
        let queue_length = worker_status(&self.state).queue_length;
        let body = HeartBeat { worker_name: self.state.addresses.http.clone(), queue_length };
        let response = self.post_fastchat("/receive_heart_beat", &body).await?;
        let reply: HeartBeatReply = response.json().await.map_err(|error| self.network(error))?;
        Ok(reply.exist)
    }

    async fn post_fastchat(&self, path: &str, body: &impl serde::Serialize) -> Result<reqwest::Response, ClientError> {
        let url = format!("{}{path}", self.client.address());
        let response = self.http.post(url).json(body).send().await.map_err(|error| self.network(error))?;
        response.error_for_status().map_err(|error| self.network(error))
    }

    fn network(&self, error: reqwest::Error) -> ClientError {
        ClientError::from_reqwest(self.client.address(), error)
    }

    fn farewell(&self) -> Leave {
        Leave { id: self.terms.id.clone(), incarnation: Some(self.terms.incarnation) }
    }

    /// Asks for no more requests. FastChat's controller has no word for it; there the lease runs out.
    pub(crate) async fn drain(&self) {
        if let Err(error) = self.client.drain(&self.farewell()).await {
            tracing::debug!(error = chain(&error), "could not tell the controller to drain");
        }
    }

    /// Ends the lease, after the last request.
    async fn deregister(&self) {
        if let Err(error) = self.client.deregister(&self.farewell()).await {
            tracing::debug!(error = chain(&error), "could not deregister");
        }
    }
}

/// A duration some 10 % shorter at random, so that workers started together do not beat together.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::random_range(0.9..=1.0))
}
