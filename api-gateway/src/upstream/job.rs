//! One request on its way through several attempts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_shared::client::ClientError;
use muster_shared::control::Outcome;
use muster_shared::id::WorkerId;
use muster_shared::problem::{Kind, Problem, chain};
use muster_shared::transport::Transport;
use rand::RngExt as _;
use tokio_util::sync::CancellationToken;
use tower::retry::budget::{Budget as _, TpsBudget};

use super::ticket::Ticket;
use super::watch::{Lapse, Watch};
use super::{Filled, millis};
use crate::account::Account;
use crate::keys::ApiKey;
use crate::metrics;

/// Shortest and longest pause of a patient request before it asks a full fleet again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Longest pause before a second attempt, and before any other; each is drawn between nothing and twice the last.
const BACKOFFS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
/// When to come back to a gateway that stops, in milliseconds: another may stand in its place by then.
const STOPPING_MS: u64 = 1000;

/// What follows from a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Another worker may do better.
    Again,
    /// The worker was full, and the request is patient: the attempt does not count.
    Full(Problem),
    /// No worker will, or none is left.
    Final(Problem),
}

/// One request.
#[derive(Debug)]
pub(crate) struct Job {
    /// Name for logs.
    pub(crate) request_id: Arc<str>,
    /// What becomes of the request.
    pub(crate) account: Account,
    /// The model's name, as the client gave it; that of another once [`Job::stay`] has said so.
    pub(crate) model: Arc<str>,
    /// Whether no other model will do.
    pub(super) exact: bool,
    /// Hash of the start of the prompt.
    pub(crate) affinity: Option<u64>,
    /// Higher goes first when requests wait.
    pub(crate) priority: i8,
    /// Whether it waits for room up to its deadline, where others are refused when the fleet stays full.
    pub(crate) patient: bool,
    /// Whether the whole answer must be here by the deadline, not only its beginning.
    pub(crate) whole: bool,
    /// On whose behalf it is made, where keys are wanted.
    pub(crate) key: Option<Arc<ApiKey>>,
    /// When its client gives up, where it has said so.
    pub(crate) until: Option<Instant>,
    /// Workers that have failed it.
    pub(crate) tried: Vec<WorkerId>,
    /// Protocols in which it can be said; empty: in any.
    pub(crate) transports: &'static [Transport],
    /// Ends what takes too long.
    pub(crate) watch: Watch,
    /// The seed of answers to a request that names none.
    seed: u64,
    /// Whether it is for an answer that has begun.
    resumes: bool,
    limits: Limits,
    attempts_left: u32,
    /// Why the last attempt failed.
    last: Option<Problem>,
    /// The worker asked last, where another attempt may be made beside.
    latest: Option<Arc<Mutex<Option<WorkerId>>>>,
    deadline: Instant,
}

/// What bounds the attempts of a request.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Workers tried for one request.
    pub(crate) attempts: u32,
    /// Shared by all requests: how many of them may be tried again.
    pub(crate) budget: Arc<TpsBudget>,
    /// Whether a second attempt may be made beside the first.
    pub(crate) hedges: bool,
    /// Ends all that still runs when the gateway stops.
    pub(crate) cut: CancellationToken,
}

impl Job {
    pub(crate) fn new(account: Account, model: Arc<str>, deadline: Instant, limits: Limits) -> Self {
        limits.budget.deposit();
        let hedges = limits.hedges;
        Self {
            request_id: Arc::clone(&account.id().0),
            account,
            model,
            exact: false,
            affinity: None,
            priority: 0,
            patient: false,
            whole: false,
            key: None,
            until: None,
            tried: Vec::new(),
            transports: &[],
            watch: Watch::new(deadline, limits.cut.clone()),
            seed: rand::random(),
            resumes: false,
            attempts_left: limits.attempts,
            limits,
            last: None,
            latest: hedges.then(Arc::default),
            deadline,
        }
    }

    /// Another request for the same, with limits of its own.
    pub(super) fn again(&self) -> Self {
        Self {
            request_id: Arc::clone(&self.request_id),
            account: self.account.clone(),
            model: Arc::clone(&self.model),
            key: self.key.clone(),
            tried: self.tried.clone(),
            watch: Watch::new(self.deadline, self.limits.cut.clone()),
            limits: self.limits.clone(),
            last: self.last.clone(),
            latest: self.latest.clone(),
            ..*self
        }
    }

