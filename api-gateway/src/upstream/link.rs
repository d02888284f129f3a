//! The gateway's end of its link to the controller.
//!
//! One task speaks over the connection; requests leave what they have to say with it and are woken by what comes back.
//! What many say at once leaves in one write. While there is no connection, requests are dispatched from the last known
//! fleet, and the controller is told of them when it is back.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_shared::client::{ClientError, ControllerClient};
use muster_shared::control::{Dispatch, Grant, Held, Release};
use muster_shared::id::{GatewayId, TicketId};
use muster_shared::link::{Ask, Link, Process, Tell};
use muster_shared::problem::{Problem, chain};
use rand::RngExt as _;
use tokio::sync::{Notify, oneshot};
use tokio::time::MissedTickBehavior;

use super::peer::{Peer, Peers};
use super::ticket::Ticket;
use super::view::View;
use crate::Config;
use crate::keys::ApiKey;

/// Shortest and longest pause before the controller is sought again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How long the end of a request may wait for company: a dispatch that follows, or others' ends.
const LINGER: Duration = Duration::from_millis(1);

/// There is no connection to the controller, or it does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Away;

/// What the controller answers to a dispatch.
type Answer = Result<Ticket, Problem>;

/// The way to the controller. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ControllerLink(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gateway: GatewayId,
    process: Process,
    desk: Mutex<Desk>,
    /// Rung when there is something to say.
    bell: Notify,
    peers: Arc<Peers>,
    view: Arc<View>,
}

/// What is to be said, what is waited for, and what is held.
#[derive(Debug, Default)]
struct Desk {
    connected: bool,
    closing: bool,
    /// The controller shall say how the fleet is.
    look: bool,
    next: u32,
    outgoing: Vec<Ask>,
    /// Someone waits for what follows from it.
    urgent: bool,
    asked: HashMap<u32, Waiting>,
    /// Those who wait for the next word about the fleet.
    lookers: Vec<oneshot::Sender<()>>,
    held: HashMap<TicketId, Holding>,
    /// Held tickets of which the controller does not know.
    unclaimed: Vec<TicketId>,
}

/// One request in flight.
#[derive(Debug)]
struct Holding {
    peer: Arc<Peer>,
    /// As the worker knows it.
    model: Arc<str>,
    key: Option<Arc<ApiKey>>,
}

/// One dispatch without an answer.
#[derive(Debug)]
struct Waiting {
    /// As it was asked for.
    model: Arc<str>,
    key: Option<Arc<ApiKey>>,
    sender: oneshot::Sender<Answer>,
}

impl ControllerLink {
    /// A link that is not connected yet: [`ControllerLink::run`] connects it.
    pub(crate) fn new(gateway: GatewayId, process: Process, peers: Arc<Peers>, view: Arc<View>) -> Self {
        Self(Arc::new(Inner { gateway, process, desk: Mutex::default(), bell: Notify::new(), peers, view }))
    }

