//! Which model a request gets, and what is said when it gets none.

use std::collections::HashMap;
use std::time::Instant;

use muster_shared::control::Outcome;
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::super::{Answer, Patience, Setup};
use super::*;
use crate::config::QueueConfig;
use crate::fixtures::{asker, leave, release, rules, secs, worker};
use crate::registry::{Holder, Origin};

struct Fixture {
    desk: Desk<u32>,
    gateway: GatewayId,
    now: Instant,
    asked: u32,
}

impl Fixture {
    /// `chat` stands for `new` (10) and `old` (90), and `big` has the fallbacks `medium` and `small`.
    fn new() -> Self {
        let weights = vec![("new".to_owned(), 10.0), ("old".to_owned(), 90.0)];
        let names = Names::default()
            .with_aliases([("chat".to_owned(), weights)])
            .and_then(|names| names.with_fallbacks([("big".to_owned(), vec!["medium".to_owned(), "small".to_owned()])]))
            .expect("they are right");
        Self::with(names)
    }

    fn with(names: Names) -> Self {
        let now = Instant::now();
        let setup = Setup {
            queue: QueueConfig { max_wait: secs(10), ..QueueConfig::default() },
            heartbeat: secs(5),
            rng: StdRng::seed_from_u64(1),
        };
        let desk = Desk::new(Registry::new(rules()), setup, now).with_names(names);
        Self { desk, gateway: GatewayId::new(), now, asked: 0 }
    }

    /// A worker of that model, with its name.
    fn serve(&mut self, model: &str, capacity: u32) {
        let mut registration = worker(model, capacity);
        registration.models[0].name = model.to_owned();
        let now = self.now;
        self.desk
            .change(now, |registry| registry.register(registration, Origin::Native, now))
            .expect("it is not stale");
    }

    fn kill(&mut self, id: &str) {
        let now = self.now;
        self.desk.change(now, |registry| registry.deregister(&leave(id), now)).expect("it is known");
    }

    fn release(&mut self, ticket: TicketId, outcome: Outcome) {
        let (holder, now) = (Holder::Gateway(self.gateway), self.now);
        self.desk.release(holder, &release(ticket, outcome), now);
    }

    fn asker(&self, model: &str) -> Asker {
        let mut asker = asker(self.gateway);
        asker.request.model = model.to_owned();
        asker
    }

    /// Asks, and waits so long; gives the number of the question.
    fn ask_as(&mut self, asker: Asker, wait: Duration) -> u32 {
        self.asked += 1;
        self.desk.ask(asker, Patience::usual(wait), self.asked, self.now);
        self.asked
    }

    fn wait_for(&mut self, model: &str) -> u32 {
        let asker = self.asker(model);
        self.ask_as(asker, secs(5))
    }

    fn answer(&mut self) -> Answer {
        let mut answers = self.desk.take_answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0).1
    }

    /// The answer to one who does not wait: the worker, and the model where it is another.
    fn now(&mut self, model: &str) -> Result<(String, Option<String>), Problem> {
        let asker = self.asker(model);
        self.ask_as(asker, Duration::ZERO);
        self.answer().map(|grant| (grant.worker.to_string(), grant.model))
    }

    fn refused(&mut self, model: &str) -> (Kind, String) {
        let problem = self.now(model).expect_err("it is refused");
        (problem.kind, problem.message)
    }

    /// Takes one room of a model's own workers.
    fn fill(&mut self, model: &str) -> TicketId {
        let mut asker = self.asker(model);
        asker.request.exact = true;
        self.ask_as(asker, Duration::ZERO);
        self.answer().expect("there is room").ticket
    }

    /// The numbers of those who have been answered, with the model that each is to ask for.
    fn answered(&mut self) -> Vec<(u32, Option<String>)> {
        let answers = self.desk.take_answers().into_iter();
        answers.map(|(number, answer)| (number, answer.expect("it is granted").model)).collect()
    }
}

fn as_model(worker: &str) -> (String, Option<String>) {
    (worker.to_owned(), Some(worker.to_owned()))
}

fn itself(worker: &str) -> (String, Option<String>) {
    (worker.to_owned(), None)
}

