//! The events of an answer, from as many workers as it takes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use muster_shared::client::ClientError;
use muster_shared::control::Outcome;
use muster_shared::generate::{Event, GenerateRequest};
use muster_shared::problem::{Kind, Problem};
use muster_shared::resume::Progress;
use muster_shared::transport::Transport;

use super::job::{self, Job};
use super::kept::Recording;
use super::ticket::Ticket;
use super::watch::Lapse;
use super::{Upstream, Whole};
use crate::{account, metrics};

/// Events of one worker.
pub(crate) type Events = BoxStream<'static, Result<Event, ClientError>>;

/// Protocols that tell token ids, without which no worker can go on where another one stopped.
const RESUMABLE: &[Transport] = &[Transport::Http, Transport::Grpc];

/// An answer on its way. Dropping it cancels the request at the worker and gives the ticket back.
pub(crate) struct Answer {
    upstream: Upstream,
    request: Arc<GenerateRequest>,
    job: Job,
    /// The worker that answers; absent between two, and after the last event.
    running: Option<(Events, Ticket)>,
    /// The model that answers.
    model: Arc<str>,
    /// What the client has, or is sure to get.
    progress: Progress,
    /// Whether the worker goes on where another one stopped, and has not sent its first event.
    resuming: bool,
    /// What the account was told of the answer so far.
    counted: Counted,
    begun: Instant,
    last_token: Option<Instant>,
    /// What was given before and is given again, in place of a worker's.
    again: VecDeque<Event>,
    /// Writes the answer down, where it may be wanted again.
    recording: Option<Recording>,
}

/// What an account was told of one answer, before its worker tells what it has cost.
#[derive(Debug, Default)]
struct Counted {
    tokens: u64,
    /// Whether its worker tells tokens apart.
    told: bool,
    /// Whether text came of which nobody told the tokens.
    vague: bool,
}

impl Answer {
    pub(super) fn new(upstream: Upstream, request: Arc<GenerateRequest>, job: Job, running: (Events, Ticket)) -> Self {
        let progress = Progress::new(request.choices);
        let model = Arc::clone(running.1.model());
        let mut answer = Self {
            upstream,
            request,
            job,
            running: Some(running),
            model,
            progress,
            resuming: false,
            counted: Counted::default(),
            begun: Instant::now(),
            last_token: None,
            again: VecDeque::new(),
            recording: None,
        };
        answer.await_first_token();
        answer
    }

    /// An answer that was given before.
    pub(super) fn again(upstream: Upstream, request: Arc<GenerateRequest>, job: Job, kept: &[Event]) -> Self {
        job.account.kept(&job.model);
        Self {
            upstream,
            progress: Progress::new(request.choices),
            request,
            model: Arc::clone(&job.model),
            job,
            running: None,
            resuming: false,
            begun: Instant::now(),
            counted: Counted::default(),
            last_token: None,
            again: kept.iter().cloned().collect(),
            recording: None,
        }
    }

    /// The same, written down.
    pub(super) fn recorded(mut self, recording: Option<Recording>) -> Self {
        self.recording = recording;
        self
    }

    /// The model that answers: the one that the client named, or one that stands behind that name. Until something has
    /// come of the answer it may change, when another worker begins anew; then there is an [`Event::Started`].
    pub(crate) fn model(&self) -> &Arc<str> {
        &self.model
    }

    /// Keeps to the model that answers now, whatever happens.
    pub(crate) fn stay(&mut self) {
        self.job.stay(Arc::clone(&self.model));
    }

    /// The next event, or `None` after the last. When an answer of which nothing has come is begun anew, a second
    /// [`Event::Started`] comes; when one goes on at another worker, nothing tells of it.
    ///
    /// # Errors
    /// In words for the client, when the answer broke off and no other worker could go on.
    pub(crate) async fn next(&mut self) -> Option<Result<Event, Problem>> {
        let next = self.next_of_any().await;
        if let Some(Err(problem)) = &next {
            self.job.account.end(account::Outcome::Failed(problem.kind));
        }
        next
    }

    async fn next_of_any(&mut self) -> Option<Result<Event, Problem>> {
        if let Some(event) = self.again.pop_front() {
            return Some(Ok(event));
        }
        loop {
            let (events, ticket) = self.running.as_mut()?;
            let error = match self.job.watch.run(events.next()).await {
                Ok(Some(Ok(Event::Failed { problem }))) => refused(ticket, problem),
                Ok(Some(Ok(event))) if self.resuming => match self.go_on(&event) {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Ok(Some(Ok(event))) => {
                    self.note(&event);
                    return Some(Ok(event));
                }
                Ok(Some(Err(error))) => error,
                Ok(None) => ClientError::Broken { address: ticket.peer().address.clone(), source: None },
                Err(Lapse::Late) if self.job.whole && self.job.is_late() => return Some(Err(self.end_late())),
                Err(Lapse::Late) => job::silent(ticket.peer().address.clone()),
                Err(Lapse::Stopping) => {
                    self.running = None;
                    return Some(Err(job::stopping()));
                }
            };
            let is_begun = !self.progress.is_empty();
            if let Err(problem) = self.go_on_elsewhere(&error).await {
                if !is_begun {
                    self.uncount(); // nothing has come of it, and nothing is charged
                }
                return Some(Err(problem));
            }
        }
    }

    /// Every event of the answer.
    ///
    /// # Errors
    /// As [`Answer::next`].
    pub(crate) async fn whole(mut self) -> Result<Whole<Vec<Event>>, Problem> {
        self.job.whole = true;
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            let event = event?;
            if matches!(event, Event::Started { .. }) {
                events.clear(); // another worker begins from the beginning
            }
            events.push(event);
        }
        Ok(Whole { model: self.model, answer: events })
    }

