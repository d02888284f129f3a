//! What holds whoever comes, and in whichever order.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const BOUNDS: QueueConfig =
    QueueConfig { limit: 12, per_model: Some(8), per_key: Some(5), max_wait: Duration::from_secs(30) };
const KEYS: [Option<&str>; 4] = [None, Some("a"), Some("b"), Some("c")];
const MODELS: [&str; 2] = ["m", "n"];

fn named(key: usize) -> Key {
    KEYS[key].map(Arc::from)
}

#[derive(Debug, Clone)]
enum Command {
    Push {
        model: usize,
        key: usize,
        key_priority: i8,
        priority: i8,
        wait: u64,
    },
    Serve {
        model: usize,
        in_flight: [u32; 4],
    },
    /// The nth of those who wait goes away.
    Remove(usize),
    Pass(u64),
}

fn commands() -> impl Strategy<Value = Command> {
    let push = (0..MODELS.len(), 0..KEYS.len(), any::<i8>(), any::<i8>(), 0..5000_u64);
    prop_oneof![
        6 => push.prop_map(|(model, key, key_priority, priority, wait)| {
            Command::Push { model, key, key_priority, priority, wait }
        }),
        3 => (0..MODELS.len(), any::<[u32; 4]>())
            .prop_map(|(model, in_flight)| Command::Serve { model, in_flight: in_flight.map(|count| count % 4) }),
        1 => any::<usize>().prop_map(Command::Remove),
        1 => (0..2000_u64).prop_map(Command::Pass),
    ]
}

/// What is known of one that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    place: Place,
    model: usize,
    key: usize,
    /// Where it stands in its key's row.
    rank: (i128, u64),
    deadline: Instant,
}

struct World {
    /// There are five kinds.
    queue: Queue<u64, u64>,
    start: Instant,
    now: Instant,
    came: u64,
    waiting: BTreeMap<u64, Known>,
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        Self { queue: Queue::new(BOUNDS, start), start, now: start, came: 0, waiting: BTreeMap::new() }
    }

    fn run(&mut self, command: &Command) {
        match *command {
            Command::Push { .. } => self.push(command),
            Command::Serve { model, in_flight } => self.serve(model, in_flight),
            Command::Remove(nth) => {
                let Some(&number) = self.waiting.keys().nth(nth % self.waiting.len().max(1)) else { return };
                let known = self.waiting.remove(&number).expect("it was found");
                assert_eq!(self.queue.remove(&known.place).expect("it waits").item, number);
                assert!(self.queue.remove(&known.place).is_none(), "it waits no more");
            }
            Command::Pass(millis) => self.pass(millis),
        }
    }

    fn count(&self, which: impl Fn(&Known) -> bool) -> usize {
        self.waiting.values().filter(|known| which(known)).count()
    }

    fn push(&mut self, command: &Command) {
        let Command::Push { model, key, key_priority, priority, wait } = *command else { return };
        let deadline = self.now + Duration::from_millis(wait);
        let newcomer =
            Newcomer { model: MODELS[model], key: &named(key), key_priority, priority, since: self.now, deadline };
        let head_start = (self.now - self.start).as_nanos() as i128 - i128::from(priority) * i128::from(CLASS);
        let ahead = self.count(|known| known.model == model && known.key == key && known.rank.0 <= head_start);
        assert_eq!(self.queue.ahead(&newcomer), ahead);
        let full = if key > 0 && self.count(|known| known.key == key) >= 5 {
            Some(Full::Key(5))
        } else if self.count(|known| known.model == model) >= 8 {
            Some(Full::Model(8))
        } else {
            (self.waiting.len() >= 12).then_some(Full::All(12))
        };
        self.came += 1;
        match self.queue.push(&newcomer, self.came % 5, self.came) {
            Ok(place) => {
                assert_eq!(full, None);
                let rank = (head_start, self.came);
                self.waiting.insert(self.came, Known { place, model, key, rank, deadline });
            }
            Err((told, item)) => assert_eq!((Some(told), item), (full, self.came)),
        }
    }

    fn serve(&mut self, model: usize, in_flight: [u32; 4]) {
        let in_flight = |key: &Key| in_flight[KEYS.iter().position(|known| *known == key.as_deref()).expect("a key")];
        let fits = |number: &u64| !number.is_multiple_of(5);
        let turn = Turn { now: self.now, in_flight: &in_flight, fits: &|kind| *kind != 0 };
        let next = self.queue.next(MODELS[model], &turn).map(|(place, waiter)| (place, waiter.item));
        let candidates = || self.waiting.iter().filter(|(number, known)| fits(number) && known.model == model);
        let Some((place, number)) = next else {
            assert_eq!(candidates().count(), 0, "somebody waits and is not served");
            return;
        };
        let served = &self.waiting[&number];
        assert_eq!(served.place, place);
        let first = candidates().filter(|(_, known)| known.key == served.key).map(|(_, known)| known.rank).min();
        assert_eq!(Some(served.rank), first, "a key's own order");
        assert_eq!(self.queue.serve(&place, self.now).expect("it waits").item, number);
        self.waiting.remove(&number);
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        let next = self.waiting.values().map(|known| known.deadline).min();
        assert_eq!(self.queue.next_deadline(), next);
        let mut last = None;
        while let Some(waiter) = self.queue.pop_expired(self.now) {
            assert!(waiter.deadline <= self.now && Some(waiter.deadline) >= last);
            last = Some(waiter.deadline);
            self.waiting.remove(&waiter.item).expect("it waited");
        }
    }

    fn check(&self) {
        assert_eq!(self.queue.len(), self.waiting.len());
        assert_eq!(self.queue.deadlines.len(), self.waiting.len());
        for (index, model) in MODELS.iter().enumerate() {
            assert_eq!(self.queue.len_of(model), self.count(|known| known.model == index));
            assert_eq!(self.queue.lines.contains_key(*model), self.queue.len_of(model) > 0, "an empty line is kept");
        }
        for (index, key) in KEYS.iter().enumerate() {
            let Some(key) = key else { continue };
            let counted = self.queue.keys.get(*key).copied();
            assert_eq!(counted.unwrap_or(0), self.count(|known| known.key == index));
            assert_ne!(counted, Some(0), "a key without waiters is kept");
        }
    }
}

