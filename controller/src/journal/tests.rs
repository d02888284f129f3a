use std::collections::{BTreeMap, HashSet};

use muster_shared::control::{Outcome, Release};
use muster_shared::id::{GatewayId, TicketId};
use muster_shared::journal::{End, Explained, Line, Verdict as Told, Why};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::past::{Asked, Past};
use super::*;
use crate::config::{PolicyName, QueueConfig};
use crate::desk::{Desk, Patience, Setup};
use crate::dispatch::{self, Policies, Seat};
use crate::fixtures::{asker, beat, leave, rules, secs, worker};
use crate::names::Names;
use crate::registry::{Asker, Holder, Note, Origin, Registry, Rules, Standing};

/// A worker as a look at its pool finds it.
pub(super) type Seen = (Seat, Arc<str>, Standing);

/// A moment, and the time of day then.
const NOON: u64 = 1_700_000_000_000;

impl Journal {
    /// Panics where what is rebuilt of a decision is not what was, or the decision made again comes to something else.
    pub(crate) fn audit(&self) {
        let snapshot = self.snapshot();
        let kept = snapshot.decisions().count();
        assert_eq!((kept, self.seen.len()), (self.endings.len(), self.endings.len()));
        assert!(self.next() < self.limit as u64 || kept >= self.limit, "{kept} of {} are kept", self.limit);
        assert!(kept < self.limit + BLOCK.min(self.limit), "{kept} are kept, {} are to be", self.limit);
        let mut pasts: HashMap<u32, Past> = HashMap::new();
        for ((number, entry, changes, _), seen) in snapshot.decisions().zip(&self.seen) {
            let Some(id) = entry.stream else { continue };
            let stream = &snapshot.streams[&id];
            let past = pasts.entry(id).or_insert_with(|| stream.past(stream.policy));
            changes.iter().for_each(|change| past.apply(change));
            let rebuilt = past.workers().map(|(seat, worker, standing)| (seat, Arc::from(worker), standing));
            assert_eq!(rebuilt.collect::<Vec<Seen>>(), *seen, "workers at decision {number}");
            if let Verdict::Picked { seat, is_paused, seed } = entry.verdict {
                let exclude = entry.exclude.as_deref().unwrap_or_default();
                let Entry { affinity, wanted, .. } = *entry;
                let asked = Asked { model: &stream.model, affinity, wanted, is_paused, exclude, seed };
                assert_eq!(past.pick(&asked), Some(seat), "decision {number}");
            }
        }
        let asked: HashSet<u32> = snapshot.decisions().filter_map(|(_, entry, ..)| entry.stream).collect();
        let idle = self.buried.iter().filter(|(_, id)| !asked.contains(id)).count();
        assert!(idle <= 1, "{idle} pools are no more and in no decision, and yet are kept");
    }

    /// Panics where the journal as it is saved makes another decision than the one that was made.
    pub(crate) fn audit_replay(&self) {
        let snapshot = self.snapshot();
        let replayed = replay(saved(&snapshot).as_bytes(), None).expect("our own words");
        assert_eq!(replayed.differences, []);
        assert_eq!(replayed.decisions + replayed.without, self.endings.len() as u64);
    }
}

fn clock(now: Instant) -> Clock {
    Clock { now, unix_ms: NOON }
}

fn saved(snapshot: &Snapshot) -> String {
    let lines = snapshot.lines(clock(Instant::now()));
    lines.map(|line| serde_json::to_string(&line).expect("it is JSON") + "\n").collect()
}

/// A desk whose requests have ids: `r0`, `r1` and so on.
struct Fixture {
    desk: Desk<u32>,
    gateway: GatewayId,
    now: Instant,
    asked: u32,
}

impl Fixture {
    fn new(policy: &str, journal: usize) -> Self {
        let now = Instant::now();
        let setup = Setup { queue: QueueConfig::default(), heartbeat: secs(5), rng: StdRng::seed_from_u64(1) };
        let policies = Policies::new(dispatch::by_name(policy).expect("a policy"), Default::default());
        let registry = Registry::new(Rules { journal, policies, ..rules() });
        let names = Names::default()
            .with_aliases([("chat".to_owned(), vec![("m".to_owned(), 1.0)])])
            .and_then(|names| names.with_fallbacks([("big".to_owned(), vec!["m".to_owned()])]))
            .expect("they are right");
        Self { desk: Desk::new(registry, setup, now).with_names(names), gateway: GatewayId::new(), now, asked: 0 }
    }

