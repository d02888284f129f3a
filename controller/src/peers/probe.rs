//! Asks a peer whether it lives, and what it has to do. An error says in words why it does not count as alive.

use std::collections::HashSet;
use std::time::Duration;

use muster_shared::control::{Health, ModelCard, ModelKind, Report};
use muster_shared::grpc::{GrpcPool, GrpcWorkerClient};
use muster_shared::problem::{Problem, chain};
use muster_shared::transport::Transport;
use reqwest::header::{CONNECTION, SERVER};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::Peer;
use crate::outbound::{Outbound, whole};
use crate::registration::{self, MOST_MODELS};
use crate::registry::{Answer, Load, clamp};

/// Time in which a peer must have answered.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer of a stranger that is read, in bytes: it is parsed where all requests are dispatched.
const LIMIT: usize = 1 << 20;
/// Longest report of one of our workers, in bytes: it may tell as many models as there may be, and the load of each.
const REPORT_LIMIT: usize = 4 << 20;
/// Most characters of a reason: it is logged, and told to all who look at the fleet.
const REASON: usize = 300;

/// Probes a peer once.
///
/// # Errors
/// Why it does not count as alive.
pub(crate) async fn probe(outbound: &Outbound, peer: &Peer) -> Result<Answer, String> {
    let answer = async {
        match peer.transport {
            Transport::Http => ask_muster(outbound, peer).await,
            Transport::FastChat => ask_fastchat(outbound, peer).await,
            Transport::OpenAi => ask_openai(outbound, peer).await,
            Transport::Grpc => ask_grpc(outbound, peer).await,
        }
    };
    let late = || format!("no answer of {} within {} s", peer.address, PATIENCE.as_secs());
    let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(late()));
    answer.map_err(|reason| shortened(&reason))
}

