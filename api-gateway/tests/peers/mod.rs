//! Scripted peers: a controller that grants by turns, and workers that fail on purpose. Real sockets on free ports.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod raw;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{StreamExt as _, stream};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use muster_gateway::Config;
use muster_shared::control::{
    Dispatch, Fleet, Grant, Held, ModelCard, ModelKind, ModelStatus, Outcome, Release, Source, WorkerState,
    WorkerStatus,
};
use muster_shared::embed::{EmbedResponse, Vector};
use muster_shared::generate::{Event, FinishReason, Usage};
use muster_shared::id::{Epoch, TicketId, WorkerId};
use muster_shared::link::{Ask, Link, PROTOCOL, Tell};
use muster_shared::problem::{Kind, Problem};
use muster_shared::sse::json_event;
use muster_shared::transport::Transport;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
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
        Json(EmbedResponse { vectors: vec![Vector(vec![0.5])], sparse: vec![], prompt_tokens: 1 })
    };
    serve(Router::new().route("/embed", post(answer))).await
}

/// A worker as a controller names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Named {
    pub(crate) address: String,
    pub(crate) transport: Transport,
}

impl Named {
    /// The worker's address is its name as well.
    pub(crate) fn id(&self) -> WorkerId {
        WorkerId::new(&self.address)
    }
}

impl From<String> for Named {
    fn from(address: String) -> Self {
        Self { address, transport: Transport::Http }
    }
}

/// A controller that grants the given workers in turn, each under its address as its id.
pub(crate) struct Controller {
    pub(crate) address: String,
    /// Every release, as it comes.
    pub(crate) releases: mpsc::Receiver<Release>,
    /// Every dispatch so far.
    pub(crate) dispatches: Arc<Mutex<Vec<Dispatch>>>,
    /// What each link says first: the requests that the gateway has in flight.
    pub(crate) hellos: mpsc::Receiver<Vec<Held>>,
    /// Requests that it is told of later, by those who have any to tell of.
    pub(crate) claims: mpsc::Receiver<Vec<Held>>,
    /// Cancelled: takes requests from then on and never answers.
    pub(crate) hangs: CancellationToken,
    /// Dispatches that were never answered.
    pub(crate) ignored: Arc<AtomicUsize>,
    /// Dispatches that were given up before they were answered.
    pub(crate) abandoned: Arc<AtomicUsize>,
    /// Whether it knows no worker of the requests that it is told of.
    pub(crate) forgets: Arc<AtomicBool>,
    presence: watch::Sender<Presence>,
    fleet: Arc<Mutex<Fleet>>,
    models: Arc<Mutex<VecDeque<String>>>,
}

/// Whether a controller takes links, and how often it has ended them all.
#[derive(Debug, Clone, Copy, Default)]
struct Presence {
    away: bool,
    departures: u32,
}

#[derive(Clone)]
struct Script {
    turns: Arc<Mutex<VecDeque<Result<Named, Problem>>>>,
    dispatches: Arc<Mutex<Vec<Dispatch>>>,
    released: mpsc::Sender<Release>,
    greeted: mpsc::Sender<Vec<Held>>,
    claimed: mpsc::Sender<Vec<Held>>,
    hangs: CancellationToken,
    ignored: Arc<AtomicUsize>,
    abandoned: Arc<AtomicUsize>,
    forgets: Arc<AtomicBool>,
    presence: watch::Receiver<Presence>,
    /// Requests that the workers have room for, all together.
    room: Arc<Semaphore>,
    fleet: Arc<Mutex<Fleet>>,
    /// The models that the next grants name.
    models: Arc<Mutex<VecDeque<String>>>,
}

impl Controller {
    pub(crate) async fn start<N: Into<Named>>(turns: impl IntoIterator<Item = Result<N, Problem>>) -> Self {
        Self::with_room(turns, Semaphore::MAX_PERMITS).await
    }

    /// One whose workers have room for so many requests at once, and that tells of all of them.
    pub(crate) async fn with_room<N: Into<Named>>(
        turns: impl IntoIterator<Item = Result<N, Problem>>,
        room: usize,
    ) -> Self {
        Self::begin(turns, room, None).await
    }

    /// One whose workers serve a model of that kind.
    pub(crate) async fn of_kind<N: Into<Named>>(
        turns: impl IntoIterator<Item = Result<N, Problem>>,
        kind: ModelKind,
    ) -> Self {
        Self::begin(turns, Semaphore::MAX_PERMITS, Some(kind)).await
    }

