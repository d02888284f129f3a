use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn request(job: usize, rows: usize, arrived: Instant) -> Waiting<usize> {
    Waiting { job, rows: Some(rows), likeness: Likeness::default(), priority: 1, arrived, deadline: None }
}

fn batching(largest: usize, preferred: &[usize], delay: Duration) -> Option<Batching> {
    Some(Batching { largest, preferred: preferred.to_vec(), delay })
}

fn jobs(next: Next<usize>) -> Vec<usize> {
    match next {
        Next::Run(batch) => batch.into_iter().map(|request| request.job).collect(),
        Next::Wait(_) | Next::Idle => Vec::new(),
    }
}

#[test]
fn what_waits_runs_together_up_to_the_largest_batch() {
    let now = Instant::now();
    let mut queue = Queue::new(batching(4, &[], Duration::ZERO));
    [2, 1, 3, 1].into_iter().enumerate().for_each(|(job, rows)| queue.push(request(job, rows, now)));
    assert_eq!(jobs(queue.next(now)), [0, 1]);
    assert_eq!(jobs(queue.next(now)), [2, 3]);
    assert!(matches!(queue.next(now), Next::Idle));
}

#[test]
fn company_is_waited_for_no_longer_than_the_delay() {
    let now = Instant::now();
    let mut queue = Queue::new(batching(8, &[], 5 * MS));
    queue.push(request(0, 1, now));
    queue.push(request(1, 1, now + 2 * MS));
    let Next::Wait(until) = queue.next(now + 3 * MS) else { panic!("the oldest has waited 3 ms of 5") };
    assert_eq!(until, now + 5 * MS);
    assert_eq!(jobs(queue.next(until)), [0, 1]);
}

#[test]
fn at_a_preferred_size_nothing_more_is_waited_for() {
    let now = Instant::now();
    let mut queue = Queue::new(batching(8, &[2, 4], 5 * MS));
    queue.push(request(0, 1, now));
    assert!(matches!(queue.next(now), Next::Wait(_)));
    (1..5).for_each(|job| queue.push(request(job, 1, now)));
    assert_eq!(jobs(queue.next(now)), [0, 1, 2, 3], "four of the five");
    assert!(matches!(queue.next(now), Next::Wait(_)));
}

#[test]
fn what_waits_for_company_holds_up_no_others() {
    let now = Instant::now();
    let mut queue = Queue::new(batching(8, &[], 5 * MS));
    queue.push(request(0, 1, now));
    queue.push(Waiting { rows: None, ..request(1, 0, now) });
    let other = Likeness { wanted: vec![1], ..Likeness::default() };
    queue.push(Waiting { likeness: other, ..request(2, 8, now) });
    assert_eq!(jobs(queue.next(now)), [1]);
    assert_eq!(jobs(queue.next(now)), [2]);
    assert!(matches!(queue.next(now), Next::Wait(_)));
}

#[test]
fn the_more_urgent_goes_first() {
    let now = Instant::now();
    let mut queue = Queue::new(None);
    for (job, priority) in [3, 1, 2, 1].into_iter().enumerate() {
        queue.push(Waiting { priority, ..request(job, 1, now) });
    }
    let order: Vec<usize> = (0..4).flat_map(|_| jobs(queue.next(now))).collect();
    assert_eq!(order, [1, 3, 2, 0]);
}

proptest! {
    /// Whatever comes in whichever order: each request runs once, with its like only, within the largest batch unless it
    /// is larger itself, and requests alike keep their order.
    #[test]
    fn every_request_runs_once_and_in_good_company(
        requests in prop::collection::vec((prop::option::of(1usize..7), 0usize..3, 1u64..3, 0u32..4), 0..40),
        largest in 1usize..9,
        preferred in prop::collection::vec(1usize..9, 0..3),
        delay in 0u32..6,
    ) {
        let mut now = Instant::now();
        let mut queue = Queue::new(batching(largest, &preferred, delay * MS));
        let mut ran: Vec<Vec<Waiting<usize>>> = Vec::new();
        for (job, &(rows, kind, priority, pause)) in requests.iter().enumerate() {
            let likeness = Likeness { wanted: vec![kind], ..Likeness::default() };
            queue.push(Waiting { rows, likeness, priority, ..request(job, 0, now) });
            now += pause * MS;
            if let Next::Run(batch) = queue.next(now) {
                ran.push(batch);
            }
        }
        loop {
            match queue.next(now) {
                Next::Run(batch) => ran.push(batch),
                Next::Wait(until) => {
                    prop_assert!(until > now, "a wait that is over");
                    prop_assert!(until <= now + delay * MS);
                    now = until;
                }
                Next::Idle => break,
            }
        }
        let mut all: Vec<usize> = ran.iter().flatten().map(|request| request.job).collect();
        for batch in &ran {
            prop_assert!(!batch.is_empty());
            prop_assert!(batch.iter().all(|request| request.likeness == batch[0].likeness));
            if batch.len() > 1 {
                let rows: Option<usize> = batch.iter().map(|request| request.rows).sum();
                prop_assert!(rows.is_some_and(|rows| rows <= largest));
            }
        }
        for kind in 0..3 {
            for priority in 1..3 {
                let of_kind = |request: &&Waiting<usize>| {
                    request.rows.is_some() && request.likeness.wanted == [kind] && request.priority == priority
                };
                let order: Vec<usize> = ran.iter().flatten().filter(of_kind).map(|request| request.job).collect();
                prop_assert!(order.is_sorted());
            }
        }
        all.sort_unstable();
        prop_assert_eq!(all, (0..requests.len()).collect::<Vec<_>>());
    }
}
