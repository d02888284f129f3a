//! A gateway's link: its dispatches and releases in, grants and the fleet out.
//!
//! Whatever one read brings is dealt with under one lock, and everything that follows from it leaves in one write.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use muster_shared::control::Held;
use muster_shared::id::GatewayId;
use muster_shared::link::{Ask, Link, PROTOCOL, Process, Tell};
use muster_shared::problem::{Kind, Problem, chain};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::QueueConfig;
use crate::desk::{Answer, Desk};
use crate::http::{Shared, question};
use crate::metrics;
use crate::queue::Place;
use crate::registry::Holder;
use crate::service::{self, Reply, Service, Way};

/// Answers that may wait to be written: more than there are requests that wait for room, all of which may be refused at
/// one moment. A refusal beyond them would be lost; a grant is taken back.
const ANSWERS: usize = 1 << 16;
const _: () = assert!(QueueConfig::MOST + (1 << 12) < ANSWERS, "there is room beside for what is answered at once");
/// Time in which a new link must say who speaks.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// The stream of an upgraded connection.
type Stream = TokioIo<Upgraded>;

/// The one link of each gateway, by its end.
#[derive(Debug, Default)]
pub(crate) struct Links(Mutex<HashMap<GatewayId, (End, Process)>>);

/// The end of a link.
#[derive(Debug, Clone, Default)]
struct End {
    wanted: CancellationToken,
    reached: CancellationToken,
}

impl Links {
    /// Takes a gateway's new link, and ends the one before: it is of no more use, though its end may not be known yet.
    ///
    /// Resolves when that has given up its places. Later, one of them could be granted what nobody would hear of.
    async fn replace(&self, gateway: GatewayId, process: Process, end: End) {
        let before = {
            let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            links.retain(|_, (end, _)| !end.reached.is_cancelled());
            links.insert(gateway, (end, process))
        };
        if let Some((before, _)) = before {
            before.wanted.cancel();
            before.reached.cancelled().await;
        }
    }

    /// Has it look as if a gateway had a link.
    #[cfg(test)]
    pub(crate) fn pretend(&self, gateway: GatewayId, process: Process) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(gateway, (End::default(), process));
    }

    /// Of each gateway with a link, the process that it is a thread of.
    pub(crate) fn processes(&self) -> Vec<(GatewayId, Process)> {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = links.iter().filter(|(_, (end, _))| !end.reached.is_cancelled());
        open.map(|(gateway, (_, process))| (*gateway, process.clone())).collect()
    }
}

/// `GET /link`: turns the connection into a gateway's link.
pub(crate) async fn open(State(service): Shared, mut request: Request) -> Result<Response, Problem> {
    let wanted = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    let is_wanted = wanted.is_some_and(|wanted| wanted.eq_ignore_ascii_case(PROTOCOL));
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let Some(upgrade) = upgrade.filter(|_| is_wanted) else {
        let message = format!("/link wants an HTTP/1.1 request with `Connection: upgrade` and `Upgrade: {PROTOCOL}`");
        return Err(Problem::new(Kind::Invalid, message));
    };
    let shutdown = service.shutdown.clone();
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        match upgrade.await {
            Ok(stream) => serve(service, Link::new(TokioIo::new(stream))).await,
            Err(error) => tracing::debug!(error = chain(&error), "a gateway's link was not made"),
        }
    }));
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .body(Body::empty());
    Ok(response.expect("its parts are fixed"))
}

async fn serve(service: Arc<Service>, mut link: Link<Stream>) {
    let greeting = tokio::time::timeout(INTRODUCTION, introduce(&mut link)).await;
    let (gateway, process, held) = match greeting {
        Ok(Ok(greeting)) => greeting,
        Ok(Err(error)) => return tracing::warn!(%error, "a link did not begin with a gateway's name"),
        Err(_) => return tracing::warn!("a link was silent from the beginning"),
    };
    let end = End::default();
    let _reached = end.reached.clone().drop_guard(); // dropped after the session
    service.links.replace(gateway, process, end.clone()).await;
    tracing::debug!(%gateway, held = held.len(), "a gateway's link begins");
    let unknown = service.change(|registry, now| registry.reconcile(gateway, &held, now));
    link.queue(&Tell::Fleet { fleet: Box::new(service.fleet()), unknown });

    let (sender, answers) = mpsc::channel(ANSWERS);
    let mut session = Session { service, gateway, link, sender, answers, waiting: HashMap::new() };
    if let Some(Err(error)) = end.wanted.run_until_cancelled(session.run()).await {
        tracing::debug!(%gateway, %error, "a gateway's link ended");
    }
}