    async fn begin<N: Into<Named>>(
        turns: impl IntoIterator<Item = Result<N, Problem>>,
        room: usize,
        kind: Option<ModelKind>,
    ) -> Self {
        let turns: VecDeque<Result<Named, _>> = turns.into_iter().map(|turn| turn.map(Into::into)).collect();
        let (released, releases) = mpsc::channel(1024);
        let (greeted, hellos) = mpsc::channel(64);
        let (claimed, claims) = mpsc::channel(64);
        let (presence, present) = watch::channel(Presence::default());
        let script = Script {
            fleet: Arc::new(Mutex::new(fleet(turns.iter().flatten(), kind))),
            turns: Arc::new(Mutex::new(turns)),
            dispatches: Arc::default(),
            released,
            greeted,
            claimed,
            hangs: CancellationToken::new(),
            ignored: Arc::default(),
            abandoned: Arc::default(),
            forgets: Arc::default(),
            presence: present,
            room: Arc::new(Semaphore::new(room)),
            models: Arc::default(),
        };
        let router = Router::new().route("/link", get(open)).with_state(script.clone());
        let address = serve(router).await;
        let Script { dispatches, hangs, ignored, abandoned, forgets, fleet, models, .. } = script;
        Self {
            address,
            releases,
            dispatches,
            hellos,
            claims,
            hangs,
            ignored,
            abandoned,
            forgets,
            presence,
            fleet,
            models,
        }
    }

    /// The next grants name these models, one each, in place of the one that was asked for.
    pub(crate) fn grant_models(&self, models: &[&str]) {
        let models = models.iter().map(|model| model.to_string());
        self.models.lock().expect("no panic while holding it").extend(models);
    }

    /// Its workers serve a model of another name from now on.
    pub(crate) fn rename(&self, model: &str) {
        let mut fleet = self.fleet.lock().expect("no panic while holding it");
        fleet.models.iter_mut().for_each(|status| status.name = model.to_owned());
        fleet.workers.iter_mut().flat_map(|worker| &mut worker.models).for_each(|card| card.name = model.to_owned());
    }

    /// Ends every link, and takes none until [`Controller::come_back`].
    pub(crate) fn go_away(&self) {
        self.presence.send_modify(|presence| {
            presence.away = true;
            presence.departures += 1;
        });
    }

    /// Takes links again.
    pub(crate) fn come_back(&self) {
        self.presence.send_modify(|presence| presence.away = false);
    }

    /// The next release.
    pub(crate) async fn released(&mut self) -> Release {
        in_time(self.releases.recv()).await.expect("the controller runs")
    }

    /// The outcomes of so many releases, in their order.
    pub(crate) async fn outcomes(&mut self, count: usize) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for _ in 0..count {
            outcomes.push(self.released().await.outcome);
        }
        outcomes
    }

    /// The requests in flight that the next link begins with.
    pub(crate) async fn greeted(&mut self) -> Vec<Held> {
        in_time(self.hellos.recv()).await.expect("the controller runs")
    }

    /// How many dispatches there were.
    pub(crate) fn asked(&self) -> usize {
        self.dispatches.lock().expect("no panic while holding it").len()
    }

    /// The nth dispatch, which there was.
    pub(crate) fn dispatch(&self, nth: usize) -> Dispatch {
        self.dispatches.lock().expect("no panic while holding it")[nth].clone()
    }
}

/// The value of a header; empty where there is none.
pub(crate) fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().expect("text"))
}

/// Waits for an event, but not for ever.
pub(crate) async fn in_time<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.expect("it happens in time")
}

/// A fleet of workers for `m`.
fn fleet<'a>(workers: impl Iterator<Item = &'a Named>, kind: Option<ModelKind>) -> Fleet {
    let worker = |worker: &Named| WorkerStatus {
        id: worker.id(),
        address: worker.address.clone(),
        transport: worker.transport,
        source: Source::Registered,
        state: WorkerState::Ready,
        models: vec![ModelCard { kind, ..ModelCard::bare("m") }],
        speed: 1.0,
        tickets: 0,
        reported: Vec::new(),
        resources: None,
        paused: None,
        tokens_per_second: None,
        ttft_ms: None,
        response_ms: None,
        lease_ms: None,
        incarnation: 1,
        version: String::new(),
    };
    let workers: BTreeSet<&Named> = workers.collect();
    Fleet {
        epoch: Epoch::new(),
        version: String::new(),
        uptime_ms: 1,
        policy: String::new(),
        waiting: 0,
        workers: workers.into_iter().map(worker).collect(),
        models: vec![ModelStatus { kind, ..ModelStatus::bare("m", 1) }],
    }
}

async fn open(State(script): State<Script>, mut request: Request) -> Response {
    let Presence { away, departures } = *script.presence.borrow();
    if away {
        return Problem::new(Kind::NoWorker, "the controller is away").into_response();
    }
    if script.hangs.is_cancelled() {
        std::future::pending::<()>().await;
    }
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().expect("the request wants an upgrade");
    tokio::spawn(async move {
        let stream = TokioIo::new(upgrade.await.expect("the connection lives"));
        let mut presence = script.presence.clone();
        let mut session = Session::new(script, Link::new(stream));
        tokio::select! {
            _ = session.run() => {} // the gateway hung up
            Ok(_) = presence.wait_for(|presence| presence.departures != departures) => {}
        }
    });
    let head = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let head = head.header("connection", "upgrade").header("upgrade", PROTOCOL);
    head.body(Body::empty()).expect("a response")
}

