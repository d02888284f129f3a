//! From a request to a worker that answers it: one dispatch for each attempt, and another worker when one fails.
//!
//! * [`job`]: one request on its way through several attempts; [`watch`]: its clock.
//! * [`link`]: the way to the controller; [`ticket`]: a request in flight, released however it ends.
//! * [`view`]: the last known fleet, for when the controller does not answer; [`peer`]: its workers.
//! * [`wire`]: HTTP to workers, driven by whoever waits for the answer.
//! * [`passthrough`] and [`relay`]: workers that speak OpenAI's API, whose answers go on as they are.
//! * [`native`]: workers that speak our own protocol; [`generate`]: texts; [`answer`]: token events, from as many workers as it takes;
//!   [`call`]: what is answered in one message.
//! * [`fastchat`]: workers that speak FastChat's protocol.
//! * [`tensor`]: models as plain graphs, over the Open Inference Protocol.
//! * [`kept`]: answers that were given before.
//! * [`hedge`]: a second attempt beside a slow first one.

pub(crate) mod answer;
pub(crate) mod call;
pub(crate) mod fastchat;
mod generate;
mod hedge;
pub(crate) mod job;
mod kept;
pub(crate) mod link;
pub(crate) mod native;
pub(crate) mod passthrough;
pub(crate) mod peer;
pub(crate) mod relay;
pub(crate) mod tensor;
pub(crate) mod ticket;
pub(crate) mod view;
pub(crate) mod watch;
pub(crate) mod wire;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use futures_util::future::BoxFuture;
use hyper::Response;
use muster_shared::client::{ClientError, ControllerClient, Timeouts, fleet_client};
use muster_shared::control::{Dispatch, ModelKind, ModelStatus, Outcome};
use muster_shared::generate::GenerateRequest;
use muster_shared::grpc::{GrpcPool, GrpcWorkerClient};
use muster_shared::id::GatewayId;
use muster_shared::link::Process;
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;
use muster_shared::trace::Context;
use muster_shared::transport::Transport;
use tokio_util::sync::CancellationToken;
use tower::retry::budget::TpsBudget;

use crate::Config;
use crate::cache::Cache;
use crate::endpoints;
use crate::keys::check_model;
use crate::keys::ring::Keyring;
use crate::observe::Route;
use crate::outgoing::Outgoing;
use crate::state::Caller;
use fastchat::FastChatClient;
use job::{Job, Limits, Verdict};
use link::{Away, ControllerLink};
use passthrough::{Cost, Passed, Raw};
use peer::{Peer, Peers};
use ticket::Ticket;
use view::{Trust, View, Wanted};
use wire::{Dial, WireError};

/// When to come back while neither controller nor a known worker answers, in milliseconds.
const RETRY_AFTER_MS: u64 = 2000;

/// Time over which retries are weighed against requests.
const BUDGET_SPAN: Duration = Duration::from_secs(10);
/// Retries a second that are always allowed: the requests that run on a worker when it dies all come at once.
const BUDGET_FLOOR: u32 = 100;

/// The protocols in which what we have read can be said.
const TRANSLATED: &[Transport] = &[Transport::Http, Transport::Grpc, Transport::FastChat];

/// What a client asks, in the words of every transport.
pub(crate) trait Question: Send {
    /// The same in our own words.
    type Ours: Send + Sync;

    /// The request as it came; absent where it is a part of one.
    fn raw(&self) -> Option<&Raw>;

    /// Reads it into our own words; once, when a worker wants them.
    fn read(&mut self) -> impl Future<Output = Result<Arc<Self::Ours>, Problem>> + Send;
}

/// A part of a client's request, in our own words only.
struct Read<T>(Arc<T>);

impl<T: Send + Sync> Question for Read<T> {
    type Ours = T;

    fn raw(&self) -> Option<&Raw> {
        None
    }

    async fn read(&mut self) -> Result<Arc<T>, Problem> {
        Ok(Arc::clone(&self.0))
    }
}

/// An answer, in whose words it may be.
pub(crate) enum Begun<T> {
    /// In OpenAI's: it goes to the client as it is.
    Passed(Response<Outgoing>),
    /// In ours.
    Ours(T),
}

