//! From a request to a worker that answers it: one dispatch for each attempt, and another worker while nothing has
//! been sent to the client.
//!
//! * [`answer`]: the events of an answer, whichever worker gives them.
//! * [`job`]: one request on its way through several attempts.
//! * [`ticket`]: a request in flight, released however it ends.
//! * [`view`]: the last known fleet, for when the controller does not answer.
//! * [`fastchat`]: workers that speak FastChat's protocol.

pub(crate) mod answer;
pub(crate) mod fastchat;
pub(crate) mod job;
pub(crate) mod ticket;
pub(crate) mod view;

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use muster_shared::client::{ClientError, ControllerClient, Timeouts, WorkerClient, http_client};
use muster_shared::control::{Dispatch, Fleet, ModelStatus, Outcome, Renew};
use muster_shared::embed::{EmbedRequest, EmbedResponse};
use muster_shared::generate::GenerateRequest;
use muster_shared::id::GatewayId;
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;
use muster_shared::transport::Transport;
use tokio::sync::Notify;

use crate::Config;
use answer::{Answer, Events};
use fastchat::FastChatClient;
use job::{Job, Verdict};
use ticket::{Releases, Ticket};
use view::View;

/// When to come back while neither controller nor a known worker answers, in milliseconds.
const RETRY_AFTER_MS: u64 = 2000;

/// A worker that will answer, by its ticket.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) ticket: Ticket,
    pub(crate) address: String,
    pub(crate) transport: Transport,
}

/// The way to the workers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Upstream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gateway: GatewayId,
    controller: ControllerClient,
    http: reqwest::Client,
    token: Option<Secret>,
    fastchat: FastChatClient,
    releases: Releases,
    view: View,
    /// Told when the controller names a worker that the view does not hold: look at the fleet now.
    stranger: Notify,
    config: Config,
}

impl Upstream {
    /// A way to the workers of the configured controller; tickets are released through `releases`.
    pub(crate) fn new(config: Config, gateway: GatewayId, releases: Releases) -> Self {
        let http = http_client(Timeouts { connect: config.connect_timeout, read: config.read_timeout });
        Self(Arc::new(Inner {
            gateway,
            controller: controller_client(&config),
            fastchat: FastChatClient::new(http.clone(), config.token.clone(), config.fastchat_embedding_batch),
            http,
            token: config.token.clone(),
            releases,
            view: View::default(),
            stranger: Notify::new(),
            config,
        }))
    }

    /// The last known fleet.
    pub(crate) fn view(&self) -> &View {
        &self.0.view
    }

    /// A request that begins now.
    pub(crate) fn job(&self, request_id: &str, model: &str) -> Job {
        let config = &self.0.config;
        Job::new(request_id, model, config.attempts.get(), Instant::now() + config.request_timeout)
    }

    /// Renews this gateway's tickets, and looks at the fleet.
    pub(crate) async fn renew(&self) -> Result<Fleet, ClientError> {
        let fleet = self.0.controller.renew(&Renew { gateway: self.0.gateway }).await;
        match &fleet {
            Ok(fleet) => self.0.view.note(fleet.clone(), Instant::now()),
            Err(_) => self.0.view.note_silence(),
        }
        fleet
    }

    /// Resolves when the view misses a worker.
    pub(crate) async fn met_a_stranger(&self) {
        self.0.stranger.notified().await;
    }

    /// Every model that is served, as the controller says, or as was last known.
    pub(crate) async fn models(&self) -> Result<Vec<ModelStatus>, Problem> {
        match self.renew().await {
            Ok(_) => Ok(self.0.view.models(Instant::now())),
            Err(error) => {
                tracing::debug!(error = chain(&error), "the controller does not answer; models are as last known");
                let models = self.0.view.models(Instant::now());
                if models.is_empty() { Err(no_controller()) } else { Ok(models) }
            }
        }
    }

    /// Continues a prompt. Resolves when a worker has accepted it.
    ///
    /// # Errors
    /// Why no worker did, in words for the client.
    pub(crate) async fn generate(&self, request: GenerateRequest, mut job: Job) -> Result<Answer, Problem> {
        let request = Arc::new(request);
        let running = self.start(&request, &mut job).await?;
        Ok(Answer::new(self.clone(), request, job, running))
    }

    /// Finds a worker that accepts the request, and opens its stream of events.
    async fn start(&self, request: &GenerateRequest, job: &mut Job) -> Result<(Events, Ticket), Problem> {
        loop {
            let Chosen { mut ticket, address, transport } = self.choose(job).await?;
            match job.in_time(self.open(transport, &address, request)).await? {
                Ok(events) => return Ok((events, ticket)),
                Err(error) => self.give_up(job, &mut ticket, &error)?,
            }
        }
    }

