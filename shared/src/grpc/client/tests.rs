//! The client against a scripted worker on a real socket.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::super::problem::to_status;
use super::super::proto::worker_server::{Worker, WorkerServer};
use super::*;
use crate::generate::{Prompt, Usage};
use crate::problem::{Kind, Problem};
use crate::text::{Aggregation, ClassifyInput};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// A short silence, for tests of silence.
const SILENCE: Duration = Duration::from_millis(300);
const DONE: Event = Event::Done { usage: Usage { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0 } };

type Events = Pin<Box<dyn Stream<Item = Result<proto::Event, Status>> + Send>>;

/// A worker that does what the name of the model says, and counts the streams that it holds.
#[derive(Default, Clone)]
struct Scripted {
    streams: Arc<AtomicUsize>,
}

/// Counts as a stream while it lives.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Worker for Scripted {
    type GenerateStream = Events;

    async fn generate(&self, request: Request<proto::GenerateRequest>) -> Result<Response<Events>, Status> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        let held = Held(Arc::clone(&self.streams));
        let events = script(&request.into_inner().model)?;
        let events = events.map(move |event| {
            let _ = &held;
            event
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn embed(&self, request: Request<proto::EmbedRequest>) -> Result<Response<proto::EmbedResponse>, Status> {
        let numbers = request.into_inner().dimensions.unwrap_or(1) as usize;
        let vectors = vec![proto::Vector { numbers: vec![0.5; numbers] }];
        Ok(Response::new(proto::EmbedResponse { vectors, sparse: vec![], prompt_tokens: 1 }))
    }

    async fn rerank(&self, request: Request<proto::RerankRequest>) -> Result<Response<proto::RerankResponse>, Status> {
        let scores = request.into_inner().documents.iter().map(|text| text.len() as f32).collect();
        Ok(Response::new(proto::RerankResponse { scores, prompt_tokens: 1 }))
    }

    async fn classify(
        &self,
        request: Request<proto::ClassifyRequest>,
    ) -> Result<Response<proto::ClassifyResponse>, Status> {
        let scores = request.into_inner().inputs.iter().map(|_| proto::ClassScores { numbers: vec![0.5] }).collect();
        let labels = vec!["a".to_owned()];
        Ok(Response::new(proto::ClassifyResponse { labels, scores, multi_label: true, prompt_tokens: 2 }))
    }

    async fn entities(
        &self,
        request: Request<proto::EntitiesRequest>,
    ) -> Result<Response<proto::EntitiesResponse>, Status> {
        let texts = request.into_inner().inputs.iter().map(|_| proto::TextEntities::default()).collect();
        Ok(Response::new(proto::EntitiesResponse { texts, prompt_tokens: 3 }))
    }

    async fn tokenize(
        &self,
        request: Request<proto::TokenizeRequest>,
    ) -> Result<Response<proto::TokenizeResponse>, Status> {
        let pieces = vec![request.into_inner().model];
        Ok(Response::new(proto::TokenizeResponse { tokens: vec![7], pieces, max_tokens: 4 }))
    }

    async fn detokenize(
        &self,
        request: Request<proto::DetokenizeRequest>,
    ) -> Result<Response<proto::DetokenizeResponse>, Status> {
        let text = format!("{:?}", request.into_inner().tokens);
        Ok(Response::new(proto::DetokenizeResponse { text }))
    }

    async fn models(&self, _: Request<proto::ModelsRequest>) -> Result<Response<proto::ModelsResponse>, Status> {
        Err(Status::unimplemented("not of interest here"))
    }
}

fn script(model: &str) -> Result<Events, Status> {
    let done = || stream::iter([Ok(DONE.into())]);
    let pause = |time| tokio::time::sleep(time);
    Ok(match model {
        "done" => done().boxed(),
        "silent" => stream::pending().boxed(),
        "slow" => {
            let signs = stream::iter(0..12).then(move |_| pause(SILENCE / 4)).map(|()| Ok(proto::Event::alive()));
            signs.chain(done()).boxed()
        }
        "short" => stream::iter([Ok(text("a"))]).boxed(),
        "broken" => stream::iter([Ok(text("a")), Err(to_status(Problem::new(Kind::Bug, "it broke")))]).boxed(),
        "big" => stream::iter([Ok(text(&"a".repeat(EVENT_LIMIT)))]).boxed(),
        "endless" => stream::repeat_with(|| Ok(text(&"a".repeat(16 << 10)))).boxed(),
        "empty" => stream::iter([Ok(proto::Event { event: None })]).boxed(),
        "full" => return Err(to_status(Problem::new(Kind::Overloaded, "full").with_retry_after_ms(7))),
        "foreign" => return Err(Status::resource_exhausted("foreign words")),
        _ => return Err(Status::unimplemented("no such call")),
    })
}

fn text(text: &str) -> proto::Event {
    Event::Delta { choice: 0, text: text.to_owned(), tokens: vec![1], logprobs: vec![] }.into()
}

async fn serve(address: SocketAddr) -> (Scripted, SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let worker = Scripted::default();
    let service = WorkerServer::new(worker.clone());
    let task = tokio::spawn(async move {
        let served = Server::builder().serve_with_incoming(service, TcpIncoming::from(listener)).await;
        served.expect("it serves");
    });
    (worker, address, task)
}

async fn scripted() -> (Scripted, GrpcWorkerClient) {
    let (worker, address, _) = serve(([127, 0, 0, 1], 0).into()).await;
    (worker, client(address, PATIENCE))
}

fn client(address: SocketAddr, read: Duration) -> GrpcWorkerClient {
    GrpcWorkerClient::new(GrpcPool::new(Duration::from_secs(2)), format!("http://{address}/"), None, read)
}

/// Every event of a request, with the error it ends with or is refused with.
async fn ask(client: &GrpcWorkerClient, model: &str) -> (Vec<Event>, Option<ClientError>) {
    let request = GenerateRequest::new(model, Prompt::Text("hi".to_owned()));
    let mut events = match client.generate(&request).await {
        Ok(events) => Box::pin(events),
        Err(error) => return (vec![], Some(error)),
    };
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => seen.push(event),
            Err(error) => {
                assert!(events.next().await.is_none(), "nothing follows an error");
                return (seen, Some(error));
            }
        }
    }
    (seen, None)
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "it never happens");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn how_a_call_ends_is_told_apart() {
    let (_, client) = scripted().await;
    assert!(matches!(ask(&client, "done").await, (events, None) if events == [DONE]));
    let (events, error) = ask(&client, "short").await;
    assert!(events.len() == 1 && matches!(error, Some(ClientError::Broken { source: None, .. })), "{error:?}");
    let (events, error) = ask(&client, "broken").await;
    assert!(events.len() == 1, "{events:?}");
    assert!(
        matches!(error, Some(ClientError::Refused { problem, .. }) if problem == Problem::new(Kind::Bug, "it broke"))
    );
    let full = Problem::new(Kind::Overloaded, "full").with_retry_after_ms(7);
    let (_, error) = ask(&client, "full").await;
    assert!(matches!(error, Some(ClientError::Refused { problem, .. }) if problem == full));
    let foreign = Problem::new(Kind::Overloaded, "foreign words");
    let (_, error) = ask(&client, "foreign").await;
    assert!(matches!(error, Some(ClientError::Refused { problem, .. }) if problem == foreign));
    for (model, part) in [("unknown", "no such call"), ("big", "length too large"), ("empty", "`event` is missing")] {
        let (_, error) = ask(&client, model).await;
        let Some(ClientError::Unexpected { detail, .. }) = error else { panic!("{model}: {error:?}") };
        assert!(detail.contains(part), "{model}: {detail}");
    }
}