/// The whole of an answer, and who gave it.
pub(crate) struct Whole<T> {
    /// The model that answered: the one that the client named, or one that stands behind that name.
    pub(crate) model: Arc<str>,
    /// What it said.
    pub(crate) answer: T,
}

/// A worker's answer, with its ticket.
enum Opened<T> {
    Passed(Box<Passed>, Ticket),
    Ours(T, Ticket),
}

/// Puts a request to a worker in our words.
type Open<Q, T> = fn(Upstream, Arc<Peer>, Arc<Q>, Filled) -> BoxFuture<'static, Result<T, ClientError>>;

/// What a request gets on its way to a worker.
#[derive(Debug, Clone)]
struct Filled {
    /// The model that the worker knows.
    model: Arc<str>,
    /// The seed of one that names none, so that another worker can go on with its answer.
    seed: u64,
    /// Time that the worker has for the whole answer.
    timeout_ms: Option<u64>,
    /// The span of the attempt, where the request is traced.
    trace: Option<Context>,
}

/// The way to the workers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Upstream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gateway: GatewayId,
    link: ControllerLink,
    peers: Arc<Peers>,
    view: Arc<View>,
    fastchat: FastChatClient,
    grpc: GrpcPool,
    token: Option<Secret>,
    authorization: Option<HeaderValue>,
    openai_authorization: Option<HeaderValue>,
    via: HeaderValue,
    limits: Limits,
    cache: Option<Arc<Cache>>,
    config: Config,
}

/// What the threads of a gateway have in common. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    /// What the controller is told of the process.
    process: Process,
    /// The name of this run, on requests that are passed on.
    via: HeaderValue,
    /// The last known fleet.
    view: Arc<View>,
    /// How many requests may be tried again.
    budget: Arc<TpsBudget>,
    /// Answers that are kept.
    cache: Option<Arc<Cache>>,
    /// Ends all that still runs when the time to drain is over.
    pub(crate) cut: CancellationToken,
    /// The keys in force.
    pub(crate) keys: Arc<Keyring>,
}

impl Common {
    /// Those of a gateway that listens at that base URL.
    pub(crate) fn new(config: &Config, address: String) -> Self {
        let process = Process { id: GatewayId::new(), address, version: env!("CARGO_PKG_VERSION").to_owned() };
        let budget = Arc::new(TpsBudget::new(BUDGET_SPAN, BUDGET_FLOOR, config.retry_budget));
        let keys = Arc::new(Keyring::new(config.keys.clone(), config.rate));
        let via = HeaderValue::try_from(process.id.to_string()).expect("letters and digits");
        let cache = config.cache.map(Cache::new).map(Arc::new);
        Self { process, via, view: Arc::default(), budget, cache, cut: CancellationToken::new(), keys }
    }
}

impl Upstream {
    /// A way to the workers of the configured controller.
    pub(crate) fn new(config: Config, gateway: GatewayId, common: Common) -> Self {
        let client = |read| fleet_client(&config.tls, Timeouts { connect: config.connect_timeout, read });
        let (http, embed_http) = (client(config.first_token_timeout), client(config.request_timeout));
        let peers = Arc::new(Peers::new(Dial::new(&config.tls, config.connect_timeout)));
        let batch = config.fastchat_embedding_batch;
        let Common { process, via, view, budget, cache, cut, keys: _ } = common;
        Self(Arc::new(Inner {
            gateway,
            link: ControllerLink::new(gateway, process, Arc::clone(&peers), Arc::clone(&view)),
            peers,
            view,
            fastchat: FastChatClient::new(http, embed_http, config.token.clone(), batch),
            grpc: GrpcPool::of_fleet(&config.tls, config.connect_timeout),
            authorization: config.token.as_ref().map(bearer),
            openai_authorization: config.openai_key.as_ref().map(bearer),
            token: config.token.clone(),
            via,
            limits: Limits { attempts: config.attempts.get(), budget, hedges: config.hedge_after.is_some(), cut },
            cache,
            config,
        }))
    }

