//! What becomes of one request, written down while it runs and told once when it has ended.
//!
//! Whoever works on a request holds its [`Account`]; when the last of them lets go, it is closed: after the last byte of a
//! streamed answer, or when a client goes away.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use muster_shared::generate::Usage;
use muster_shared::id::WorkerId;
use muster_shared::problem::Kind;
use muster_shared::trace::{self, Side, Span};

use crate::access::{self, Line};
use crate::keys::ApiKey;
use crate::limits::meter::Meter;
use crate::observe::Route;
use crate::state::RequestId;
use crate::upstream::ticket::Ticket;
use crate::{metrics, spans};

/// The account of one request. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Account(Arc<Open>);

#[derive(Debug)]
struct Open {
    id: RequestId,
    route: Route,
    begun: Instant,
    entry: Mutex<Entry>,
    /// What its key pays, settled when this is dropped.
    meter: Meter,
    /// Where the request is traced.
    span: Option<Box<Span>>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Outcome {
    /// Its client went away, or stopped reading.
    #[default]
    Cancelled,
    /// All of the answer was given.
    Done,
    /// It was refused, or its answer broke off.
    Failed(Kind),
}

/// What is known of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    /// Where its connection comes from.
    pub(crate) client: Option<IpAddr>,
    /// The key that it came with.
    pub(crate) key: Option<Arc<ApiKey>>,
    /// The model that was asked for, where the fleet has one of that name: a client may say anything.
    pub(crate) asked: Option<Arc<str>>,
    /// The model that answered, or was asked last: one that the fleet serves.
    pub(crate) model: Option<Arc<str>>,
    /// The worker that was asked last.
    pub(crate) worker: Option<WorkerId>,
    /// Workers that were asked, more than one where some failed or several prompts came at once.
    pub(crate) attempts: u32,
    /// The status of the answer; `None` where nobody was left to hear it.
    pub(crate) status: Option<u16>,
    /// From the request to the first token of its answer, as the client sees it.
    pub(crate) ttft: Option<Duration>,
    /// From the request to the last token so far.
    pub(crate) last_token: Option<Duration>,
    /// Tokens of the answer that went to the client, as far as workers tell them apart.
    pub(crate) tokens: u32,
    /// What workers say that it has cost, all prompts together; absent until an answer is whole.
    pub(crate) usage: Option<Usage>,
    /// Whether the answer, or one of several, had been kept from before.
    pub(crate) is_kept: bool,
    /// See [`Outcome`].
    pub(crate) outcome: Outcome,
    /// Whether the answer is streamed.
    pub(crate) stream: bool,
    /// The beginning of the request's body, where prompts are logged.
    pub(crate) prompt: Option<Bytes>,
}

impl Entry {
    /// Why there is no whole answer, in one of a few words.
    pub(crate) fn error(&self) -> Option<&'static str> {
        match self.outcome {
            Outcome::Done => None,
            Outcome::Cancelled => Some("cancelled"),
            Outcome::Failed(kind) => Some(kind.name()),
        }
    }

    /// Time for each token after the first, where there are some.
    pub(crate) fn time_per_token(&self) -> Option<Duration> {
        let after = self.tokens.checked_sub(1).filter(|after| *after > 0)?;
        Some(self.last_token?.saturating_sub(self.ttft?) / after)
    }
}

impl Account {
    /// Of a request that comes now.
    #[cfg(test)]
    pub(crate) fn open(id: RequestId, route: Route) -> Self {
        Self::traced(id, route, None)
    }

    /// Of a request that comes now, with its span where it is traced.
    pub(crate) fn traced(id: RequestId, route: Route, span: Option<Span>) -> Self {
        let (span, entry, meter) = (span.map(Box::new), Mutex::default(), Meter::default());
        Self(Arc::new(Open { id, route, begun: Instant::now(), entry, meter, span }))
    }

    /// Begins a part of it, where it is traced.
    pub(crate) fn part(&self, name: &'static str) -> Option<Span> {
        trace::begin(name, Side::Client, Some(&self.0.span.as_ref()?.context()))
    }

    /// The request's name.
    pub(crate) fn id(&self) -> &RequestId {
        &self.0.id
    }

    /// Where it was sent.
    pub(crate) fn route(&self) -> Route {
        self.0.route
    }

    /// When it came.
    pub(crate) fn begun(&self) -> Instant {
        self.0.begun
    }

    /// What its key pays.
    pub(crate) fn meter(&self) -> &Meter {
        &self.0.meter
    }

    /// The key that it came with.
    pub(crate) fn key(&self) -> Option<Arc<ApiKey>> {
        self.entry().key.clone()
    }

    /// Its connection comes from there.
    pub(crate) fn came_from(&self, client: Option<IpAddr>) {
        self.entry().client = client;
    }