#[test]
fn an_alias_gives_each_of_its_models_its_share() {
    let mut f = Fixture::new();
    f.serve("new", 10_000);
    f.serve("old", 10_000);
    let mut shares: HashMap<String, u32> = HashMap::new();
    for _ in 0..5000 {
        let (worker, model) = f.now("chat").expect("there is room");
        assert_eq!(model.as_ref(), Some(&worker), "the gateway is told the model to ask for");
        *shares.entry(worker).or_default() += 1;
    }
    assert!((425..575).contains(&shares["new"]), "{shares:?}");
    assert_eq!(f.now("old"), Ok(itself("old")));
}

#[test]
fn a_canary_whose_workers_are_gone_gives_its_share_to_the_others() {
    let mut f = Fixture::new();
    f.serve("new", 1000);
    f.serve("old", 1000);
    f.kill("old");
    for _ in 0..50 {
        assert_eq!(f.now("chat"), Ok(as_model("new")));
    }
}

#[test]
fn a_model_that_has_failed_the_request_or_is_spared_is_not_drawn_while_another_lives() {
    let mut f = Fixture::new();
    f.serve("new", 1000);
    f.serve("old", 1000);
    let mut again = f.asker("chat");
    again.request.exclude = vec![WorkerId::new("old")];
    for _ in 0..20 {
        f.ask_as(again.clone(), Duration::ZERO);
        assert_eq!(f.answer().expect("there is room").model.as_deref(), Some("new"));
    }
    let ticket = f.fill("old");
    f.release(ticket, Outcome::Unreachable);
    for _ in 0..20 {
        assert_eq!(f.now("chat"), Ok(as_model("new")), "a worker that cannot be reached is spared");
    }
}

#[test]
fn who_asks_for_an_alias_without_workers_hears_its_name_and_its_models() {
    let mut f = Fixture::new();
    let words = "no live worker serves the models that the alias `chat` stands for (`new`, `old`) at the moment";
    assert_eq!(f.refused("chat"), (Kind::NoWorker, words.to_owned()));
    f.serve("old", 1);
    f.fill("old");
    let words = "no worker of the model `old` (drawn for the alias `chat`) has room: 1 full, 0 suspended after failures or yet to answer";
    assert_eq!(f.refused("chat"), (Kind::Overloaded, words.to_owned()));
    let mut again = f.asker("chat");
    again.request.exclude = vec![WorkerId::new("old")];
    f.ask_as(again, Duration::ZERO);
    let problem = f.answer().expect_err("its only worker has failed it");
    let words =
        "every live worker of the models that the alias `chat` stands for (`new`, `old`) (1) has failed this request";
    assert_eq!((problem.kind, problem.message.as_str()), (Kind::NoWorker, words));
}

#[test]
fn one_who_waits_under_a_model_that_dies_gets_room_of_another_behind_the_alias() {
    let mut f = Fixture::new();
    f.serve("new", 1);
    f.fill("new");
    let waiting = f.wait_for("chat");
    f.serve("old", 1);
    assert!(f.answered().is_empty(), "it was drawn for `new`, which lives");
    let ticket = f.fill("old");
    f.kill("new");
    assert!(f.answered().is_empty(), "it waits on");
    f.release(ticket, Outcome::Done);
    assert_eq!(f.answered(), [(waiting, Some("old".to_owned()))]);
}

#[test]
fn one_who_waits_under_an_alias_is_refused_when_the_last_worker_dies() {
    let mut f = Fixture::new();
    f.serve("new", 1);
    f.fill("new");
    f.wait_for("chat");
    f.kill("new");
    assert_eq!(f.answer().expect_err("nobody is left").kind, Kind::NoWorker);
}