    /// The same with workers `w0`, `w1` and so on, of those capacities; the first is the slowest.
    fn with(policy: &str, capacities: &[u32]) -> Self {
        let mut f = Self::new(policy, 10_000);
        for (number, &capacity) in capacities.iter().enumerate() {
            let mut registration = worker(&format!("w{number}"), capacity);
            registration.speed = 1.0 + number as f64;
            let now = f.now;
            f.desk.change(now, |registry| registry.register(registration, Origin::Native, now)).expect("not stale");
        }
        f
    }

    fn ask_as(&mut self, change: impl FnOnce(&mut Asker), wait: Duration) -> Option<(TicketId, WorkerId)> {
        let mut asker = asker(self.gateway);
        asker.note = Note { request: Some(format!("r{}", self.asked).into()), ..Note::default() };
        change(&mut asker);
        self.desk.ask(asker, Patience::usual(wait), self.asked, self.now);
        self.asked += 1;
        self.desk.take_answers().pop()?.1.ok().map(|grant| (grant.ticket, grant.worker))
    }

    fn ask(&mut self) -> Option<(TicketId, WorkerId)> {
        self.ask_as(|_| {}, Duration::ZERO)
    }

    fn release(&mut self, ticket: TicketId, outcome: Outcome) {
        let release = Release { ticket, outcome, ttft_ms: Some(7), tokens: Some(9) };
        let (holder, now) = (Holder::Gateway(self.gateway), self.now);
        self.desk.release(holder, &release, now);
    }

    fn snapshot(&self) -> Snapshot {
        self.desk.registry().journal().expect("it is kept")
    }

    fn explain(&self, request: &str) -> Vec<Explained> {
        self.snapshot().explain(request, clock(self.now)).expect("it is known").decisions
    }
}

#[test]
fn what_is_written_down_of_a_decision_is_small() {
    assert!(size_of::<Change>() <= 40, "{}", size_of::<Change>());
    assert!(size_of::<Entry>() <= 192, "{}", size_of::<Entry>());
    assert!(size_of::<Machine>() <= 88, "{}", size_of::<Machine>());
}

#[test]
fn a_decision_is_explained_with_its_candidates_and_its_end() {
    let mut f = Fixture::with("shortest_queue", &[4, 4, 1]);
    let (_, first) = f.ask_as(|asker| asker.request.exclude = vec![WorkerId::new("w1")], Duration::ZERO).expect("room");
    let (ticket, second) = f.ask_as(|asker| asker.key = Some("team".into()), Duration::ZERO).expect("room");
    f.now += Duration::from_millis(30);
    f.release(ticket, Outcome::Done);
    let [told] = &f.explain("r0")[..] else { panic!("one decision") };
    let others = told.others.iter().map(|other| (other.worker.as_str(), other.why));
    assert_eq!(others.collect::<Vec<_>>(), [("w1", Why::Excluded)]);
    assert_eq!(told.decision.end, None, "it runs");
    assert!(told.candidates.iter().all(|candidate| candidate.picked == (candidate.worker == first)));
    let [told] = &f.explain("r1")[..] else { panic!("one decision") };
    assert_eq!((told.decision.number, told.decision.at_ms), (1, NOON - 30));
    assert_eq!((told.decision.key.as_deref(), told.decision.policy.as_deref()), (Some("team"), Some("shortest_queue")));
    assert_eq!(told.decision.gateway, Some(f.gateway));
    let loads: BTreeMap<_, _> = told.candidates.iter().map(|it| (it.worker.as_str(), (it.load, it.score))).collect();
    let full = told.others.iter().any(|other| other.worker.as_str() == "w2" && other.why == Why::Full);
    assert_eq!(full, first.as_str() == "w2", "its one place is taken");
    assert!(loads.values().all(|(load, _)| *load <= 1) && loads.len() == if full { 2 } else { 3 }, "{loads:?}");
    let picked: Vec<_> = told.candidates.iter().filter(|candidate| candidate.picked).collect();
    assert_eq!(picked.iter().map(|it| (&it.worker, it.score)).collect::<Vec<_>>(), [(&second, 0.0)]);
    let reason = told.reason.as_deref().expect("one was picked");
    assert!(reason.starts_with("had the least load ÷ speed, 0.00, as 2 of 3") || full, "{reason}");
    let end = End::Released { outcome: Outcome::Done, took_ms: 30, ttft_ms: Some(7), tokens: Some(9) };
    assert_eq!(told.decision.end, Some(end));
}

