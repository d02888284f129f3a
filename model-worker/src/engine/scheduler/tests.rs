//! The scheduler with a model that only remembers which tokens lie in which row.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::ModelError;

#[derive(Debug)]
struct Fake {
    id: usize,
    tokens: Vec<u32>,
    in_cache: usize,
    /// Tokens of the answer still to come.
    left: usize,
    priority: i32,
    salt: Option<Arc<str>>,
    abandoned: bool,
    begun: bool,
    deadline: Option<Instant>,
}

impl Occupant for Fake {
    fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    fn in_cache(&self) -> usize {
        self.in_cache
    }

    fn salt(&self) -> Option<&Arc<str>> {
        self.salt.as_ref()
    }
}

impl Schedulable for Fake {
    fn set_in_cache(&mut self, tokens: usize) {
        self.in_cache = tokens;
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn priority(&self) -> i32 {
        self.priority
    }

    fn has_begun(&self) -> bool {
        self.begun
    }
}

/// Rows that hold (token, salt of who wrote it); what is not said to count is lost on the way.
#[derive(Debug)]
struct Memory {
    rows: Vec<Vec<(u32, Option<Arc<str>>)>>,
    copies_fail: bool,
}

impl Mover for Memory {
    fn swap(&mut self, (a, a_tokens): (Row, usize), (b, b_tokens): (Row, usize)) {
        self.rows[a.0].truncate(a_tokens);
        self.rows[b.0].truncate(b_tokens);
        self.rows.swap(a.0, b.0);
    }

    fn copy(&mut self, from: Row, to: Row, tokens: usize) -> Result<(), ModelError> {
        self.rows[to.0].clear();
        if self.copies_fail {
            return Err(ModelError::Run("no memory".to_owned()));
        }
        self.rows[to.0] = self.rows[from.0][..tokens].to_vec();
        Ok(())
    }

    fn release(&mut self, row: Row) {
        self.rows[row.0].clear();
    }
}

struct Bench {
    scheduler: Scheduler<Fake>,
    memory: Memory,
    limits: Limits,
    now: Instant,
    arrived: usize,
    ended: Vec<usize>,
    gone: BTreeSet<usize>,
}

/// What a model would say after these tokens.
fn next_token(tokens: &[u32]) -> u32 {
    tokens.iter().fold(7_u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token)) % 3
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            memory: Memory { rows: vec![Vec::new(); limits.rows], copies_fail: false },
            limits,
            now: Instant::now(),
            arrived: 0,
            ended: Vec::new(),
            gone: BTreeSet::new(),
        }
    }

    fn arrive(&mut self, prompt: &[u32], left: usize) -> &mut Fake {
        self.arrive_with(prompt, left, 0, None, None)
    }

    fn arrive_with(
        &mut self,
        prompt: &[u32],
        left: usize,
        priority: i32,
        salt: Option<&str>,
        deadline: Option<Duration>,
    ) -> &mut Fake {
        let fake = Fake {
            id: self.arrived,
            tokens: prompt.to_vec(),
            in_cache: 0,
            left,
            priority,
            salt: salt.map(Arc::from),
            abandoned: false,
            begun: false,
            deadline: deadline.map(|after| self.now + after),
        };
        self.arrived += 1;
        self.scheduler.enqueue(fake);
        let key = self.scheduler.waiting.iter().find(|(_, fake)| fake.id == self.arrived - 1).map(|(key, _)| *key);
        self.scheduler.waiting.get_mut(&key.expect("just enqueued")).expect("just enqueued")
    }

    /// Writes tokens into a row after its past, which must be the sequence's own.
    fn write(&mut self, row: Row, count: usize) {
        let sequence = self.scheduler.sequence(row);
        let held = &mut self.memory.rows[row.0];
        let past: Vec<u32> = held.iter().take(sequence.in_cache).map(|(token, _)| *token).collect();
        assert_eq!(past, sequence.tokens[..sequence.in_cache], "row {row:?} holds what its sequence has read");
        let strangers = held.iter().take(sequence.in_cache).find(|(_, salt)| *salt != sequence.salt);
        assert!(strangers.is_none(), "a prefix of another salt");
        held.truncate(sequence.in_cache);
        let read = &sequence.tokens[sequence.in_cache..][..count];
        held.extend(read.iter().map(|token| (*token, sequence.salt.clone())));
        sequence.in_cache += count;
    }

    /// Adds a token to the answer of a row that was read to its end.
    fn add(&mut self, row: Row) {
        let sequence = self.scheduler.sequence(row);
        assert_eq!(sequence.in_cache, sequence.tokens.len());
        sequence.tokens.push(next_token(&sequence.tokens));
        sequence.left -= 1;
        if sequence.left == 0 {
            let ended = self.scheduler.finish(row, true, &mut self.memory);
            self.ended.push(ended.id);
        }
    }

    /// One step, as the engine does it. Gives the tokens that were found in other rows.
    fn step(&mut self, chunk: usize) -> usize {
        for (sequence, _) in self.scheduler.reap(self.now, &mut self.memory) {
            self.gone.insert(sequence.id);
        }
        self.scheduler.make_room(&mut self.memory);
        self.check();
        for row in (0..self.scheduler.decoding()).rev() {
            self.write(Row(row), 1);
            self.add(Row(row));
        }
        let Some((row, shared)) = self.scheduler.admit(&mut self.memory) else { return 0 };
        let sequence = self.scheduler.sequence(row);
        sequence.begun = true;
        let unread = sequence.tokens.len() - sequence.in_cache;
        assert!(unread > 0, "a run is needed for logits");
        self.write(row, unread.min(chunk));
        if unread <= chunk {
            self.scheduler.begin_decoding();
            self.add(row);
        }
        shared
    }

    fn check(&self) {
        assert!(self.scheduler.running() <= self.limits.slots + 1);
        assert!(self.scheduler.decoding() <= self.limits.slots);
        let held = self.scheduler.tokens_held() + self.scheduler.decoding();
        assert!(held <= self.limits.tokens || self.scheduler.running() <= 1, "{held} tokens");
        for (row, running) in self.scheduler.rows.sequences() {
            assert!(row.0 < self.scheduler.running(), "those that run stand in front");
            assert!(running.sequence.in_cache <= running.sequence.tokens.len());
        }
    }

    fn run(&mut self) {
        let mut steps = 0;
        while !self.scheduler.is_idle() {
            self.step(4);
            steps += 1;
            assert!(steps < 100_000, "nobody waits for ever");
        }
    }
}

