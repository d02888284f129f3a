//! What holds over any order of commands.

use std::collections::BTreeMap;

use muster_shared::control::{Capacity, Held, ModelCard, Registration, Resources, Source, WorkerState, WorkerStatus};
use muster_shared::id::{GatewayId, WorkerId};
use muster_shared::transport::Transport;
use proptest::prelude::*;
use rand::SeedableRng;

use super::*;
use crate::dispatch::{self, Policies};
use crate::fixtures::{FASTCHAT, beat, fastchat_worker, leave, release, rules, secs, silent_beat, worker};
use crate::peers::Peer;
use crate::registry::{Answer, Load, Note, Origin, Request, Rules, Verdict};

/// Workers `w0` to `w3`: one place for `m`; two for `m`; one each for `m` and `n`; FastChat's, without a limit.
const WORKERS: usize = 4;
const GATEWAYS: usize = 2;
/// Peers that may be written down: `p0`, `p1`, and one with the address of `w1`.
const PEERS: usize = 3;
/// On whose behalf requests come.
const KEYS: [Option<&str>; 3] = [None, Some("a"), Some("b")];
/// Room for few who wait, fewer for one model, and fewer still of one key.
const BOUNDS: QueueConfig =
    QueueConfig { limit: 5, per_model: Some(4), per_key: Some(2), max_wait: Duration::from_secs(6) };

/// What is asked for: two models, an alias, and a model that only a fallback serves.
const MODELS: [&str; 4] = ["m", "n", "chat", "big"];

#[derive(Debug, Clone)]
enum Command {
    Register {
        worker: usize,
        newer: bool,
    },
    Heartbeat {
        worker: usize,
        /// `None`: the beat tells no load.
        running: Option<u32>,
        /// Processors taken by others, and memory; `None`: the beat tells nothing of them.
        machine: Option<(f64, f64)>,
    },
    Drain(usize),
    Deregister(usize),
    /// These peers are written down from now on; each bit of `ways` says how its peer is.
    Write {
        who: u32,
        ways: u32,
    },
    /// A peer answers a probe.
    Answer {
        peer: usize,
        newer: bool,
        /// `None`: it tells no load.
        running: Option<u32>,
        models: Option<usize>,
    },
    /// A peer's probes bring it up or down.
    Judge {
        peer: usize,
        up: bool,
    },
    Ask {
        gateway: usize,
        model: usize,
        key: usize,
        wait: u64,
        /// Time left; a small one is none.
        left: Option<u64>,
        priority: i8,
        exclude: Option<usize>,
    },
    Lookup,
    /// Of the nth ticket that was granted and not released.
    Release {
        nth: usize,
        outcome: Outcome,
    },
    /// The nth of those who wait goes away.
    Abandon(usize),
    Renew(usize),
    /// A gateway tells of a request that it has sent to that worker without being told to.
    Adopt {
        gateway: usize,
        worker: usize,
        other_model: bool,
    },
    /// A gateway comes back, and names those of its requests whose bits are set.
    Reconcile {
        gateway: usize,
        kept: u32,
    },
    Pass(u64),
    Sweep,
    List,
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Done),
        1 => Just(Outcome::Cancelled),
        1 => Just(Outcome::Unreachable),
        2 => Just(Outcome::Failed),
        1 => Just(Outcome::Overloaded),
    ]
}

/// Below, between and above the marks.
fn machines() -> impl Strategy<Value = (f64, f64)> {
    let share = || prop_oneof![2 => Just(0.5), 1 => Just(0.8), 1 => Just(0.87), 2 => Just(0.95)];
    (share(), share())
}

