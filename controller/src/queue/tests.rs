//! Whose turn it is, and who may not wait.

use std::time::Duration;

use super::*;
use crate::fixtures::secs;

const NONE: QueueConfig =
    QueueConfig { limit: 1000, per_model: None, per_key: None, max_wait: Duration::from_secs(30) };

fn of(key: &str) -> Key {
    Some(key.into())
}

struct Fixture {
    /// Each is of a kind of its own.
    queue: Queue<String, String>,
    start: Instant,
    /// What runs of each key.
    in_flight: HashMap<String, u32>,
    now: Instant,
}

impl Fixture {
    fn new(bounds: QueueConfig) -> Self {
        let start = Instant::now();
        Self { queue: Queue::new(bounds, start), start, in_flight: HashMap::new(), now: start }
    }

    /// One who comes now and waits ten seconds.
    fn newcomer<'a>(&self, key: &'a Key) -> Newcomer<'a> {
        let (since, deadline) = (self.now, self.now + secs(10));
        Newcomer { model: "m", key, key_priority: 0, priority: 0, since, deadline }
    }

    fn push(&mut self, newcomer: &Newcomer<'_>, name: &str) -> Result<Place, (Full, String)> {
        self.queue.push(newcomer, name.to_owned(), name.to_owned())
    }

    /// One of no key comes after `at` milliseconds.
    fn come(&mut self, name: &str, priority: i8, at: u64) -> Place {
        self.now = self.start + Duration::from_millis(at);
        let newcomer = Newcomer { priority, ..self.newcomer(&None) };
        self.push(&newcomer, name).expect("there is room")
    }

    /// One of a key comes now, and bears its name.
    fn come_of(&mut self, key: &str) -> Place {
        self.come_as(key, |newcomer| newcomer)
    }

    fn come_as(&mut self, key: &str, change: impl Fn(Newcomer<'_>) -> Newcomer<'_>) -> Place {
        let key_of = of(key);
        let newcomer = change(self.newcomer(&key_of));
        self.push(&newcomer, key).expect("there is room")
    }

    /// Serves the next one that fits; it runs from now on.
    fn serve(&mut self, fits: impl Fn(&String) -> bool) -> Option<String> {
        let counted = self.in_flight.clone();
        let in_flight = |key: &Key| key.as_deref().and_then(|key| counted.get(key).copied()).unwrap_or(0);
        let turn = Turn { now: self.now, in_flight: &in_flight, fits: &fits };
        let (place, _) = self.queue.next("m", &turn)?;
        let name = self.queue.serve(&place, self.now).expect("it was found").item;
        *self.in_flight.entry(name.clone()).or_default() += 1;
        Some(name)
    }

    /// The order in which all are served, when all of it runs on.
    fn order(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.serve(|_| true)).collect()
    }

    fn ended(&mut self, key: &str) {
        *self.in_flight.get_mut(key).expect("it runs") -= 1;
        self.queue.note_end("m", &of(key), self.now);
    }
}

#[test]
fn within_a_class_the_first_goes_first() {
    let mut f = Fixture::new(NONE);
    for name in ["a", "b", "c"] {
        f.come(name, 0, 0);
    }
    assert_eq!(f.order(), ["a", "b", "c"]);
}

#[test]
fn a_higher_class_goes_first_until_the_lower_has_aged() {
    let mut f = Fixture::new(NONE);
    f.come("low", 0, 0);
    f.come("lowest", -128, 0);
    f.come("high at once", 1, 500);
    f.come("high later", 1, 1500);
    f.come("highest", 127, 2000);
    assert_eq!(f.order(), ["highest", "high at once", "low", "high later", "lowest"]);
}

#[test]
fn each_bound_is_named_and_the_nearest_first() {
    let bounds = QueueConfig { limit: 4, per_model: Some(3), per_key: Some(2), ..NONE };
    let mut f = Fixture::new(bounds);
    let place = f.come_of("a");
    f.come_of("a");
    let (a, b) = (of("a"), of("b"));
    let newcomer = f.newcomer(&a);
    assert_eq!(f.push(&newcomer, "x"), Err((Full::Key(2), "x".to_owned())));
    let elsewhere = Newcomer { model: "n", ..newcomer };
    assert_eq!(f.push(&elsewhere, "x").expect_err("its models count together").0, Full::Key(2));
    f.come("of nobody", 0, 0);
    let newcomer = f.newcomer(&b);
    assert_eq!(f.push(&newcomer, "x").expect_err("three wait for it").0, Full::Model(3));
    f.push(&Newcomer { model: "n", ..newcomer }, "b").expect("four may wait");
    assert_eq!(f.push(&Newcomer { model: "n", ..newcomer }, "x").expect_err("four wait").0, Full::All(4));
    assert!(f.queue.remove(&place).is_some());
    assert!(f.queue.remove(&place).is_none());
    f.come_of("a");
}