/// Who speaks, as a thread of which process, and what it holds.
async fn introduce(link: &mut Link<Stream>) -> io::Result<(GatewayId, Process, Vec<Held>)> {
    loop {
        link.exchange().await?;
        match link.take()? {
            Some(Ask::Hello { gateway, process, held }) => return Ok((gateway, process, held)),
            Some(_) => return Err(unexpected("the first message is not a hello")),
            None => {}
        }
    }
}

fn unexpected(words: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}

/// A link whose gateway is known.
struct Session {
    service: Arc<Service>,
    gateway: GatewayId,
    link: Link<Stream>,
    sender: mpsc::Sender<(u32, Answer)>,
    answers: mpsc::Receiver<(u32, Answer)>,
    /// Those who wait for room and since when, by the number of their question.
    waiting: HashMap<u32, (Place, Instant)>,
}

impl Session {
    /// Runs to the end of the connection, which is always an error.
    async fn run(&mut self) -> io::Result<()> {
        loop {
            tokio::select! {
                received = self.link.exchange() => {
                    received?;
                    self.take_all()?;
                }
                Some((id, answer)) = self.answers.recv() => self.tell(id, answer),
            }
            while let Ok((id, answer)) = self.answers.try_recv() {
                self.tell(id, answer);
            }
        }
    }

    /// Deals with every message that has come.
    fn take_all(&mut self) -> io::Result<()> {
        let mut asks = Vec::new();
        while let Some(ask) = self.link.take::<Ask>()? {
            asks.push(ask);
        }
        let service = Arc::clone(&self.service);
        let claims = service.with(|desk, now| {
            desk.change(now, |registry| registry.renew(self.gateway, now));
            let mut claims = None;
            for ask in asks {
                match ask {
                    Ask::Sync { claims: more } => claims.get_or_insert_with(Vec::new).extend(more),
                    ask => self.take(desk, ask, now),
                }
            }
            claims
        });
        if let Some(claims) = claims {
            let unknown = service.change(|registry, now| registry.adopt(self.gateway, &claims, now));
            self.link.queue(&Tell::Fleet { fleet: Box::new(service.fleet()), unknown });
        }
        Ok(())
    }

    fn take(&mut self, desk: &mut Desk<Reply>, ask: Ask, now: Instant) {
        let holder = Holder::Gateway(self.gateway);
        match ask {
            Ask::Dispatch { id, dispatch } => {
                let span = service::span(&dispatch).map(Box::new);
                let (mut asker, patience) = question(dispatch);
                asker.holder = holder;
                let way = Way::Link { id, answers: self.sender.clone(), span };
                if let Some(place) = desk.ask(asker, patience, Reply { holder, way }, now) {
                    self.waiting.insert(id, (place, now));
                }
            }
            Ask::Abandon { id } => {
                if let Some((place, _)) = self.waiting.remove(&id) {
                    metrics::dispatch_cancelled();
                    desk.abandon(&place);
                }
            }
            Ask::Release(release) => {
                metrics::released(release.outcome);
                desk.release(holder, &release, now);
            }
            Ask::Hello { .. } | Ask::Sync { .. } => {} // a second hello says nothing new
        }
    }

    fn tell(&mut self, id: u32, answer: Answer) {
        let waited = self.waiting.remove(&id).map(|(_, since)| since.elapsed());
        metrics::dispatched(&answer, waited.unwrap_or_default());
        match answer {
            Ok(grant) => self.link.queue(&Tell::Grant { id, grant }),
            Err(problem) => self.link.queue(&Tell::Refusal { id, problem }),
        }
    }
}

impl Drop for Session {
    /// Those who wait are gone with the link; grants on the way are found out when the gateway comes back.
    fn drop(&mut self) {
        let places = std::mem::take(&mut self.waiting);
        if !places.is_empty() {
            self.service.with(|desk, _| places.values().for_each(|(place, _)| desk.abandon(place)));
        }
    }
}
