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
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use muster_shared::client::{ClientError, ControllerClient, Timeouts, WorkerClient, http_client};
use muster_shared::control::{Dispatch, Grant, ModelStatus, Outcome, Renew};
use muster_shared::embed::{EmbedRequest, EmbedResponse};
use muster_shared::generate::GenerateRequest;
use muster_shared::grpc::{GrpcPool, GrpcWorkerClient};
use muster_shared::id::GatewayId;
use muster_shared::problem::{Kind, Problem, chain};
use muster_shared::secret::Secret;
use muster_shared::transport::Transport;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

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
    /// For embeddings, whose worker is silent until all are there.
    embed_http: reqwest::Client,
    grpc: GrpcPool,
    token: Option<Secret>,
    fastchat: FastChatClient,
    releases: Releases,
    view: View,
    /// Told when the view may be wrong (the controller names a worker it does not hold, or falls silent): look now.
    doubt: Notify,
    config: Config,
    /// Cancelled when the time to drain is over.
    cut: CancellationToken,
}

impl Upstream {
    /// A way to the workers of the configured controller; tickets are released through `releases`, and requests that
    /// still run when `cut` is cancelled end then.
    pub(crate) fn new(config: Config, gateway: GatewayId, releases: Releases, cut: CancellationToken) -> Self {
        let client = |read| http_client(Timeouts { connect: config.connect_timeout, read });
        let (http, embed_http) = (client(config.read_timeout), client(config.request_timeout));
        let batch = config.fastchat_embedding_batch;
        Self(Arc::new(Inner {
            gateway,
            controller: controller_client(&config),
            fastchat: FastChatClient::new(http.clone(), embed_http.clone(), config.token.clone(), batch),
            http,
            embed_http,
            grpc: GrpcPool::new(config.connect_timeout),
            token: config.token.clone(),
            releases,
            view: View::default(),
            doubt: Notify::new(),
            config,
            cut,
        }))
    }