/// The beginning of a reason as one line: it may hold words of the peer, which are as long and as wild as it likes.
fn shortened(reason: &str) -> String {
    let plain = |char: char| if char.is_control() { ' ' } else { char };
    let mut chars = reason.chars();
    let mut short: String = chars.by_ref().take(REASON).map(plain).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

/// One that says nothing but that it lives.
fn silent_answer() -> Answer {
    Answer {
        models: None,
        speed: None,
        version: String::new(),
        incarnation: 0,
        capabilities: None,
        load: Load::Unknown,
    }
}

async fn ask_muster(outbound: &Outbound, peer: &Peer) -> Result<Answer, String> {
    let url = format!("{}/report", peer.address);
    let response = send(as_known(outbound, peer, outbound.get(&url)).await?, &url).await?;
    if response.status() == StatusCode::NOT_FOUND {
        return Err(who_is_it(outbound, peer, response).await);
    }
    let body = successful(response, REPORT_LIMIT, &url).await?;
    let report: Report = serde_json::from_slice(&body)
        .map_err(|error| format!("{url} answered with {}: {error}", kind_of(&body, "the report of a muster worker")))?;
    registration::check_report(&report)
        .map_err(|problem| format!("{url} answered with a report that cannot be: {problem}"))?;
    let Report { registration, heartbeat } = report;
    Ok(Answer {
        models: Some(registration.models),
        speed: Some(heartbeat.speed.unwrap_or(registration.speed)),
        version: registration.version,
        incarnation: registration.incarnation,
        capabilities: registration.capabilities,
        load: Load::Beat(Box::new(heartbeat)),
    })
}

/// A request to a peer, with the fleet's token if one of muster's services answers there: an address in a file may be that
/// of a stranger, who has no business with it.
async fn as_known(outbound: &Outbound, peer: &Peer, request: RequestBuilder) -> Result<RequestBuilder, String> {
    if !outbound.has_token() {
        return Ok(request);
    }
    let url = format!("{}/version", peer.address);
    let response = send(outbound.get(&url), &url).await?;
    let version = if response.status().is_success() { whole(response, LIMIT, &url).await? } else { Vec::new() };
    let is_ours = serde_json::from_slice::<Value>(&version).is_ok_and(|version| version["name"] == "muster");
    Ok(if is_ours { outbound.authorized(request) } else { request })
}

/// What answers where no worker does.
async fn who_is_it(outbound: &Outbound, peer: &Peer, response: Response) -> String {
    let url = response.url().clone();
    let server = server(&response);
    let body = whole(response, LIMIT, url.as_str()).await.unwrap_or_default();
    let hint = "write which protocol it speaks (`transport`), or the address of a worker";
    if serde_json::from_slice::<Problem>(&body).is_err() {
        return format!("{url} answered 404 Not Found with {}{server}; {hint}", kind_of(&body, "a worker's words"));
    }
    let health = format!("{}/health", peer.address);
    let health = async { whole(send(outbound.get(&health), &health).await?, LIMIT, &health).await };
    match health.await.ok().and_then(|body| serde_json::from_slice::<Health>(&body).ok()) {
        Some(Health { worker: Some(worker), .. }) => {
            format!("the worker `{}` at {} is too old to report; bring it to this version", worker.id, peer.address)
        }
        _ => format!("{} is a service of muster, but no worker (a controller?); {hint}", peer.address),
    }
}

async fn ask_fastchat(outbound: &Outbound, peer: &Peer) -> Result<Answer, String> {
    let url = format!("{}/worker_get_status", peer.address);
    let request = as_known(outbound, peer, outbound.open_post(&url)).await?;
    let body = successful(send(request, &url).await?, LIMIT, &url).await?;
    let mut status = serde_json::from_slice(&body).map_err(|error| {
        format!("{url} answered with {}: {error}", kind_of(&body, "the state of a FastChat worker"))
    })?;
    registration::check_status(&mut status).map_err(|problem| format!("{url} answered: {problem}"))?;
    Ok(Answer {
        models: Some(status.model_names.into_iter().map(ModelCard::bare).collect()),
        speed: Some(status.speed),
        load: Load::Total(clamp(status.queue_length)),
        ..silent_answer()
    })
}

/// A server of that protocol is a stranger: it is not shown the fleet's token.
async fn ask_openai(outbound: &Outbound, peer: &Peer) -> Result<Answer, String> {
    let url = format!("{}/v1/models", peer.address);
    let body = successful(send(outbound.get(&url), &url).await?, LIMIT, &url).await?;
    let models =
        listed(&body).ok_or_else(|| format!("{url} answered with {}", kind_of(&body, "OpenAI's list of models")))?;
    if models.len() > MOST_MODELS {
        return Err(format!("{url} lists more than {MOST_MODELS} models, the most that a worker may offer"));
    }
    registration::check_models(&models).map_err(|problem| format!("{url} answered: {problem}"))?;
    Ok(Answer { models: Some(models), ..silent_answer() })
}

/// OpenAI's list, with what muster, vLLM and llama.cpp say besides; each model once. Of one that is too long, one more than
/// there may be.
fn listed(body: &[u8]) -> Option<Vec<ModelCard>> {
    let list: Value = serde_json::from_slice(body).ok()?;
    let (mut cards, mut names) = (Vec::new(), HashSet::new());
    for model in list.get("data")?.as_array()? {
        let name = model.get("id")?.as_str()?;
        let lengths = [&model["context_length"], &model["max_model_len"], &model["meta"]["n_ctx"]];
        let context_length = lengths.into_iter().find_map(Value::as_u64).and_then(|length| u32::try_from(length).ok());
        let kind: Option<ModelKind> = serde_json::from_value(model["kind"].clone()).ok();
        if names.insert(name) {
            cards.push(ModelCard { kind, context_length, ..ModelCard::bare(name.to_owned()) });
        }
        if cards.len() > MOST_MODELS {
            break;
        }
    }
    Some(cards)
}

/// Any answer of gRPC will do: not every worker speaks the Open Inference Protocol, and one that refuses callers without
/// a token lives, too. The connection is a new one: it is to be known whether there can be one.
async fn ask_grpc(outbound: &Outbound, peer: &Peer) -> Result<Answer, String> {
    let client = GrpcWorkerClient::new(GrpcPool::of_fleet(outbound.tls(), PATIENCE), &peer.address, None, PATIENCE);
    match client.server_live().await {
        Ok(Some(false)) => Err(format!("{} says that it does not live", peer.address)),
        Ok(_) => Ok(silent_answer()),
        Err(error) => Err(chain(&error)),
    }
}

async fn send(request: RequestBuilder, url: &str) -> Result<Response, String> {
    // An idle connection may be closed by the peer just as it is used again, which would look like its death.
    let request = request.header(CONNECTION, "close");
    request.send().await.map_err(|error| {
        let why = chain(&error);
        // hyper's words for bytes that begin no answer.
        let stranger = ["invalid HTTP", "unexpected message", "message head"].iter().any(|words| why.contains(words));
        let hint = if stranger { "; what answers there speaks no HTTP, or TLS" } else { "" };
        format!("cannot reach {url}: {why}{hint}")
    })
}

/// The body of a good answer; what a bad one is, in words.
async fn successful(response: Response, limit: usize, url: &str) -> Result<Vec<u8>, String> {
    let (status, server) = (response.status(), server(&response));
    let body = whole(response, limit, url).await?;
    if status.is_success() {
        return Ok(body);
    }
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; is it of this fleet (--fleet-token-file)?",
        _ => "",
    };
    Err(match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => format!("{url} answered {status}: {}{hint}", problem.message),
        Err(_) => format!("{url} answered {status} with {}{server}{hint}", kind_of(&body, "a worker's words")),
    })
}