    /// Notes the worker that is asked now, for an attempt beside this one.
    pub(super) fn note_latest(&self, worker: &WorkerId) {
        if let Some(latest) = &self.latest {
            *latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker.clone());
        }
    }

    /// Leaves the worker alone that an attempt beside this one asks now.
    pub(super) fn spare_latest(&mut self) {
        if let Some(latest) = &self.latest {
            self.tried.extend(latest.lock().unwrap_or_else(PoisonError::into_inner).clone());
        }
    }

    /// Counts an attempt; after a failed one, waits a little, so that many requests that failed at once do not come back
    /// at once.
    ///
    /// # Errors
    /// Why the last one failed, when there have been enough of this request, or of all.
    pub(super) async fn begin_attempt(&mut self) -> Result<(), Problem> {
        if self.attempts_left == 0 {
            return Err(self.last.take().unwrap_or_else(worker_failed));
        }
        self.attempts_left -= 1;
        let Some(last) = &self.last else { return Ok(()) };
        if !self.patient && !self.limits.budget.withdraw() {
            metrics::retry_denied();
            tracing::warn!(request_id = %self.request_id, "too many requests were tried again lately; this one is not");
            return Err(last.clone());
        }
        metrics::retry();
        let made = self.limits.attempts.saturating_sub(self.attempts_left + 2).min(8);
        let longest = (BACKOFFS.0 * 2_u32.pow(made)).min(BACKOFFS.1);
        let pause = longest.mul_f64(rand::rng().random_range(0.0..1.0));
        self.in_time(tokio::time::sleep(pause)).await
    }

    /// The last attempt was refused for what we have asked beyond the client's words: it does not count.
    pub(super) fn refund(&mut self) {
        self.attempts_left += 1;
    }

    /// An answer that has begun and broke off shall go on at another worker, by then at the latest.
    pub(super) fn resume(&mut self, transports: &'static [Transport], deadline: Instant) {
        self.resumes = true;
        self.patient = true; // who has waited for half an answer would rather wait on
        self.transports = transports;
        if !self.whole {
            self.deadline = deadline;
        }
    }

    /// From now on only that model will do: what it has begun, no other can go on with.
    pub(crate) fn stay(&mut self, model: Arc<str>) {
        self.model = model;
        self.exact = true;
    }

    /// A worker has made progress: what failed before does not count any more.
    pub(super) fn progressed(&mut self) {
        if self.last.take().is_some() {
            self.attempts_left = self.limits.attempts.saturating_sub(1);
            self.tried.clear();
        }
    }

    /// What the request gets on its way to the worker of a ticket.
    pub(super) fn filled(&self, ticket: &Ticket) -> Filled {
        let timeout_ms = self.whole.then(|| millis(self.time_left()));
        Filled { model: Arc::clone(ticket.model()), seed: self.seed, timeout_ms, trace: ticket.context() }
    }

    /// Time to the deadline.
    pub(super) fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Time until the client gives up, where it has said so and that still matters: an answer that has begun to come is
    /// waited for.
    ///
    /// # Errors
    /// [`Kind::Timeout`] when it has given up.
    pub(super) fn patience(&self) -> Result<Option<Duration>, Problem> {
        let Some(until) = self.until.filter(|_| self.whole || !self.resumes) else { return Ok(None) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message = "the time that was given for the request is over, and no worker has answered it";
            return Err(Problem::new(Kind::Timeout, message));
        }
        Ok(Some(left))
    }

    /// Whether the deadline has passed.
    pub(super) fn is_late(&self) -> bool {
        self.time_left().is_zero()
    }

    /// When a worker asked now must have begun to answer.
    pub(super) fn first_token_until(&self, timeout: Duration) -> Instant {
        (Instant::now() + timeout).min(self.deadline)
    }

    /// When the next token must have come, and, where the whole answer has a deadline, all of them.
    pub(super) fn next_token_until(&self, now: Instant, timeout: Duration) -> Instant {
        let next = now + timeout;
        if self.whole { next.min(self.deadline) } else { next }
    }

    /// Waits for something, up to the deadline.
    ///
    /// # Errors
    /// [`Kind::Timeout`] at the deadline; else that the gateway stops.
    pub(super) async fn in_time<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Problem> {
        self.watch.set(self.deadline);
        self.watch.run(work).await.map_err(|lapse| match lapse {
            Lapse::Late => late(),
            Lapse::Stopping => stopping(),
        })
    }

    /// Waits a little for room in a full fleet.
    ///
    /// # Errors
    /// The refusal itself, where waiting does not help or the request is not patient.
    pub(super) async fn wait_for_room(&mut self, refusal: Problem) -> Result<(), Problem> {
        let waiting_helps = match refusal.kind {
            Kind::Overloaded | Kind::RateLimited => self.patient,
            // A worker that died comes back perhaps, and has not failed what it is asked then.
            Kind::NoWorker => self.resumes,
            _ => false,
        };
        let pause = Duration::from_millis(refusal.retry_after_ms.unwrap_or(0)).clamp(PAUSES.0, PAUSES.1);
        if !waiting_helps || self.time_left() <= pause {
            return Err(refusal);
        }
        if refusal.kind == Kind::NoWorker {
            self.tried.clear();
        }
        self.in_time(tokio::time::sleep(pause)).await
    }

    /// What a client hears when no worker is left. Where one said that there is no such model, or no such version of it,
    /// this says more than that all have been asked.
    pub(super) fn last_word(&self, refusal: Problem) -> Problem {
        let last = self.last.as_ref().filter(|last| last.kind == Kind::UnknownModel && refusal.kind == Kind::NoWorker);
        last.cloned().unwrap_or(refusal)
    }

    /// Notes how an attempt failed, on the ticket for the controller and here for the next attempt.
    pub(super) fn failed(&mut self, ticket: &mut Ticket, error: &ClientError) -> Verdict {
        let (outcome, verdict) = judge(error);
        ticket.end(outcome);
        let (request_id, worker) = (&*self.request_id, ticket.worker());
        if verdict.is_err() && outcome == Outcome::Done {
            tracing::debug!(request_id, %worker, error = chain(error), "the worker refused what the client asked for");
        } else {
            tracing::warn!(request_id, %worker, error = chain(error), "an attempt failed");
        }
        match verdict {
            Err(problem) => Verdict::Final(problem),
            Ok(problem) if self.patient && problem.kind == Kind::Overloaded => {
                self.attempts_left += 1;
                Verdict::Full(problem)
            }
            Ok(problem) => {
                // A full worker may have room the next time; any other has shown that it cannot.
                if outcome != Outcome::Overloaded {
                    self.tried.push(ticket.worker().clone());
                }
                // Attempts end what kills its workers. One that was not reached was not killed by this; an answer that
                // has begun has its own time to find another.
                if self.resumes && outcome == Outcome::Unreachable {
                    self.attempts_left += 1;
                }
                self.last = Some(problem);
                Verdict::Again
            }
        }
    }
}

