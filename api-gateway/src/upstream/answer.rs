//! The events of an answer, whichever worker gives them.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use muster_shared::client::ClientError;
use muster_shared::control::Outcome;
use muster_shared::generate::{Event, GenerateRequest};
use muster_shared::problem::Problem;

use super::Upstream;
use super::job::Job;
use super::ticket::Ticket;
use crate::metrics;

/// Events of one worker.
pub(crate) type Events = BoxStream<'static, Result<Event, ClientError>>;

/// An answer on its way. Dropping it cancels the request at the worker and gives the ticket back.
pub(crate) struct Answer {
    upstream: Upstream,
    request: Arc<GenerateRequest>,
    job: Job,
    /// The worker that answers; absent between two, and after the last event.
    running: Option<(Events, Ticket)>,
    begun: Instant,
    last_token: Option<Instant>,
    /// Whether the client may have seen something that another worker would not say alike.
    shown: bool,
}

impl Answer {
    pub(super) fn new(upstream: Upstream, request: Arc<GenerateRequest>, job: Job, running: (Events, Ticket)) -> Self {
        let begun = Instant::now();
        let running = Some(running);
        Self { upstream, request, job, running, begun, last_token: None, shown: false }
    }

    /// The next event, or `None` after the last. After a change of worker a second [`Event::Started`] comes.
    ///
    /// # Errors
    /// In words for the client, when the answer broke off and no other worker could go on.
    pub(crate) async fn next(&mut self) -> Option<Result<Event, Problem>> {
        loop {
            let (events, ticket) = self.running.as_mut()?;
            let received = if self.job.whole {
                self.upstream.in_time(&self.job, ticket, events.next()).await
            } else {
                self.job.while_running(events.next()).await
            };
            let error = match received {
                Ok(Some(Ok(Event::Failed { problem }))) => {
                    ClientError::Refused { address: ticket.worker().to_string(), problem }
                }
                Ok(Some(Ok(event))) => {
                    self.note(&event);
                    return Some(Ok(event));
                }
                Ok(Some(Err(error))) => error,
                Ok(None) => ClientError::Broken { address: ticket.worker().to_string(), source: None },
                Err(problem) => {
                    self.running = None;
                    return Some(Err(problem));
                }
            };
            if let Err(problem) = self.go_on_elsewhere(&error).await {
                return Some(Err(problem));
            }
        }
    }

    /// Every event of the answer, from one worker from the first to the last.
    ///
    /// # Errors
    /// As [`Answer::next`].
    pub(crate) async fn whole(mut self) -> Result<Vec<Event>, Problem> {
        self.job.whole = true;
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            let event = event?;
            if matches!(event, Event::Started { .. }) {
                events.clear(); // another worker begins from the beginning
            }
            self.shown = false; // nothing is sent before all is here
            events.push(event);
        }
        Ok(events)
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Started { .. } | Event::Failed { .. } => {}
            Event::Delta { text, tokens, logprobs, .. } => {
                self.shown |= !text.is_empty() || !logprobs.is_empty();
                if let Some((_, ticket)) = &mut self.running {
                    ticket.tokens(tokens.len(), self.begun.elapsed());
                }
                metrics::token(self.begun, self.last_token.replace(Instant::now()));
            }
            Event::Finished { .. } => self.shown = true,
            Event::Done { usage } => {
                if let Some((_, mut ticket)) = self.running.take() {
                    ticket.end(Outcome::Done);
                }
                metrics::usage(&self.metric_model(), usage);
            }
        }
    }

    fn metric_model(&self) -> String {
        if self.upstream.view().knows(&self.job.model) { self.job.model.clone() } else { "unknown".to_owned() }
    }

    /// Takes another worker, if the client has seen nothing of this one.
    async fn go_on_elsewhere(&mut self, error: &ClientError) -> Result<(), Problem> {
        if let Some((events, ticket)) = self.running.take() {
            drop(events);
            if self.shown {
                self.job.patient = false; // there is nothing to wait for
            }
            // The ticket is gone before another is asked for: the fleet may have no room beside it.
            self.upstream.give_up(&mut self.job, ticket, error).await?;
        }
        if self.shown {
            return Err(super::job::worker_failed());
        }
        self.running = Some(self.upstream.start(&self.request, &mut self.job).await?);
        (self.begun, self.last_token) = (Instant::now(), None);
        Ok(())
    }
}
