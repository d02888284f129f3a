//! The link between a gateway and the controller, over real connections.

mod common;

use bytes::BytesMut;
use common::{Controller, Worker, within};
use muster_controller::Config;
use muster_shared::client::{ClientError, ControllerClient, Timeouts, http_client};
use muster_shared::control::{Fleet, Grant, Heartbeat, Held, Leave, ModelLoad, Outcome, Release};
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use muster_shared::link::{Ask, Link, Message, Process, Tell};
use muster_shared::problem::{BoxError, Kind, Problem};
use muster_shared::secret::Secret;
use serde_json::{Value, json};

/// A gateway's end of its link.
struct Linked {
    link: Link<reqwest::Upgraded>,
    gateway: GatewayId,
}

impl Linked {
    /// A gateway that holds these; with what the controller answers.
    async fn open(controller: &Controller, gateway: GatewayId, held: Vec<Held>) -> (Self, Fleet, Vec<TicketId>) {
        let link = within(controller.client.link()).await.expect("a link");
        let mut linked = Self { link, gateway };
        let process = Process { id: gateway, address: "http://g".to_owned(), version: "0".to_owned() };
        linked.say(&Ask::Hello { gateway, process, held }).await;
        let (fleet, unknown) = linked.fleet().await;
        (linked, fleet, unknown)
    }

    /// A new gateway.
    async fn new(controller: &Controller) -> Self {
        Self::open(controller, GatewayId::new(), Vec::new()).await.0
    }

    async fn say(&mut self, message: &Ask) {
        self.link.queue(message);
        within(self.link.flush()).await.expect("the controller reads");
    }

    async fn hear(&mut self) -> Tell {
        loop {
            if let Some(tell) = self.link.take().expect("a message") {
                return tell;
            }
            within(self.link.exchange()).await.expect("the link goes on");
        }
    }

    async fn fleet(&mut self) -> (Fleet, Vec<TicketId>) {
        match self.hear().await {
            Tell::Fleet { fleet, unknown } => (*fleet, unknown),
            other => panic!("expected the fleet, got {other:?}"),
        }
    }

    /// The answer to a question.
    async fn answer(&mut self) -> (u32, Result<Grant, Problem>) {
        match self.hear().await {
            Tell::Grant { id, grant } => (id, Ok(grant)),
            Tell::Refusal { id, problem } => (id, Err(problem)),
            other => panic!("expected an answer, got {other:?}"),
        }
    }

    async fn ask(&mut self, controller: &Controller, id: u32, wait_ms: u64) {
        let dispatch = controller.dispatch(wait_ms);
        self.say(&Ask::Dispatch { id, dispatch }).await;
    }

    /// A worker for the model `m`, which there is.
    async fn granted(&mut self, controller: &Controller, id: u32) -> Grant {
        self.ask(controller, id, 0).await;
        let (answered, answer) = self.answer().await;
        assert_eq!(answered, id);
        answer.expect("there is room")
    }

    async fn refused(&mut self, controller: &Controller, id: u32) -> Problem {
        self.ask(controller, id, 0).await;
        let (answered, answer) = self.answer().await;
        assert_eq!(answered, id);
        answer.expect_err("there is no room")
    }

    async fn release(&mut self, ticket: TicketId) {
        self.say(&Ask::Release(Release { ticket, outcome: Outcome::Done, ttft_ms: None, tokens: None })).await;
    }

    /// Tells of requests in flight; gives those whose workers are not known.
    async fn claim(&mut self, claims: Vec<Held>) -> Vec<TicketId> {
        self.say(&Ask::Sync { claims }).await;
        self.fleet().await.1
    }

    /// Waits for the controller to end the link.
    async fn ended(mut self) {
        within(async {
            loop {
                if self.link.exchange().await.is_err() {
                    return;
                }
            }
        })
        .await;
    }
}

/// A controller with one worker of that capacity.
async fn fleet_of_one(capacity: u32) -> (Controller, Worker) {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    controller.client.register(&worker.registration(capacity)).await.expect("it is reachable");
    (controller, worker)
}

