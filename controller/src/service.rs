//! The shell around the desk: one lock held briefly, replies delivered to those who wait, and the clock.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_shared::control::{Dispatch, Fleet, Outcome, Release};
use muster_shared::id::{Epoch, TicketId};
use muster_shared::problem::{Kind, Problem};
use muster_shared::topology::PeersFile;
use muster_shared::trace::{self, Context, Side, Span};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::access::Keys;
use crate::config::{Config, PolicyName};
use crate::desk::{Answer, Desk, Patience, SWEEP, Setup};
use crate::link::Links;
use crate::outbound::Outbound;
use crate::peers::Notes;
use crate::queue::Place;
use crate::registry::{Asker, Holder, Registry, millis};
use crate::topology::{SECOND, Scene};
use crate::{journal, metrics};

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct Service {
    desk: Mutex<Desk<Reply>>,
    /// The link of each gateway, by what ends it.
    pub(crate) links: Links,
    /// Rung when someone waits: the time of the next tick may have changed.
    wake: Notify,
    /// What is known of static peers beside the registry.
    pub(crate) peers: Notes,
    /// Rung when FastChat's workers shall be asked for their state. Rings that come close together count as one.
    pub(crate) refresh: Notify,
    /// For calls to workers.
    pub(crate) outbound: Outbound,
    /// Who may call.
    pub(crate) keys: Keys,
    /// One permit for each answer about past decisions.
    pub(crate) journal_readers: Arc<Semaphore>,
    /// Longest wait for room.
    pub(crate) max_wait: Duration,
    /// Cancelled when the controller stops.
    pub(crate) shutdown: CancellationToken,
    /// Time between two looks for what may be forgotten.
    sweep: Duration,
    /// What is kept for those who look at the fleet.
    pub(crate) scene: Scene,
    pub(crate) policy: PolicyName,
    pub(crate) epoch: Epoch,
    pub(crate) started: Instant,
}

/// The way back to one who asked.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) holder: Holder,
    pub(crate) way: Way,
}

/// How an answer travels.
#[derive(Debug)]
pub(crate) enum Way {
    /// To the handler of a call that waits.
    Call(oneshot::Sender<Answer>),
    /// Over a gateway's link, with the number of the question. Its span ends with the answer, whether that arrives or not.
    Link { id: u32, answers: mpsc::Sender<(u32, Answer)>, span: Option<Box<Span>> },
}

impl Reply {
    /// Gives back the ticket of a grant that nobody receives.
    pub(crate) fn send(self, answer: Answer) -> Option<(Holder, TicketId)> {
        let undelivered = match self.way {
            Way::Call(sender) => sender.send(answer).err()?,
            Way::Link { id, answers, span } => {
                if let Some(span) = span {
                    end_span(*span, &answer);
                }
                match answers.try_send((id, answer)) {
                    Ok(()) => return None,
                    Err(TrySendError::Full((_, answer)) | TrySendError::Closed((_, answer))) => answer,
                }
            }
        };
        Some((self.holder, undelivered.ok()?.ticket))
    }
}

impl Service {
    /// A service that knows no worker yet.
    pub(crate) fn new(config: &Config, shutdown: CancellationToken) -> Self {
        let started = Instant::now();
        let setup = Setup { queue: config.queue, heartbeat: config.lease.heartbeat, rng: rand::make_rng() };
        Self {
            desk: Mutex::new(Desk::new(Registry::new(config.rules()), setup, started).with_names(config.names.clone())),
            links: Links::default(),
            wake: Notify::new(),
            peers: Notes::default(),
            refresh: Notify::new(),
            outbound: Outbound::of_fleet(&config.tls, config.token.clone()),
            keys: Keys::new(config),
            journal_readers: Arc::new(Semaphore::new(journal::READERS)),
            max_wait: config.queue.max_wait,
            sweep: SWEEP.min(config.lease.heartbeat),
            shutdown,
            scene: Scene::new(config.site.clone(), started),
            policy: config.policy,
            epoch: Epoch::new(),
            started,
        }
    }

