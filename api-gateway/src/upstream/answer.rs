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
    events: Events,
    ticket: Ticket,
    begun: Instant,
    last_token: Option<Instant>,
    /// Whether the client may have seen something that another worker would not say alike.
    shown: bool,
    ended: bool,
}

impl Answer {
    pub(super) fn new(
        upstream: Upstream,
        request: Arc<GenerateRequest>,
        job: Job,
        (events, ticket): (Events, Ticket),
    ) -> Self {
        let begun = Instant::now();
        Self { upstream, request, job, events, ticket, begun, last_token: None, shown: false, ended: false }
    }

    /// The next event, or `None` after the last. After a change of worker a second [`Event::Started`] comes.
    ///
    /// # Errors
    /// In words for the client, when the answer broke off and no other worker could go on.
    pub(crate) async fn next(&mut self) -> Option<Result<Event, Problem>> {
        while !self.ended {
            let error = match self.events.next().await {
                Some(Ok(Event::Failed { problem })) => {
                    ClientError::Refused { address: self.ticket.worker().to_string(), problem }
                }
                Some(Ok(event)) => {
                    self.note(&event);
                    return Some(Ok(event));
                }
                Some(Err(error)) => error,
                None => ClientError::Broken { address: self.ticket.worker().to_string(), source: None },
            };
            if let Err(problem) = self.go_on_elsewhere(&error).await {
                self.ended = true;
                return Some(Err(problem));
            }
        }
        None
    }

    /// Every event of the answer, from one worker from the first to the last.
    ///
    /// # Errors
    /// As [`Answer::next`].
    pub(crate) async fn whole(mut self) -> Result<Vec<Event>, Problem> {
        let job = self.job.clone();
        job.in_time(async {
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
        })
        .await?
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Started { .. } | Event::Failed { .. } => {}
            Event::Delta { text, tokens, logprobs, .. } => {
                self.shown |= !text.is_empty() || !logprobs.is_empty();
                self.ticket.tokens(tokens.len(), self.begun.elapsed());
                metrics::token(self.begun, self.last_token.replace(Instant::now()));
            }
            Event::Finished { .. } => self.shown = true,
            Event::Done { usage } => {
                self.ended = true;
                self.ticket.end(Outcome::Done);
                metrics::usage(&self.metric_model(), usage);
            }
        }
    }

    fn metric_model(&self) -> String {
        if self.upstream.view().knows(&self.job.model) { self.job.model.clone() } else { "unknown".to_owned() }
    }

    /// Takes another worker, if the client has seen nothing of this one.
    async fn go_on_elsewhere(&mut self, error: &ClientError) -> Result<(), Problem> {
        self.upstream.give_up(&mut self.job, &mut self.ticket, error)?;
        if self.shown {
            return Err(super::job::worker_failed());
        }
        let (events, ticket) = self.upstream.start(&self.request, &mut self.job).await?;
        (self.events, self.ticket) = (events, ticket);
        Ok(())
    }
}