    /// Cancelled when the gateway's time to drain is over.
    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.0.cut
    }

    /// The last known fleet.
    pub(crate) fn view(&self) -> &View {
        &self.0.view
    }

    /// A request that begins now.
    pub(crate) fn job(&self, request_id: &str, model: &str) -> Job {
        let config = &self.0.config;
        let deadline = Instant::now() + config.request_timeout;
        Job::new(request_id, model, config.attempts.get(), deadline, self.0.cut.clone())
    }

    /// Renews this gateway's tickets, and looks at the fleet. A controller that hangs counts as one that does not
    /// answer after twice the time of a connection.
    pub(crate) async fn renew(&self) -> Result<(), ClientError> {
        let Inner { controller, gateway, config, .. } = &*self.0;
        let renew = Renew { gateway: *gateway };
        let renewed = tokio::time::timeout(config.connect_timeout * 2, controller.renew(&renew)).await;
        match renewed.unwrap_or_else(|_| Err(self.hangs())) {
            Ok(fleet) => {
                self.0.view.note(fleet, Instant::now());
                Ok(())
            }
            Err(error) => {
                self.0.view.note_silence();
                Err(error)
            }
        }
    }

    /// Resolves when the view may be wrong.
    pub(crate) async fn in_doubt(&self) {
        self.0.doubt.notified().await;
    }

    /// Every model that is served, as the controller says, or as was last known.
    pub(crate) async fn models(&self) -> Result<Vec<ModelStatus>, Problem> {
        if self.0.view.is_silent() {
            let models = self.0.view.models(Instant::now());
            if !models.is_empty() {
                return Ok(models);
            }
        }
        match self.renew().await {
            Ok(()) => Ok(self.0.view.models(Instant::now())),
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
            let asked = job.with_time_left(request);
            match self.in_time(job, &mut ticket, self.open(transport, &address, &asked)).await? {
                Ok(events) => return Ok((events, ticket)),
                Err(error) => self.give_up(job, ticket, &error).await?,
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
            Transport::Http => {
                let worker = WorkerClient::new(self.0.http.clone(), address, self.0.token.clone());
                Ok(worker.generate(request).await?.boxed())
            }
            Transport::FastChat => self.0.fastchat.generate(address, request).await,
            Transport::Grpc => Ok(self.grpc(address, self.0.config.read_timeout).generate(request).await?.boxed()),
            Transport::OpenAi => todo!(),
        }
    }

    /// A worker that speaks gRPC, given up after so much silence.
    fn grpc(&self, address: &str, read: Duration) -> GrpcWorkerClient {
        GrpcWorkerClient::new(self.0.grpc.clone(), address, self.0.token.as_ref(), read)
    }

    /// Embeds texts.
    ///
    /// # Errors
    /// Why no worker did, in words for the client.
    pub(crate) async fn embed(&self, request: &EmbedRequest, mut job: Job) -> Result<EmbedResponse, Problem> {
        loop {
            let Chosen { mut ticket, address, transport } = self.choose(&mut job).await?;
            let embedded = async {
                match transport {
                    Transport::Http => {
                        let http = self.0.embed_http.clone();
                        WorkerClient::new(http, &address, self.0.token.clone()).embed(request).await
                    }
                    Transport::FastChat => self.0.fastchat.embed(&address, request).await,
                    Transport::Grpc => self.grpc(&address, self.0.config.request_timeout).embed(request).await,
                    Transport::OpenAi => todo!(),
                }
            };
            match self.in_time(&job, &mut ticket, embedded).await? {
                Ok(response) => {
                    ticket.end(Outcome::Done);
                    return Ok(response);
                }
                Err(error) => self.give_up(&mut job, ticket, &error).await?,
            }
        }
    }

    /// Waits for the worker of a ticket, up to the request's deadline. A worker that lets it pass has failed.
    async fn in_time<T>(&self, job: &Job, ticket: &mut Ticket, work: impl Future<Output = T>) -> Result<T, Problem> {
        job.in_time(work).await.inspect_err(|problem| {
            if problem.kind == Kind::Timeout {
                ticket.end(Outcome::Failed);
                self.0.view.note_end(ticket.worker(), Outcome::Failed, Instant::now());
            }
        })
    }

    /// Notes a failed attempt and releases its ticket; an error when there shall be no other.
    async fn give_up(&self, job: &mut Job, mut ticket: Ticket, error: &ClientError) -> Result<(), Problem> {
        let verdict = job.failed(&mut ticket, error);
        self.0.view.note_end(ticket.worker(), ticket.outcome(), Instant::now());
        drop(ticket);
        match verdict {
            Verdict::Again => Ok(()),
            Verdict::Full(problem) => job.wait_for_room(problem).await,
            Verdict::Final(problem) => Err(problem),
        }
    }

    /// One attempt's worker, by the controller or by the last known fleet.
    async fn choose(&self, job: &mut Job) -> Result<Chosen, Problem> {
        job.begin_attempt()?;
        loop {
            match self.seek(job).await {
                Ok(chosen) => return Ok(chosen),
                Err(problem) => job.wait_for_room(problem).await?,
            }
        }
    }

    async fn seek(&self, job: &Job) -> Result<Chosen, Problem> {
        if self.0.view.is_silent()
            && let Some(chosen) = self.choose_from_view(job, view::Trust::Always)
        {
            return Ok(chosen); // who asks whether the controller is back is `keep_in_touch`
        }
        match self.dispatch(job).await? {
            Ok(grant) => {
                if !self.0.view.knows_worker(&grant.worker) {
                    self.0.doubt.notify_one();
                }
                Ok(Chosen {
                    ticket: Ticket::leased(grant.ticket, grant.worker, self.0.releases.clone()),
                    address: grant.address,
                    transport: grant.transport,
                })
            }
            Err(ClientError::Refused { problem, .. })
                if !matches!(problem.kind, Kind::UnknownModel | Kind::NoWorker) =>
            {
                Err(refusal(problem))
            }
            Err(ClientError::Refused { problem, .. }) => {
                // Perhaps the controller is new and has not heard of the worker yet: look which run of it this is.
                let _ = job.in_time(self.renew()).await?;
                self.choose_from_view(job, view::Trust::AfterRestart).ok_or(problem)
            }
            Err(error) => {
                tracing::debug!(request_id = job.request_id, error = chain(&error), "the controller does not answer");
                self.choose_from_view(job, view::Trust::Always).ok_or_else(no_controller)
            }
        }
    }

    /// Asks the controller for a worker.
    async fn dispatch(&self, job: &Job) -> Result<Result<Grant, ClientError>, Problem> {
        let left = job.time_left();
        if left.is_zero() {
            return Err(job::late());
        }
        // Half of the time left is for the worker, and for asking one of the view should the controller hang.
        let config = &self.0.config;
        let usual = config.dispatch_wait + config.connect_timeout * 2;
        let limit = usual.min(left / 2);
        let dispatch = Dispatch {
            gateway: self.0.gateway,
            model: job.model.clone(),
            affinity: job.affinity,
            priority: job.priority,
            wait_ms: millis(config.dispatch_wait.min(left * 3 / 8)),
            exclude: job.tried.clone(),
        };
        let answer = tokio::time::timeout(limit, self.0.controller.dispatch(&dispatch));
        let (answer, is_silent) = match job.while_running(answer).await? {
            Ok(answer) => {
                let is_silent = answer.as_ref().is_err_and(|error| !matches!(error, ClientError::Refused { .. }));
                (answer, is_silent)
            }
            // A limit that our own deadline has shortened says nothing about the controller.
            Err(_) => (Err(self.hangs()), limit == usual),
        };
        if is_silent && self.0.view.note_silence() {
            self.0.doubt.notify_one();
        }
        Ok(answer)
    }

    /// The controller has taken a call and not answered.
    fn hangs(&self) -> ClientError {
        ClientError::Broken { address: self.0.controller.address().to_owned(), source: None }
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