    /// Changes the registry, and answers those for whom that makes room.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Registry, Instant) -> T) -> T {
        self.with(|desk, now| desk.change(now, |registry| change(registry, now)))
    }

    /// Reads the registry.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Registry, Instant) -> T) -> T {
        let desk = self.lock();
        read(desk.registry(), Instant::now())
    }

    /// Names a worker's address to one who will not say how the request ended.
    pub(crate) fn lookup(&self, model: &str) -> Option<String> {
        self.with(|desk, now| desk.lookup(model, now))
    }

    /// Asks for a worker, and waits for room as long as `patience` says. Dropping the future gives everything back.
    pub(crate) async fn dispatch(&self, asker: Asker, patience: Patience) -> Answer {
        let began = Instant::now();
        let (sender, receiver) = oneshot::channel();
        let holder = asker.holder;
        let place = self.with(|desk, now| desk.ask(asker, patience, Reply { holder, way: Way::Call(sender) }, now));
        let answer = Pending { service: self, holder, place, receiver: Some(receiver) }.answer().await;
        metrics::dispatched(&answer, began.elapsed());
        answer
    }

    /// Ends a ticket.
    pub(crate) fn release(&self, holder: Holder, ticket: TicketId, outcome: Outcome) {
        let release = Release { ticket, outcome, ttft_ms: None, tokens: None };
        metrics::released(outcome);
        self.with(|desk, now| desk.release(holder, &release, now));
    }

    /// How the file of static peers stands, where there is one.
    pub(crate) fn peers_file(&self) -> Option<PeersFile> {
        self.peers.file()
    }

    /// The state of everything.
    pub(crate) fn fleet(&self) -> Fleet {
        let (desk, now) = (self.lock(), Instant::now());
        Fleet {
            epoch: self.epoch,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: millis(now - self.started),
            policy: self.policy.to_string(),
            waiting: u32::try_from(desk.waiting()).unwrap_or(u32::MAX),
            workers: desk.registry().workers(now),
            models: desk.names().list(desk.registry().models(now)),
        }
    }

    /// Lets time pass for those who wait, and forgets what is long gone, until the controller stops; then answers all
    /// who wait, and rests.
    pub(crate) async fn keep_time(&self) -> Infallible {
        let mut sweep = tokio::time::interval(self.sweep);
        let mut second = tokio::time::interval(SECOND);
        for interval in [&mut sweep, &mut second] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let next = self.next_tick();
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                () = self.wake.notified() => {}
                () = sleep_until(next) => self.with(Desk::tick),
                _ = sweep.tick() => self.sweep(),
                _ = second.tick() => self.second(),
            }
        }
        self.with(|desk, _| desk.close());
        std::future::pending().await
    }

    /// Sets the gauges to what is true now.
    pub(crate) fn gauge(&self) {
        let (desk, now) = (self.lock(), Instant::now());
        metrics::gauge_peers(&desk.registry().count_peers(now));
        metrics::gauge(&desk.registry().count_by_state(now), desk.registry().held(), desk.waiting());
    }

    fn sweep(&self) {
        self.with(Desk::sweep);
        self.gauge();
    }

    fn next_tick(&self) -> Option<Instant> {
        self.lock().next_tick(Instant::now())
    }

    /// Every change of the desk goes through here, so that no answer stays behind.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Desk<Reply>, Instant) -> T) -> T {
        let (result, answers, waiting, doubtful) = {
            let mut desk = self.lock();
            let result = change(&mut desk, Instant::now());
            (result, desk.take_answers(), desk.waiting(), desk.take_doubtful())
        };
        self.peers.doubt(doubtful);
        self.deliver(answers);
        if waiting > 0 {
            self.wake.notify_one();
        }
        result
    }

    fn deliver(&self, mut answers: Vec<(Reply, Answer)>) {
        loop {
            let undelivered: Vec<_> = answers.into_iter().filter_map(|(reply, answer)| reply.send(answer)).collect();
            if undelivered.is_empty() {
                return;
            }
            let mut desk = self.lock();
            for (holder, ticket) in undelivered {
                desk.take_back(holder, ticket, Instant::now());
            }
            answers = desk.take_answers();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Desk<Reply>> {
        // A panic under the lock is a bug, and has been logged; a fleet without a controller would be worse.
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        desk.look_at_clock(Instant::now());
        desk
    }
}

/// Resolves at that moment, or never.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// One who asked and has no answer yet; dropped, it gives up its place and any grant on the way.
struct Pending<'a> {
    service: &'a Service,
    holder: Holder,
    place: Option<Place>,
    /// Taken when the answer has come.
    receiver: Option<oneshot::Receiver<Answer>>,
}

