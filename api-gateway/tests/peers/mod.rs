//! Scripted peers: a controller that grants by turns, and workers that fail on purpose. Real sockets on free ports.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::{StreamExt as _, stream};
use muster_gateway::Config;
use muster_shared::control::{
    Dispatch, Fleet, Grant, ModelCard, ModelStatus, Outcome, Release, Releases, Source, WorkerState, WorkerStatus,
};
use muster_shared::embed::{EmbedResponse, Vector};
use muster_shared::generate::{Event, FinishReason, Usage};
use muster_shared::id::{Epoch, TicketId, WorkerId};
use muster_shared::problem::{Kind, Problem};
use muster_shared::sse::json_event;
use muster_shared::transport::Transport;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
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
        let started = Event::Started { prompt_tokens: 3, vocabulary: None };
        std::iter::once(started).chain(words.iter().copied().map(delta)).map(|event| json_event(&event)).collect()
    };
    match deed {
        Deed::Refuse(problem) => problem.clone().into_response(),
        Deed::Answer(words) => {
            let mut events: Vec<Bytes> = said(words);
            events.push(json_event(&Event::Finished { choice: 0, reason: FinishReason::Stop, tokens: 0 }));
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

/// A worker that takes its time for one vector.
pub(crate) async fn slow_embedder(time: Duration) -> String {
    let answer = move || async move {
        tokio::time::sleep(time).await;
        Json(EmbedResponse { vectors: vec![Vector(vec![0.5])], prompt_tokens: 1 })
    };
    serve(Router::new().route("/embed", post(answer))).await
}

/// A controller that grants the given workers in turn, each under its address as its id.
pub(crate) struct Controller {
    pub(crate) address: String,
    /// Every release, as it comes.
    pub(crate) releases: mpsc::Receiver<Release>,
    /// Every dispatch so far.
    pub(crate) dispatches: Arc<Mutex<Vec<Dispatch>>>,
    /// Cancelled: takes requests from then on and never answers.
    pub(crate) hangs: CancellationToken,
    /// Dispatches that were never answered.
    pub(crate) ignored: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Script {
    turns: Arc<Mutex<VecDeque<Result<String, Problem>>>>,
    dispatches: Arc<Mutex<Vec<Dispatch>>>,
    released: mpsc::Sender<Release>,
    /// Requests that the workers have room for, all together.
    room: Arc<Semaphore>,
    fleet: Arc<Fleet>,
}

impl Controller {
    pub(crate) async fn start(turns: impl IntoIterator<Item = Result<String, Problem>>) -> Self {
        Self::with_room(turns, Semaphore::MAX_PERMITS).await
    }

    /// One whose workers have room for so many requests at once, and that tells of all of them.
    pub(crate) async fn with_room(turns: impl IntoIterator<Item = Result<String, Problem>>, room: usize) -> Self {
        let turns: VecDeque<_> = turns.into_iter().collect();
        let (released, releases) = mpsc::channel(64);
        let dispatches = Arc::default();
        let (hangs, ignored) = (CancellationToken::new(), Arc::default());
        let script = Script {
            fleet: Arc::new(fleet(turns.iter().flatten())),
            turns: Arc::new(Mutex::new(turns)),
            dispatches: Arc::clone(&dispatches),
            released,
            room: Arc::new(Semaphore::new(room)),
        };
        let router = Router::new()
            .route("/dispatch", post(dispatch))
            .route("/release", post(release))
            .route("/renew", post(renew))
            .layer(middleware::from_fn_with_state((hangs.clone(), Arc::clone(&ignored)), answer_unless_it_hangs))
            .with_state(script);
        Self { address: serve(router).await, releases, dispatches, hangs, ignored }
    }

    /// The next release.
    pub(crate) async fn released(&mut self) -> Release {
        let release = tokio::time::timeout(PATIENCE, self.releases.recv()).await;
        release.expect("a release in time").expect("the controller runs")
    }
}

async fn answer_unless_it_hangs(
    State((hangs, ignored)): State<(CancellationToken, Arc<AtomicUsize>)>,
    request: Request,
    next: Next,
) -> Response {
    let is_dispatch = request.uri().path() == "/dispatch";
    match hangs.run_until_cancelled(next.run(request)).await {
        Some(response) => response,
        None => {
            ignored.fetch_add(usize::from(is_dispatch), Ordering::Relaxed);
            std::future::pending().await
        }
    }
}

/// A fleet of workers for `m`.
fn fleet<'a>(addresses: impl Iterator<Item = &'a String>) -> Fleet {
    let worker = |address: &String| WorkerStatus {
        id: WorkerId::new(address),
        address: address.clone(),
        transport: Transport::Http,
        source: Source::Registered,
        state: WorkerState::Ready,
        models: vec![ModelCard { name: "m".to_owned(), kind: None, context_length: None, capacity: None }],
        speed: 1.0,
        tickets: 0,
        reported: Vec::new(),
        lease_ms: None,
        incarnation: 1,
        version: String::new(),
    };
    Fleet {
        epoch: Epoch::new(),
        version: String::new(),
        uptime_ms: 1,
        policy: String::new(),
        waiting: 0,
        workers: addresses.map(worker).collect(),
        models: vec![ModelStatus { name: "m".to_owned(), kind: None, context_length: None, workers: 1 }],
    }
}

async fn dispatch(State(script): State<Script>, Json(dispatch): Json<Dispatch>) -> Result<Json<Grant>, Problem> {
    let wait = Duration::from_millis(dispatch.wait_ms);
    script.dispatches.lock().expect("no panic while holding it").push(dispatch);
    match tokio::time::timeout(wait, script.room.acquire()).await {
        Ok(room) => room.expect("it is never closed").forget(),
        Err(_) => return Err(Problem::new(Kind::Overloaded, "no room").with_retry_after_ms(1)),
    }
    let turn = script.turns.lock().expect("no panic while holding it").pop_front();
    let address = turn.unwrap_or_else(|| Err(Problem::new(Kind::NoWorker, "none is left").with_retry_after_ms(1)))?;
    let (ticket, worker) = (TicketId::new(), WorkerId::new(&address));
    Ok(Json(Grant { ticket, worker, address, transport: Transport::Http }))
}

async fn release(State(script): State<Script>, Json(releases): Json<Releases>) -> Json<Value> {
    for release in releases.releases {
        if script.room.available_permits() < Semaphore::MAX_PERMITS {
            script.room.add_permits(1);
        }
        script.released.send(release).await.expect("the test listens");
    }
    Json(json!({}))
}

async fn renew(State(script): State<Script>) -> Json<Fleet> {
    Json((*script.fleet).clone())
}

/// A gateway that runs as long as it is held.
pub(crate) struct Gateway {
    pub(crate) address: String,
    stop: DropGuard,
    running: JoinHandle<Result<(), muster_gateway::Error>>,
}

impl Gateway {
    pub(crate) async fn start(controller: &str, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { controller: controller.to_owned(), ..Config::default() };
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let stop = CancellationToken::new();
        let running = tokio::spawn(muster_gateway::run(config, listener, stop.clone()));
        Self { address, stop: stop.drop_guard(), running }
    }

    /// Asks it to stop; gives what to wait for.
    pub(crate) fn stop(self) -> JoinHandle<Result<(), muster_gateway::Error>> {
        drop(self.stop);
        self.running
    }

    /// Sends a chat; gives the response with its body unread.
    pub(crate) async fn chat(&self, stream: bool) -> reqwest::Response {
        let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }], "stream": stream });
        self.post("/v1/chat/completions", &body).await
    }

    /// Posts a body; gives the response with its body unread.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = reqwest::Client::new().post(format!("{}{path}", self.address)).json(body);
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
