//! Texts: from a prompt to a worker that continues it, no further than was reserved for the answer.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use muster_shared::client::ClientError;
use muster_shared::generate::{Event, GenerateRequest};
use muster_shared::problem::{Kind, Problem};
use muster_shared::transport::Transport;

use super::answer::{Answer, Events};
use super::job::{self, Job};
use super::kept::Recording;
use super::passthrough::Raw;
use super::peer::Peer;
use super::ticket::Ticket;
use super::{Begun, Filled, Open, Opened, Question, Read, TRANSLATED, Upstream, hedge, native, untranslated};
use crate::cache::Place;

/// A question whose answers end where the key's budget says, should it say nothing itself or more.
struct Bounded<'a, Q> {
    question: &'a mut Q,
    longest: Option<u32>,
    read: Option<Arc<GenerateRequest>>,
}

impl<'a, Q: Question<Ours = GenerateRequest>> Bounded<'a, Q> {
    fn new(question: &'a mut Q, job: &Job) -> Self {
        Self { question, longest: job.account.meter().longest(), read: None }
    }

    /// Where a worker has refused an end that we have set: it has less room than that, which is end enough.
    fn lift(&mut self, problem: &Problem) -> bool {
        let is_ours = problem.kind == Kind::PromptTooLong && problem.param.as_deref() == Some("max_tokens");
        let lifted = is_ours && self.longest.is_some() && self.read.is_some();
        if lifted {
            (self.longest, self.read) = (None, None);
        }
        lifted
    }
}

impl<Q: Question<Ours = GenerateRequest>> Question for Bounded<'_, Q> {
    type Ours = GenerateRequest;

    fn raw(&self) -> Option<&Raw> {
        self.question.raw()
    }

    async fn read(&mut self) -> Result<Arc<GenerateRequest>, Problem> {
        if let Some(read) = &self.read {
            return Ok(Arc::clone(read));
        }
        let read = self.question.read().await?;
        let Some(longest) = self.longest.filter(|longest| read.max_tokens.is_none_or(|most| most > *longest)) else {
            return Ok(read);
        };
        let bounded = Arc::new(GenerateRequest { max_tokens: Some(longest), ..(*read).clone() });
        self.read = Some(Arc::clone(&bounded));
        Ok(bounded)
    }
}

impl Upstream {
    /// Continues a prompt. Resolves when a worker has accepted it.
    ///
    /// # Errors
    /// Why no worker did, in words for the client.
    pub(crate) async fn generate(
        &self,
        question: &mut impl Question<Ours = GenerateRequest>,
        mut job: Job,
    ) -> Result<Begun<Answer>, Problem> {
        let mut question = Bounded::new(question, &job);
        let place = match question.raw() {
            Some(_) => None,
            None => self.place_of_text(&job, &question.read().await?).await,
        };
        if let Some(kept) = place.as_ref().and_then(Place::look::<Vec<Event>>) {
            let request = question.read().await?;
            return Ok(Begun::Ours(Answer::again(self.clone(), request, job, &kept)));
        }
        let asked = Arc::clone(&job.model);
        match Box::pin(self.open(&mut question, &mut job)).await? {
            Opened::Passed(passed, ticket) => Ok(Begun::Passed(self.passed(*passed, job, ticket))),
            Opened::Ours(events, ticket) => {
                let request = question.read().await?;
                let answer = Answer::new(self.clone(), request, job, (events, ticket));
                Ok(Begun::Ours(answer.recorded(place.map(|place| Recording::new(place, &asked)))))
            }
        }
    }

    /// The same for what is already in our words.
    ///
    /// # Errors
    /// As [`Upstream::generate`].
    pub(crate) async fn generate_read(&self, request: GenerateRequest, mut job: Job) -> Result<Answer, Problem> {
        job.transports = TRANSLATED;
        match self.generate(&mut Read(Arc::new(request)), job).await? {
            Begun::Ours(answer) => Ok(answer),
            Begun::Passed(_) => Err(passed_a_part()),
        }
    }

    /// Finds a worker that accepts the request, and opens its stream of events.
    pub(super) async fn start(
        &self,
        request: &Arc<GenerateRequest>,
        job: &mut Job,
    ) -> Result<(Events, Ticket), Problem> {
        match self.begin(&mut Read(Arc::clone(request)), job, self.opener()).await? {
            Opened::Ours(events, ticket) => Ok((events, ticket)),
            Opened::Passed(..) => Err(passed_a_part()),
        }
    }

    async fn open<Q: Question<Ours = GenerateRequest>>(
        &self,
        question: &mut Bounded<'_, Q>,
        job: &mut Job,
    ) -> Result<Opened<Events>, Problem> {
        match self.begin(question, job, self.opener()).await {
            Err(problem) if question.lift(&problem) => {
                job.refund();
                self.begin(question, job, self.opener()).await
            }
            opened => opened,
        }
    }

    /// How a stream of events is opened: where a second attempt may overtake it, it must have begun.
    fn opener(&self) -> Open<GenerateRequest, Events> {
        if self.0.config.hedge_after.is_some() { hedge::open_begun } else { Self::open_events }
    }

    pub(super) fn open_events(
        self,
        peer: Arc<Peer>,
        request: Arc<GenerateRequest>,
        filled: Filled,
    ) -> BoxFuture<'static, Result<Events, ClientError>> {
        Box::pin(async move {
            let limit = self.0.config.first_token_timeout;
            let opened = async {
                match peer.transport {
                    Transport::Http => {
                        native::generate(&peer, (self.authorization(), filled.trace.as_ref()), &filled.fill(&request))
                            .await
                    }
                    Transport::FastChat => self.0.fastchat.generate(&peer.address, &filled.named(&request)).await,
                    Transport::Grpc => {
                        let worker = self.grpc(&peer.address, limit.max(self.0.config.inter_token_timeout));
                        let worker = worker.traced(filled.trace.clone());
                        Ok(worker.generate(&filled.fill(&request)).await?.boxed())
                    }
                    Transport::OpenAi => Err(untranslated(&peer)),
                }
            };
            tokio::time::timeout(limit, opened).await.unwrap_or_else(|_| Err(job::silent(peer.address.clone())))
        })
    }
}

fn passed_a_part() -> Problem {
    Problem::new(Kind::Bug, "a part of a request went to a worker as it is")
}