    async fn open(
        &self,
        transport: Transport,
        address: &str,
        request: &GenerateRequest,
    ) -> Result<Events, ClientError> {
        match transport {
            Transport::Http => Ok(self.worker(address).generate(request).await?.boxed()),
            Transport::FastChat => self.0.fastchat.generate(address, request).await,
        }
    }

    /// Embeds texts.
    ///
    /// # Errors
    /// Why no worker did, in words for the client.
    pub(crate) async fn embed(&self, request: &EmbedRequest, mut job: Job) -> Result<EmbedResponse, Problem> {
        loop {
            let Chosen { mut ticket, address, transport } = self.choose(&mut job).await?;
            let answer = match transport {
                Transport::Http => job.in_time(self.worker(&address).embed(request)).await?,
                Transport::FastChat => job.in_time(self.0.fastchat.embed(&address, request)).await?,
            };
            match answer {
                Ok(response) => {
                    ticket.end(Outcome::Done);
                    return Ok(response);
                }
                Err(error) => self.give_up(&mut job, &mut ticket, &error)?,
            }
        }
    }

    fn worker(&self, address: &str) -> WorkerClient {
        WorkerClient::new(self.0.http.clone(), address, self.0.token.clone())
    }

    /// Notes a failed attempt; an error when there shall be no other.
    fn give_up(&self, job: &mut Job, ticket: &mut Ticket, error: &ClientError) -> Result<(), Problem> {
        match job.failed(ticket, error) {
            Verdict::Again => Ok(()),
            Verdict::Final(problem) => Err(problem),
        }
    }

    /// One attempt's worker, by the controller or by the last known fleet.
    async fn choose(&self, job: &mut Job) -> Result<Chosen, Problem> {
        job.begin_attempt()?;
        let left = job.time_left();
        let dispatch = Dispatch {
            gateway: self.0.gateway,
            model: job.model.clone(),
            affinity: job.affinity,
            priority: job.priority,
            wait_ms: millis(self.0.config.dispatch_wait.min(left)),
            exclude: job.tried.clone(),
        };
        let error = match job.in_time(self.0.controller.dispatch(&dispatch)).await? {
            Ok(grant) => {
                if !self.0.view.knows_worker(&grant.worker) {
                    self.0.stranger.notify_one();
                }
                return Ok(Chosen {
                    ticket: Ticket::leased(grant.ticket, grant.worker, self.0.releases.clone()),
                    address: grant.address,
                    transport: grant.transport,
                });
            }
            Err(error) => error,
        };
        match error {
            ClientError::Refused { problem, .. } if !matches!(problem.kind, Kind::UnknownModel | Kind::NoWorker) => {
                Err(refusal(problem))
            }
            ClientError::Refused { problem, .. } => {
                // Perhaps the controller is new and has not heard of the worker yet: look which run of it this is.
                let _ = self.renew().await;
                self.choose_from_view(job, view::Trust::AfterRestart).ok_or(problem)
            }
            error => {
                tracing::debug!(request_id = job.request_id, error = chain(&error), "the controller does not answer");
                self.0.view.note_silence();
                self.choose_from_view(job, view::Trust::Always).ok_or_else(no_controller)
            }
        }
    }

    /// A worker of the last known fleet; the controller does not count the request.
    fn choose_from_view(&self, job: &Job, trust: view::Trust) -> Option<Chosen> {
        let (worker, local) = self.0.view.choose(&job.model, &job.tried, trust, Instant::now())?;
        tracing::debug!(request_id = job.request_id, worker = %worker.id, "dispatched from the last known fleet");
        Some(Chosen { ticket: Ticket::local(worker.id, local), address: worker.address, transport: worker.transport })
    }
}

pub(crate) fn controller_client(config: &Config) -> ControllerClient {
    // A dispatch may wait for room, during which the controller is silent.
    let timeouts =
        Timeouts { connect: config.connect_timeout, read: config.dispatch_wait + config.connect_timeout * 2 };
    ControllerClient::new(http_client(timeouts), &config.controller, config.token.clone())
}

/// What a client hears of the controller's refusal: a token that does not fit is the operator's fault, not its own.
fn refusal(problem: Problem) -> Problem {
    match problem.kind {
        Kind::Overloaded => problem,
        _ => {
            tracing::error!(kind = ?problem.kind, message = problem.message, "the controller refused a dispatch");
            Problem::new(Kind::Bug, "the fleet is misconfigured")
        }
    }
}

fn no_controller() -> Problem {
    Problem::new(Kind::NoWorker, "the fleet's controller does not answer and no worker is known; try again later")
        .with_retry_after_ms(RETRY_AFTER_MS)
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An error with its causes, for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