const LIMITS: Limits = Limits { slots: 2, rows: 4, tokens: 1000, prefixes: true };

#[test]
fn prompts_are_read_by_priority_and_then_in_the_order_of_arrival() {
    let mut bench = Bench::new(Limits { slots: 1, ..LIMITS });
    for priority in [0, 0, 5, -1] {
        bench.arrive_with(&[1, 2], 1, priority, None, None);
    }
    bench.run();
    assert_eq!(bench.ended, [2, 0, 1, 3]);
}

#[test]
fn a_second_prompt_reads_only_what_the_first_has_not() {
    let mut bench = Bench::new(LIMITS);
    bench.arrive(&[1, 2, 3, 4, 5, 6], 2);
    bench.run();
    bench.arrive(&[1, 2, 3, 4, 9], 1);
    assert_eq!(bench.step(64), 4);
    bench.arrive(&[1, 2, 3, 4, 5, 6], 1);
    assert_eq!(bench.step(64), 5, "the last token is read anew, for its logits");
    bench.arrive_with(&[1, 2, 3, 4, 5, 6], 1, 0, Some("other"), None);
    assert_eq!(bench.step(64), 0, "another salt shares nothing");
}

#[test]
fn answers_to_one_prompt_share_it_while_they_run() {
    let mut bench = Bench::new(Limits { slots: 4, rows: 4, ..LIMITS });
    for _ in 0..4 {
        bench.arrive(&[1, 2, 3, 4], 9);
    }
    assert_eq!([bench.step(64), bench.step(64), bench.step(64), bench.step(64)], [0, 3, 3, 3]);
}

#[test]
fn a_prefix_that_cannot_be_copied_is_read_anew() {
    let mut bench = Bench::new(LIMITS);
    bench.memory.copies_fail = true;
    bench.arrive(&[1, 2, 3], 9);
    bench.arrive(&[1, 2, 3], 9);
    assert_eq!([bench.step(64), bench.step(64)], [0, 0]);
    bench.run();
    assert_eq!(bench.ended.len(), 2);
}

#[test]
fn who_came_last_gives_way_and_comes_back() {
    let mut bench = Bench::new(Limits { tokens: 20, ..LIMITS });
    bench.arrive(&[1; 6], 12);
    bench.arrive(&[2; 6], 12);
    bench.run();
    assert_eq!(bench.ended, [0, 1]);
}