impl Pending<'_> {
    async fn answer(mut self) -> Answer {
        let Some(receiver) = &mut self.receiver else { return Err(unanswered()) };
        let answer = receiver.await.unwrap_or_else(|_| Err(unanswered()));
        self.receiver = None;
        answer
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let Some(mut receiver) = self.receiver.take() else { return };
        metrics::dispatch_cancelled();
        if let Some(place) = &self.place {
            self.service.with(|desk, _| desk.abandon(place));
        }
        // From here on a grant cannot arrive: whoever sends one finds the channel closed, and takes it back.
        receiver.close();
        if let Ok(Ok(grant)) = receiver.try_recv() {
            self.service.with(|desk, now| desk.take_back(self.holder, grant.ticket, now));
        }
    }
}

fn unanswered() -> Problem {
    Problem::new(Kind::Bug, "the controller lost a request that waited")
}

/// A ticket that the controller itself holds; released when dropped, by then with what is known of the outcome.
#[derive(Debug)]
pub(crate) struct TicketGuard {
    service: Arc<Service>,
    ticket: TicketId,
    /// How the request ended, as far as is known.
    pub(crate) outcome: Outcome,
}

impl TicketGuard {
    /// Guards a ticket held by [`Holder::Relay`]. Until more is known, the client went away.
    pub(crate) fn new(service: Arc<Service>, ticket: TicketId) -> Self {
        Self { service, ticket, outcome: Outcome::Cancelled }
    }
}

impl Drop for TicketGuard {
    fn drop(&mut self) {
        self.service.release(Holder::Relay, self.ticket, self.outcome);
    }
}

/// The span of a dispatch that is traced.
pub(crate) fn span(dispatch: &Dispatch) -> Option<Span> {
    let parent = dispatch.trace.as_deref().filter(|_| trace::is_on()).and_then(Context::parse)?;
    trace::begin("choose a worker", Side::Server, Some(&parent))
}

/// Ends it with what was chosen, or why nothing was.
pub(crate) fn end_span(mut span: Span, answer: &Answer) {
    match answer {
        Ok(grant) => span.set("muster.worker", grant.worker.to_string()),
        Err(problem) => span.fail(problem.kind.name()),
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::id::GatewayId;

    use super::*;
    use crate::fixtures::{asker, worker};
    use crate::registry::Origin;

    /// Asks in a service with one worker for one request; its ticket is on the way.
    fn asked() -> (Service, Holder, oneshot::Receiver<Answer>) {
        let service = Service::new(&Config::default(), CancellationToken::new());
        service
            .change(|registry, now| registry.register(worker("w", 1), Origin::Native, now))
            .expect("it is not stale");
        let receiver = ask(&service);
        (service, Holder::Relay, receiver)
    }

    fn ask(service: &Service) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let patience = Patience::usual(Duration::from_secs(1));
        let asker = Asker { holder: Holder::Relay, ..asker(GatewayId::new()) };
        service
            .with(|desk, now| desk.ask(asker, patience, Reply { holder: Holder::Relay, way: Way::Call(sender) }, now));
        receiver
    }

    fn held(service: &Service) -> usize {
        service.read(|registry, _| registry.held())
    }

    #[test]
    fn a_grant_that_nobody_takes_out_of_its_channel_is_given_back() {
        let (service, holder, receiver) = asked();
        assert_eq!(held(&service), 1);
        drop(Pending { service: &service, holder, place: None, receiver: Some(receiver) });
        assert_eq!(held(&service), 0);
    }

    #[test]
    fn a_grant_whose_channel_is_closed_goes_to_the_next_who_waits() {
        let (service, holder, mut first) = asked();
        // Gone without giving up its place, as between the answer and its delivery.
        drop(ask(&service));
        let mut third = ask(&service);
        let grant = first.try_recv().expect("it is answered").expect("it is granted");
        service.release(holder, grant.ticket, Outcome::Done);
        third.try_recv().expect("it is answered").expect("it is granted");
        assert_eq!(held(&service), 1);
    }
}
