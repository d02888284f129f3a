use muster_shared::control::{Outcome, WorkerState};
use muster_shared::id::GatewayId;
use muster_shared::link::Process;
use muster_shared::topology::{LinkKind, Node, WorkerNode};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::Config;
use crate::desk::Patience;
use crate::fixtures::{asker, beat, leave, worker};
use crate::registry::{Holder, Origin};

fn service() -> Arc<Service> {
    Arc::new(Service::new(&Config::default(), CancellationToken::new()))
}

fn register(service: &Service, id: &str) {
    let registered = service.change(|registry, now| registry.register(worker(id, 2), Origin::Native, now));
    registered.expect("it is not stale");
}

fn seen(topology: &Topology, id: &str) -> WorkerNode {
    let node = topology.nodes.iter().find_map(|node| match node {
        Node::Worker(worker) if worker.id == id => Some((**worker).clone()),
        _ => None,
    });
    node.expect("it is known")
}

#[test]
fn a_picture_has_every_process_every_link_and_the_last_changes() {
    let service = service();
    register(&service, "a");
    register(&service, "b");
    service.change(|registry, now| registry.drain(&leave("b"), now)).expect("it is known");
    let process = Process { id: GatewayId::new(), address: "http://g".to_owned(), version: "1".to_owned() };
    let threads = [GatewayId::new(), GatewayId::new()];
    threads.iter().for_each(|&thread| service.links.pretend(thread, process.clone()));

    let topology = service.topology().topology;
    let ids: Vec<&str> = topology.nodes.iter().map(Node::id).collect();
    let gateway = format!("gateway-{}", &process.id.to_string()[28..]);
    assert_eq!(ids, ["controller", &gateway, "a", "b"]);
    let Node::Gateway(node) = &topology.nodes[1] else { panic!("a gateway") };
    assert_eq!((node.links, node.address.as_str(), node.site.as_str()), (2, "http://g", "local"));
    let links: Vec<_> = topology.links.iter().map(|link| (link.from.as_str(), link.to.as_str(), link.kind)).collect();
    assert_eq!(
        links,
        [
            (gateway.as_str(), "controller", LinkKind::Dispatch),
            ("a", "controller", LinkKind::Heartbeat),
            ("b", "controller", LinkKind::Heartbeat),
        ]
    );
    assert_eq!((topology.sites.len(), topology.sites[0].nodes.len()), (1, 4));
    let changes: Vec<_> =
        topology.changes.iter().map(|change| (change.number, change.worker.as_str(), change.to)).collect();
    assert_eq!(
        changes,
        [(3, "b", Some(WorkerState::Draining)), (2, "b", Some(WorkerState::Ready)), (1, "a", Some(WorkerState::Ready))]
    );
    let (a, b) = (seen(&topology, "a"), seen(&topology, "b"));
    assert_eq!((a.reason, b.reason.as_deref()), (None, Some("drained by an operator")));
    assert_eq!(b.since_ms, topology.changes[0].at_ms);
}

#[test]
fn a_worker_may_be_called_as_the_controller_is() {
    let service = service();
    register(&service, "controller");
    let topology = service.topology().topology;
    let ids: Vec<&str> = topology.nodes.iter().map(Node::id).collect();
    assert_eq!(ids, ["controller'", "controller"]);
    assert_eq!((topology.links[0].from.as_str(), topology.links[0].to.as_str()), ("controller", "controller'"));
}

#[test]
fn what_ended_is_counted_for_its_worker_and_in_its_second() {
    let service = service();
    register(&service, "w");
    let gateway = GatewayId::new();
    for (outcome, ttft_ms) in [(Outcome::Done, Some(30)), (Outcome::Failed, None), (Outcome::Done, Some(50))] {
        service.with(|desk, now| {
            let (sender, mut receiver) = tokio::sync::oneshot::channel();
            let holder = Holder::Gateway(gateway);
            let way = crate::service::Way::Call(sender);
            desk.ask(asker(gateway), Patience::usual(SECOND), crate::service::Reply { holder, way }, now);
            let answers = desk.take_answers();
            for (reply, answer) in answers {
                assert!(reply.send(answer).is_none(), "somebody waits for it");
            }
            let grant = receiver.try_recv().expect("at once").expect("there is room");
            let release = muster_shared::control::Release { ticket: grant.ticket, outcome, ttft_ms, tokens: Some(7) };
            desk.release(holder, &release, now);
        });
    }
    service.second();
    service.second();
    let topology = service.topology().topology;
    let totals = seen(&topology, "w").totals;
    assert_eq!((totals.requests, totals.failures, totals.tokens), (3, 1, 21));
    let [first, second] = topology.history[..] else { panic!("two seconds") };
    assert_eq!((first.requests, first.failures, first.tokens, first.ttft_ms), (3, 1, 21, Some(40.0)));
    assert_eq!((second.requests, second.ttft_ms), (0, None));
}

