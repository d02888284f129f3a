//! The fleet as it is seen from outside: `/topology` and `/events`.

mod common;

use common::{Controller, Worker, within};
use muster_shared::control::WorkerState;
use muster_shared::sse::Decoder;
use muster_shared::topology::{Node, Topology, Update};

/// One who looks at `/events`.
struct Viewer {
    response: reqwest::Response,
    decoder: Decoder,
    events: std::collections::VecDeque<String>,
}

impl Viewer {
    async fn open(controller: &Controller) -> Self {
        let response = reqwest::get(format!("{}/events", controller.address)).await.expect("an answer");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, decoder: Decoder::new(16 << 20), events: Default::default() }
    }

    /// The data of the next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<String> {
        while self.events.is_empty() {
            let chunk = within(self.response.chunk()).await.expect("the stream does not break")?;
            self.events.extend(self.decoder.push(&chunk).expect("events are short"));
        }
        self.events.pop_front()
    }

    async fn topology(&mut self) -> Topology {
        serde_json::from_str(&self.next().await.expect("a first event")).expect("a topology")
    }

    async fn update(&mut self) -> Update {
        serde_json::from_str(&self.next().await.expect("it goes on")).expect("an update")
    }
}

fn states(topology: &Topology) -> Vec<WorkerState> {
    let workers = topology.nodes.iter().filter_map(|node| match node {
        Node::Worker(worker) => Some(worker.state),
        _ => None,
    });
    workers.collect()
}

#[tokio::test]
async fn a_stream_tells_the_fleet_and_then_what_changes() {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    controller.client.register(&worker.registration(2)).await.expect("it is taken");
    let mut viewer = Viewer::open(&controller).await;
    let mut copy = viewer.topology().await;
    assert_eq!(states(&copy), [WorkerState::Ready]);
    let leave = muster_shared::control::Leave { id: worker.id(), incarnation: None };
    controller.client.drain(&leave).await.expect("it is known");
    while states(&copy) != [WorkerState::Draining] {
        copy.apply(viewer.update().await);
    }
    let (status, fresh) = controller.get("/topology").await;
    let fresh: Topology = serde_json::from_str(&fresh).expect("a topology");
    assert_eq!((status, &fresh.nodes, &fresh.changes), (200, &copy.nodes, &copy.changes));
    assert!(!copy.history.is_empty());
}

#[tokio::test]
async fn so_many_streams_may_be_open_and_all_end_with_the_controller() {
    let controller = Controller::start().await;
    let mut viewers = Vec::new();
    for _ in 0..64 {
        viewers.push(Viewer::open(&controller).await);
    }
    let (status, problem) = controller.get("/events").await;
    assert_eq!(status, 503);
    assert!(problem.contains("64 streams of /events are open"), "{problem}");
    drop(viewers.pop());
    within(async { while controller.get_status("/events").await != 200 {} }).await;
    controller.shutdown.cancel();
    for viewer in &mut viewers {
        while viewer.next().await.is_some() {}
    }
}