    /// Cancelled when the gateway's time to drain is over.
    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.0.limits.cut
    }

    /// The last known fleet.
    pub(crate) fn view(&self) -> &View {
        &self.0.view
    }

    /// The way to the controller.
    pub(crate) fn link(&self) -> &ControllerLink {
        &self.0.link
    }

    pub(super) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(super) fn shared_view(&self) -> Arc<View> {
        Arc::clone(&self.0.view)
    }

    /// What workers of the fleet want to be shown.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.0.authorization.as_ref()
    }

    /// What servers that speak OpenAI's API want to be shown: they are strangers, who have no business with our token.
    pub(super) fn openai_authorization(&self) -> Option<&HeaderValue> {
        self.0.openai_authorization.as_ref()
    }

    /// This gateway's name on requests that are passed on.
    pub(crate) fn via(&self) -> &HeaderValue {
        &self.0.via
    }

    /// A request that begins now.
    ///
    /// # Errors
    /// [`Kind::UnknownModel`] where its key may not use the model: here, where every request passes with the name that is
    /// asked for in the end.
    pub(crate) fn job(&self, caller: &Caller, model: &str) -> Result<Job, Problem> {
        check_model(caller.key.as_deref(), model)?;
        let known = self.0.view.model(model);
        known.iter().for_each(|known| caller.account.asks(&known.name));
        let model = known.map_or_else(|| Arc::from(model), |known| Arc::clone(&known.name));
        let deadline = Instant::now() + self.0.config.request_timeout;
        let mut job = Job::new(caller.account.clone(), model, deadline, self.0.limits.clone());
        (job.key, job.until) = (caller.key.clone(), caller.until);
        Ok(job)
    }

    /// What a model can be asked for, where known.
    pub(crate) fn kind(&self, model: &str) -> Option<ModelKind> {
        self.0.view.model(model)?.kind
    }

    /// The same, where the controller may know a model that has just come.
    pub(crate) async fn kind_now(&self, model: &str) -> Option<ModelKind> {
        if self.0.view.model(model).is_none() {
            self.look().await;
        }
        self.kind(model)
    }

    /// Refuses a request at a route that is not for the model, as far as is known. Workers that speak OpenAI's API know
    /// best themselves what they can do.
    ///
    /// # Errors
    /// What the model is, and where to ask it.
    pub(crate) fn check(&self, model: &str, route: Route) -> Result<(), Problem> {
        let known = self.0.view.model(model).filter(|model| !model.passes_through);
        known.and_then(|model| model.kind).map_or(Ok(()), |kind| endpoints::check(model, kind, route))
    }

    /// Whether a request may go to a worker as it is. Where none will, it can be checked before a worker is sought.
    pub(crate) fn may_pass(&self, model: &str) -> bool {
        self.0.view.model(model).is_none_or(|model| model.passes_through)
    }

    /// Every model that is served, as the controller says, or as was last known.
    pub(crate) async fn models(&self) -> Result<Vec<ModelStatus>, Problem> {
        let answered = self.look().await;
        let models = self.0.view.models(Instant::now());
        if models.is_empty() && !answered { Err(no_controller()) } else { Ok(models) }
    }

    /// Asks the controller for the fleet; tells whether it answered.
    async fn look(&self) -> bool {
        let patience = self.0.config.connect_timeout * 2;
        matches!(tokio::time::timeout(patience, self.0.link.look()).await, Ok(Ok(())))
    }

    /// Makes attempts, until a worker begins to answer.
    async fn begin<Q: Question, T: Send>(
        &self,
        question: &mut Q,
        job: &mut Job,
        open: Open<Q::Ours, T>,
    ) -> Result<Opened<T>, Problem> {
        if question.raw().is_none() && job.transports.is_empty() {
            job.transports = TRANSLATED;
        }
        match self.0.config.hedge_after {
            None => self.attempt(question, job, open).await,
            Some(after) => Box::pin(hedge::begin(self, question, job, (open, after))).await,
        }
    }

    /// One attempt after the other.
    async fn attempt<Q: Question, T>(
        &self,
        question: &mut Q,
        job: &mut Job,
        open: Open<Q::Ours, T>,
    ) -> Result<Opened<T>, Problem> {
        loop {
            let mut ticket = self.choose(job).await?;
            job.account.sent(&ticket);
            job.account.part("attempt").into_iter().for_each(|span| ticket.trace(span));
            let error = match question.raw().filter(|_| ticket.peer().transport == Transport::OpenAi) {
                Some(raw) => match passthrough::pass(self, raw, job, &ticket).await {
                    Ok(Ok(passed)) => return Ok(Opened::Passed(Box::new(passed), ticket)),
                    Ok(Err(error)) => error,
                    Err(problem) => return Err(self.give_in(&mut ticket, problem)),
                },
                None => {
                    let read = question.read().await.inspect_err(|_| ticket.end(Outcome::Done));
                    let filled = job.filled(&ticket);
                    let opened = open(self.clone(), Arc::clone(ticket.peer()), read?, filled);
                    match job.in_time(opened).await {
                        Ok(Ok(answer)) => return Ok(Opened::Ours(answer, ticket)),
                        Ok(Err(error)) => error,
                        Err(problem) => return Err(self.give_in(&mut ticket, problem)),
                    }
                }
            };
            self.give_up(job, ticket, &error).await?;
        }
    }

    fn passed(&self, passed: Passed, job: Job, mut ticket: Ticket) -> Response<Outgoing> {
        match passed {
            Passed::Whole(response, cost) => {
                match cost {
                    Cost::Nothing => {}
                    Cost::Untold => job.account.meter().vague(),
                    Cost::Told(usage) => job.account.usage(&usage),
                }
                ticket.end(Outcome::Done);
                response
            }
            Passed::Begun(head, answer, check, first) => {
                passthrough::relay(self, (head, answer, check, first), job, ticket)
            }
        }
    }

    /// A worker that speaks gRPC, given up after so much silence.
    fn grpc(&self, address: &str, read: Duration) -> GrpcWorkerClient {
        GrpcWorkerClient::new(self.0.grpc.clone(), address, self.0.token.as_ref(), read)
    }

    /// Notes that the worker of a ticket let a request's time pass.
    fn fail(&self, ticket: &mut Ticket) {
        ticket.end(Outcome::Failed);
        self.0.view.note_end(ticket.worker(), Outcome::Failed, Instant::now());
    }

    /// The request is over; a worker that let its time pass has failed.
    fn give_in(&self, ticket: &mut Ticket, problem: Problem) -> Problem {
        if problem.kind == Kind::Timeout {
            self.fail(ticket);
        }
        problem
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
    async fn choose(&self, job: &mut Job) -> Result<Ticket, Problem> {
        job.begin_attempt().await?;
        loop {
            match self.seek(job).await {
                Ok(ticket) => {
                    job.note_latest(ticket.worker());
                    return Ok(ticket);
                }
                Err(problem) => job.wait_for_room(problem).await.map_err(|problem| job.last_word(problem))?,
            }
        }
    }

    async fn seek(&self, job: &mut Job) -> Result<Ticket, Problem> {
        if self.0.view.is_silent()
            && let Some(ticket) = self.choose_from_view(job, Trust::Always)
        {
            return Ok(ticket); // who asks whether the controller is back is the link
        }
        match self.dispatch(job).await? {
            Ok(Ok(ticket)) => {
                if !self.0.view.knows_worker(ticket.worker()) {
                    self.0.link.look_soon();
                }
                Ok(ticket)
            }
            // Perhaps the controller is new and has not heard of the worker yet; its first word told which run it is.
            Ok(Err(problem)) if matches!(problem.kind, Kind::UnknownModel | Kind::NoWorker) => {
                self.choose_from_view(job, Trust::AfterRestart).ok_or(problem)
            }
            Ok(Err(problem)) => Err(refusal(problem)),
            Err(Away) => {
                tracing::debug!(request_id = %job.request_id, "the controller does not answer");
                self.choose_from_view(job, Trust::Always).ok_or_else(no_controller)
            }
        }
    }

    /// Asks the controller for a worker.
    async fn dispatch(&self, job: &mut Job) -> Result<Result<Result<Ticket, Problem>, Away>, Problem> {
        let left = job.time_left();
        if left.is_zero() {
            return Err(job::late());
        }
        // Half of the time left is for the worker, and for asking one of the view should the controller hang.
        let config = &self.0.config;
        let usual = config.dispatch_wait + config.connect_timeout * 2;
        let limit = usual.min(left / 2);
        let mut span = job.account.part("dispatch");
        let dispatch = Dispatch {
            request: Some(job.request_id.to_string()),
            exact: job.exact,
            affinity: job.affinity,
            priority: job.priority,
            key: job.key.as_ref().map(|key| key.name.clone()),
            key_priority: job.key.as_ref().map_or(0, |key| key.priority),
            deadline_ms: job.patience()?.map(millis),
            wait_ms: millis(config.dispatch_wait.min(left * 3 / 8)),
            exclude: job.tried.clone(),
            transports: job.transports.to_vec(),
            trace: span.as_ref().map(|span| span.context().parent()),
            ..Dispatch::new(self.0.gateway, &*job.model)
        };
        job.watch.set(Instant::now() + limit);
        match job.watch.run(self.0.link.dispatch(Arc::clone(&job.model), job.key.clone(), dispatch)).await {
            Ok(answer) => {
                if let (Some(span), Ok(Err(problem))) = (&mut span, &answer) {
                    span.fail(problem.kind.name());
                }
                Ok(answer)
            }
            Err(watch::Lapse::Stopping) => Err(job::stopping()),
            Err(watch::Lapse::Late) => {
                // A limit that our own deadline has shortened says nothing about the controller.
                if limit == usual {
                    self.0.view.note_silence();
                    self.0.link.look_soon();
                }
                Ok(Err(Away))
            }
        }
    }

    /// A worker of the last known fleet; the controller is told of the request when it is back.
    fn choose_from_view(&self, job: &Job, trust: Trust) -> Option<Ticket> {
        let wanted =
            Wanted { model: &job.model, exact: job.exact, exclude: &job.tried, transports: job.transports, trust };
        let (peer, model) = self.0.view.choose(&wanted, &self.0.peers, Instant::now())?;
        tracing::debug!(request_id = %job.request_id, worker = %peer.id, "dispatched from the last known fleet");
        let model = model.map_or_else(|| Arc::clone(&job.model), Arc::from);
        Some(self.0.link.take(peer, model, job.key.clone()))
    }
}