fn commands() -> impl Strategy<Value = Command> {
    let left = proptest::option::weighted(0.3, (0..9000_u64).prop_map(|left| left.saturating_sub(500)));
    let time = (0..9000_u64, left, -2..3_i8);
    let ask = (0..GATEWAYS, 0..MODELS.len(), 0..KEYS.len(), time, proptest::option::weighted(0.3, 0..WORKERS));
    prop_oneof![
        4 => (0..WORKERS, any::<bool>()).prop_map(|(worker, newer)| Command::Register { worker, newer }),
        4 => (0..WORKERS, proptest::option::weighted(0.8, 0..4_u32), proptest::option::weighted(0.7, machines()))
            .prop_map(|(worker, running, machine)| Command::Heartbeat { worker, running, machine }),
        1 => (0..WORKERS).prop_map(Command::Drain),
        1 => (0..WORKERS).prop_map(Command::Deregister),
        1 => (0..8_u32, 0..8_u32).prop_map(|(who, ways)| Command::Write { who, ways }),
        3 => (0..PEERS, any::<bool>(), proptest::option::of(0..4_u32), proptest::option::of(0..3_usize))
            .prop_map(|(peer, newer, running, models)| Command::Answer { peer, newer, running, models }),
        2 => (0..PEERS, proptest::bool::weighted(0.7)).prop_map(|(peer, up)| Command::Judge { peer, up }),
        10 => ask.prop_map(|(gateway, model, key, (wait, left, priority), exclude)| {
            Command::Ask { gateway, model, key, wait, left, priority, exclude }
        }),
        2 => Just(Command::Lookup),
        8 => (any::<usize>(), outcomes()).prop_map(|(nth, outcome)| Command::Release { nth, outcome }),
        1 => any::<usize>().prop_map(Command::Abandon),
        2 => (0..GATEWAYS).prop_map(Command::Renew),
        2 => (0..GATEWAYS, 0..WORKERS, any::<bool>())
            .prop_map(|(gateway, worker, other_model)| Command::Adopt { gateway, worker, other_model }),
        1 => (0..GATEWAYS, any::<u32>()).prop_map(|(gateway, kept)| Command::Reconcile { gateway, kept }),
        4 => (0..6000_u64).prop_map(Command::Pass),
        1 => Just(Command::Sweep),
        2 => Just(Command::List),
    ]
}

fn name(worker: usize) -> String {
    format!("w{worker}")
}

fn registration(worker_index: usize, incarnation: u64) -> Registration {
    let capacity = [1, 2, 1, 0][worker_index];
    let mut registration = match worker_index {
        3 => fastchat_worker(&name(3)),
        _ => Registration { incarnation, ..worker(&name(worker_index), capacity) },
    };
    if worker_index == 2 {
        let capacity = Some(Capacity { running: 0, waiting: 1 });
        registration.models.push(ModelCard { capacity, ..ModelCard::bare("n") });
    }
    registration
}

/// A peer in one of two ways: over HTTP with what it tells, or over gRPC with one place for `m`.
fn peer(index: usize, declared: bool) -> Peer {
    let capacity = Some(Capacity { running: 1, waiting: 0 });
    let m = ModelCard { capacity, ..ModelCard::bare("m") };
    let address = if index == 2 { worker(&name(1), 1).address } else { format!("http://p{index}") };
    Peer {
        id: WorkerId::new(format!("p{index}")),
        address,
        transport: if declared { Transport::Grpc } else { Transport::Http },
        models: if declared { vec![m] } else { Vec::new() },
        site: None,
        speed: declared.then_some(2.0),
        capabilities: None,
    }
}

/// A desk with what the world around it knows.
struct World {
    desk: Desk<usize>,
    now: Instant,
    gateways: [GatewayId; GATEWAYS],
    incarnations: [u64; WORKERS],
    /// Those of the peers.
    runs: [u64; PEERS],
    asked: usize,
    waiting: BTreeMap<usize, Place>,
    /// Who came on behalf of which key, and until when each may wait.
    keys: BTreeMap<usize, usize>,
    until: BTreeMap<usize, Instant>,
    /// Who has been answered, and who has gone away before.
    settled: Vec<usize>,
    tickets: Vec<(Holder, Held)>,
    /// Who asked for what.
    holders: BTreeMap<usize, (Holder, Request)>,
    /// Requests told of that the controller did not grant, by worker.
    told: BTreeMap<WorkerId, u32>,
}