fn held(worker: &WorkerId, ticket: TicketId) -> Held {
    Held { ticket, worker: worker.clone(), model: "m".to_owned(), key: None }
}

/// A heartbeat that tells of so many requests.
async fn beat(controller: &Controller, worker: &Worker, running: u32) {
    let load = vec![ModelLoad { model: "m".to_owned(), running, waiting: 0 }];
    let beat = Heartbeat { load: Some(load), ..Heartbeat::bare(worker.id(), 1) };
    controller.client.heartbeat(&beat).await.expect("it is registered");
}

#[tokio::test]
async fn a_hello_is_answered_with_the_fleet() {
    let (controller, worker) = fleet_of_one(1).await;
    let (_linked, fleet, unknown) = Linked::open(&controller, GatewayId::new(), Vec::new()).await;
    assert_eq!((&fleet.workers[0].id, fleet.models[0].name.as_str()), (&worker.id(), "m"));
    assert_eq!(fleet.epoch, controller.fleet().await.epoch);
    assert!(unknown.is_empty());
}

#[tokio::test]
async fn a_request_is_in_flight_from_its_grant_to_its_release() {
    let (controller, worker) = fleet_of_one(1).await;
    let mut linked = Linked::new(&controller).await;
    let grant = linked.granted(&controller, 7).await;
    assert_eq!((&grant.worker, &grant.address), (&worker.id(), &worker.address));
    let refusal = linked.refused(&controller, 8).await;
    assert_eq!((refusal.kind, refusal.retry_after_ms), (Kind::Overloaded, Some(1000)));
    assert_eq!(controller.fleet().await.workers[0].tickets, 1);
    linked.release(grant.ticket).await;
    linked.release(grant.ticket).await; // which is no error
    linked.granted(&controller, 9).await;
    assert_eq!(controller.fleet().await.workers[0].tickets, 1);
}

#[tokio::test]
async fn a_model_that_nobody_serves_is_refused_by_name() {
    let (controller, _worker) = fleet_of_one(1).await;
    let mut linked = Linked::new(&controller).await;
    let mut dispatch = controller.dispatch(10_000);
    dispatch.model = "n".to_owned();
    linked.say(&Ask::Dispatch { id: 1, dispatch }).await;
    let (_, answer) = linked.answer().await;
    let problem = answer.expect_err("nobody serves it");
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::UnknownModel, Some("model")));
}

#[tokio::test]
async fn many_questions_in_one_write_are_all_answered() {
    let (controller, _worker) = fleet_of_one(60).await;
    let mut linked = Linked::new(&controller).await;
    for id in 0..100 {
        linked.link.queue(&Ask::Dispatch { id, dispatch: controller.dispatch(0) });
    }
    let mut answers = std::collections::BTreeMap::new();
    for _ in 0..100 {
        let (id, answer) = linked.answer().await;
        assert!(answers.insert(id, answer.is_ok()).is_none(), "{id} is answered twice");
    }
    assert_eq!(answers.values().filter(|granted| **granted).count(), 60);
    assert!(answers.range(..60).all(|(_, granted)| *granted), "in their order");
}

#[tokio::test]
async fn a_question_that_waits_is_answered_upon_a_release() {
    let (controller, worker) = fleet_of_one(1).await;
    let mut linked = Linked::new(&controller).await;
    let first = linked.granted(&controller, 1).await;
    linked.ask(&controller, 2, 20_000).await;
    controller.until(|fleet| fleet.waiting == 1).await;
    linked.release(first.ticket).await;
    let (id, answer) = linked.answer().await;
    assert_eq!((id, answer.expect("there is room").worker), (2, worker.id()));
}

#[tokio::test]
async fn a_wait_that_is_too_long_ends_with_a_refusal() {
    let (controller, _worker) = fleet_of_one(1).await;
    let mut linked = Linked::new(&controller).await;
    linked.granted(&controller, 1).await;
    linked.ask(&controller, 2, 50).await;
    let (id, answer) = linked.answer().await;
    let problem = answer.expect_err("there is no room");
    assert!(id == 2 && problem.kind == Kind::Overloaded && problem.message.contains("waited"), "{problem}");
}