/// What an error says about the worker, and about the request: `Ok` when another worker may do better, with what the
/// client hears if none is left; `Err` when none will.
fn judge(error: &ClientError) -> (Outcome, Result<Problem, Problem>) {
    match error {
        ClientError::Unreachable { .. } => (Outcome::Unreachable, Ok(worker_failed())),
        ClientError::Broken { .. } | ClientError::Unexpected { .. } => (Outcome::Failed, Ok(worker_failed())),
        ClientError::Refused { problem, .. } => match problem.kind {
            Kind::Overloaded | Kind::NoWorker => (Outcome::Overloaded, Ok(problem.clone())),
            Kind::UnknownModel => (Outcome::Done, Ok(problem.clone())),
            // The time that the client has given it.
            Kind::Timeout if problem.param.is_some() => (Outcome::Done, Err(problem.clone())),
            // The time that we have given it.
            Kind::Timeout => (Outcome::Failed, Err(late())),
            Kind::Invalid | Kind::PromptTooLong | Kind::TooLarge | Kind::Run => (Outcome::Done, Err(problem.clone())),
            _ => (Outcome::Failed, Ok(worker_failed())),
        },
    }
}

/// A worker that took a request and did not begin to answer, or stood still.
pub(super) fn silent(address: String) -> ClientError {
    let silence = std::io::Error::new(std::io::ErrorKind::TimedOut, "it said nothing for too long");
    ClientError::Broken { address, source: Some(silence.into()) }
}

/// What a client hears of an answer that broke off and cannot go on.
pub(super) fn broken_off() -> Problem {
    let message = "the worker that gave this answer failed, and its answers cannot be continued by another; try again";
    Problem::new(Kind::Upstream, message)
}

/// What a client hears when a worker failed: no addresses, no causes.
pub(super) fn worker_failed() -> Problem {
    Problem::new(Kind::Upstream, "the worker that ran this request failed; try again")
}

pub(super) fn late() -> Problem {
    Problem::new(Kind::Timeout, "the request took too long; shorten it, or try again later")
}