    /// It came with that key.
    pub(crate) fn shown(&self, key: &Arc<ApiKey>) {
        self.entry().key = Some(Arc::clone(key));
    }

    /// It is for that model of the fleet, as its client calls it.
    pub(crate) fn asks(&self, model: &Arc<str>) {
        self.entry().asked = Some(Arc::clone(model));
    }

    /// Its body is that.
    pub(crate) fn came(&self, body: &Bytes) {
        if let Some(prompt) = access::prompt(body) {
            self.entry().prompt = Some(prompt);
        }
    }

    /// It goes to the worker of that ticket.
    pub(crate) fn sent(&self, ticket: &Ticket) {
        let mut entry = self.entry();
        entry.attempts += 1;
        entry.model = Some(Arc::clone(ticket.model()));
        entry.worker = Some(ticket.worker().clone());
    }

    /// The model has answered the same before: no worker is asked, and nothing is spent.
    pub(crate) fn kept(&self, model: &Arc<str>) {
        let mut entry = self.entry();
        entry.model = Some(Arc::clone(model));
        entry.usage.get_or_insert_default();
        entry.is_kept = true;
    }

    /// See [`Account::kept`].
    pub(crate) fn is_kept(&self) -> bool {
        self.entry().is_kept
    }

    /// So many tokens of an answer have come; 0 where a worker does not tell them apart.
    pub(crate) fn tokens(&self, tokens: usize, now: Instant) {
        self.0.meter.spend(tokens as u64);
        let since = now.saturating_duration_since(self.0.begun);
        let mut entry = self.entry();
        entry.ttft.get_or_insert(since);
        entry.last_token = Some(since);
        entry.tokens = entry.tokens.saturating_add(u32::try_from(tokens).unwrap_or(u32::MAX));
    }

    /// An answer, one of those to several prompts perhaps, is whole and has cost that.
    pub(crate) fn usage(&self, usage: &Usage) {
        self.0.meter.spend(u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens));
        let mut entry = self.entry();
        let sum = entry.usage.get_or_insert_default();
        sum.prompt_tokens = sum.prompt_tokens.saturating_add(usage.prompt_tokens);
        sum.completion_tokens = sum.completion_tokens.saturating_add(usage.completion_tokens);
        sum.cached_tokens = sum.cached_tokens.saturating_add(usage.cached_tokens);
    }

    /// The head of the answer goes out. `open`: a stream follows, whose end is told by [`Account::end`].
    pub(crate) fn head(&self, status: u16, open: bool) {
        let mut entry = self.entry();
        (entry.status, entry.stream) = (Some(status), open);
        if status < 400 && !open && !matches!(entry.outcome, Outcome::Failed(_)) {
            entry.outcome = Outcome::Done;
        }
    }

    /// How it ended. The first failure stands: what comes after it follows from it.
    pub(crate) fn end(&self, outcome: Outcome) {
        let mut entry = self.entry();
        if !matches!(entry.outcome, Outcome::Failed(_)) {
            entry.outcome = outcome;
        }
    }

    fn entry(&self) -> MutexGuard<'_, Entry> {
        self.0.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        let entry = std::mem::take(self.entry.get_mut().unwrap_or_else(PoisonError::into_inner));
        metrics::ended(self.route, &entry, took);
        let trace = self.span.take().map(|span| spans::end(*span, &self.id, self.route, &entry));
        // Whether somebody is there, and what is not the API, is asked again and again by machines.
        if let Some(log) = access::log().filter(|_| self.route != Route::Other) {
            log.tell(Line { id: self.id.clone(), route: self.route, took, entry, trace });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account::open(RequestId("r".into()), Route::Chat)
    }

    #[test]
    fn a_request_that_nobody_ends_was_cancelled_and_one_whose_head_is_all_is_done() {
        let account = account();
        assert_eq!(account.entry().outcome, Outcome::Cancelled);
        account.head(200, true);
        assert_eq!(account.entry().outcome, Outcome::Cancelled, "the stream has not ended");
        account.head(200, false);
        assert_eq!(account.entry().outcome, Outcome::Done);
    }

    #[test]
    fn the_first_failure_stands() {
        let account = account();
        account.end(Outcome::Failed(Kind::Upstream));
        account.end(Outcome::Done);
        account.head(200, false);
        account.end(Outcome::Failed(Kind::Timeout));
        assert_eq!(account.entry().outcome, Outcome::Failed(Kind::Upstream));
    }

    #[test]
    fn what_several_prompts_cost_is_added() {
        let account = account();
        let usage = |prompt_tokens| Usage { prompt_tokens, completion_tokens: 2, cached_tokens: 1 };
        account.usage(&usage(3));
        account.usage(&usage(4));
        assert_eq!(account.entry().usage, Some(Usage { prompt_tokens: 7, completion_tokens: 4, cached_tokens: 2 }));
    }
}