/// Keys that always want more than they get, on a model with a few places.
struct Crowd {
    queue: Queue<(), usize>,
    now: Instant,
    /// Of each key.
    classes: Vec<i8>,
    in_flight: Vec<u32>,
    /// When each began to wait for its turn.
    since: Vec<Instant>,
    /// How often it was passed over while it was among the highest and had nothing in flight.
    passed: Vec<usize>,
}

impl Crowd {
    fn new(classes: Vec<i8>) -> Self {
        let (now, keys) = (Instant::now(), classes.len());
        let bounds = QueueConfig { limit: 10_000, per_model: None, per_key: None, ..BOUNDS };
        let (in_flight, since, passed) = (vec![0; keys], vec![now; keys], vec![0; keys]);
        let mut crowd = Self { queue: Queue::new(bounds, now), now, classes, in_flight, since, passed };
        for key in 0..keys {
            crowd.ask(key);
            crowd.ask(key);
        }
        crowd
    }

    fn ask(&mut self, key: usize) {
        let (name, since) = (Some(key.to_string().into()), self.now);
        let deadline = since + Duration::from_secs(3600);
        let key_priority = self.classes[key];
        let newcomer = Newcomer { model: "m", key: &name, key_priority, priority: 0, since, deadline };
        self.queue.push(&newcomer, (), key).expect("there is room");
    }

    /// A place is free: whoever's turn it is takes it, and asks for the next one.
    fn turn(&mut self) {
        let in_flight = |key: &Key| self.in_flight[key.as_deref().expect("a key").parse::<usize>().expect("a number")];
        let turn = Turn { now: self.now, in_flight: &in_flight, fits: &|_| true };
        let (place, _) = self.queue.next("m", &turn).expect("all wait");
        let served = self.queue.serve(&place, self.now).expect("it was found").item;
        let highest = i64::from(*self.classes.iter().max().expect("some"));
        for key in (0..self.classes.len()).filter(|key| *key != served) {
            let aged = i64::from(self.classes[key]) + (self.now - self.since[key]).as_secs() as i64;
            if aged >= highest && self.in_flight[key] == 0 {
                self.passed[key] += 1;
                assert!(self.passed[key] < self.classes.len(), "key {key} starves: {:?}", self.passed);
            }
        }
        self.in_flight[served] += 1;
        (self.since[served], self.passed[served]) = (self.now, 0);
        self.ask(served);
    }

    /// The nth request in flight ends.
    fn end(&mut self, nth: usize) {
        let running: Vec<usize> = (0..self.classes.len()).filter(|key| self.in_flight[*key] > 0).collect();
        if !running.is_empty() {
            let key = running[nth % running.len()];
            self.in_flight[key] -= 1;
            self.queue.note_end("m", &Some(key.to_string().into()), self.now);
        }
    }
}

proptest! {
    #[test]
    fn nobody_is_lost_doubled_or_let_in_beyond_a_bound(commands in proptest::collection::vec(commands(), 1..200)) {
        let mut world = World::new();
        for command in &commands {
            world.run(command);
            world.check();
        }
        while let Some(waiter) = world.queue.pop() {
            prop_assert!(world.waiting.remove(&waiter.item).is_some());
        }
        world.check();
    }

    /// However greedy the others are, and however their requests end.
    #[test]
    fn whoever_has_risen_and_has_nothing_is_passed_over_by_each_other_key_once_at_most(
        classes in proptest::collection::vec(-3..4_i8, 2..6),
        steps in proptest::collection::vec((any::<usize>(), 1..4_usize, 0..1500_u64), 1..300),
    ) {
        let mut crowd = Crowd::new(classes);
        for (nth, ended, millis) in steps {
            crowd.turn();
            for number in 0..ended {
                crowd.end(nth / (number + 1));
            }
            crowd.now += Duration::from_millis(millis);
        }
    }

    /// With the same class, keys that always wait have places whose numbers differ by one at most.
    #[test]
    fn a_full_fleet_is_shared_evenly(keys in 2..6_usize, places in 1..20_usize) {
        let mut crowd = Crowd::new(vec![0; keys]);
        for _ in 0..places {
            crowd.turn();
        }
        let most = crowd.in_flight.iter().max().expect("some");
        let least = crowd.in_flight.iter().min().expect("some");
        prop_assert!(most - least <= 1, "{:?}", crowd.in_flight);
    }

    #[test]
    fn every_class_is_reached_in_time(low in any::<i8>(), high in any::<i8>()) {
        prop_assume!(low < high);
        let mut crowd = Crowd::new(vec![high, low]);
        let began = crowd.now;
        let seconds = u64::try_from(i64::from(high) - i64::from(low)).expect("above zero");
        for _ in 0..seconds {
            crowd.turn();
            crowd.end(0);
            prop_assert_eq!(crowd.since[1], began, "it has its turn too soon");
            crowd.now += Duration::from_secs(1);
        }
        crowd.turn();
        prop_assert!(crowd.since[1] > began, "its class is that of the highest, and it has waited longer");
    }
}