impl Filled {
    /// The request as a worker gets it.
    fn fill(&self, request: &GenerateRequest) -> GenerateRequest {
        let mut filled = self.named(request).into_owned();
        filled.sampling.seed.get_or_insert(self.seed);
        filled.timeout_ms = self.timeout_ms;
        filled
    }

    /// The request for the model that the worker knows.
    fn named<'a>(&self, request: &'a GenerateRequest) -> Cow<'a, GenerateRequest> {
        if *request.model == *self.model {
            return Cow::Borrowed(request);
        }
        Cow::Owned(GenerateRequest { model: self.model.to_string(), ..request.clone() })
    }
}

/// A worker was given that does not speak what a part of a request is said in: another must be found.
fn untranslated(peer: &Peer) -> ClientError {
    let problem = Problem::new(Kind::UnknownModel, "a worker of the transport openai takes whole requests only");
    ClientError::Refused { address: peer.address.clone(), problem }
}

fn bearer(token: &Secret) -> HeaderValue {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).expect("a secret holds no controls");
    value.set_sensitive(true);
    value
}

/// What a broken exchange says of the worker at `address`.
pub(super) fn broken_by(address: &str, error: WireError) -> ClientError {
    let address = address.to_owned();
    match error {
        WireError::Connect(source) => ClientError::Unreachable { address, source },
        WireError::Broken(source) => ClientError::Broken { address, source: Some(source) },
    }
}

pub(crate) fn controller_client(config: &Config) -> ControllerClient {
    // A dispatch may wait for room, during which the controller is silent.
    let timeouts =
        Timeouts { connect: config.connect_timeout, read: config.dispatch_wait + config.connect_timeout * 2 };
    ControllerClient::new(fleet_client(&config.tls, timeouts), &config.controller, config.token.clone())
}

/// What a client hears of the controller's refusal: a token that does not fit is the operator's fault, not its own.
fn refusal(problem: Problem) -> Problem {
    match problem.kind {
        Kind::Overloaded | Kind::RateLimited | Kind::Timeout => problem,
        Kind::Invalid if problem.param.as_deref() == Some("model") => problem, // a name that no model can have
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

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