/// What a client hears whose request outlived the time to drain.
pub(crate) fn stopping() -> Problem {
    Problem::new(Kind::NoWorker, "the gateway is stopping; try again").with_retry_after_ms(STOPPING_MS)
}

#[cfg(test)]
mod tests {
    use muster_shared::generate::{GenerateRequest, Prompt};
    use muster_shared::id::GatewayId;
    use muster_shared::link::Process;

    use super::*;
    use crate::observe::Route;
    use crate::state::RequestId;
    use crate::upstream::link::ControllerLink;
    use crate::upstream::peer::Peers;

    const MINUTE: Duration = Duration::from_secs(60);

    fn refused(kind: Kind) -> ClientError {
        ClientError::Refused { address: "http://secret".to_owned(), problem: Problem::new(kind, "why") }
    }

    #[test]
    fn a_time_that_the_client_has_set_is_no_fault_of_the_worker() {
        let problem = Problem::new(Kind::Timeout, "too late").with_param("parameters.timeout");
        let error = ClientError::Refused { address: "http://w".to_owned(), problem: problem.clone() };
        assert_eq!(judge(&error), (Outcome::Done, Err(problem)));
        assert_eq!(judge(&refused(Kind::Timeout)), (Outcome::Failed, Err(late())), "but ours is");
    }

    #[test]
    fn another_worker_is_tried_only_where_it_may_do_better() {
        for kind in [Kind::Overloaded, Kind::NoWorker, Kind::UnknownModel, Kind::Bug, Kind::BadKey] {
            assert!(judge(&refused(kind)).1.is_ok(), "{kind:?}");
        }
        for kind in [Kind::Invalid, Kind::PromptTooLong, Kind::TooLarge, Kind::Run] {
            let (outcome, verdict) = judge(&refused(kind));
            assert_eq!((outcome, verdict.expect_err("final").kind), (Outcome::Done, kind));
        }
        let (outcome, verdict) = judge(&refused(Kind::Timeout));
        assert_eq!((outcome, verdict), (Outcome::Failed, Err(late())), "there is no time left for another");
        let broken = ClientError::Broken { address: "http://secret".to_owned(), source: None };
        let (outcome, verdict) = judge(&broken);
        let problem = verdict.expect("another may do better");
        assert_eq!((outcome, problem.kind), (Outcome::Failed, Kind::Upstream));
        assert!(!problem.message.contains("secret"));
    }

    fn account() -> Account {
        Account::open(RequestId("r".into()), Route::Chat)
    }

    fn job(attempts: u32, left: Duration) -> Job {
        job_within(attempts, left, TpsBudget::new(MINUTE, 100, 0.2))
    }

    fn job_within(attempts: u32, left: Duration, budget: TpsBudget) -> Job {
        let limits = Limits { attempts, budget: Arc::new(budget), hedges: false, cut: CancellationToken::new() };
        Job::new(account(), "m".into(), Instant::now() + left, limits)
    }

