//! Models as plain graphs: tensors to workers and back, over the Open Inference Protocol.
//!
//! A run, and what is asked of one model, goes to one worker as every other request does: a ticket, other workers when
//! one fails, a deadline. What concerns the whole fleet (statistics, the index, loading) is asked of every live worker
//! that speaks the protocol, without tickets: it is little, and no model runs for it.

mod fleet;
mod http;

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use muster_shared::client::ClientError;
use muster_shared::control::Outcome;
use muster_shared::problem::{Kind, Problem};
use muster_shared::tensor::{InferRequest, InferResponse, ModelConfig, ModelMetadata};
use muster_shared::transport::Transport;

use super::job::Job;
use super::peer::Peer;
use super::{Filled, Open, Opened, Read, Upstream, untranslated};
use crate::observe::Route;
use crate::patience;
use crate::state::Caller;
pub(crate) use fleet::Change;

/// The transports of workers that know tensors.
const TENSORS: &[Transport] = &[Transport::Http, Transport::Grpc];

/// What is asked of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lookup {
    /// The model's name.
    pub(crate) model: String,
    /// The version; absent: the newest that is served.
    pub(crate) version: Option<String>,
    /// What is asked.
    pub(crate) about: About,
}

/// See [`Lookup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// What it takes and gives.
    Metadata,
    /// How it is set up.
    Config,
    /// Whether it can be run.
    Ready,
}

/// What was found.
#[derive(Debug)]
pub(crate) enum Found {
    /// See [`About::Metadata`].
    Metadata(ModelMetadata),
    /// See [`About::Config`].
    Config(Box<ModelConfig>),
    /// See [`About::Ready`].
    Ready(bool),
}

impl Upstream {
    /// Runs a model once.
    ///
    /// # Errors
    /// Why no worker did, in words for the client.
    pub(crate) async fn infer(&self, request: InferRequest, caller: &Caller) -> Result<InferResponse, Problem> {
        let mut job = self.job(caller, &request.model)?;
        self.check(&request.model, Route::Infer)?;
        job.until = patience::of_tensors(&request.parameters, job.until, Instant::now());
        self.ask_one(request, job, Self::open_infer).await
    }

    /// Asks a worker of a model about it.
    ///
    /// # Errors
    /// Why no worker answered, in words for the client.
    pub(crate) async fn look_up(&self, lookup: Lookup, caller: &Caller) -> Result<Found, Problem> {
        let job = self.job(caller, &lookup.model)?;
        self.check(&lookup.model, Route::Infer)?;
        self.ask_one(lookup, job, Self::open_lookup).await
    }

    async fn ask_one<Q: Send + Sync, T: Send>(&self, asked: Q, mut job: Job, open: Open<Q, T>) -> Result<T, Problem> {
        job.whole = true;
        job.transports = TENSORS;
        match Box::pin(self.begin(&mut Read(Arc::new(asked)), &mut job, open)).await? {
            Opened::Ours(answer, mut ticket) => {
                ticket.end(Outcome::Done);
                Ok(answer)
            }
            Opened::Passed(..) => Err(Problem::new(Kind::Bug, "tensors went to a worker as they came")),
        }
    }

    fn open_infer(
        self,
        peer: Arc<Peer>,
        mut request: Arc<InferRequest>,
        filled: Filled,
    ) -> BoxFuture<'static, Result<InferResponse, ClientError>> {
        Box::pin(async move {
            if *request.model != *filled.model {
                Arc::make_mut(&mut request).model = filled.model.to_string();
            }
            match peer.transport {
                Transport::Http => http::infer(&peer, (self.authorization(), filled.trace.as_ref()), &request).await,
                Transport::Grpc => {
                    let worker = self.grpc(&peer.address, self.0.config.request_timeout).traced(filled.trace);
                    worker.infer(&request).await
                }
                Transport::FastChat | Transport::OpenAi => Err(untranslated(&peer)),
            }
        })
    }

    fn open_lookup(
        self,
        peer: Arc<Peer>,
        lookup: Arc<Lookup>,
        filled: Filled,
    ) -> BoxFuture<'static, Result<Found, ClientError>> {
        Box::pin(async move {
            let (model, version) = (&*filled.model, lookup.version.as_deref());
            match peer.transport {
                Transport::Http => http::look_up(&peer, self.authorization(), model, &lookup).await,
                Transport::Grpc => {
                    let worker = self.grpc(&peer.address, self.0.config.request_timeout);
                    Ok(match lookup.about {
                        About::Metadata => Found::Metadata(worker.model_metadata(model, version).await?),
                        About::Config => Found::Config(Box::new(worker.model_config(model, version).await?)),
                        About::Ready => Found::Ready(worker.model_ready(model, version).await?),
                    })
                }
                Transport::FastChat | Transport::OpenAi => Err(untranslated(&peer)),
            }
        })
    }
}