#[tokio::test]
async fn an_abandoned_question_gives_up_its_place() {
    let (controller, _worker) = fleet_of_one(1).await;
    let mut linked = Linked::new(&controller).await;
    let first = linked.granted(&controller, 1).await;
    linked.ask(&controller, 2, 20_000).await;
    linked.ask(&controller, 3, 20_000).await;
    controller.until(|fleet| fleet.waiting == 2).await;
    linked.say(&Ask::Abandon { id: 2 }).await;
    linked.say(&Ask::Abandon { id: 77 }).await; // nobody asked, or it is answered already
    controller.until(|fleet| fleet.waiting == 1).await;
    linked.release(first.ticket).await;
    let (id, answer) = linked.answer().await;
    assert_eq!((id, answer.is_ok()), (3, true));
}

#[tokio::test]
async fn a_link_that_ends_gives_up_its_places_and_keeps_its_tickets() {
    let (controller, _worker) = fleet_of_one(1).await;
    let mut linked = Linked::new(&controller).await;
    linked.granted(&controller, 1).await;
    linked.ask(&controller, 2, 20_000).await;
    linked.ask(&controller, 3, 20_000).await;
    controller.until(|fleet| fleet.waiting == 2).await;
    drop(linked);
    let fleet = controller.until(|fleet| fleet.waiting == 0).await;
    assert_eq!(fleet.workers[0].tickets, 1, "its request runs on");
}

#[tokio::test]
async fn tickets_that_a_gateway_does_not_name_end_when_it_comes_back() {
    let (controller, worker) = fleet_of_one(4).await;
    let mut linked = Linked::new(&controller).await;
    let mut other = Linked::new(&controller).await;
    other.granted(&controller, 1).await;
    let kept = linked.granted(&controller, 1).await;
    // Granted, and the link dies before the gateway hears so, as far as the controller knows.
    linked.granted(&controller, 2).await;
    linked.granted(&controller, 3).await;
    assert_eq!(controller.fleet().await.workers[0].tickets, 4);
    let gateway = linked.gateway;
    drop(linked);
    let (mut linked, fleet, unknown) = Linked::open(&controller, gateway, vec![held(&worker.id(), kept.ticket)]).await;
    assert_eq!((fleet.workers[0].tickets, unknown), (2, vec![]), "the one that is named, and the other gateway's");
    linked.release(kept.ticket).await;
    controller.until(|fleet| fleet.workers[0].tickets == 1).await;
}

#[tokio::test]
async fn room_that_a_gateway_comes_back_without_goes_to_those_who_wait() {
    let (controller, _worker) = fleet_of_one(1).await;
    let (mut first, mut second) = (Linked::new(&controller).await, Linked::new(&controller).await);
    first.granted(&controller, 1).await;
    second.ask(&controller, 5, 20_000).await;
    controller.until(|fleet| fleet.waiting == 1).await;
    let gateway = first.gateway;
    drop(first);
    let (_first, ..) = Linked::open(&controller, gateway, Vec::new()).await;
    let (id, answer) = second.answer().await;
    assert_eq!((id, answer.is_ok()), (5, true));
}

#[tokio::test]
async fn a_second_link_of_a_gateway_ends_the_first() {
    let (controller, worker) = fleet_of_one(2).await;
    let mut first = Linked::new(&controller).await;
    let mut other = Linked::new(&controller).await;
    let grant = first.granted(&controller, 1).await;
    other.granted(&controller, 1).await;
    first.ask(&controller, 2, 20_000).await;
    controller.until(|fleet| fleet.waiting == 1).await;
    let (mut second, ..) = Linked::open(&controller, first.gateway, vec![held(&worker.id(), grant.ticket)]).await;
    first.ended().await;
    controller.until(|fleet| fleet.waiting == 0).await;
    assert_eq!(controller.fleet().await.workers[0].tickets, 2, "what is named lives on");
    second.release(grant.ticket).await;
    second.granted(&controller, 3).await;
    assert!(other.claim(Vec::new()).await.is_empty(), "another gateway's link goes on");
}

