use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const LIMITS: BatchLimits = BatchLimits::PROCESSOR;

fn text(length: usize) -> Tokens {
    Tokens::one(vec![7; length])
}

fn texts(lengths: &[usize]) -> Vec<Tokens> {
    lengths.iter().map(|&length| text(length)).collect()
}

fn lengths(run: &[Text<usize>]) -> Vec<usize> {
    run.iter().map(|text| text.tokens.len()).collect()
}

#[test]
fn like_lengths_run_together_and_long_texts_alone() {
    let mut queue = Queue::default();
    queue.push(0, texts(&[10, 300, 10, 11, 40]));
    assert_eq!(lengths(&queue.take(LIMITS)), [300]);
    assert_eq!(lengths(&queue.take(LIMITS)), [40]);
    assert_eq!(lengths(&queue.take(LIMITS)), [11, 10, 10]);
    assert!(queue.take(LIMITS).is_empty() && queue.is_empty());
}

#[test]
fn company_comes_from_both_sides_and_the_nearest_first() {
    let mut queue = Queue::default();
    queue.push(0, texts(&[30]));
    queue.push(1, texts(&[32, 29, 27, 31, 90]));
    assert_eq!(lengths(&queue.take(LIMITS)), [30, 29, 31, 32]);
}

#[test]
fn a_text_does_not_wait_for_a_large_request() {
    let mut queue = Queue::default();
    queue.push(0, texts(&[100; 2000]));
    assert_eq!(queue.take(LIMITS)[0].request, 0);
    queue.push(1, texts(&[5]));
    queue.push(2, texts(&[50]));
    let order: Vec<usize> = (0..4).map(|_| queue.take(LIMITS)[0].request).collect();
    assert_eq!(order, [1, 2, 0, 0], "and the large one goes on after each has had its turn");
}

#[test]
fn texts_of_a_request_that_nobody_wants_leave_the_queue() {
    let mut queue = Queue::default();
    queue.push(0, texts(&[10, 20]));
    queue.push(1, texts(&[10]));
    queue.retain(|&request| request != 0);
    assert_eq!(queue.len(), 1);
    assert_eq!(queue.take(LIMITS), [Text { request: 1, index: 0, tokens: text(10) }]);
    assert!(queue.is_empty() && queue.turns.is_empty() && queue.waiting.is_empty());
}

#[test]
fn a_hundred_thousand_texts_leave_the_queue_without_a_search_through_all() {
    let mut queue = Queue::default();
    let many: Vec<usize> = (0..100_000).map(|index| 1 + index * 7919 % 512).collect();
    queue.push(0, texts(&many));
    let begin = std::time::Instant::now();
    let mut runs = 0;
    while !queue.take(LIMITS).is_empty() {
        runs += 1;
    }
    // A search through all for each run would compare thousands of millions of lengths.
    assert!(runs > 50_000 && begin.elapsed() < std::time::Duration::from_secs(20), "{runs}: {:?}", begin.elapsed());
}

/// What happens to a queue.
#[derive(Debug, Clone)]
enum Event {
    Push(Vec<usize>),
    Take,
    Drop(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let lengths = proptest::collection::vec(prop_oneof![3 => 1_usize..20, 1 => 1_usize..400], 1..30);
    let event = prop_oneof![
        3 => lengths.prop_map(Event::Push),
        6 => Just(Event::Take),
        1 => (0_usize..40).prop_map(Event::Drop),
    ];
    proptest::collection::vec(event, 1..80)
}

/// A queue, and what must be true of it.
#[derive(Default)]
struct Bench {
    queue: Queue<usize>,
    /// Texts that were pushed and neither ran nor were dropped, by request and index.
    expected: BTreeMap<(usize, usize), usize>,
    requests: usize,
    /// Requests that wait for their first run, each with those that had a turn meanwhile.
    unserved: BTreeMap<usize, BTreeSet<usize>>,
}

impl Bench {
    fn push(&mut self, lengths: &[usize]) {
        let request = self.requests;
        self.requests += 1;
        self.queue.push(request, texts(lengths));
        self.expected.extend(lengths.iter().enumerate().map(|(index, &length)| ((request, index), length)));
        self.unserved.insert(request, BTreeSet::new());
    }

    fn drop(&mut self, request: usize) {
        self.queue.retain(|&other| other != request);
        self.expected.retain(|&(other, _), _| other != request);
        self.unserved.remove(&request);
    }

    fn take(&mut self) -> Result<bool, TestCaseError> {
        let run = self.queue.take(LIMITS);
        prop_assert_eq!(run.is_empty(), self.expected.is_empty(), "a run is empty only when nothing waits");
        let lengths = lengths(&run);
        for text in &run {
            let expected = self.expected.remove(&(text.request, text.index));
            prop_assert_eq!(expected, Some(text.tokens.len()), "each text runs once, as it was pushed");
            self.unserved.remove(&text.request);
        }
        let Some(seed) = run.first() else { return Ok(false) };
        for (request, ahead) in &mut self.unserved {
            prop_assert!(ahead.insert(seed.request), "{} had two turns before {} had one", seed.request, request);
        }
        if run.len() > 1 {
            let padded = lengths.iter().max().unwrap_or(&0) * run.len();
            prop_assert!(padded <= LIMITS.tokens, "{lengths:?}");
            let padding = padded - lengths.iter().sum::<usize>();
            prop_assert!(padding * 100 <= padded * LIMITS.padding_percent, "{lengths:?}");
        }
        Ok(true)
    }
}

proptest! {
    #[test]
    fn each_text_runs_once_within_bounds_and_no_request_is_overtaken_twice_by_another(events in events()) {
        let mut bench = Bench::default();
        for event in events {
            match event {
                Event::Push(lengths) => bench.push(&lengths),
                Event::Take => drop(bench.take()?),
                Event::Drop(request) => bench.drop(request),
            }
            prop_assert_eq!(bench.queue.len(), bench.expected.len());
        }
        while bench.take()? {}
        prop_assert!(bench.queue.turns.is_empty() && bench.queue.waiting.is_empty());
    }

    /// One thread: the run that is on its way when a text arrives is the last that a large request can put before it.
    #[test]
    fn a_newcomer_is_next_after_the_large_request_whose_run_is_on_its_way(
        large in proptest::collection::vec(1_usize..300, 200..400),
        before in 1_usize..20,
        newcomers in proptest::collection::vec(1_usize..300, 1..5),
    ) {
        let mut queue = Queue::default();
        queue.push(0, texts(&large));
        for _ in 0..before {
            queue.take(LIMITS);
        }
        prop_assume!(!queue.is_empty());
        for (index, &length) in newcomers.iter().enumerate() {
            queue.push(index + 1, texts(&[length]));
        }
        let mut missing: BTreeSet<usize> = (1..=newcomers.len()).collect();
        while !missing.is_empty() {
            let run = queue.take(LIMITS);
            prop_assert!(run[0].request != 0, "the large request had a turn while {missing:?} waited");
            missing.retain(|&request| run.iter().all(|text| text.request != request));
        }
    }

    #[test]
    fn texts_run_alone_where_company_would_change_them(lengths in proptest::collection::vec(1_usize..40, 1..40)) {
        let mut queue = Queue::default();
        queue.push(0, texts(&lengths));
        for _ in &lengths {
            prop_assert_eq!(queue.take(BatchLimits::ALONE).len(), 1);
        }
        prop_assert!(queue.is_empty());
    }
}