/// What a body is that is not what was expected.
fn kind_of(body: &[u8], expected: &str) -> String {
    let start = body.trim_ascii_start();
    let begins = |with: &str| start.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()));
    let kind = if start.is_empty() {
        "nothing"
    } else if begins("<!doctype") || begins("<html") {
        "a web page"
    } else if serde_json::from_slice::<Value>(body).is_ok() {
        "JSON of another kind"
    } else {
        "other bytes"
    };
    format!("{kind} instead of {expected}")
}

/// What a server calls itself.
fn server(response: &Response) -> String {
    let name = response.headers().get(SERVER).and_then(|name| name.to_str().ok());
    name.map(|name| format!(" ({})", name.chars().take(40).collect::<String>())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use muster_shared::secret::Secret;

    use super::*;

    #[test]
    fn lists_of_many_servers_are_read_and_what_is_none_is_not() {
        let list = serde_json::json!({ "object": "list", "data": [
            { "id": "muster", "kind": "embed", "context_length": 512 },
            { "id": "vllm", "max_model_len": 4096 },
            { "id": "llama.cpp", "meta": { "n_ctx": 8192 } },
            { "id": "other", "kind": "chat.large", "context_length": "long", "meta": null },
            { "id": "muster" },
        ]});
        let cards = listed(list.to_string().as_bytes()).expect("a list");
        let told: Vec<_> = cards.iter().map(|card| (card.name.as_str(), card.kind, card.context_length)).collect();
        let right = [
            ("muster", Some(ModelKind::Embed), Some(512)),
            ("vllm", None, Some(4096)),
            ("llama.cpp", None, Some(8192)),
            ("other", None, None),
        ];
        assert_eq!(told, right);
        for none in ["", "[]", "{}", r#"{"data": [{"name": "x"}]}"#, r#"{"data": "x"}"#, "<html>"] {
            assert_eq!(listed(none.as_bytes()), None, "{none}");
        }
    }

    #[tokio::test]
    async fn a_list_that_is_too_long_is_read_no_further_than_that_is_known() {
        let models: Vec<_> = (0..60_000).map(|number| serde_json::json!({ "id": number.to_string() })).collect();
        let list = serde_json::json!({ "data": models }).to_string();
        assert!(list.len() <= LIMIT, "{}", list.len());
        assert_eq!(listed(list.as_bytes()).expect("a list").len(), MOST_MODELS + 1);
        let (mut peer, server) = answering("200 OK", list).await;
        peer.transport = Transport::OpenAi;
        let reason = probe(&Outbound::new(None), &peer).await.expect_err("they are too many");
        server.abort();
        assert!(reason.contains("lists more than 4096 models"), "{reason}");
    }

    #[tokio::test]
    async fn the_words_of_a_peer_are_kept_short_and_on_one_line() {
        let message = format!("it \u{1b}[31mburns\n{}", "very much ".repeat(50_000));
        let problem = Problem::new(muster_shared::problem::Kind::Bug, message);
        let body = serde_json::to_string(&problem).expect("JSON");
        let (peer, server) = answering("503 Service Unavailable", body).await;
        let reason = probe(&Outbound::new(None), &peer).await.expect_err("it is not well");
        server.abort();
        assert!(reason.contains("answered 503 Service Unavailable: it  [31mburns very much"), "{reason}");
        assert_eq!((reason.chars().count(), reason.chars().next_back()), (REASON + 1, Some('…')));
    }

    #[tokio::test]
    async fn a_grpc_peer_must_say_something_to_count_as_alive() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let held = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok(stream) = listener.accept().await {
                held.push(stream);
            }
        });
        let (mut peer, server) = answering("200 OK", "<html>".to_owned()).await;
        peer.transport = Transport::Grpc;
        probe(&Outbound::new(None), &peer).await.expect_err("a web server");
        server.abort();
        peer.address = address;
        let reason = probe(&Outbound::new(None), &peer).await.expect_err("it accepts, and says nothing");
        held.abort();
        assert!(reason.contains("within 2 s") || reason.contains("silent for 2s"), "{reason}");
    }

    #[tokio::test]
    async fn the_fleets_token_is_shown_to_musters_own_services_alone() {
        let ours = serde_json::json!({ "name": "muster", "version": "1" }).to_string();
        for (body, transport, shown) in [
            (serde_json::json!({ "version": "0.6.3" }).to_string(), Transport::Http, 0),
            ("<html>".to_owned(), Transport::FastChat, 0),
            (ours.clone(), Transport::Http, 1),
            (ours, Transport::FastChat, 1),
        ] {
            let (mut peer, server, requests) = listening("200 OK", body).await;
            peer.transport = transport;
            let outbound = Outbound::new(Some(Secret::new("sesame")));
            probe(&outbound, &peer).await.expect_err("it is no worker");
            server.abort();
            let requests = requests.lock().expect("it is whole").clone();
            let with_it = requests.iter().filter(|request| request.contains("sesame")).count();
            assert_eq!((with_it, requests.len()), (shown, 2), "{requests:?}");
        }
    }

    /// A peer that answers every request with that.
    async fn answering(status: &str, body: String) -> (Peer, tokio::task::JoinHandle<()>) {
        let (peer, server, _) = listening(status, body).await;
        (peer, server)
    }

    /// The same, with all that it is asked.
    async fn listening(status: &str, body: String) -> (Peer, tokio::task::JoinHandle<()>, Arc<Mutex<Vec<String>>>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let requests = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&requests);

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                heard.lock().expect("it is whole").push(String::from_utf8_lossy(&request[..length]).into_owned());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        let peer = Peer {
            id: muster_shared::id::WorkerId::new("p"),
            address,
            transport: Transport::Http,
            models: Vec::new(),
            site: None,
            speed: None,
            capabilities: None,
        };
        (peer, server, requests)
    }

    #[test]
    fn what_is_answered_instead_has_a_name() {
        for (body, name) in [
            ("", "nothing"),
            ("  <!DOCTYPE html><p>", "a web page"),
            ("<HTML>", "a web page"),
            ("{\"a\": 1}", "JSON of another kind"),
            ("hello", "other bytes"),
            ("<h\u{e9}", "other bytes"),
        ] {
            assert_eq!(kind_of(body.as_bytes(), "a list"), format!("{name} instead of a list"));
        }
    }
}
