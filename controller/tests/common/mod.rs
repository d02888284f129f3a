//! A controller and made-up workers on real sockets, at ports the system chooses.
#![allow(dead_code, reason = "each test file uses a part")]

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::{self, StreamExt as _};
use muster_controller::Config;
use muster_shared::client::{ControllerClient, Timeouts, http_client};
use muster_shared::control::{
    Capacity, Dispatch, Fleet, Grant, Health, Heartbeat, Identity, ModelCard, Outcome, Registration, Release, Releases,
};
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use muster_shared::transport::Transport;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// No event of these tests takes nearly as long.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running controller; it stops when dropped.
pub(crate) struct Controller {
    pub(crate) address: String,
    pub(crate) client: ControllerClient,
    pub(crate) gateway: GatewayId,
    pub(crate) shutdown: CancellationToken,
    pub(crate) served: JoinHandle<()>,
    http: reqwest::Client,
    _stop: DropGuard,
}

impl Controller {
    pub(crate) async fn start() -> Self {
        Self::start_with(Config::default()).await
    }

    pub(crate) async fn start_with(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        let shutdown = CancellationToken::new();
        let http = http_client(Timeouts::default());
        let client = ControllerClient::new(http.clone(), address.clone(), config.token.clone());
        let served = tokio::spawn(muster_controller::run(config, listener, shutdown.clone()));
        let stop = shutdown.clone().drop_guard();
        Self { address, client, gateway: GatewayId::new(), shutdown, served, http, _stop: stop }
    }

    /// Posts text as it is, without a content type, and gives the status and the answer as JSON.
    pub(crate) async fn post_text(&self, path: &str, body: impl Into<String>) -> (u16, Value) {
        let request = self.http.post(format!("{}{path}", self.address)).body(body.into());
        let response = request.send().await.expect("the controller answers");
        let status = response.status().as_u16();
        let text = response.text().await.expect("the answer is whole");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Posts JSON.
    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.post_text(path, body.to_string()).await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let response = self.http.get(format!("{}{path}", self.address)).send().await.expect("the controller answers");
        (response.status().as_u16(), response.text().await.expect("the answer is whole"))
    }

    /// The status of an answer whose body may never end.
    pub(crate) async fn get_status(&self, path: &str) -> u16 {
        let response = self.http.get(format!("{}{path}", self.address)).send().await.expect("the controller answers");
        response.status().as_u16()
    }

    /// The fleet, without what the passing of time changes.
    pub(crate) async fn fleet(&self) -> Fleet {
        let mut fleet = self.client.fleet().await.expect("the controller answers");
        fleet.uptime_ms = 0;
        for worker in &mut fleet.workers {
            worker.lease_ms = None;
        }
        fleet
    }

    /// Looks at the fleet until it is so.
    pub(crate) async fn until(&self, what: impl Fn(&Fleet) -> bool) -> Fleet {
        within(async {
            loop {
                let fleet = self.fleet().await;
                if what(&fleet) {
                    return fleet;
                }
            }
        })
        .await
    }

    /// A request for the model `m`.
    pub(crate) fn dispatch(&self, wait_ms: u64) -> Dispatch {
        Dispatch { wait_ms, ..Dispatch::new(self.gateway, "m") }
    }

    pub(crate) async fn granted(&self) -> Grant {
        self.client.dispatch(&self.dispatch(0)).await.expect("there is room")
    }

    pub(crate) async fn release(&self, ticket: TicketId, outcome: Outcome) {
        let releases = vec![Release { ticket, outcome, ttft_ms: None, tokens: None }];
        self.client.release(&Releases { gateway: self.gateway, releases }).await.expect("the controller answers");
    }

    pub(crate) async fn beat(&self, worker: &Worker) {
        let beat = Heartbeat { load: Some(Vec::new()), ..Heartbeat::bare(worker.id(), 1) };
        self.client.heartbeat(&beat).await.expect("it is registered");
    }
}

/// Waits for an event, but not for ever.
pub(crate) async fn within<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, event).await.expect("it happens before the deadline")
}

/// A made-up worker of the model `m`, in our protocol and in FastChat's.
pub(crate) struct Worker {
    pub(crate) address: String,
    /// How often it was asked for its state.
    pub(crate) asked: Arc<AtomicUsize>,
    identity: Arc<Mutex<Option<Identity>>>,
    task: JoinHandle<()>,
}

impl Worker {
    /// Streams two frames and ends well.
    pub(crate) async fn start() -> Self {
        Self::start_with(b"{\"text\":\"a\",\"error_code\":0}\0{\"text\":\"ab\",\"error_code\":0}\0", 1.0).await
    }

    /// Streams those bytes, and tells that speed.
    pub(crate) async fn start_with(stream: &'static [u8], speed: f64) -> Self {
        Self::serve(move || Body::from(stream), speed).await
    }

    /// Streams one frame, and then neither goes on nor ends.
    pub(crate) async fn start_endless() -> Self {
        let frame = || async { Ok::<_, Infallible>("{\"text\":\"a\",\"error_code\":0}\0") };
        let endless = move || Body::from_stream(stream::once(frame()).chain(stream::pending()));
        Self::serve(endless, 1.0).await
    }

    async fn serve(answer: impl Fn() -> Body + Clone + Send + Sync + 'static, speed: f64) -> Self {
        let identity = Arc::new(Mutex::new(None));
        let told = Arc::clone(&identity);
        let health = move || {
            let worker = told.lock().expect("no panic while holding it").clone();
            // Nobody keeps the connection, so that whoever is stopped is not heard any more.
            async move { ([(header::CONNECTION, "close")], Json(Health { status: "alive".to_owned(), worker })) }
        };
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let status = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            async move { Json(json!({ "model_names": ["m"], "speed": speed, "queue_length": 2 })) }
        };
        let router = Router::new()
            .route("/health", get(health))
            .route("/v1/models", get(async || "[]"))
            .route("/worker_get_status", post(status))
            .route("/worker_generate_stream", post(async move || answer()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, asked, identity, task }
    }

    pub(crate) fn id(&self) -> WorkerId {
        WorkerId::new(self.address.clone())
    }

    /// Lets nobody connect any more.
    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Says from now on who it is.
    pub(crate) fn says(&self, id: &str, incarnation: u64) {
        let identity = Identity { id: WorkerId::new(id), incarnation };
        *self.identity.lock().expect("no panic while holding it") = Some(identity);
    }

    /// Its registration under that name and as that incarnation.
    pub(crate) fn registration_as(&self, id: &str, incarnation: u64) -> Registration {
        Registration { id: WorkerId::new(id), incarnation, ..self.registration(1) }
    }

    /// Its registration with room for that many requests.
    pub(crate) fn registration(&self, capacity: u32) -> Registration {
        let capacity = Some(Capacity { running: capacity, waiting: 0 });
        Registration {
            id: self.id(),
            address: self.address.clone(),
            incarnation: 1,
            transport: Transport::Http,
            models: vec![ModelCard { capacity, ..ModelCard::bare("m") }],
            speed: 1.0,
            version: "0.0.0".to_owned(),
            capabilities: None,
        }
    }

    /// The body of its registration through FastChat's interface; without a status, the controller asks.
    pub(crate) fn fastchat_registration(&self, status: Value) -> Value {
        json!({ "worker_name": self.address, "check_heart_beat": true, "worker_status": status })
    }
}

/// An address at which nobody listens.
pub(crate) async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    format!("http://{}", listener.local_addr().expect("it is bound"))
}