#[test]
fn a_sequence_ends_when_its_time_is_over_wherever_it_is() {
    let mut bench = Bench::new(Limits { slots: 1, ..LIMITS });
    for _ in 0..2 {
        bench.arrive_with(&[1, 2], 50, 0, None, Some(Duration::from_secs(1)));
    }
    bench.step(64);
    bench.now += Duration::from_secs(2);
    let reaped = bench.scheduler.reap(bench.now, &mut bench.memory);
    let reaped: Vec<_> = reaped.iter().map(|(sequence, why)| (sequence.id, *why)).collect();
    assert_eq!(reaped, [(1, Reaped::Late), (0, Reaped::Late)]);
    assert!(bench.scheduler.is_idle());
}

#[test]
fn what_has_not_begun_can_be_shed_and_what_has_begun_stays() {
    let mut bench = Bench::new(Limits { tokens: 20, ..LIMITS });
    for prompt in 1..=2 {
        bench.arrive(&[prompt; 6], 12);
        bench.step(64);
    }
    while bench.scheduler.waiting() == 0 {
        bench.step(64); // until the second has to give its row back
    }
    for prompt in 3..=4 {
        bench.arrive(&[prompt; 6], 12);
    }
    let shed: Vec<_> = bench.scheduler.shed().iter().map(|sequence| sequence.id).collect();
    assert_eq!((shed, bench.scheduler.waiting()), (vec![2, 3], 1));
    assert!(bench.scheduler.shed().is_empty());
    bench.run();
    assert_eq!(bench.ended, [0, 1]);
}

#[derive(Debug, Clone)]
enum Act {
    Shed,
    Arrive { prompt: Vec<u32>, left: usize, priority: i32, salt: Option<&'static str>, late: bool },
    Abandon(usize),
    Step(usize),
    Wait,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let salt = prop_oneof![3 => Just(None), 1 => Just(Some("salt"))];
    let arrive =
        (proptest::collection::vec(0_u32..2, 1..8), 1_usize..8, -1_i32..2, salt, proptest::bool::weighted(0.1));
    let act = prop_oneof![
        3 => arrive.prop_map(|(prompt, left, priority, salt, late)| Act::Arrive { prompt, left, priority, salt, late }),
        1 => (0_usize..20).prop_map(Act::Abandon),
        6 => (1_usize..8).prop_map(Act::Step),
        1 => Just(Act::Wait),
        1 => Just(Act::Shed),
    ];
    proptest::collection::vec(act, 1..80)
}

proptest! {
    #[test]
    fn every_sequence_ends_once_and_no_row_is_lost_or_shared(
        slots in 1_usize..4,
        spare in 0_usize..3,
        tokens in 16_usize..60,
        prefixes in proptest::bool::weighted(0.8),
        acts in acts(),
    ) {
        let mut bench = Bench::new(Limits { slots, rows: slots + spare, tokens, prefixes });
        for act in acts {
            match act {
                Act::Arrive { prompt, left, priority, salt, late } => {
                    let deadline = late.then_some(Duration::from_secs(1));
                    bench.arrive_with(&prompt, left, priority, salt, deadline);
                }
                Act::Abandon(index) => {
                    let running = bench.scheduler.running();
                    if index < running {
                        bench.scheduler.sequence(Row(index)).abandoned = true;
                    } else if let Some(waiting) = bench.scheduler.waiting.values_mut().nth(index - running) {
                        waiting.abandoned = true;
                    }
                }
                Act::Step(chunk) => {
                    bench.step(chunk);
                }
                Act::Shed => {
                    let shed = bench.scheduler.shed();
                    prop_assert!(shed.iter().all(|sequence| !sequence.begun && sequence.in_cache == 0));
                    bench.gone.extend(shed.iter().map(|sequence| sequence.id));
                }
                Act::Wait => bench.now += Duration::from_secs(1),
            }
        }
        bench.run();
        let unique: BTreeSet<usize> = bench.ended.iter().copied().collect();
        prop_assert_eq!(unique.len(), bench.ended.len(), "a sequence ended twice");
        prop_assert!(unique.is_disjoint(&bench.gone));
        prop_assert_eq!(unique.len() + bench.gone.len(), bench.arrived);
        prop_assert_eq!(bench.scheduler.running(), 0);
    }
}
