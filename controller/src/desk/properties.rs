//! What holds over any order of commands.

use std::collections::BTreeMap;

use muster_shared::control::{Capacity, Held, ModelCard, Registration, WorkerState, WorkerStatus};
use muster_shared::id::{GatewayId, WorkerId};
use proptest::prelude::*;
use rand::SeedableRng;

use super::*;
use crate::fixtures::{FASTCHAT, beat, fastchat_worker, leave, release, rules, secs, silent_beat, worker};
use crate::registry::{Origin, Request};

/// Workers `w0` to `w3`: one place for `m`; two for `m`; one each for `m` and `n`; FastChat's, without a limit.
const WORKERS: usize = 4;
const GATEWAYS: usize = 2;

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
    },
    Drain(usize),
    Deregister(usize),
    Ask {
        gateway: usize,
        other_model: bool,
        wait: u64,
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

fn commands() -> impl Strategy<Value = Command> {
    let ask = (0..GATEWAYS, any::<bool>(), 0..9000_u64, -2..3_i8, proptest::option::weighted(0.3, 0..WORKERS));
    prop_oneof![
        4 => (0..WORKERS, any::<bool>()).prop_map(|(worker, newer)| Command::Register { worker, newer }),
        4 => (0..WORKERS, proptest::option::weighted(0.8, 0..4_u32)).prop_map(|(worker, running)| Command::Heartbeat { worker, running }),
        1 => (0..WORKERS).prop_map(Command::Drain),
        1 => (0..WORKERS).prop_map(Command::Deregister),
        10 => ask.prop_map(|(gateway, other_model, wait, priority, exclude)| {
            Command::Ask { gateway, other_model, wait, priority, exclude }
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
        registration.models.push(ModelCard { name: "n".to_owned(), kind: None, context_length: None, capacity });
    }
    registration
}

/// A desk with what the world around it knows.
struct World {
    desk: Desk<usize>,
    now: Instant,
    gateways: [GatewayId; GATEWAYS],
    incarnations: [u64; WORKERS],
    asked: usize,
    waiting: BTreeMap<usize, Place>,
    /// Who has been answered, and who has gone away before.
    settled: Vec<usize>,
    tickets: Vec<(Holder, Held)>,
    /// Who asked for which model.
    holders: BTreeMap<usize, (Holder, String)>,
    /// Requests told of that the controller did not grant, by worker.
    told: BTreeMap<WorkerId, u32>,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let setup = Setup {
            queue: QueueConfig { limit: 3, max_wait: secs(6) },
            heartbeat: secs(5),
            rng: StdRng::seed_from_u64(1),
        };
        let registry = Registry::new(rules());
        Self {
            desk: Desk::new(registry, setup, now),
            now,
            gateways: std::array::from_fn(|_| GatewayId::new()),
            incarnations: [1; WORKERS],
            asked: 0,
            waiting: BTreeMap::new(),
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
                self.desk.change(now, |registry| registry.register(registration, origin, now)).expect("not stale");
            }
            Command::Heartbeat { worker, running } => {
                let mut beat = running.map_or_else(|| silent_beat(&name(worker)), |load| beat(&name(worker), load));
                beat.incarnation = self.incarnations[worker];
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
            Command::Sweep => self.desk.change(now, |registry| registry.sweep(now)),
            Command::List => self.list(),
        }
    }

    fn ask(&mut self, command: &Command) {
        let Command::Ask { gateway, other_model, wait, priority, exclude } = *command else { return };
        let holder = Holder::Gateway(self.gateways[gateway]);
        let model = if other_model { "n" } else { "m" }.to_owned();
        let exclude = exclude.map(|worker| WorkerId::new(name(worker))).into_iter().collect();
        let asker =
            Asker { holder, key: None, request: Request { model, affinity: None, exclude, transports: Vec::new() } };
        let reply = self.asked;
        self.asked += 1;
        self.holders.insert(reply, (holder, asker.request.model.clone()));
        let patience = Patience { priority, ..Patience::usual(Duration::from_millis(wait)) };
        if let Some(place) = self.desk.ask(asker, patience, reply, self.now) {
            self.waiting.insert(reply, place);
        }
    }

    fn release(&mut self, nth: usize, outcome: Outcome) {
        if self.tickets.is_empty() {
            return;
        }
        let (holder, held) = self.tickets.swap_remove(nth % self.tickets.len());
        let now = self.now;
        self.desk.change(now, |registry| registry.release(holder, &release(held.ticket, outcome), now));
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
                check_chosen(&workers[&grant.worker]);
                let (holder, model) = self.holders[&reply].clone();
                self.tickets.push((holder, Held { ticket: grant.ticket, worker: grant.worker, model, key: None }));
            }
        }
        for worker in workers.values() {
            let capacity: u32 = worker.models.iter().filter_map(|card| card.capacity).map(Capacity::total).sum();
            let limited = worker.models.iter().all(|card| card.capacity.is_some());
            let most = capacity + self.told.get(&worker.id).copied().unwrap_or(0);
            assert!(!limited || worker.tickets <= most, "too many tickets: {worker:?}");
            assert!(worker.state != WorkerState::Gone || worker.tickets == 0, "a gone worker has tickets: {worker:?}");
        }
        assert_eq!(self.desk.waiting(), self.waiting.len());
        self.desk.registry().audit(self.now);
    }
}

/// A worker that was chosen by the last command, as it is after it.
fn check_chosen(worker: &WorkerStatus) {
    match worker.state {
        WorkerState::Ready | WorkerState::Paused => {}
        WorkerState::Suspect => assert_eq!(worker.tickets, 1, "a trial is one request: {worker:?}"),
        WorkerState::Open | WorkerState::Draining | WorkerState::Gone => panic!("it must not be chosen: {worker:?}"),
    }
}

proptest! {
    #[test]
    fn every_rule_holds_over_any_order_of_commands(commands in proptest::collection::vec(commands(), 1..120)) {
        let mut world = World::new();
        for command in commands {
            world.run(command);
            world.check();
        }
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