#[test]
fn those_of_nobody_have_no_bound_of_their_own() {
    let mut f = Fixture::new(QueueConfig { per_key: Some(1), ..NONE });
    f.come("a", 0, 0);
    f.come("b", 0, 0);
    assert_eq!(f.queue.len_of("m"), 2);
}

#[test]
fn who_has_waited_to_the_deadline_is_taken_out() {
    let mut f = Fixture::new(NONE);
    f.come("late", 0, 5);
    f.come("early", 0, 0);
    let deadline = f.queue.next_deadline().expect("two wait");
    assert!(f.queue.pop_expired(deadline - Duration::from_millis(1)).is_none());
    assert_eq!(f.queue.pop_expired(deadline).map(|waiter| waiter.item), Some("early".to_owned()));
    assert!(f.queue.pop_expired(deadline).is_none());
    assert_eq!(f.order(), ["late"]);
}

#[test]
fn a_modest_key_goes_before_a_greedy_one() {
    let mut f = Fixture::new(NONE);
    for _ in 0..200 {
        f.come_of("greedy");
    }
    f.in_flight.insert("greedy".to_owned(), 1);
    f.now += secs(9);
    f.come_of("modest");
    assert_eq!(f.serve(|_| true).as_deref(), Some("modest"), "however long the others have waited");
    assert_eq!(f.serve(|_| true).as_deref(), Some("greedy"));
}

#[test]
fn keys_with_as_much_in_flight_take_turns() {
    let mut f = Fixture::new(NONE);
    for key in ["a", "a", "a", "b", "b", "b"] {
        f.come_of(key);
    }
    let order: Vec<String> = std::iter::from_fn(|| {
        let served = f.serve(|_| true)?;
        f.ended(&served); // one place, that is free again
        Some(served)
    })
    .collect();
    assert_eq!(order, ["a", "b", "a", "b", "a", "b"]);
}

#[test]
fn in_a_fleet_of_one_place_a_flood_gives_way_at_the_first_end() {
    let mut f = Fixture::new(NONE);
    f.in_flight.insert("greedy".to_owned(), 1);
    for _ in 0..9 {
        f.come_of("greedy");
    }
    f.now += secs(9);
    f.come_of("modest");
    f.ended("greedy");
    assert_eq!(f.serve(|_| true).as_deref(), Some("modest"), "it has gone without for longer");
    f.ended("modest");
    f.come_of("modest");
    assert_eq!(f.serve(|_| true).as_deref(), Some("greedy"));
}

#[test]
fn what_runs_long_counts_as_long() {
    let mut f = Fixture::new(NONE);
    f.in_flight.insert("long".to_owned(), 2);
    for key in ["long", "short", "short", "short"] {
        f.come_of(key);
    }
    assert_eq!(f.order(), ["short", "short", "long", "short"], "until both have two; then who waits longer");
}

#[test]
fn a_request_may_step_back_behind_other_keys_but_not_push_ahead_of_them() {
    let mut f = Fixture::new(NONE);
    f.come_as("modest", |newcomer| Newcomer { priority: -1, ..newcomer });
    f.come_of("usual");
    f.come_as("pushing", |newcomer| Newcomer { priority: 127, ..newcomer });
    assert_eq!(f.order(), ["usual", "pushing", "modest"]);
}

#[test]
fn an_operator_may_put_a_key_ahead() {
    let mut f = Fixture::new(NONE);
    f.come_of("usual");
    f.come_as("vip", |newcomer| Newcomer { key_priority: 1, ..newcomer });
    f.come_as("vip", |newcomer| Newcomer { key_priority: 1, ..newcomer });
    assert_eq!(f.order(), ["vip", "vip", "usual"]);
}

