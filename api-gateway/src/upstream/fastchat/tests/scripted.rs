//! A FastChat worker on a port of its own that answers by a script.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::stream::{self, StreamExt as _};
use muster_shared::client::{ClientError, Timeouts, http_client};
use muster_shared::fastchat::{Conversation, StringOrList};
use muster_shared::generate::{Event, GenerateRequest};
use muster_shared::secret::Secret;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::FastChatClient;
use super::template;

/// What the worker answers to the next call for text or vectors.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) chunks: Vec<Vec<u8>>,
    /// Whether the body ends after the chunks.
    pub(super) ends: bool,
}

impl Reply {
    /// Cut into chunks of `size` bytes.
    pub(super) fn cut(body: impl Into<Vec<u8>>, size: usize) -> Self {
        Self { status: 200, chunks: body.into().chunks(size).map(<[u8]>::to_vec).collect(), ends: true }
    }

    pub(super) fn frames(frames: &[Value], size: usize) -> Self {
        Self::cut(frames.iter().map(|frame| format!("{frame}\0")).collect::<String>(), size)
    }
}

/// A FastChat worker that answers as told, and tells what it was asked.
struct Scripted {
    template: Conversation,
    count: u32,
    context: u32,
    replies: Mutex<VecDeque<Reply>>,
    seen: Mutex<Vec<(String, Value)>>,
    /// Told whenever a body of text is dropped.
    dropped: mpsc::Sender<()>,
}

pub(super) struct Running {
    worker: Arc<Scripted>,
    pub(super) dropped: mpsc::Receiver<()>,
    pub(super) address: String,
    pub(super) client: FastChatClient,
}

impl Running {
    pub(super) async fn start(replies: Vec<Reply>) -> Self {
        let (sender, dropped) = mpsc::channel(16);
        let template = Conversation {
            stop_str: Some(StringOrList::One("###".to_owned())),
            stop_token_ids: Some(vec![2]),
            ..template(1)
        };
        let (replies, seen) = (Mutex::new(replies.into()), Mutex::default());
        let worker = Arc::new(Scripted { template, count: 5, context: 100, replies, seen, dropped: sender });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        let app = axum::Router::new().fallback(answer_call).with_state(Arc::clone(&worker));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let batch = NonZeroUsize::new(2).expect("2 is not 0");
        let client = {
            let http = http_client(Timeouts::default());
            FastChatClient::new(http.clone(), http, Some(Secret::new("key")), batch)
        };
        Self { worker, dropped, address, client }
    }

    pub(super) async fn events(
        &self,
        request: &GenerateRequest,
    ) -> Result<Vec<Result<Event, ClientError>>, ClientError> {
        Ok(self.client.generate(&self.address, request).await?.collect().await)
    }

    pub(super) fn bodies(&self, path: &str) -> Vec<Value> {
        let seen = self.worker.seen.lock().expect("no panic with the lock");
        seen.iter().filter(|(at, _)| at == path).map(|(_, body)| body.clone()).collect()
    }
}

async fn answer_call(State(worker): State<Arc<Scripted>>, request: Request) -> Response {
    assert_eq!(request.headers()["authorization"], "Bearer key");
    let path = request.uri().path().to_owned();
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.expect("a short body");
    let body = serde_json::from_slice(&body).expect("a body of JSON");
    worker.seen.lock().expect("no panic with the lock").push((path.clone(), body));
    let fixed = match path.as_str() {
        "/worker_get_conv_template" => json!({ "conv": worker.template }),
        "/count_token" => json!({ "count": worker.count, "error_code": 0 }),
        "/model_details" => json!({ "context_length": worker.context }),
        _ => return next_reply(&worker),
    };
    Response::new(Body::from(fixed.to_string()))
}

fn next_reply(worker: &Scripted) -> Response {
    let reply = worker.replies.lock().expect("no panic with the lock").pop_front().expect("a reply in the script");
    let guard = TellWhenDropped(worker.dropped.clone());
    let end = if reply.ends { stream::empty().boxed() } else { stream::pending().boxed() };
    let chunks = stream::iter(reply.chunks).chain(end).then(move |chunk| {
        let _ = &guard;
        async move {
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(Bytes::from(chunk))
        }
    });
    Response::builder().status(reply.status).body(Body::from_stream(chunks)).expect("a valid response")
}

struct TellWhenDropped(mpsc::Sender<()>);

impl Drop for TellWhenDropped {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}