#[tokio::test]
async fn a_link_that_is_replaced_takes_no_room_with_it() {
    let (controller, _worker) = fleet_of_one(1).await;
    let mut first = Linked::new(&controller).await;
    first.granted(&controller, 1).await;
    first.ask(&controller, 2, 20_000).await;
    controller.until(|fleet| fleet.waiting == 1).await;
    // It comes back without what was granted; nobody is left to be granted what it waited for.
    let (mut second, fleet, _) = Linked::open(&controller, first.gateway, Vec::new()).await;
    assert_eq!((fleet.waiting, fleet.workers[0].tickets), (0, 0));
    second.granted(&controller, 1).await;
    first.ended().await;
    assert_eq!(controller.fleet().await.workers[0].tickets, 1);
}

#[tokio::test]
async fn requests_on_workers_that_are_not_known_yet_are_told_again_until_they_are() {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    let request = held(&worker.id(), TicketId::new());
    let (mut linked, _, unknown) = Linked::open(&controller, GatewayId::new(), vec![request.clone()]).await;
    assert_eq!(unknown, [request.ticket]);
    assert_eq!(linked.claim(vec![request.clone()]).await, [request.ticket], "it is still not known");
    controller.client.register(&worker.registration(2)).await.expect("it is reachable");
    let of_another_model = Held { model: "n".to_owned(), ticket: TicketId::new(), ..request.clone() };
    let claims = vec![request.clone(), of_another_model.clone()];
    assert_eq!(linked.claim(claims).await, [of_another_model.ticket]);
    assert_eq!(controller.fleet().await.workers[0].tickets, 1);
    assert!(linked.claim(vec![request.clone()]).await.is_empty(), "told twice is counted once");
    assert_eq!(controller.fleet().await.workers[0].tickets, 1);
    linked.granted(&controller, 1).await;
    assert_eq!(linked.refused(&controller, 2).await.kind, Kind::Overloaded);
    linked.release(request.ticket).await;
    linked.granted(&controller, 3).await;
}

#[tokio::test]
async fn heartbeats_before_or_after_a_claim_do_not_count_its_request_twice() {
    for beats_before in [0, 1, 2, 3] {
        let (controller, worker) = fleet_of_one(2).await;
        for _ in 0..beats_before {
            beat(&controller, &worker, 1).await;
        }
        let request = held(&worker.id(), TicketId::new());
        let (mut linked, _, unknown) = Linked::open(&controller, GatewayId::new(), vec![request.clone()]).await;
        assert!(unknown.is_empty());
        for _ in beats_before..3 {
            beat(&controller, &worker, 1).await;
        }
        let second = linked.granted(&controller, 1).await;
        assert_eq!(linked.refused(&controller, 2).await.kind, Kind::Overloaded, "{beats_before}");
        linked.release(request.ticket).await;
        linked.release(second.ticket).await;
        beat(&controller, &worker, 0).await;
        linked.granted(&controller, 3).await;
        linked.granted(&controller, 4).await;
        assert_eq!(linked.refused(&controller, 5).await.kind, Kind::Overloaded, "{beats_before}");
    }
}

#[tokio::test]
async fn a_request_on_a_worker_that_has_left_is_not_adopted() {
    let (controller, worker) = fleet_of_one(2).await;
    controller.client.deregister(&Leave { id: worker.id(), incarnation: None }).await.expect("it is known");
    let request = held(&worker.id(), TicketId::new());
    let (mut linked, fleet, unknown) = Linked::open(&controller, GatewayId::new(), vec![request.clone()]).await;
    assert_eq!((fleet.workers[0].tickets, unknown), (0, vec![request.ticket]));
    linked.release(request.ticket).await;
    assert!(linked.claim(Vec::new()).await.is_empty(), "a release of what was never known is no error");
}