#[test]
fn a_lower_key_rises_by_a_class_a_second_to_its_betters_and_no_further() {
    fn higher(newcomer: Newcomer<'_>) -> Newcomer<'_> {
        Newcomer { key_priority: 3, ..newcomer }
    }
    let mut f = Fixture::new(NONE);
    f.come_of("low");
    f.come_of("low");
    f.now += Duration::from_millis(2999);
    for _ in 0..4 {
        f.come_as("high", higher);
    }
    assert_eq!(f.serve(|_| true).as_deref(), Some("high"));
    f.now += Duration::from_millis(1);
    assert_eq!(f.serve(|_| true).as_deref(), Some("low"), "it has nothing in flight");
    f.ended("low");
    assert_eq!(f.serve(|_| true).as_deref(), Some("high"), "who had a turn begins to wait anew");
    f.now += Duration::from_millis(2999);
    assert_eq!(f.serve(|_| true).as_deref(), Some("high"));
    f.now += secs(2);
    f.in_flight = HashMap::from([("low".to_owned(), 3), ("high".to_owned(), 2)]);
    assert_eq!(f.serve(|_| true).as_deref(), Some("high"), "time does not lift it above what others have in flight");
}

#[test]
fn those_without_room_are_passed_over_and_keep_their_place() {
    let mut f = Fixture::new(NONE);
    f.come_of("picky");
    f.come_of("easy");
    assert_eq!(f.serve(|key| key != "picky").as_deref(), Some("easy"));
    assert_eq!(f.serve(|key| key != "picky"), None);
    assert_eq!(f.serve(|_| true).as_deref(), Some("picky"));
}

#[test]
fn only_those_of_the_own_key_are_certainly_served_before() {
    let mut f = Fixture::new(NONE);
    f.come_of("a");
    f.come_as("a", |newcomer| Newcomer { priority: 5, ..newcomer });
    f.come_of("b");
    f.now += secs(1);
    let ahead = |key, priority| f.queue.ahead(&Newcomer { priority, ..f.newcomer(&of(key)) });
    assert_eq!((ahead("a", 0), ahead("a", 2), ahead("a", 9)), (2, 1, 0));
    assert_eq!((ahead("b", 0), ahead("c", 0)), (1, 0));
    assert_eq!(f.queue.ahead(&f.newcomer(&None)), 0);
}

#[test]
fn a_hundred_thousand_of_a_thousand_keys_take_turns() {
    const KEYS: usize = 1000;
    let bounds = QueueConfig { limit: 100_000, ..NONE };
    let mut f = Fixture::new(bounds);
    let names: Vec<String> = (0..KEYS).map(|key| format!("key {key}")).collect();
    for number in 0..bounds.limit {
        f.come_of(&names[number * 7919 % KEYS]);
    }
    let none = |_: &Key| 0;
    for round in 0..2 {
        let mut served = HashMap::<String, usize>::new();
        for _ in 0..KEYS {
            let turn = Turn { now: f.now, in_flight: &none, fits: &|_| true };
            let (place, _) = f.queue.next("m", &turn).expect("many wait");
            *served.entry(f.queue.serve(&place, f.now).expect("it was found").item).or_default() += 1;
        }
        assert!(served.len() == KEYS && served.values().all(|count| *count == 1), "round {round}");
    }
    while f.queue.pop().is_some() {}
    assert!(f.queue.lines.is_empty() && f.queue.keys.is_empty());
}

/// How many of a high and a low key are served in ten minutes, where there is one place, each request takes a second and
/// waits for half a minute, and two of each key come every second.
fn served_in_ten_minutes(priority: i8) -> [usize; 2] {
    let keys = [of("high"), of("low")];
    let mut f = Fixture::new(NONE);
    let mut served = [0, 0];
    for second in 0..600 {
        f.now = f.start + secs(second);
        while f.queue.pop_expired(f.now).is_some() {}
        for (key, key_priority) in keys.iter().zip([priority, 0]) {
            let newcomer = Newcomer { key_priority, deadline: f.now + secs(30), ..f.newcomer(key) };
            for _ in 0..2 {
                f.push(&newcomer, key.as_deref().expect("it has a name")).expect("there is room");
            }
        }
        let name = f.serve(|_| true).expect("some wait");
        f.ended(&name);
        served[usize::from(name == "low")] += 1;
    }
    served
}

#[test]
fn no_key_starves_however_high_another_is() {
    for priority in [5, 25, 35, 100, 127] {
        let [high, low] = served_in_ten_minutes(priority);
        assert!(low > 0 && high > low, "priority {priority}: {high} and {low}");
    }
}

#[test]
fn those_of_one_kind_are_looked_at_once() {
    let now = Instant::now();
    let mut queue = Queue::new(QueueConfig { limit: 20_000, ..NONE }, now);
    let key = None;
    let deadline = now + secs(30);
    let newcomer = Newcomer { model: "m", key: &key, key_priority: 0, priority: 0, since: now, deadline };
    for number in 0..10_000 {
        queue.push(&newcomer, number % 7, number).expect("there is room");
    }
    let looks = std::cell::Cell::new(0);
    let nobody = |_: &i32| {
        looks.set(looks.get() + 1);
        false
    };
    assert!(queue.next("m", &Turn { now, in_flight: &|_| 0, fits: &nobody }).is_none());
    assert!(looks.get() <= 7, "{} looks at seven kinds", looks.get());
    assert_eq!(queue.ahead(&newcomer), COUNTED);
}