#[test]
fn a_fallback_takes_over_when_a_model_is_full_or_gone() {
    let mut f = Fixture::new();
    f.serve("small", 2);
    assert_eq!(f.now("big"), Ok(as_model("small")), "`big` and `medium` are not there");
    f.serve("medium", 1);
    f.serve("big", 1);
    assert_eq!(f.now("big"), Ok(itself("big")));
    assert_eq!(f.now("big"), Ok(as_model("medium")));
    assert_eq!(f.now("big"), Ok(as_model("small")));
    let words = "no worker of the model `big` or its fallbacks (`medium`, `small`) has room: \
                 3 full, 0 suspended after failures or yet to answer";
    assert_eq!(f.refused("big"), (Kind::Overloaded, words.to_owned()));
    ["big", "medium", "small"].into_iter().for_each(|id| f.kill(id));
    let words = "no live worker serves the model `big` or its fallbacks (`medium`, `small`) at the moment";
    assert_eq!(f.refused("big"), (Kind::NoWorker, words.to_owned()));
}

#[test]
fn a_fallback_has_no_fallbacks() {
    let fallback = |model: &str, other: &str| (model.to_owned(), vec![other.to_owned()]);
    let names = Names::default().with_fallbacks([fallback("a", "b"), fallback("b", "c")]).expect("they are right");
    let mut f = Fixture::with(names);
    f.serve("c", 9);
    assert_eq!(f.now("b"), Ok(as_model("c")));
    assert_eq!(f.refused("a").0, Kind::NoWorker);
}

#[test]
fn one_who_waits_is_served_by_whichever_gets_room_first() {
    for model in ["big", "medium", "small"] {
        let mut f = Fixture::new();
        let tickets: HashMap<&str, TicketId> = ["big", "medium", "small"]
            .into_iter()
            .map(|model| {
                f.serve(model, 1);
                (model, f.fill(model))
            })
            .collect();
        let waiting = f.wait_for("big");
        assert!(f.answered().is_empty());
        f.release(tickets[model], Outcome::Done);
        assert_eq!(f.answered(), [(waiting, Some(model.to_owned()).filter(|model| model != "big"))]);
    }
}

#[test]
fn those_who_wait_for_a_model_itself_get_its_room_before_those_whom_it_relieves() {
    let mut f = Fixture::new();
    f.serve("big", 1);
    f.serve("medium", 1);
    f.fill("big");
    let ticket = f.fill("medium");
    let relieved = f.wait_for("big");
    let own = f.wait_for("medium");
    f.release(ticket, Outcome::Done);
    let answers = f.desk.take_answers();
    assert_eq!(answers.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [own]);
    let ticket = answers[0].1.as_ref().expect("it is granted").ticket;
    f.release(ticket, Outcome::Done);
    assert_eq!(f.answered(), [(relieved, Some("medium".to_owned()))]);
}

#[test]
fn one_for_whom_no_other_model_will_do_waits_without_holding_up_the_others() {
    let mut f = Fixture::new();
    f.serve("big", 1);
    f.serve("small", 1);
    let (big, small) = (f.fill("big"), f.fill("small"));
    let mut exact = f.asker("big");
    exact.request.exact = true;
    let exact = f.ask_as(exact, secs(5));
    let other = f.wait_for("big");
    f.release(small, Outcome::Done);
    assert_eq!(f.answered(), [(other, Some("small".to_owned()))]);
    f.release(big, Outcome::Done);
    assert_eq!(f.answered(), [(exact, None)]);
}

#[test]
fn an_alias_is_no_name_to_one_for_whom_no_other_model_will_do() {
    let mut f = Fixture::new();
    f.serve("old", 1);
    let mut exact = f.asker("chat");
    exact.request.exact = true;
    f.ask_as(exact, Duration::ZERO);
    assert_eq!(f.answer().expect_err("there is no such model").kind, Kind::UnknownModel);
}

#[test]
fn a_lookup_in_fastchats_words_knows_no_aliases() {
    let mut f = Fixture::new();
    f.serve("old", 1);
    let now = f.now;
    assert_eq!(f.desk.lookup("chat", now), None, "the client would send the alias to the worker");
    assert_eq!(f.desk.lookup("old", now).as_deref(), Some("http://old"));
}

#[test]
fn the_same_seed_gives_the_same_grants() {
    let grants = || {
        let mut f = Fixture::new();
        f.serve("new", 500);
        f.serve("old", 500);
        (0..100).map(|_| f.now("chat").expect("there is room").0).collect::<Vec<_>>()
    };
    assert_eq!(grants(), grants());
}