/// One link.
struct Session<S> {
    script: Script,
    link: Link<S>,
    /// Those who wait for room, by what gives up their place.
    waiting: HashMap<u32, CancellationToken>,
    sender: mpsc::Sender<Tell>,
    answers: mpsc::Receiver<Tell>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    fn new(script: Script, link: Link<S>) -> Self {
        let (sender, answers) = mpsc::channel(64);
        Self { script, link, waiting: HashMap::new(), sender, answers }
    }

    async fn run(&mut self) -> io::Result<()> {
        loop {
            tokio::select! {
                received = self.link.exchange() => {
                    received?;
                    while let Some(ask) = self.link.take()? {
                        self.take(ask).await;
                    }
                }
                Some(tell) = self.answers.recv() => self.link.queue(&tell),
            }
        }
    }

    async fn take(&mut self, ask: Ask) {
        let is_dispatch = matches!(ask, Ask::Dispatch { .. });
        if self.script.hangs.is_cancelled() {
            self.script.ignored.fetch_add(usize::from(is_dispatch), Ordering::Relaxed);
            return;
        }
        match ask {
            Ask::Hello { held, .. } => {
                let _ = self.script.greeted.try_send(held.clone()); // few tests listen
                self.tell_fleet(&held);
            }
            Ask::Sync { claims } => {
                self.tell_fleet(&claims);
                if !claims.is_empty() {
                    let _ = self.script.claimed.try_send(claims);
                }
            }
            Ask::Dispatch { id, dispatch } => self.dispatch(id, dispatch),
            Ask::Abandon { id } => {
                if let Some(waits) = self.waiting.remove(&id) {
                    waits.cancel();
                    self.script.abandoned.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ask::Release(release) => {
                if self.script.room.available_permits() < Semaphore::MAX_PERMITS {
                    self.script.room.add_permits(1);
                }
                let _ = self.script.released.send(release).await; // few tests listen
            }
        }
    }

    fn tell_fleet(&mut self, told: &[Held]) {
        let told = told.iter().filter(|_| self.script.forgets.load(Ordering::Relaxed));
        let unknown = told.map(|held| held.ticket).collect();
        self.link.queue(&Tell::Fleet {
            fleet: Box::new(self.script.fleet.lock().expect("no panic while holding it").clone()),
            unknown,
        });
    }

    fn dispatch(&mut self, id: u32, dispatch: Dispatch) {
        let wait = Duration::from_millis(dispatch.wait_ms);
        self.script.dispatches.lock().expect("no panic while holding it").push(dispatch);
        if let Ok(room) = self.script.room.try_acquire() {
            room.forget();
            return self.link.queue(&self.script.turn(id));
        }
        let abandoned = CancellationToken::new();
        self.waiting.insert(id, abandoned.clone());
        let (script, sender) = (self.script.clone(), self.sender.clone());
        tokio::spawn(abandoned.run_until_cancelled_owned(async move {
            let tell = match tokio::time::timeout(wait, script.room.acquire()).await {
                Ok(room) => {
                    room.expect("it is never closed").forget();
                    script.turn(id)
                }
                Err(_) => {
                    Tell::Refusal { id, problem: Problem::new(Kind::Overloaded, "no room").with_retry_after_ms(1) }
                }
            };
            let _ = sender.send(tell).await; // the link may have gone
        }));
    }
}

impl Script {
    /// The next turn, as the answer to that dispatch.
    fn turn(&self, id: u32) -> Tell {
        let turn = self.turns.lock().expect("no panic while holding it").pop_front();
        let turn = turn.unwrap_or_else(|| Err(Problem::new(Kind::NoWorker, "none is left").with_retry_after_ms(1)));
        match turn {
            Ok(worker) => {
                let ticket = TicketId::new();
                let (name, transport) = (worker.id(), worker.transport);
                let model = self.models.lock().expect("no panic while holding it").pop_front();
                let grant = Grant { ticket, worker: name, address: worker.address, transport, model };
                Tell::Grant { id, grant }
            }
            Err(problem) => Tell::Refusal { id, problem },
        }
    }
}

/// A gateway that runs as long as it is held.
pub(crate) struct Gateway {
    pub(crate) address: String,
    stop: DropGuard,
    running: JoinHandle<Result<(), muster_gateway::Error>>,
}

impl Gateway {
    /// One that is linked to a controller.
    pub(crate) async fn start(controller: &str, change: impl FnOnce(&mut Config)) -> Self {
        let gateway = Self::start_alone(controller, change).await;
        let ready = format!("{}/ready", gateway.address);
        in_time(async { while reqwest::get(&ready).await.expect("an answer").status() != 200 {} }).await;
        gateway
    }

    /// One whose controller may not be there.
    pub(crate) async fn start_alone(controller: &str, change: impl FnOnce(&mut Config)) -> Self {
        muster_shared::tls::provider(); // the clients of the tests want one
        // One thread, so that what one request has learnt holds for the next.
        let threads = NonZeroUsize::MIN;
        let mut config = Config { controller: controller.to_owned(), threads, ..Config::default() };
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