#[tokio::test]
async fn a_request_without_an_upgrade_is_refused_in_words() {
    let controller = Controller::start().await;
    let (status, body) = controller.get("/link").await;
    assert_eq!(status, 400);
    assert!(body.contains("Upgrade: muster-link-4"), "{body}");
    let other = reqwest::Client::new().get(format!("{}/link", controller.address));
    let other = other.header("connection", "upgrade").header("upgrade", "websocket");
    assert_eq!(within(other.send()).await.expect("an answer").status(), 400);
    assert_eq!(controller.post("/link", json!({})).await.0, 405);
}

#[tokio::test]
async fn a_link_wants_the_fleet_token() {
    let token = Some(Secret::new("of the fleet"));
    let controller = Controller::start_with(Config { token, ..Config::default() }).await;
    for wrong in [None, Some("of another")] {
        let http = http_client(Timeouts::default());
        let client = ControllerClient::new(http, controller.address.clone(), wrong.map(Secret::new));
        match within(client.link()).await {
            Err(ClientError::Refused { problem, .. }) => assert_eq!(problem.kind, Kind::BadKey),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
    assert!(Linked::new(&controller).await.claim(Vec::new()).await.is_empty());
}

/// Something that a gateway does not say.
struct Garbage(Value);

impl Message for Garbage {
    fn write(&self, to: &mut BytesMut) {
        to.extend_from_slice(self.0.to_string().as_bytes());
    }

    fn read(_: &[u8]) -> Result<Self, BoxError> {
        Err("nobody reads it".into())
    }
}

#[tokio::test]
async fn garbage_ends_the_link_that_it_came_over_and_no_other() {
    let (controller, _worker) = fleet_of_one(1).await;
    let mut other = Linked::new(&controller).await;
    other.granted(&controller, 1).await;
    for garbage in [json!({ "what": 1 }), json!("nonsense"), json!([1, 2]), json!("x".repeat(17 << 20))] {
        let mut linked = Linked::new(&controller).await;
        linked.ask(&controller, 1, 20_000).await;
        controller.until(|fleet| fleet.waiting == 1).await;
        linked.link.queue(&Garbage(garbage));
        linked.ended().await;
        controller.until(|fleet| fleet.waiting == 0).await;
    }
    assert!(other.claim(Vec::new()).await.is_empty());
    assert_eq!(controller.fleet().await.workers[0].tickets, 1);
}

#[tokio::test]
async fn a_link_must_begin_with_a_name() {
    let (controller, _worker) = fleet_of_one(1).await;
    for first in [Ask::Sync { claims: Vec::new() }, Ask::Dispatch { id: 1, dispatch: controller.dispatch(0) }] {
        let link = within(controller.client.link()).await.expect("a link");
        let mut linked = Linked { link, gateway: GatewayId::new() };
        linked.say(&first).await;
        linked.ended().await;
    }
    assert_eq!(controller.fleet().await.workers[0].tickets, 0);
}

#[tokio::test]
async fn a_link_serves_one_gateway_whatever_its_questions_say() {
    let (controller, worker) = fleet_of_one(1).await;
    let mut linked = Linked::new(&controller).await;
    assert_ne!(controller.dispatch(0).gateway, linked.gateway);
    let grant = linked.granted(&controller, 1).await;
    controller.release(grant.ticket, Outcome::Done).await; // by the gateway that the question named
    assert_eq!(controller.fleet().await.workers[0].tickets, 1);
    let (_second, fleet, _) = Linked::open(&controller, linked.gateway, vec![held(&worker.id(), grant.ticket)]).await;
    assert_eq!(fleet.workers[0].tickets, 1);
}

#[tokio::test]
async fn a_controller_that_stops_ends_its_links() {
    let (controller, _worker) = fleet_of_one(1).await;
    let linked = Linked::new(&controller).await;
    controller.shutdown.cancel();
    linked.ended().await;
    within(controller.served).await.expect("it stops well");
}