#[test]
fn every_try_of_a_request_is_told_in_order() {
    let mut f = Fixture::with("lottery", &[4, 4]);
    let (ticket, first) = f.ask().expect("room");
    f.release(ticket, Outcome::Unreachable);
    f.ask();
    f.asked = 0;
    let again = first.clone();
    let (_, second) = f.ask_as(|asker| asker.request.exclude = vec![again], Duration::ZERO).expect("the other");
    let told = f.explain("r0");
    let workers: Vec<_> = told.iter().map(|told| picked(told).expect("it was picked")).collect();
    assert_eq!(workers, [first.clone(), second]);
    assert_eq!(told[1].decision.exclude, std::slice::from_ref(&first));
    let others: Vec<_> = told[1].others.iter().map(|other| (&other.worker, other.why)).collect();
    assert_eq!(others, [(&first, Why::Excluded)]);
    assert!(matches!(told[0].decision.end, Some(End::Released { outcome: Outcome::Unreachable, .. })));
}

fn picked(told: &Explained) -> Option<WorkerId> {
    match &told.decision.verdict {
        Told::Picked { worker, .. } => Some(worker.clone()),
        _ => None,
    }
}

#[test]
fn a_refusal_is_explained_by_how_each_worker_stood() {
    let mut f = Fixture::with("lottery", &[1, 0, 1]);
    f.desk.change(f.now, |registry| registry.drain(&leave("w2"), f.now)).expect("it is known");
    f.ask().expect("w0 has room");
    assert_eq!(f.ask(), None);
    let [told] = &f.explain("r1")[..] else { panic!("one decision") };
    let Told::Refused { kind, message } = &told.decision.verdict else { panic!("{:?}", told.decision.verdict) };
    assert!(*kind == muster_shared::problem::Kind::Overloaded && message.contains("2 full"), "{message}");
    let others: Vec<_> = told.others.iter().map(|other| (other.worker.as_str(), other.why)).collect();
    assert_eq!(others, [("w0", Why::Full), ("w1", Why::Full), ("w2", Why::Leaving)]);
    f.ask_as(|asker| asker.request.model = "unheard-of".to_owned(), Duration::ZERO);
    let [told] = &f.explain("r2")[..] else { panic!("one decision") };
    assert_eq!((told.decision.model.as_str(), told.decision.policy.as_deref()), ("unheard-of", None));
    assert!(matches!(told.decision.verdict, Told::Refused { kind: muster_shared::problem::Kind::UnknownModel, .. }));
}

#[test]
fn the_name_that_was_asked_for_and_the_wait_are_told() {
    let mut f = Fixture::with("lottery", &[1]);
    let (ticket, _) = f.ask_as(|asker| asker.request.model = "chat".to_owned(), Duration::ZERO).expect("room");
    assert_eq!(f.ask_as(|asker| asker.request.model = "big".to_owned(), secs(5)), None, "it waits");
    let refused = f.snapshot().explain("r1", clock(f.now)).expect_err("it waits").message;
    assert!(refused.contains("still waits for room has no decision yet"), "{refused}");
    f.now += Duration::from_millis(250);
    f.release(ticket, Outcome::Done);
    let [alias, fallback] = ["r0", "r1"].map(|id| f.explain(id).remove(0).decision);
    assert_eq!((alias.model.as_str(), alias.asked.as_deref(), alias.waited_ms), ("m", Some("chat"), 0));
    assert_eq!((fallback.model.as_str(), fallback.asked.as_deref(), fallback.waited_ms), ("m", Some("big"), 250));
}