    fn note(&mut self, event: &Event) {
        self.progress.note(event);
        self.recording = self.recording.take().and_then(|mut recording| recording.note(event).then_some(recording));
        match event {
            Event::Started { prompt_tokens, .. } => {
                self.uncount(); // what had begun before begins anew
                self.counted.tokens = u64::from(*prompt_tokens);
                self.job.account.meter().spend(self.counted.tokens);
            }
            Event::Failed { .. } | Event::Finished { .. } => {}
            Event::Delta { text, tokens, .. } => {
                let now = Instant::now();
                self.count(text, tokens.len());
                if let Some((_, ticket)) = &mut self.running {
                    ticket.tokens(tokens.len(), now - self.begun);
                }
                self.job.account.tokens(tokens.len(), now);
                metrics::token(self.begun, self.last_token.replace(now), now);
                let silence = self.upstream.config().inter_token_timeout;
                self.job.watch.set(self.job.next_token_until(now, silence));
                // What must be begun anew has come no further.
                if self.progress.is_resumable() && !(text.is_empty() && tokens.is_empty()) {
                    self.job.progressed();
                }
            }
            Event::Done { usage } => {
                self.uncount();
                self.job.account.usage(usage);
                if let Some((_, mut ticket)) = self.running.take() {
                    ticket.end(Outcome::Done);
                }
                if let Some(model) = self.upstream.view().model(&self.model) {
                    model.metrics.usage(usage);
                }
                if let Some(recording) = self.recording.take() {
                    recording.keep(&self.model);
                }
            }
        }
    }

    /// Notes what comes of the answer; its tokens are told to the account beside.
    fn count(&mut self, text: &str, tokens: usize) {
        self.counted.tokens += tokens as u64;
        self.counted.told |= tokens > 0; // what is held back at the end comes as text alone
        if !self.counted.told && !text.is_empty() && !self.counted.vague {
            self.counted.vague = true;
            self.job.account.meter().vague();
        }
    }

    /// Takes back what was counted: it is told anew.
    fn uncount(&mut self) {
        let Counted { tokens, vague, .. } = std::mem::take(&mut self.counted);
        let meter = self.job.account.meter();
        meter.take_back(tokens);
        if vague {
            meter.told();
        }
    }

    /// Looks at the first event of a worker that was asked to go on; the client has had its like.
    fn go_on(&mut self, first: &Event) -> Result<(), ClientError> {
        self.resuming = false;
        if self.progress.is_continued_by(first) {
            metrics::resumed();
            return Ok(());
        }
        let Some((_, ticket)) = &self.running else { return Ok(()) };
        let problem =
            Problem::new(Kind::UnknownModel, "the worker does not go on with an answer that another one began");
        Err(refused(ticket, problem))
    }

    /// Takes another worker: to go on, or to begin anew where nothing has come or nothing is sent yet.
    async fn go_on_elsewhere(&mut self, error: &ClientError) -> Result<(), Problem> {
        let is_begun = !self.progress.is_empty();
        let can_resume = self.progress.is_resumable();
        if is_begun && can_resume {
            self.stay();
            self.job.resume(RESUMABLE, Instant::now() + self.upstream.config().resume_timeout);
        }
        if let Some((events, ticket)) = self.running.take() {
            drop(events);
            if is_begun && !can_resume && !self.job.whole {
                self.job.patient = false; // there is nothing to wait for
            }
            // The ticket is gone before another is asked for: the fleet may have no room beside it.
            self.upstream.give_up(&mut self.job, ticket, error).await?;
        }
        if is_begun && can_resume {
            Arc::make_mut(&mut self.request).resume = Some(self.progress.resume());
            tracing::info!(request_id = %self.job.request_id, "an answer goes on at another worker");
        } else if is_begun && !self.job.whole {
            return Err(job::broken_off());
        } else {
            self.progress = Progress::new(self.request.choices);
        }
        let running = self.upstream.start(&self.request, &mut self.job).await?;
        self.model = Arc::clone(running.1.model());
        self.running = Some(running);
        self.resuming = is_begun && can_resume;
        if !self.resuming {
            (self.begun, self.last_token) = (Instant::now(), None);
        }
        self.await_first_token();
        Ok(())
    }

    fn await_first_token(&mut self) {
        let timeout = self.upstream.config().first_token_timeout;
        self.job.watch.set(self.job.next_token_until(Instant::now(), timeout));
    }

    /// The worker has let the deadline pass.
    fn end_late(&mut self) -> Problem {
        if let Some((_, mut ticket)) = self.running.take() {
            self.upstream.fail(&mut ticket);
        }
        job::late()
    }
}

fn refused(ticket: &Ticket, problem: Problem) -> ClientError {
    ClientError::Refused { address: ticket.worker().to_string(), problem }
}