    fn ticket() -> Ticket {
        let peers = Arc::new(Peers::new(MINUTE));
        let worker = peers.get(&WorkerId::new("w"), "http://w", Transport::Http);
        let process = Process { id: GatewayId::new(), address: String::new(), version: String::new() };
        ControllerLink::new(GatewayId::new(), process, peers, Arc::default()).take(worker, "m".into(), None)
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_counted_and_the_last_failure_is_told() {
        let (mut job, mut ticket) = (job(2, MINUTE), ticket());
        job.begin_attempt().await.expect("the first");
        assert_eq!(job.failed(&mut ticket, &refused(Kind::Overloaded)), Verdict::Again);
        assert!(job.tried.is_empty(), "a full worker is asked again");
        job.begin_attempt().await.expect("the second");
        assert_eq!(job.failed(&mut ticket, &refused(Kind::Bug)), Verdict::Again);
        assert_eq!(job.tried, [WorkerId::new("w")]);
        assert_eq!(job.begin_attempt().await.expect_err("no third").kind, Kind::Upstream);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_gives_the_attempts_back() {
        let (mut job, mut ticket) = (job(2, MINUTE), ticket());
        for _ in 0..5 {
            job.begin_attempt().await.expect("one more");
            job.progressed();
            assert!(job.tried.is_empty());
            assert_eq!(job.failed(&mut ticket, &refused(Kind::Bug)), Verdict::Again);
        }
        job.begin_attempt().await.expect("the second since the last progress");
        assert_eq!(job.failed(&mut ticket, &refused(Kind::Bug)), Verdict::Again);
        job.begin_attempt().await.expect_err("no third");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_part_of_all_requests_is_tried_again_but_answers_that_have_begun_are() {
        let limits = Limits {
            hedges: false,
            attempts: 3,
            budget: Arc::new(TpsBudget::new(MINUTE, 0, 0.5)),
            cut: CancellationToken::new(),
        };
        let job = || Job::new(account(), "m".into(), Instant::now() + MINUTE, limits.clone());
        let mut jobs: Vec<Job> = (0..4).map(|_| job()).collect();
        let mut again = Vec::new();
        for job in &mut jobs {
            job.begin_attempt().await.expect("a first attempt costs nothing");
            job.failed(&mut ticket(), &refused(Kind::Bug));
            again.push(job.begin_attempt().await.map_err(|problem| problem.kind));
        }
        assert_eq!(again, [Ok(()), Ok(()), Err(Kind::Upstream), Err(Kind::Upstream)], "one for every two requests");
        jobs[3].resume(&[Transport::Http], Instant::now() + MINUTE);
        assert_eq!(jobs[3].begin_attempt().await, Ok(()), "its first worker has been paid for");
    }

    #[tokio::test]
    async fn a_worker_is_told_the_time_left_where_the_whole_answer_has_a_deadline() {
        let request = GenerateRequest::new("m", Prompt::Text("hi".to_owned()));
        let streamed = job(1, MINUTE);
        assert_eq!(streamed.filled(&ticket()).fill(&request).timeout_ms, None);
        let whole = Job { whole: true, ..streamed };
        let left = whole.filled(&ticket()).fill(&request).timeout_ms.expect("a time");
        assert!((1..=60_000).contains(&left), "{left}");
        let late = Job { deadline: Instant::now(), ..whole };
        assert_eq!(late.filled(&ticket()).fill(&request).timeout_ms, Some(0));
    }

    #[tokio::test]
    async fn every_worker_of_a_request_gets_the_same_seed() {
        let mut request = GenerateRequest::new("m", Prompt::Text("hi".to_owned()));
        let job = job(1, MINUTE);
        let seed = job.filled(&ticket()).fill(&request).sampling.seed;
        assert!(seed.is_some());
        assert_eq!(job.filled(&ticket()).fill(&request).sampling.seed, seed);
        request.sampling.seed = Some(7);
        assert_eq!(job.filled(&ticket()).fill(&request).sampling.seed, Some(7), "the client's own");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_patient_request_waits_for_room_and_only_up_to_its_deadline() {
        let full = || Problem::new(Kind::Overloaded, "full").with_retry_after_ms(1);
        let none = || Problem::new(Kind::NoWorker, "none");
        let mut job = Job { patient: true, ..job(1, MINUTE) };
        for _ in 0..3 {
            job.begin_attempt().await.expect("a full worker costs no attempt");
            let verdict = job.failed(&mut ticket(), &refused(Kind::Overloaded));
            assert_eq!(verdict, Verdict::Full(Problem::new(Kind::Overloaded, "why")));
        }
        assert_eq!(job.wait_for_room(full()).await, Ok(()));
        assert_eq!(job.wait_for_room(none()).await, Err(none()));
        job.patient = false;
        assert_eq!(job.wait_for_room(full()).await, Err(full()));
        let mut late = Job { patient: true, deadline: Instant::now(), ..job };
        assert_eq!(late.wait_for_room(full()).await, Err(full()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_has_begun_waits_for_a_worker_to_come_back() {
        let none = || Problem::new(Kind::NoWorker, "none");
        let mut job = job(1, Duration::ZERO);
        job.begin_attempt().await.expect("the first");
        job.failed(&mut ticket(), &refused(Kind::Bug));
        assert_eq!(job.tried, [WorkerId::new("w")]);
        job.resume(&[Transport::Http], Instant::now() + MINUTE);
        assert_eq!(job.wait_for_room(none()).await, Ok(()));
        assert!(job.tried.is_empty(), "whoever comes back is a new one");
        job.resume(&[Transport::Http], Instant::now());
        assert_eq!(job.wait_for_room(none()).await, Err(none()));
    }

    #[tokio::test]
    async fn what_runs_when_the_time_to_drain_is_over_is_ended() {
        let mut job = job(1, MINUTE);
        job.limits.cut.cancel();
        let problem = job.in_time(std::future::pending::<()>()).await.expect_err("it is cut");
        assert_eq!(problem, stopping());
    }
}