#[test]
fn a_ticket_that_is_not_given_back_is_told() {
    let mut f = Fixture::with("lottery", &[1]);
    f.ask().expect("room");
    f.desk.change(f.now, |registry| registry.deregister(&leave("w0"), f.now)).expect("it is known");
    assert_eq!(f.explain("r0")[0].decision.end, Some(End::Lapsed));
}

#[test]
fn a_lookup_is_a_decision_and_so_is_one_when_all_are_full() {
    let mut f = Fixture::with("shortest_queue", &[1]);
    for _ in 0..2 {
        f.desk.lookup("m", f.now).expect("it lives");
    }
    let steps: Vec<_> = f.snapshot().lines(clock(f.now)).filter_map(step).collect();
    assert!(matches!(&steps[0].verdict, Told::Picked { worker, .. } if worker.as_str() == "w0"), "{steps:?}");
    assert!(matches!(&steps[1].verdict, Told::Named { worker } if worker.as_str() == "w0"), "{steps:?}");
    let replayed = replay(saved(&f.snapshot()).as_bytes(), None).expect("our own words");
    assert_eq!((replayed.decisions, replayed.without, replayed.same), (1, 1, 1));
}

fn step(line: Line) -> Option<muster_shared::journal::Decision> {
    match line {
        Line::Step(step) => Some(step.decision),
        _ => None,
    }
}

#[test]
fn the_oldest_decisions_are_forgotten_and_the_words_say_how_far_back_it_goes() {
    let mut f = Fixture::new("lottery", 3);
    let refused = f.snapshot().explain("r0", clock(f.now)).expect_err("nothing yet").message;
    assert!(refused.contains("no decision has been made yet"), "{refused}");
    (0..7).for_each(|_| drop(f.ask()));
    f.now += secs(93);
    let refused = f.snapshot().explain("r0", clock(f.now)).expect_err("forgotten").message;
    assert!(refused.contains("`r0`") && refused.contains("the oldest was made 93 s ago"), "{refused}");
    f.explain("r4");
}

#[test]
fn large_decisions_are_kept_in_smaller_number() {
    let mut f = Fixture::with("lottery", &[10_000; 20]);
    f.desk.change(f.now, |registry| registry.bound_journal(100_000));
    for round in 0..300 {
        // Every worker has changed by the next decision.
        for number in 0..20 {
            let mut beat = beat(&format!("w{number}"), 0);
            beat.speed = Some(1.0 + f64::from(round));
            f.desk.change(f.now, |registry| registry.heartbeat(&beat, f.now)).expect("it is known");
        }
        f.ask().expect("room");
    }
    let kept = f.snapshot().kept(clock(f.now));
    assert!((20..200).contains(&kept.decisions) && kept.limit == 10_000, "{kept:?}");
    f.desk.registry().audit_replay();
}

#[test]
fn every_policy_decides_the_same_again_and_another_one_otherwise() {
    let policies: Vec<PolicyName> = PolicyName::all().collect();
    for policy in &policies {
        let mut f = Fixture::with(policy.as_str(), &[40, 40, 40, 40]);
        let mut held = Vec::new();
        for round in 0..200_u64 {
            let granted =
                f.ask_as(|asker| asker.request.affinity = (round % 3 > 0).then_some(round % 7), Duration::ZERO);
            held.extend(granted);
            f.now += Duration::from_millis(round % 5);
            if round % 4 > 0 {
                let (ticket, _) = held.remove((round % 3) as usize % held.len());
                f.release(ticket, Outcome::Done);
            }
        }
        let text = saved(&f.snapshot());
        let own = replay(text.as_bytes(), None).expect("our own words");
        assert_eq!((own.decisions, own.same), (200, 200), "{policy}: {:?}", own.differences.first());
        assert!(own.workers.values().all(|tally| tally.then == tally.now));
        let others = policies.iter().map(|other| replay(text.as_bytes(), Some(*other)).expect("our own words"));
        assert!(others.clone().any(|other| other.same < 200), "{policy}: all policies are alike");
        for other in others {
            assert_eq!(other.same + other.differences.len() as u64, 200);
            assert_eq!(other.workers.values().map(|tally| tally.now).sum::<u64>(), 200);
        }
    }
}

