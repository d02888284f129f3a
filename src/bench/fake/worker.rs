//! The worker: models that have nothing to say, and which of them is asked.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use muster_shared::control::{ModelCard, ModelLoad, Registration};
use muster_shared::fastchat::WorkerStatus;
use muster_shared::id::WorkerId;
use muster_shared::problem::{Kind, Problem};
use serde_json::json;

use super::asked::{Asked, Length};
use super::fastchat::{self, FastChat};
use super::native::{self, Native};
use super::openai::{self, OpenAi};
use super::route::Route;
use super::wire::Reply;
use crate::cli::{FakeTransport, FakeWorkerArgs};

/// Everything that answers.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) transport: FakeTransport,
    models: Vec<Model>,
    /// Tokens of an answer and the time between two, where the prompt does not say.
    usual: (u32, Duration),
    speed: f64,
    /// Requests to models so far.
    requests: AtomicU64,
}

#[derive(Debug)]
struct Model {
    name: String,
    voice: Voice,
    running: AtomicU32,
}

/// In whose words a model answers. A transport that is no HTTP/1.1 needs a server of its own beside `connection`.
#[derive(Debug)]
enum Voice {
    OpenAi(OpenAi),
    Native(Native),
    FastChat(FastChat),
}

/// A request that runs; it counts until it is dropped.
#[derive(Debug)]
pub(super) struct Running<'a>(&'a AtomicU32);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    pub(super) fn new(args: &FakeWorkerArgs) -> Self {
        let voice = |name: &str| match args.transport {
            FakeTransport::Openai => Voice::OpenAi(OpenAi::new(name)),
            FakeTransport::Http => Voice::Native(Native::new()),
            FakeTransport::Fastchat => Voice::FastChat(FastChat::new()),
        };
        let model = |name: &String| Model { voice: voice(name), name: name.clone(), running: AtomicU32::new(0) };
        Self {
            transport: args.transport,
            models: args.model.iter().map(model).collect(),
            usual: (args.tokens, args.token_time.0),
            speed: args.speed,
            requests: AtomicU64::new(0),
        }
    }

    /// What a controller is told.
    pub(super) fn registration(&self, args: &FakeWorkerArgs, address: String) -> Registration {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Without a kind: every model answers whatever it is asked. Without a capacity: it is never full.
        let card = |name: &str| ModelCard::bare(name.to_owned());
        Registration {
            id: WorkerId::new(&address),
            address,
            incarnation: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
            transport: args.transport.into(),
            models: self.names().map(card).collect(),
            speed: self.speed,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: None,
        }
    }

    /// The requests that run, by model.
    pub(super) fn load(&self) -> Vec<ModelLoad> {
        let load = |model: &Model| ModelLoad {
            model: model.name.clone(),
            running: model.running.load(Ordering::Relaxed),
            waiting: 0,
        };
        self.models.iter().map(load).filter(|load| load.running > 0).collect()
    }

    /// What FastChat's peers are told.
    pub(super) fn status(&self) -> WorkerStatus {
        WorkerStatus {
            model_names: self.names().map(str::to_owned).collect(),
            speed: self.speed,
            queue_length: self.load().iter().map(|load| u64::from(load.running)).sum(),
        }
    }

    /// Answers a request; where a model does, it counts as running.
    pub(super) fn answer(&self, route: Route, body: &[u8]) -> (Reply<'_>, Option<Running<'_>>) {
        match route {
            Route::Health => (Reply::json(json!({ "status": "alive", "requests": self.requests() })), None),
            Route::Models => (self.list(), None),
            Route::Unknown => {
                (self.refusal(Problem::new(Kind::NotFound, "a fake worker has nothing at this path")), None)
            }
            _ => match self.ask(route, body) {
                Ok((reply, running)) => (reply, Some(running)),
                Err(problem) => (self.refusal(problem), None),
            },
        }
    }

    fn ask(&self, route: Route, body: &[u8]) -> Result<(Reply<'_>, Running<'_>), Problem> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let asked: Asked<'_> = serde_json::from_slice(body)
            .map_err(|error| Problem::new(Kind::Invalid, format!("the body is not what this path expects: {error}")))?;
        if asked.answers() != 1 {
            return Err(Problem::new(Kind::Invalid, "a fake worker gives one answer to a request"));
        }
        let model = self.model(&asked.model)?;
        let length = Length::of(&asked, body, self.usual);
        model.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(&model.running);
        let reply = match (&model.voice, route) {
            (Voice::OpenAi(voice), Route::Chat) => voice.chat(&asked, length),
            (Voice::OpenAi(voice), Route::Completion) => voice.completion(&asked, length),
            (Voice::OpenAi(voice), _) => voice.embeddings(&asked, length),
            (Voice::Native(voice), Route::Generate) => voice.generate(length),
            (Voice::Native(voice), _) => voice.embed(&asked, length),
            (Voice::FastChat(_), Route::Generate) => fastchat::stream(length),
            (Voice::FastChat(_), Route::GenerateWhole) => fastchat::whole(length),
            (Voice::FastChat(_), Route::CountToken) => fastchat::count(length),
            (Voice::FastChat(_), Route::ModelDetails) => fastchat::details(),
            (Voice::FastChat(_), Route::Template) => fastchat::template(&model.name),
            (Voice::FastChat(voice), _) => voice.embeddings(&asked, length),
        };
        Ok((reply, running))
    }

    /// By name; the first one where none is given, as FastChat's peers may.
    fn model(&self, name: &str) -> Result<&Model, Problem> {
        let found = self.models.iter().find(|model| name.is_empty() || model.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.names().collect();
            Problem::new(Kind::UnknownModel, format!("the model `{name}` is not here; there is {}", names.join(", ")))
        })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.models.iter().map(|model| model.name.as_str())
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn list(&self) -> Reply<'static> {
        match self.transport {
            FakeTransport::Openai => openai::models(self.names()),
            FakeTransport::Http => Reply::json(self.names().map(|name| json!({ "name": name })).collect::<Vec<_>>()),
            FakeTransport::Fastchat => Reply::json(self.status()),
        }
    }

    fn refusal(&self, problem: Problem) -> Reply<'static> {
        match self.transport {
            FakeTransport::Openai => openai::refusal(problem.kind.status(), &problem.message),
            FakeTransport::Http => native::refusal(&problem),
            FakeTransport::Fastchat => fastchat::refusal(problem),
        }
    }
}
