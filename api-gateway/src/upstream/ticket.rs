//! A request in flight on a worker, released however it ends.

use std::sync::Arc;
use std::time::Duration;

use muster_shared::control::{Outcome, Release};
use muster_shared::id::{TicketId, WorkerId};
use muster_shared::trace::{Context, Span};

use super::link::ControllerLink;
use super::peer::Peer;
use crate::{metrics, spans};

/// A request in flight on a worker. Dropping it releases it, as cancelled unless [`Ticket::end`] said otherwise.
#[derive(Debug)]
pub(crate) struct Ticket {
    id: TicketId,
    peer: Arc<Peer>,
    /// See [`Ticket::model`].
    model: Arc<str>,
    link: ControllerLink,
    outcome: Outcome,
    ttft: Option<Duration>,
    tokens: u32,
    /// Where the request is traced.
    span: Option<Box<Span>>,
}

impl Ticket {
    /// A ticket that the link knows of.
    pub(super) fn new(id: TicketId, peer: Arc<Peer>, model: Arc<str>, link: ControllerLink) -> Self {
        peer.begin();
        metrics::in_flight(1.0);
        Self { id, peer, model, link, outcome: Outcome::Cancelled, ttft: None, tokens: 0, span: None }
    }

    /// The attempt has a span.
    pub(super) fn trace(&mut self, mut span: Span) {
        spans::ask(&mut span, &self.peer, &self.model);
        self.span = Some(Box::new(span));
    }

    /// What the worker is told of the request's trace.
    pub(super) fn context(&self) -> Option<Context> {
        self.span.as_ref().map(|span| span.context())
    }

    /// The worker that runs the request.
    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// The model that the worker is to be asked for: the client may have named an alias of it, or one that has no room.
    pub(crate) fn model(&self) -> &Arc<str> {
        &self.model
    }

    /// The worker's name.
    pub(crate) fn worker(&self) -> &WorkerId {
        &self.peer.id
    }

    /// How the request ended, as far as was said.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Says how the request ended.
    pub(crate) fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Counts tokens of the answer; the first call also notes how long the first took.
    pub(crate) fn tokens(&mut self, tokens: usize, since_start: Duration) {
        self.ttft.get_or_insert(since_start);
        self.tokens = self.tokens.saturating_add(u32::try_from(tokens).unwrap_or(u32::MAX));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        metrics::in_flight(-1.0);
        if let Some(span) = self.span.take() {
            spans::give_back(*span, self.outcome, self.tokens);
        }
        self.peer.end();
        self.link.release(Release {
            ticket: self.id,
            outcome: self.outcome,
            ttft_ms: self.ttft.map(|ttft| u64::try_from(ttft.as_millis()).unwrap_or(u64::MAX)),
            tokens: (self.tokens > 0).then_some(self.tokens),
        });
    }
}