#[test]
fn who_looks_is_shown_a_second_later_what_has_changed_and_nothing_else() {
    let service = service();
    register(&service, "a");
    register(&service, "b");
    let mut shown = service.scene.look();
    let first = service.topology();
    service.change(|registry, now| registry.deregister(&leave("a"), now)).expect("it is known");
    service.second();
    let second = shown.borrow_and_update().clone().expect("somebody looks");
    let update = difference::between(&first, &second);
    assert_eq!(update.nodes.iter().map(Node::id).collect::<Vec<_>>(), ["a"]);
    assert_eq!((update.gone.len(), update.changes.len(), update.history.len()), (0, 1, 1));
    assert!(update.sites.is_none() && update.links.is_some());

    service.second();
    let third = shown.borrow_and_update().clone().expect("somebody looks");
    let update = difference::between(&second, &third);
    assert!(update.nodes.is_empty() && update.changes.is_empty() && update.links.is_none(), "{update:?}");
    assert!(update.models.is_none() && update.warnings.is_none(), "{update:?}");
}

/// `cargo nextest run -p muster-controller --run-ignored only ten_thousand --no-capture`
#[test]
#[ignore = "measures how long ten thousand workers hold the lock, which only a person can judge"]
fn how_long_ten_thousand_workers_are_looked_at() {
    let service = service();
    (0..10_000).for_each(|number| register(&service, &format!("http://10.0.{}.{}:21002", number / 256, number % 256)));
    let took = |what: &dyn Fn()| {
        let mut times: Vec<Duration> = (0..9)
            .map(|_| {
                let began = Instant::now();
                what();
                began.elapsed()
            })
            .collect();
        times.sort();
        times[4]
    };
    let (clock, site) = (Clock::new(Instant::now(), std::time::SystemTime::now()), "local");
    let fleet = took(&|| drop(service.fleet()));
    let locked = took(&|| drop(service.with(|desk, now| see(desk, &clock, site, now))));
    let whole = took(&|| drop(service.topology()));
    let (one, other) = (service.topology(), service.topology());
    let difference = took(&|| drop(difference::between(&one, &other)));
    println!("fleet, all of it under the lock: {fleet:?}; topology under the lock: {locked:?}, in all {whole:?}");
    println!("the difference of two that are the same: {difference:?}");
}

#[derive(Debug, Clone, Copy)]
enum Command {
    Register(u8),
    Beat(u8, u32),
    Drain(u8),
    Leave(u8),
    Ask,
    Link(u8),
    Second,
    /// A stream reads what is there.
    Read,
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (0_u8..4).prop_map(Command::Register),
        ((0_u8..4), 0_u32..3).prop_map(|(id, running)| Command::Beat(id, running)),
        (0_u8..4).prop_map(Command::Drain),
        (0_u8..4).prop_map(Command::Leave),
        Just(Command::Ask),
        (0_u8..3).prop_map(Command::Link),
        Just(Command::Second),
        Just(Command::Read),
    ]
}

fn obey(service: &Service, command: Command, held: &mut Vec<tokio::sync::oneshot::Receiver<crate::desk::Answer>>) {
    let name = |id: u8| format!("w{id}");
    match command {
        Command::Register(id) => {
            drop(service.change(|registry, now| registry.register(worker(&name(id), 2), Origin::Native, now)));
        }
        Command::Beat(id, running) => {
            drop(service.change(|registry, now| registry.heartbeat(&beat(&name(id), running), now)));
        }
        Command::Drain(id) => drop(service.change(|registry, now| registry.drain(&leave(&name(id)), now))),
        Command::Leave(id) => drop(service.change(|registry, now| registry.deregister(&leave(&name(id)), now))),
        Command::Ask => {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let asker = asker(GatewayId::from_random(1));
            let reply = crate::service::Reply { holder: asker.holder, way: crate::service::Way::Call(sender) };
            service.with(|desk, now| desk.ask(asker, Patience::usual(SECOND), reply, now));
            held.push(receiver);
        }
        Command::Link(id) => {
            let id = GatewayId::from_random(id.into());
            service.links.pretend(id, Process { id, address: String::new(), version: String::new() });
        }
        Command::Second | Command::Read => service.second(),
    }
}

proptest! {
    /// However slowly a stream is read, it leads to what the controller would answer now.
    #[test]
    fn updates_lead_to_the_picture_that_is_true(commands in proptest::collection::vec(command(), 0..60)) {
        let service = service();
        let mut shown = service.scene.look();
        let mut said = Arc::new(service.topology());
        let mut copy = said.topology.clone();
        let mut held = Vec::new();
        for command in commands.into_iter().chain([Command::Read]) {
            obey(&service, command, &mut held);
            if matches!(command, Command::Read) {
                let next = shown.borrow_and_update().clone().expect("somebody looks");
                copy.apply(difference::between(&said, &next));
                prop_assert_eq!(&copy, &next.topology);
                said = next;
            }
        }
        let fresh = service.topology().topology;
        prop_assert_eq!(Topology { at_ms: 0, ..copy }, Topology { at_ms: 0, ..fresh });
    }
}