/// A short journal: a header, a model, three decisions.
fn sample() -> String {
    let mut f = Fixture::with("lottery", &[1, 9]);
    (0..3).for_each(|_| drop(f.ask()));
    saved(&f.snapshot())
}

#[test]
fn a_journal_that_cannot_be_read_says_where_and_why() {
    let text = sample();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    let whole = |lines: &[&str]| lines.join("\n");
    let cut = &text[..text.len() - 20];
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} is not in {text}");
        text.replacen(from, to, 1)
    };
    for (text, line, part) in [
        (String::new(), 1, "the journal is empty"),
        ("\n".to_owned(), 1, "no journal of muster"),
        ("{\"a\":1}".to_owned(), 1, "no journal of muster"),
        ("hello".to_owned(), 1, "column 1"),
        (whole(&lines[1..]), 1, "no journal of muster"),
        (with("\"form\":1", "\"form\":7"), 1, "form 7, and this muster reads form 1 only"),
        (with("\"form\":1", "\"form\":\"1\""), 1, "`journal.form` is missing or no number"),
        (cut.to_owned(), 5, "the line is cut off"),
        (whole(&lines[..3]), 3, "with 1 of 1 models and 1 of 3 decisions: it was cut off"),
        (whole(&[&lines[..], &lines[4..]].concat()), 6, "more than the 1 models and 3 decisions"),
        (whole(&[lines[0], lines[1], lines[0]]), 3, "a second journal"),
        (whole(&[lines[0], lines[2]]), 2, "the pool 1 has not been told of"),
        (with("\"policy\":\"lottery\"", "\"policy\":\"coin\""), 2, "no policy is called `coin`; there are lottery"),
        (with("\"place\":0", "\"place\":4000000000"), 3, "the place 4000000000 is beyond"),
        (with("\"place\":0", "\"place\":-1"), 3, "column"),
        (with("\"speed\":1.0", "\"speed\":0"), 3, "speed of `w0` is 0"),
        (with("\"speed\":1.0", "\"speed\":1e999"), 3, "a number is expected"),
        (with("\"machine\":", "\"machinery\":"), 3, "nobody is known at place 0 of http"),
        (with("{\"picked\":{\"worker\":\"w", "{\"picked\":{\"worker\":\"x"), 3, "`x"),
        (with("\"picked\":", "\"chosen\":"), 3, "unknown variant `chosen`"),
        (format!("{}\n\u{feff}", lines[0]), 2, "column"),
    ] {
        let error = replay(text.as_bytes(), None).expect_err(part);
        assert_eq!(error.line, line, "{error}");
        assert!(error.message.contains(part), "{error}, not {part}");
    }
    let error = replay(&b"{\"journal\":\xff}"[..], None).expect_err("no text");
    assert_eq!(error.to_string(), "line 1: the line is no text in UTF-8");
}

#[test]
fn a_choice_that_does_not_come_out_again_is_found() {
    let mut f = Fixture::with("shortest_queue", &[9, 9]);
    (0..4).for_each(|_| drop(f.ask()));
    let text = saved(&f.snapshot());
    let seed = text.lines().nth(2).and_then(|line| line.split("\"seed\":").nth(1)).expect("a seed");
    let seed: String = seed.chars().take_while(char::is_ascii_digit).collect();
    let differ = (0..20_u64).any(|other| {
        let forged = text.replacen(&format!("\"seed\":{seed}"), &format!("\"seed\":{other}"), 1);
        let replayed = replay(forged.as_bytes(), None).expect("it can be read");
        replayed.differences.first().is_some_and(|first| (first.line, first.request.as_deref()) == (3, Some("r0")))
    });
    assert!(differ, "no seed of twenty picks the other of two idle workers");
}

proptest! {
    #[test]
    fn no_journal_breaks_the_reader(
        place in any::<proptest::sample::Index>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..4),
        keep in any::<bool>(),
    ) {
        let mut text = sample().into_bytes();
        let at = place.index(text.len());
        let end = if keep { at } else { (at + bytes.len()).min(text.len()) };
        text.splice(at..end, bytes);
        if let Err(error) = replay(&text[..], None) {
            prop_assert!((1..=7).contains(&error.line) && !error.message.is_empty(), "{}", error);
        }
    }
}
