//! A full fleet as its clients share it.

mod common;

use common::{Controller, Worker, within};
use muster_controller::Config;
use muster_controller::config::QueueConfig;
use muster_shared::client::ClientError;
use muster_shared::control::{Dispatch, Grant, Outcome};
use muster_shared::problem::{Kind, Problem};
use tokio::task::JoinHandle;

/// Longest wait of a request; no test takes nearly as long.
const WAIT: u64 = 30_000;

type Asked = JoinHandle<Result<Grant, ClientError>>;

/// A controller with a worker for one request, which runs on behalf of `greedy`.
struct Full {
    controller: Controller,
    running: Grant,
    waiting: u32,
    _worker: Worker,
}

impl Full {
    async fn start(queue: QueueConfig) -> Self {
        let controller = Controller::start_with(Config { queue, ..Config::default() }).await;
        let worker = Worker::start().await;
        controller.client.register(&worker.registration(1)).await.expect("it is reachable");
        let first = of(&controller, "greedy");
        let running = controller.client.dispatch(&first).await.expect("there is room");
        Self { controller, running, waiting: 0, _worker: worker }
    }

    /// Asks, and waits until that has come to the controller.
    async fn ask(&mut self, dispatch: Dispatch) -> Asked {
        let client = self.controller.client.clone();
        let asked = tokio::spawn(async move { client.dispatch(&dispatch).await });
        self.waiting += 1;
        let waiting = self.waiting;
        self.controller.until(|fleet| fleet.waiting == waiting).await;
        asked
    }

    async fn ask_of(&mut self, key: &str) -> Asked {
        let dispatch = of(&self.controller, key);
        self.ask(dispatch).await
    }

    /// Asks for what is refused at once.
    async fn refused(&self, dispatch: Dispatch) -> Problem {
        match self.controller.client.dispatch(&dispatch).await {
            Err(ClientError::Refused { problem, .. }) => problem,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// Ends what runs; `next` gets its place.
    async fn serve(&mut self, next: Asked) {
        self.controller.release(self.running.ticket, Outcome::Done).await;
        self.running = within(next).await.expect("no panic").expect("it is granted");
        self.waiting -= 1;
    }
}

fn of(controller: &Controller, key: &str) -> Dispatch {
    Dispatch { key: Some(key.to_owned()), ..controller.dispatch(WAIT) }
}

fn bounds(limit: usize) -> QueueConfig {
    QueueConfig { limit, ..QueueConfig::default() }
}

#[tokio::test]
async fn a_modest_key_is_the_next_however_many_wait_of_a_greedy_one() {
    let mut full = Full::start(bounds(1000)).await;
    let mut flood = Vec::new();
    for _ in 0..200 {
        flood.push(full.ask_of("greedy").await);
    }
    let modest = full.ask_of("modest").await;
    let vip = Dispatch { key_priority: 100, ..of(&full.controller, "vip") };
    let vip = full.ask(vip).await;
    full.serve(vip).await;
    full.serve(modest).await;
    assert!(flood.iter().all(|asked| !asked.is_finished()), "nobody else was served");
    full.controller.shutdown.cancel(); // those who wait hear so
    for asked in flood {
        within(asked).await.expect("no panic").expect_err("the controller stops");
    }
}

#[tokio::test]
async fn each_bound_is_told_with_its_kind_and_when_to_come_back() {
    let mut full = Full::start(QueueConfig { per_model: Some(3), per_key: Some(2), ..bounds(4) }).await;
    let other = Worker::start().await;
    let mut registration = other.registration(1);
    registration.models[0].name = "n".to_owned();
    full.controller.client.register(&registration).await.expect("it is reachable");
    let of_n = |key: &str| Dispatch { model: "n".to_owned(), ..of(&full.controller, key) };
    full.controller.client.dispatch(&of_n("carol")).await.expect("there is room");
    let (waits, hopes) = (of_n("carol"), of_n("dave"));

    let _first = full.ask_of("alice").await;
    let _second = full.ask_of("alice").await;
    let problem = full.refused(of(&full.controller, "alice")).await;
    assert_eq!((problem.kind, problem.retry_after_ms), (Kind::RateLimited, Some(1000)));
    assert_eq!(problem.message, "the key `alice` has 2 requests waiting, the most that one key may have");

    let _third = full.ask_of("bob").await;
    let problem = full.refused(of(&full.controller, "bob")).await;
    assert_eq!((problem.kind, problem.retry_after_ms), (Kind::Overloaded, Some(1000)));
    assert!(problem.message.ends_with("the most that may wait for one model"), "{problem}");

    let _fourth = full.ask(waits).await;
    let problem = full.refused(hopes).await;
    assert_eq!((problem.kind, problem.retry_after_ms), (Kind::Overloaded, Some(1000)));
    assert!(problem.message.ends_with("4 requests wait already, the most there may be"), "{problem}");
}

#[tokio::test]
async fn a_request_that_cannot_make_its_deadline_is_refused_at_once() {
    let mut full = Full::start(bounds(1000)).await;
    let none = Dispatch { deadline_ms: Some(0), ..of(&full.controller, "greedy") };
    let problem = full.refused(none).await;
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Timeout, Some("deadline_ms")));

    let mut flood = Vec::new();
    for _ in 0..100 {
        flood.push(full.ask_of("greedy").await);
    }
    for next in flood.drain(..20) {
        full.serve(next).await; // so that it is known how fast the queue moves
    }
    let hurried = |key: &str, left| Dispatch { deadline_ms: Some(left), ..of(&full.controller, key) };
    let problem = full.refused(hurried("greedy", 1)).await;
    assert_eq!(problem.kind, Kind::Overloaded);
    assert!(problem.message.starts_with("the request has 1 ms left"), "{problem}");
    assert!(problem.message.contains("80 requests of the same key go before it"), "{problem}");
    assert!(problem.retry_after_ms.is_some_and(|expected| expected > 1), "{problem:?}");
    // Before one of another key none of them need go: it waits, until its time is over.
    let problem = full.refused(hurried("modest", 1)).await;
    assert_eq!(problem.kind, Kind::Timeout);
    assert!(problem.message.contains("the time that was given for the request is over"), "{problem}");
}
