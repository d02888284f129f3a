//! One request on its way through several attempts.

use std::time::{Duration, Instant};

use muster_shared::client::ClientError;
use muster_shared::control::Outcome;
use muster_shared::id::WorkerId;
use muster_shared::problem::{Kind, Problem};

use super::chain;
use super::ticket::Ticket;
use crate::metrics;

/// What follows from a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Another worker may do better.
    Again,
    /// No worker will, or none is left.
    Final(Problem),
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Name for logs.
    pub(crate) request_id: String,
    /// The model's name.
    pub(crate) model: String,
    /// Hash of the start of the prompt.
    pub(crate) affinity: Option<u64>,
    /// Higher goes first when requests wait.
    pub(crate) priority: i8,
    /// Workers that have failed it.
    pub(crate) tried: Vec<WorkerId>,
    attempts_left: u32,
    /// Why the last attempt failed.
    last: Option<Problem>,
    deadline: Instant,
}

impl Job {
    pub(crate) fn new(request_id: &str, model: &str, attempts: u32, deadline: Instant) -> Self {
        Self {
            request_id: request_id.to_owned(),
            model: model.to_owned(),
            affinity: None,
            priority: 0,
            tried: Vec::new(),
            attempts_left: attempts,
            last: None,
            deadline,
        }
    }

    /// Counts an attempt; an error when there have been enough.
    pub(super) fn begin_attempt(&mut self) -> Result<(), Problem> {
        if self.attempts_left == 0 {
            return Err(self.last.take().unwrap_or_else(worker_failed));
        }
        self.attempts_left -= 1;
        if self.last.is_some() {
            metrics::retry();
        }
        Ok(())
    }

    /// Time to the deadline.
    pub(super) fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Waits for something, up to the deadline.
    pub(crate) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, Problem> {
        let late = |_| Problem::new(Kind::Timeout, "the request took too long; shorten it, or try again later");
        tokio::time::timeout_at(self.deadline.into(), work).await.map_err(late)
    }

    /// Notes how an attempt failed, on the ticket for the controller and here for the next attempt.
    pub(super) fn failed(&mut self, ticket: &mut Ticket, error: &ClientError) -> Verdict {
        tracing::warn!(
            request_id = self.request_id, worker = %ticket.worker(), error = chain(error), "an attempt failed"
        );
        let (outcome, verdict) = judge(error);
        ticket.end(outcome);
        match verdict {
            Err(problem) => Verdict::Final(problem),
            Ok(problem) => {
                // A full worker may have room the next time; any other has shown that it cannot.
                if outcome != Outcome::Overloaded {
                    self.tried.push(ticket.worker().clone());
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
            Kind::Invalid | Kind::PromptTooLong | Kind::TooLarge => (Outcome::Done, Err(problem.clone())),
            _ => (Outcome::Failed, Ok(worker_failed())),
        },
    }
}

/// What a client hears when a worker failed: no addresses, no causes.
pub(super) fn worker_failed() -> Problem {
    Problem::new(Kind::Upstream, "the worker that ran this request failed; try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: Kind) -> ClientError {
        ClientError::Refused { address: "http://secret".to_owned(), problem: Problem::new(kind, "why") }
    }

    #[test]
    fn another_worker_is_tried_only_where_it_may_do_better() {
        for kind in [Kind::Overloaded, Kind::NoWorker, Kind::UnknownModel, Kind::Bug, Kind::BadKey] {
            assert!(judge(&refused(kind)).1.is_ok(), "{kind:?}");
        }
        for kind in [Kind::Invalid, Kind::PromptTooLong, Kind::TooLarge] {
            let (outcome, verdict) = judge(&refused(kind));
            assert_eq!((outcome, verdict.expect_err("final").kind), (Outcome::Done, kind));
        }
        let broken = ClientError::Broken { address: "http://secret".to_owned(), source: None };
        let (outcome, verdict) = judge(&broken);
        let problem = verdict.expect("another may do better");
        assert_eq!((outcome, problem.kind), (Outcome::Failed, Kind::Upstream));
        assert!(!problem.message.contains("secret"));
    }

    #[test]
    fn attempts_are_counted_and_the_last_failure_is_told() {
        let mut job = Job::new("r", "m", 2, Instant::now());
        let (releases, _) = super::super::ticket::channel();
        let mut ticket = Ticket::leased(muster_shared::id::TicketId::new(), WorkerId::new("w"), releases);
        job.begin_attempt().expect("the first");
        assert_eq!(job.failed(&mut ticket, &refused(Kind::Overloaded)), Verdict::Again);
        assert!(job.tried.is_empty(), "a full worker is asked again");
        job.begin_attempt().expect("the second");
        assert_eq!(job.failed(&mut ticket, &refused(Kind::Bug)), Verdict::Again);
        assert_eq!(job.tried, [WorkerId::new("w")]);
        assert_eq!(job.begin_attempt().expect_err("no third").kind, Kind::Upstream);
    }
}