#[tokio::test]
async fn silence_is_given_up_and_signs_of_life_are_not() {
    let (worker, address, _) = serve(([127, 0, 0, 1], 0).into()).await;
    let client = client(address, SILENCE);
    let (events, error) = ask(&client, "silent").await;
    assert!(events.is_empty() && matches!(error, Some(ClientError::Broken { source: Some(_), .. })), "{error:?}");
    assert!(matches!(ask(&client, "slow").await, (events, None) if events == [DONE]), "longer than any silence");
    eventually(|| worker.streams.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn dropping_the_stream_cancels_at_the_worker() {
    let (worker, client) = scripted().await;
    let request = GenerateRequest::new("endless", Prompt::Text("hi".to_owned()));
    let mut events = Box::pin(client.generate(&request).await.expect("it begins"));
    events.next().await.expect("an event").expect("no error");
    assert_eq!(worker.streams.load(Ordering::SeqCst), 1);
    drop(events);
    eventually(|| worker.streams.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn readers_that_stop_reading_hold_up_nobody_else() {
    let (worker, client) = scripted().await;
    let request = GenerateRequest::new("endless", Prompt::Text("hi".to_owned()));
    let stuck = join_all((0..12).map(|_| client.generate(&request))).await;
    eventually(|| worker.streams.load(Ordering::SeqCst) == 12).await;
    for _ in 0..20 {
        assert!(matches!(ask(&client, "done").await, (events, None) if events == [DONE]));
    }
    drop(stuck);
}

#[test]
fn a_worker_that_is_gone_is_unreachable_at_once_and_is_used_again_when_it_is_back() {
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let here = runtime();
    let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
    let client = here.block_on(async {
        let free = TcpListener::bind(address).await.expect("a port");
        address = free.local_addr().expect("an address");
        client(address, PATIENCE)
    });
    for _ in 0..3 {
        // A connection may not have heard of its end yet; whoever tries it hears so, and it is not tried again.
        let _ = here.block_on(ask(&client, "done"));
        let begin = Instant::now();
        for error in here.block_on(join_all((0..8).map(|_| ask(&client, "done")))) {
            assert!(matches!(error, (_, Some(ClientError::Unreachable { .. }))), "{error:?}");
        }
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        // A runtime of its own: dropped, it ends the worker with all its connections, as a crash would.
        let there = runtime();
        there.block_on(serve(address));
        assert!(matches!(here.block_on(ask(&client, "done")), (events, None) if events == [DONE]));
        let request = GenerateRequest::new("silent", Prompt::Text("hi".to_owned()));
        let mut running = here.block_on(client.generate(&request)).map(Box::pin).expect("it begins");
        there.shutdown_background();
        let error = here.block_on(running.next()).expect("a word").expect_err("no event");
        assert!(matches!(error, ClientError::Broken { source: Some(_), .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_on_a_connection_that_lives_is_told_at_once() {
    const CALLS: u32 = 20;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            // hyper resets the stream of a call whose service fails.
            let executor = hyper_util::rt::TokioExecutor::new();
            let builder = hyper::server::conn::http2::Builder::new(executor);
            let fail = hyper::service::service_fn(move |request| {
                let _: &hyper::Request<hyper::body::Incoming> = &request;
                std::future::ready(Err::<hyper::Response<tonic::body::Body>, _>(std::io::Error::other("no")))
            });
            tokio::spawn(builder.serve_connection(hyper_util::rt::TokioIo::new(stream), fail));
        }
    });
    let client = client(address, PATIENCE);
    let begin = Instant::now();
    for _ in 0..CALLS {
        let (_, error) = ask(&client, "done").await;
        assert!(matches!(error, Some(ClientError::Broken { source: Some(_), .. })), "{error:?}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "it lives");
    assert!(begin.elapsed() < Duration::from_millis(100) * CALLS, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn all_who_wait_for_a_connection_share_its_end() {
    // An address that nothing answers at; where even that is refused, the test says less.
    let pool = GrpcPool::new(SILENCE);
    let client = GrpcWorkerClient::new(pool, "http://192.0.2.1:9", None, PATIENCE);
    let begin = Instant::now();
    for error in join_all((0..20).map(|_| ask(&client, "done"))).await {
        assert!(matches!(error, (_, Some(ClientError::Unreachable { .. }))), "{error:?}");
    }
    assert!(begin.elapsed() < SILENCE * 5, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_address_that_cannot_be_is_unreachable() {
    for address in ["https://127.0.0.1:1", "127.0.0.1", "http://", "no address"] {
        let client = GrpcWorkerClient::new(GrpcPool::new(SILENCE), address, None, PATIENCE);
        let (_, error) = ask(&client, "done").await;
        assert!(matches!(error, Some(ClientError::Unreachable { .. })), "{address}: {error:?}");
    }
}

#[tokio::test]
async fn every_call_reaches_its_own_method() {
    let (_, client) = scripted().await;
    let (id, model) = (String::new, || "m".to_owned());
    let rerank = RerankRequest {
        request_id: id(),
        model: model(),
        query: "q".to_owned(),
        documents: vec!["a".to_owned(), "bcd".to_owned()],
        raw_scores: false,
        truncate: false,
        timeout_ms: None,
    };
    assert_eq!(client.rerank(&rerank).await.expect("scores").scores, [1.0, 3.0]);
    let inputs = vec![ClassifyInput::Text("a".to_owned()); 2];
    let classify = ClassifyRequest {
        request_id: id(),
        model: model(),
        inputs,
        raw_scores: false,
        truncate: false,
        timeout_ms: None,
    };
    assert_eq!(client.classify(&classify).await.expect("classes").scores, [[0.5], [0.5]]);
    let (inputs, aggregation) = (vec!["a".to_owned()], Aggregation::Max);
    let entities =
        EntitiesRequest { request_id: id(), model: model(), inputs, aggregation, truncate: false, timeout_ms: None };
    assert_eq!(client.entities(&entities).await.expect("entities").entities, [[]]);
    let prompt = Prompt::Text("a".to_owned());
    let tokenize = TokenizeRequest { model: model(), prompt, add_special_tokens: true };
    assert_eq!(client.tokenize(&tokenize).await.expect("tokens").pieces, ["m"]);
    let detokenize = DetokenizeRequest { model: model(), tokens: vec![1, 2] };
    assert_eq!(client.detokenize(&detokenize).await.expect("a text").text, "[1, 2]");
}

#[tokio::test]
async fn embeddings_may_be_longer_than_events() {
    let (_, client) = scripted().await;
    let request = EmbedRequest {
        model: "m".to_owned(),
        inputs: vec![],
        dimensions: Some(EVENT_LIMIT as u32),
        ..EmbedRequest::default()
    };
    let response = client.embed(&request).await.expect("vectors");
    assert_eq!(response.vectors[0].0.len(), EVENT_LIMIT);
}
