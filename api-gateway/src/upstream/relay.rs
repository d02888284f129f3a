//! A worker's own stream on its way to the client: the body of the answer, with the ticket in it.

pub(crate) mod check;

use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use muster_shared::control::Outcome;
use muster_shared::problem::{Kind, Problem};
use muster_shared::sse;

use super::job::{Job, broken_off, worker_failed};
use super::ticket::Ticket;
use super::view::View;
use super::watch::Lapse;
use super::wire::Answer;
use crate::openai::error;
use crate::{account, metrics};
use check::{Check, End};
use std::sync::Arc;

/// Time that a worker has to end its answer after the last event, so that its connection can be kept.
const LETTING_GO: Duration = Duration::from_secs(1);

/// A stream under way. Dropping it cancels the request at the worker and gives the ticket back.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Absent after the last byte.
    answer: Option<Answer>,
    check: Check,
    /// What came before the relay began.
    first: Bytes,
    ticket: Ticket,
    job: Job,
    view: Arc<View>,
    begun: Instant,
    last: Option<Instant>,
    /// What the meter was told of it: the prompt, and a token for each event, until it says itself what it has cost.
    counted: u64,
    events: u32,
    /// Longest time between two pieces.
    silence: Duration,
}

impl Relay {
    /// Goes on after the first piece, `first`, which `check` has seen.
    pub(super) fn new(
        answer: Answer,
        (check, first): (Check, Bytes),
        ticket: Ticket,
        job: Job,
        view: Arc<View>,
        silence: Duration,
    ) -> Self {
        let begun = Instant::now();
        let counted = job.account.meter().prompt();
        job.account.meter().vague(); // until it has told what it has cost
        job.account.meter().spend(counted);
        Self { answer: Some(answer), check, first, ticket, job, view, begun, last: None, counted, events: 0, silence }
    }

    /// What may be sent now; `None` after the end.
    pub(crate) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            self.note(Instant::now());
            return Poll::Ready(Some(first));
        }
        loop {
            let Some(answer) = &mut self.answer else { return Poll::Ready(None) };
            let data = match answer.poll_data(cx) {
                Poll::Ready(data) => data,
                Poll::Pending => match ready!(self.job.watch.poll(cx)) {
                    Lapse::Stopping => {
                        return Poll::Ready(Some(self.break_off(Outcome::Cancelled, &super::job::stopping())));
                    }
                    Lapse::Late if self.check.end != End::Open => return Poll::Ready(self.finish()),
                    Lapse::Late => {
                        tracing::warn!(worker = %self.ticket.worker(), "a worker's stream stands still");
                        return Poll::Ready(Some(self.break_off(Outcome::Failed, &broken_off())));
                    }
                },
            };
            match data {
                // All has been said that a client may hear.
                Some(Ok(_)) if self.check.end != End::Open => return Poll::Ready(self.finish()),
                Some(Ok(data)) => match self.check.push(data) {
                    Ok(passed) if passed.is_empty() => {}
                    Ok(passed) => {
                        self.note(Instant::now());
                        return Poll::Ready(Some(passed));
                    }
                    Err(garbage) => {
                        tracing::warn!(worker = %self.ticket.worker(), %garbage, "a worker's stream is not OpenAI's");
                        return Poll::Ready(Some(self.break_off(Outcome::Failed, &worker_failed())));
                    }
                },
                Some(Err(error)) => {
                    tracing::debug!(worker = %self.ticket.worker(), %error, "a worker's stream broke");
                    return Poll::Ready(self.finish());
                }
                None => return Poll::Ready(self.finish()),
            }
        }
    }

    /// The end of the worker's stream: what is left of it, and an error if it was not whole.
    fn finish(&mut self) -> Option<Bytes> {
        let rest = self.check.finish().unwrap_or_default();
        match self.check.end {
            End::Done => {
                self.job.account.end(account::Outcome::Done);
                self.end(Outcome::Done);
                Some(rest).filter(|rest| !rest.is_empty())
            }
            // It has said itself what went wrong.
            End::Failed => {
                self.job.account.end(account::Outcome::Failed(Kind::Upstream));
                self.end(Outcome::Failed);
                Some(rest).filter(|rest| !rest.is_empty())
            }
            End::Open => {
                let error = self.break_off(Outcome::Failed, &broken_off());
                Some([rest, error].concat().into())
            }
        }
    }

    /// Ends the stream with an error event.
    fn break_off(&mut self, outcome: Outcome, problem: &Problem) -> Bytes {
        self.job.account.end(account::Outcome::Failed(problem.kind));
        self.end(outcome);
        sse::json_event(&error::body(problem))
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(usage) = self.check.usage.take() {
            self.job.account.meter().take_back(std::mem::take(&mut self.counted));
            self.job.account.usage(&usage);
            self.job.account.meter().told();
        }
        self.ticket.end(outcome);
        self.view.note_end(self.ticket.worker(), outcome, Instant::now());
        if let Some(connection) =
            self.answer.take().filter(|_| outcome == Outcome::Done).and_then(Answer::into_connection)
        {
            self.ticket.peer().pool.give_back(connection);
        }
    }

    fn note(&mut self, now: Instant) {
        self.job.watch.set(now + if self.check.end == End::Open { self.silence } else { LETTING_GO });
        self.ticket.tokens(0, now - self.begun);
        self.job.account.tokens(0, now);
        let more = u64::from(self.check.events - std::mem::replace(&mut self.events, self.check.events));
        self.counted += more;
        self.job.account.meter().spend(more);
        metrics::token(self.begun, self.last.replace(now), now);
    }
}