impl World {
    fn new(policy: &str, journal: usize) -> Self {
        let now = Instant::now();
        let setup = Setup { queue: BOUNDS, heartbeat: secs(5), rng: StdRng::seed_from_u64(1) };
        let policies = Policies::new(dispatch::by_name(policy).expect("a policy"), BTreeMap::new());
        let registry = Registry::new(Rules { journal, policies, ..rules() });
        Self {
            desk: Desk::new(registry, setup, now).with_names(names()),
            now,
            gateways: std::array::from_fn(|_| GatewayId::new()),
            incarnations: [1; WORKERS],
            runs: [1; PEERS],
            asked: 0,
            waiting: BTreeMap::new(),
            keys: BTreeMap::new(),
            until: BTreeMap::new(),
            settled: Vec::new(),
            tickets: Vec::new(),
            holders: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    fn run(&mut self, command: Command) {
        let now = self.now;
        match command {
            Command::Register { worker, newer } => {
                self.incarnations[worker] += u64::from(newer);
                let registration = registration(worker, self.incarnations[worker]);
                let origin = if worker == 3 { FASTCHAT } else { Origin::Native };
                let registered = self.desk.change(now, |registry| registry.register(registration, origin, now));
                let is_peers = self.written_at(worker);
                assert_eq!(registered.is_err(), is_peers, "neither stale nor in the place of a peer: {registered:?}");
            }
            Command::Heartbeat { worker, running, machine } => {
                let mut beat = running.map_or_else(|| silent_beat(&name(worker)), |load| beat(&name(worker), load));
                beat.incarnation = self.incarnations[worker];
                beat.resources = machine.map(|(cpu, memory)| Resources {
                    cpu: Some(cpu),
                    memory: Some(memory),
                    ..Resources::default()
                });
                self.desk.change(now, |registry| match worker {
                    3 => drop(registry.fastchat_beat(&beat.id, running.unwrap_or(0), now)),
                    _ => drop(registry.heartbeat(&beat, now)),
                });
            }
            // An unknown worker cannot leave, which is as well.
            Command::Drain(worker) => {
                drop(self.desk.change(now, |registry| registry.drain(&leave(&name(worker)), now)))
            }
            Command::Deregister(worker) => {
                drop(self.desk.change(now, |registry| registry.deregister(&leave(&name(worker)), now)));
            }
            Command::Write { who, ways } => {
                let written = (0..PEERS).filter(|index| who & (1 << index) != 0);
                let peers: Vec<Peer> = written.map(|index| peer(index, ways & (1 << index) != 0)).collect();
                self.desk.change(now, |registry| registry.set_peers(&peers, now));
            }
            Command::Answer { peer, newer, running, models } => {
                self.runs[peer] += u64::from(newer);
                let id = WorkerId::new(format!("p{peer}"));
                let names: [&[&str]; 3] = [&["m"], &["m", "n"], &["n"]];
                let models =
                    models.map(|which| names[which].iter().map(|&name| ModelCard::bare(name.to_owned())).collect());
                let load = running.map_or(Load::Unknown, |load| Load::Beat(Box::new(beat(id.as_str(), load))));
                let version = String::new();
                let incarnation = self.runs[peer];
                let answer = Answer { models, speed: None, version, incarnation, capabilities: None, load };
                self.desk.change(now, |registry| registry.peer_answered(&id, answer, now));
            }
            Command::Judge { peer, up } => {
                let verdict = if up { Verdict::Up } else { Verdict::Down("it is silent".to_owned()) };
                let id = WorkerId::new(format!("p{peer}"));
                self.desk.change(now, |registry| registry.judge_peer(&id, verdict, now));
            }
            Command::Ask { .. } => self.ask(&command),
            Command::Lookup => drop(self.desk.lookup("m", now)),
            Command::Release { nth, outcome } => self.release(nth, outcome),
            Command::Abandon(nth) => self.abandon(nth),
            Command::Renew(gateway) => {
                let gateway = self.gateways[gateway];
                self.desk.change(now, |registry| registry.renew(gateway, now));
            }
            Command::Adopt { gateway, worker, other_model } => {
                let model = if other_model { "n" } else { "m" }.to_owned();
                let held = Held { ticket: TicketId::new(), worker: WorkerId::new(name(worker)), model, key: None };
                self.tell(gateway, std::slice::from_ref(&held), Registry::adopt);
                self.tickets.push((Holder::Gateway(self.gateways[gateway]), held));
            }
            Command::Reconcile { gateway, kept } => self.reconcile(gateway, kept),
            Command::Pass(millis) => {
                self.now += Duration::from_millis(millis);
                self.desk.tick(self.now);
            }
            Command::Sweep => self.desk.sweep(now),
            Command::List => self.list(),
        }
    }

    /// Whether a peer that lives is written down at a worker's address.
    fn written_at(&self, worker: usize) -> bool {
        let there = registration(worker, 1).address;
        let workers = self.desk.registry().workers(self.now);
        workers
            .iter()
            .any(|peer| peer.address == there && peer.id.as_str().starts_with('p') && peer.state != WorkerState::Gone)
    }

    fn ask(&mut self, command: &Command) {
        let Command::Ask { gateway, model, key, wait, left, priority, exclude } = *command else { return };
        let holder = Holder::Gateway(self.gateways[gateway]);
        let model = MODELS[model].to_owned();
        let exclude = exclude.map(|worker| WorkerId::new(name(worker))).into_iter().collect();
        let asker = Asker {
            holder,
            key: KEYS[key].map(Into::into),
            request: Request {
                model,
                exact: false,
                affinity: (key > 0).then_some(key as u64),
                exclude,
                transports: Vec::new(),
            },
            note: Note::default(),
        };
        let reply = self.asked;
        self.asked += 1;
        self.holders.insert(reply, (holder, asker.request.clone()));
        let deadline = left.map(Duration::from_millis);
        let key_priority = key as i8;
        let patience = Patience { wait: Duration::from_millis(wait), deadline, priority, key_priority };
        if let Some(place) = self.desk.ask(asker, patience, reply, self.now) {
            assert_ne!(left, Some(0), "it has no time to wait");
            self.waiting.insert(reply, place);
            self.keys.insert(reply, key);
            self.until.insert(reply, self.now + deadline.map_or(BOUNDS.max_wait, |left| left.min(BOUNDS.max_wait)));
        }
    }

    fn release(&mut self, nth: usize, outcome: Outcome) {
        if self.tickets.is_empty() {
            return;
        }
        let (holder, held) = self.tickets.swap_remove(nth % self.tickets.len());
        let now = self.now;
        self.desk.release(holder, &release(held.ticket, outcome), now);
    }

    /// Tells of requests in flight.
    fn tell(
        &mut self,
        gateway: usize,
        held: &[Held],
        how: fn(&mut Registry, GatewayId, &[Held], Instant) -> Vec<TicketId>,
    ) {
        for held in held {
            *self.told.entry(held.worker.clone()).or_default() += 1;
        }
        let (gateway, now) = (self.gateways[gateway], self.now);
        let unknown = self.desk.change(now, |registry| how(registry, gateway, held, now));
        assert!(unknown.iter().all(|ticket| held.iter().any(|held| held.ticket == *ticket)), "it was not told of");
    }

    fn reconcile(&mut self, gateway: usize, kept: u32) {
        let holder = Holder::Gateway(self.gateways[gateway]);
        let mut nth = 0;
        self.tickets.retain(|(of, _)| {
            nth += u32::from(*of == holder);
            *of != holder || kept & (1 << (nth % 32)) != 0
        });
        let held: Vec<Held> =
            self.tickets.iter().filter(|(of, _)| *of == holder).map(|(_, held)| held.clone()).collect();
        self.tell(gateway, &held, Registry::reconcile);
    }

    fn abandon(&mut self, nth: usize) {
        if let Some(&reply) = self.waiting.keys().nth(nth % self.waiting.len().max(1)) {
            let place = self.waiting.remove(&reply).expect("it was found");
            self.desk.abandon(&place);
            self.settled.push(reply);
        }
    }

    fn list(&self) {
        let before = self.portrait();
        let registry = self.desk.registry();
        let (now, later) = (self.now, self.now + secs(3600));
        for moment in [now, later] {
            registry.workers(moment);
            registry.models(moment);
            registry.model_names(None, moment);
            registry.as_one_worker(moment);
        }
        assert_eq!(self.portrait(), before, "a listing changed something");
    }

    fn portrait(&self) -> String {
        format!("{:?} {}", self.desk, self.desk.registry().portrait())
    }

    /// Takes the answers of the last command, and checks what must hold after each.
    fn check(&mut self) {
        let workers: BTreeMap<_, _> =
            self.desk.registry().workers(self.now).into_iter().map(|worker| (worker.id.clone(), worker)).collect();
        for (reply, answer) in self.desk.take_answers() {
            assert!(!self.settled.contains(&reply), "{reply} is answered twice, or after it went away");
            self.settled.push(reply);
            self.waiting.remove(&reply);
            if let Ok(grant) = answer {
                let (holder, asked) = self.holders[&reply].clone();
                assert!(grant.model.as_ref() != Some(&asked.model), "no other model, and yet one is named");
                let model = grant.model.unwrap_or_else(|| asked.model.clone());
                let serves = workers[&grant.worker].models.iter().any(|card| card.name == model);
                assert!(serves, "the worker does not know the model `{model}`");
                check_chosen(&workers[&grant.worker], &Request { model: model.clone(), ..asked }, workers.values());
                self.tickets.push((holder, Held { ticket: grant.ticket, worker: grant.worker, model, key: None }));
            }
        }
        for worker in workers.values() {
            let capacity: u32 = worker.models.iter().filter_map(|card| card.capacity).map(Capacity::total).sum();
            // What is written down of a peer may have changed while it had more.
            let limited =
                worker.source == Source::Registered && worker.models.iter().all(|card| card.capacity.is_some());
            let most = capacity + self.told.get(&worker.id).copied().unwrap_or(0);
            assert!(!limited || worker.tickets <= most, "too many tickets: {worker:?}");
            assert!(worker.state != WorkerState::Gone || worker.tickets == 0, "a gone worker has tickets: {worker:?}");
        }
        assert_eq!(self.desk.waiting(), self.waiting.len());
        let of = |key: usize| self.waiting.keys().filter(|reply| self.keys[*reply] == key).count();
        assert!((1..KEYS.len()).all(|key| of(key) <= 2), "a key has more waiting than it may");
        let of_m = self.waiting.keys().filter(|reply| self.holders[*reply].1.model == "m").count();
        assert!(of_m <= 4 && self.waiting.len() <= 5, "more wait than may");
        assert!(self.waiting.keys().all(|reply| self.until[reply] > self.now), "one waits beyond its time");
        self.desk.registry().audit(self.now);
        self.desk.registry().audit_journal();
    }
}

/// `chat` stands for both models, and one of them takes the requests of the other, as that does of `big`, which nobody
/// serves.
fn names() -> Names {
    let fallback = |model: &str, other: &str| (model.to_owned(), vec![other.to_owned()]);
    let weights = vec![("m".to_owned(), 1.0), ("n".to_owned(), 2.0)];
    let aliased = Names::default().with_aliases([("chat".to_owned(), weights)]);
    let names = aliased.and_then(|names| names.with_fallbacks([fallback("n", "m"), fallback("big", "n")]));
    names.expect("they are right")
}

/// A worker that was chosen by the last command, as it is after it.
fn check_chosen<'a>(worker: &WorkerStatus, request: &Request, mut all: impl Iterator<Item = &'a WorkerStatus>) {
    let would_do = |other: &&WorkerStatus| {
        matches!(other.state, WorkerState::Ready | WorkerState::Suspect)
            && other.models.iter().any(|card| card.name == request.model)
            && !request.exclude.contains(&other.id)
    };
    match worker.state {
        WorkerState::Ready => {}
        WorkerState::Paused => assert_eq!(all.find(would_do), None, "it is to be spared: {worker:?}"),
        WorkerState::Suspect => assert_eq!(worker.tickets, 1, "a trial is one request: {worker:?}"),
        WorkerState::Open | WorkerState::Draining | WorkerState::Down | WorkerState::Gone => {
            panic!("it must not be chosen: {worker:?}")
        }
    }
}

proptest! {
    #[test]
    fn every_rule_holds_over_any_order_of_commands(
        commands in proptest::collection::vec(commands(), 1..120),
        policy in proptest::sample::select(dispatch::names().collect::<Vec<_>>()),
        journal in prop_oneof![1..8_usize, Just(100)],
    ) {
        let mut world = World::new(policy, journal);
        for command in commands {
            world.run(command);
            world.check();
        }
        world.desk.registry().audit_replay();
        world.run(Command::Pass(60_000));
        world.check();
        prop_assert!(world.waiting.is_empty(), "somebody waits for ever");
        prop_assert_eq!(world.settled.len(), world.asked);
        world.run(Command::Pass(90_000));
        prop_assert_eq!(world.desk.registry().held(), 0, "a ticket never ends");
        for worker in world.desk.registry().workers(world.now) {
            prop_assert_eq!(worker.tickets, 0, "a ticket never ends");
        }
    }
}
