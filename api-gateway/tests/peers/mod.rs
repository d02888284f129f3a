//! Scripted peers: a controller that grants by turns, and workers that fail on purpose. Real sockets on free ports.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::{StreamExt as _, stream};
use muster_gateway::Config;
use muster_shared::control::{Dispatch, Fleet, Grant, Outcome, Release, Releases};
use muster_shared::generate::{Event, FinishReason, Usage};
use muster_shared::id::{Epoch, TicketId, WorkerId};
use muster_shared::problem::{Kind, Problem};
use muster_shared::sse::json_event;
use muster_shared::transport::Transport;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Serves a router on a free port; gives its base URL.
pub(crate) async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// An address at which nobody listens.
pub(crate) async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

/// What a worker does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Deed {
    /// Answers with these words.
    Answer(&'static [&'static str]),
    /// Accepts, says these words, and breaks the connection.
    Break(&'static [&'static str]),
    /// Refuses.
    Refuse(Problem),
    /// Accepts, says one word, and never goes on.
    Hang,
}

/// A worker that does the same with every request; `gone` hears of every request whose client left.
pub(crate) async fn worker(deed: Deed) -> (String, mpsc::Receiver<()>) {
    let (gone, heard) = mpsc::channel(16);
    let router = Router::new().route("/generate", post(move || async move { act(&deed, gone) }));
    (serve(router).await, heard)
}

fn act(deed: &Deed, gone: mpsc::Sender<()>) -> Response {
    let delta = |text: &str| Event::Delta { choice: 0, text: text.to_owned(), tokens: vec![1], logprobs: vec![] };
    let said = |words: &[&str]| {
        let started = Event::Started { prompt_tokens: 3 };
        std::iter::once(started).chain(words.iter().copied().map(delta)).map(|event| json_event(&event)).collect()
    };
    match deed {
        Deed::Refuse(problem) => problem.clone().into_response(),
        Deed::Answer(words) => {
            let mut events: Vec<Bytes> = said(words);
            events.push(json_event(&Event::Finished { choice: 0, reason: FinishReason::Stop }));
            let usage = Usage { prompt_tokens: 3, completion_tokens: words.len() as u32, cached_tokens: 0 };
            events.push(json_event(&Event::Done { usage }));
            Body::from_stream(stream::iter(events).map(Ok::<_, std::io::Error>)).into_response()
        }
        Deed::Break(words) => {
            let events: Vec<Bytes> = said(words);
            // What was said leaves first: the server sends it when it finds nothing more to send for the moment.
            let broken = stream::once(async {
                tokio::task::yield_now().await;
                Err(std::io::Error::other("broken on purpose"))
            });
            Body::from_stream(stream::iter(events).map(Ok).chain(broken)).into_response()
        }
        Deed::Hang => {
            let events: Vec<Bytes> = said(&["one"]);
            let farewell = Farewell(gone);
            let forever = stream::pending().map(move |never: Result<Bytes, std::io::Error>| {
                let _held = &farewell;
                never
            });
            Body::from_stream(stream::iter(events).map(Ok).chain(forever)).into_response()
        }
    }
}

/// Tells when the body that holds it is dropped.
struct Farewell(mpsc::Sender<()>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

/// A controller that grants the given workers in turn, each under its address as its id.
pub(crate) struct Controller {
    pub(crate) address: String,
    /// Every release, as it comes.
    pub(crate) releases: mpsc::Receiver<Release>,
    /// Every dispatch so far.
    pub(crate) dispatches: Arc<Mutex<Vec<Dispatch>>>,
}

#[derive(Clone)]
struct Script {
    turns: Arc<Mutex<VecDeque<Result<String, Problem>>>>,
    dispatches: Arc<Mutex<Vec<Dispatch>>>,
    released: mpsc::Sender<Release>,
    epoch: Epoch,
}

impl Controller {
    pub(crate) async fn start(turns: impl IntoIterator<Item = Result<String, Problem>>) -> Self {
        let (released, releases) = mpsc::channel(64);
        let dispatches = Arc::default();
        let script = Script {
            turns: Arc::new(Mutex::new(turns.into_iter().collect())),
            dispatches: Arc::clone(&dispatches),
            released,
            epoch: Epoch::new(),
        };
        let router = Router::new()
            .route("/dispatch", post(dispatch))
            .route("/release", post(release))
            .route("/renew", post(renew))
            .with_state(script);
        Self { address: serve(router).await, releases, dispatches }
    }

    /// The next release.
    pub(crate) async fn released(&mut self) -> Release {
        let release = tokio::time::timeout(PATIENCE, self.releases.recv()).await;
        release.expect("a release in time").expect("the controller runs")
    }
}

async fn dispatch(State(script): State<Script>, Json(dispatch): Json<Dispatch>) -> Result<Json<Grant>, Problem> {
    script.dispatches.lock().expect("no panic while holding it").push(dispatch);
    let turn = script.turns.lock().expect("no panic while holding it").pop_front();
    let address = turn.unwrap_or_else(|| Err(Problem::new(Kind::NoWorker, "none is left").with_retry_after_ms(1)))?;
    let (ticket, worker) = (TicketId::new(), WorkerId::new(&address));
    Ok(Json(Grant { ticket, worker, address, transport: Transport::Http }))
}

async fn release(State(script): State<Script>, Json(releases): Json<Releases>) -> Json<Value> {
    for release in releases.releases {
        script.released.send(release).await.expect("the test listens");
    }
    Json(json!({}))
}

async fn renew(State(script): State<Script>) -> Json<Fleet> {
    Json(Fleet {
        epoch: script.epoch,
        version: String::new(),
        uptime_ms: 1,
        policy: String::new(),
        waiting: 0,
        workers: Vec::new(),
        models: Vec::new(),
    })
}

/// A gateway that runs as long as it is held.
pub(crate) struct Gateway {
    pub(crate) address: String,
    _stop: DropGuard,
}

impl Gateway {
    pub(crate) async fn start(controller: &str, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { controller: controller.to_owned(), ..Config::default() };
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let stop = CancellationToken::new();
        tokio::spawn(muster_gateway::run(config, listener, stop.clone()));
        Self { address, _stop: stop.drop_guard() }
    }

    /// Sends a chat; gives the response with its body unread.
    pub(crate) async fn chat(&self, stream: bool) -> reqwest::Response {
        let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }], "stream": stream });
        let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", self.address)).json(&body);
        tokio::time::timeout(PATIENCE, request.send()).await.expect("an answer in time").expect("an answer")
    }
}

/// The outcomes of so many releases, in any order.
pub(crate) async fn outcomes(controller: &mut Controller, count: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for _ in 0..count {
        outcomes.push(controller.released().await.outcome);
    }
    outcomes
}