    /// Asks for a worker. Dropping the future gives up the place in the controller's queue, and a grant on the way.
    ///
    /// # Errors
    /// [`Away`] when the controller cannot be asked, or went away before it answered.
    pub(crate) async fn dispatch(
        &self,
        model: Arc<str>,
        key: Option<Arc<ApiKey>>,
        dispatch: Dispatch,
    ) -> Result<Answer, Away> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut desk = self.lock();
            if !desk.connected {
                return Err(Away);
            }
            desk.next = desk.next.wrapping_add(1);
            let id = desk.next;
            desk.asked.insert(id, Waiting { model, key, sender });
            self.say(&mut desk, Ask::Dispatch { id, dispatch }, true);
            id
        };
        let mut asked = Asked { link: self, id, receiver: Some(receiver) };
        let answer = match &mut asked.receiver {
            Some(receiver) => receiver.await.map_err(|_| Away),
            None => Err(Away),
        };
        asked.receiver = None;
        answer
    }

    /// A ticket for a request that the controller was not asked about.
    pub(crate) fn take(&self, peer: Arc<Peer>, model: Arc<str>, key: Option<Arc<ApiKey>>) -> Ticket {
        let (id, holding) = (TicketId::new(), Holding { peer: Arc::clone(&peer), model: Arc::clone(&model), key });
        {
            let mut desk = self.lock();
            desk.held.insert(id, holding);
            desk.unclaimed.push(id);
        }
        Ticket::new(id, peer, model, self.clone())
    }

    /// A request has ended.
    pub(super) fn release(&self, release: Release) {
        let mut desk = self.lock();
        desk.held.remove(&release.ticket);
        // Without a connection, the next one begins by telling all that is held.
        if desk.connected {
            self.say(&mut desk, Ask::Release(release), false);
        }
    }

    /// Waits until the controller has told how the fleet is, or does not answer.
    pub(crate) async fn look(&self) -> Result<(), Away> {
        let receiver = {
            let mut desk = self.lock();
            if !desk.connected {
                return Err(Away);
            }
            let (sender, receiver) = oneshot::channel();
            desk.lookers.push(sender);
            desk.look = true;
            receiver
        };
        self.0.bell.notify_one();
        receiver.await.map_err(|_| Away)
    }

    /// Has the controller asked how the fleet is: what is known may be wrong.
    pub(crate) fn look_soon(&self) {
        self.lock().look = true;
        self.0.bell.notify_one();
    }

    /// Says what is left to say, and lets [`ControllerLink::run`] end.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.0.bell.notify_one();
    }

    /// Keeps the link, until [`ControllerLink::close`].
    pub(crate) async fn run(&self, controller: ControllerClient, config: Config) {
        let (mut pause, mut silent) = (PAUSES.0, false);
        while !self.lock().closing {
            let opened = tokio::time::timeout(config.connect_timeout * 2, controller.link()).await;
            let error = match opened.unwrap_or_else(|_| Err(hangs(&controller))) {
                Ok(mut link) => {
                    if std::mem::take(&mut silent) {
                        tracing::info!("the controller answers again");
                    }
                    pause = PAUSES.0;
                    match self.speak(&mut link, &config).await {
                        Ok(()) => return,
                        Err(source) => ClientError::Broken {
                            address: controller.address().to_owned(),
                            source: Some(source.into()),
                        },
                    }
                }
                Err(error) => error,
            };
            self.hang_up();
            if !std::mem::replace(&mut silent, true) {
                tracing::warn!(
                    error = chain(&error),
                    "the controller does not answer; requests go to the workers last known"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(rand::rng().random_range(0.5..1.0))) => {}
                () = self.closed() => {}
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Speaks over one connection, until it breaks (an error) or all is said and the link closes.
    async fn speak<S>(&self, link: &mut Link<S>, config: &Config) -> io::Result<()>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let hello = self.hello();
        link.queue(&hello);
        let mut beat = tokio::time::interval(config.sync_interval);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Since when an answer about the fleet is waited for; the hello is answered with one.
        let mut waiting_since = Some(Instant::now());
        let patience = config.connect_timeout * 2;
        let (mut linger, mut lingers) = (pin!(tokio::time::sleep(LINGER)), false);
        loop {
            let mut is_due = false;
            tokio::select! {
                received = link.exchange() => {
                    received?;
                    while let Some(tell) = link.take::<Tell>()? {
                        if matches!(tell, Tell::Fleet { .. }) {
                            waiting_since = None;
                        }
                        self.hear(tell);
                    }
                }
                // Those who can say something now shall have said it before anything leaves.
                () = self.0.bell.notified() => tokio::task::yield_now().await,
                () = &mut linger, if lingers => is_due = true,
                _ = beat.tick() => {
                    self.lock().look = true;
                    if waiting_since.is_some_and(|since| since.elapsed() > patience) {
                        let words = "the controller does not say how the fleet is";
                        return Err(io::Error::new(io::ErrorKind::TimedOut, words));
                    }
                }
            }
            let Some(said) = self.take_outgoing(is_due, waiting_since.is_none()) else {
                if !lingers && self.has_something_to_say() {
                    lingers = true;
                    linger.as_mut().reset(tokio::time::Instant::now() + LINGER);
                }
                continue;
            };
            lingers = false;
            if said.looks {
                waiting_since = Some(Instant::now());
            }
            said.asks.iter().for_each(|ask| link.queue(ask));
            if said.closing {
                return link.flush().await;
            }
        }
    }

    fn hello(&self) -> Ask {
        let mut desk = self.lock();
        desk.connected = true;
        desk.outgoing.clear();
        desk.unclaimed.clear();
        let held = desk.held.iter().map(|(&ticket, holding)| holding.told(ticket)).collect();
        Ask::Hello { gateway: self.0.gateway, process: self.0.process.clone(), held }
    }

    /// What there is to say, if it is urgent or `is_due`. `may_look`: the last question about the fleet is answered.
    fn take_outgoing(&self, is_due: bool, may_look: bool) -> Option<Said> {
        let mut desk = self.lock();
        let looks = desk.look && may_look;
        if !(is_due || looks || desk.urgent || desk.closing) {
            return None;
        }
        desk.urgent = false;
        let mut asks = std::mem::take(&mut desk.outgoing);
        if looks {
            desk.look = false;
            let unclaimed = std::mem::take(&mut desk.unclaimed);
            let claims = unclaimed.into_iter().filter_map(|id| Some(desk.held.get(&id)?.told(id))).collect();
            asks.push(Ask::Sync { claims });
        }
        Some(Said { asks, looks, closing: desk.closing })
    }

    fn has_something_to_say(&self) -> bool {
        !self.lock().outgoing.is_empty()
    }

    fn hear(&self, tell: Tell) {
        match tell {
            Tell::Grant { id, grant } => {
                let Grant { ticket: ticket_id, worker, address, transport, model } = grant;
                let peer = self.0.peers.get(&worker, &address, transport);
                let other = model.map(Arc::from);
                let (model, sender) = {
                    let mut desk = self.lock();
                    match desk.asked.remove(&id) {
                        Some(Waiting { model, key, sender }) => {
                            let model = other.unwrap_or(model);
                            let holding = Holding { peer: Arc::clone(&peer), model: Arc::clone(&model), key };
                            desk.held.insert(ticket_id, holding);
                            (model, Some(sender))
                        }
                        None => (other.unwrap_or_default(), None), // nobody will ask the worker for it
                    }
                };
                let ticket = Ticket::new(ticket_id, peer, model, self.clone());
                answer(sender, Ok(ticket));
            }
            Tell::Refusal { id, problem } => {
                let waiting = self.lock().asked.remove(&id);
                answer(waiting.map(|waiting| waiting.sender), Err(problem));
            }
            Tell::Fleet { fleet, unknown } => {
                self.0.view.note(*fleet, Instant::now());
                self.0.peers.tidy(|worker| self.0.view.knows_worker(worker));
                let lookers = {
                    let mut desk = self.lock();
                    desk.unclaimed.extend(unknown);
                    std::mem::take(&mut desk.lookers)
                };
                for looker in lookers {
                    let _ = looker.send(()); // it may have gone
                }
            }
        }
    }

    /// The connection is gone: whoever waits hears so.
    fn hang_up(&self) {
        self.0.view.note_silence();
        let (asked, lookers) = {
            let mut desk = self.lock();
            desk.connected = false;
            desk.outgoing.clear();
            (std::mem::take(&mut desk.asked), std::mem::take(&mut desk.lookers))
        };
        drop((asked, lookers)); // outside of the lock, since it wakes them
    }

    async fn closed(&self) {
        while !self.lock().closing {
            self.0.bell.notified().await;
        }
    }

    /// Has something said before long; at once, if it is `urgent`.
    fn say(&self, desk: &mut Desk, ask: Ask, urgent: bool) {
        desk.outgoing.push(ask);
        // Whoever found something there, as urgent as this, has rung already.
        if desk.outgoing.len() == 1 || (urgent && !desk.urgent) {
            self.0.bell.notify_one();
        }
        desk.urgent |= urgent;
    }

    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.0.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What leaves in one write.
struct Said {
    asks: Vec<Ask>,
    /// Whether one of them is a question about the fleet.
    looks: bool,
    closing: bool,
}

impl Holding {
    fn told(&self, ticket: TicketId) -> Held {
        let key = self.key.as_ref().map(|key| key.name.clone());
        Held { ticket, worker: self.peer.id.clone(), model: self.model.to_string(), key }
    }
}

/// A dispatch without an answer; dropped, it is abandoned.
struct Asked<'a> {
    link: &'a ControllerLink,
    id: u32,
    /// Taken when the answer has come.
    receiver: Option<oneshot::Receiver<Answer>>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.receiver.is_none() {
            return;
        }
        let mut desk = self.link.lock();
        // Dropped after the lock is: a ticket in it takes the same lock.
        let waited = desk.asked.remove(&self.id);
        if waited.is_some() && desk.connected {
            self.link.say(&mut desk, Ask::Abandon { id: self.id }, true);
        }
        drop(desk);
    }
}

/// Gives an answer; a ticket that nobody waits for is released by its drop.
fn answer(sender: Option<oneshot::Sender<Answer>>, answer: Answer) {
    if let Some(sender) = sender {
        drop(sender.send(answer));
    }
}

fn hangs(controller: &ControllerClient) -> ClientError {
    ClientError::Broken { address: controller.address().to_owned(), source: None }
}
