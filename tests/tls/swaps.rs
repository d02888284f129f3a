//! Certificates that change while services run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use muster_shared::client::{Timeouts, fleet_client};
use muster_shared::tls::{MaybeTls, Tls};
use serde_json::json;
use tokio::net::TcpStream;

use super::authority::{Authority, HERE};
use super::common::{PATIENCE, Process, eventually};
use super::fleet::{Fleet, SERVICES};

/// The certificate that a service shows to a new connection.
async fn shown(tls: &Tls, address: &str) -> std::io::Result<Vec<u8>> {
    let stream = TcpStream::connect(address.trim_start_matches("https://")).await?;
    match tls.connector().connect("127.0.0.1", stream).await? {
        MaybeTls::Tls(stream) => Ok(stream.get_ref().1.peer_certificates().expect("it shows one")[0].to_vec()),
        MaybeTls::Plain(_) => panic!("it is encrypted"),
    }
}

/// Asks the gateway over a new connection each time, until told to stop; gives how often, and what failed.
async fn ask_all_the_time(tls: &Tls, gateway: &str, stop: &AtomicBool) -> (usize, Vec<String>) {
    let (mut asked, mut failed) = (0, Vec::new());
    let body = json!({ "model": "http", "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 1 });
    let grpc = json!({ "model": "grpc", "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 1 });
    while !stop.load(Ordering::Relaxed) {
        for body in [&body, &grpc] {
            let client = fleet_client(tls, Timeouts { connect: PATIENCE, read: PATIENCE });
            let request = client.post(format!("{gateway}/v1/chat/completions")).json(body);
            match request.send().await {
                Ok(answer) if answer.status() == 200 => {}
                Ok(answer) => failed.push(answer.text().await.unwrap_or_default()),
                Err(error) => failed.push(muster_shared::problem::chain(&error)),
            }
            asked += 1;
        }
    }
    (asked, failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_swapped_at_every_service_and_no_request_fails() {
    let fleet = Fleet::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (tls, gateway, stop) = (fleet.tls.clone(), fleet.gateway.address.clone(), Arc::clone(&stop));
            tokio::spawn(async move { ask_all_the_time(&tls, &gateway, &stop).await })
        })
        .collect();
    let mut new = Vec::new();
    for round in 1..=3 {
        new = SERVICES.iter().map(|name| fleet.authority.make(name, &HERE)).collect();
        for (address, certificate) in fleet.addresses().into_iter().zip(&new) {
            let is_shown = async || shown(&fleet.tls, address).await.is_ok_and(|shown| shown == *certificate);
            eventually(&format!("{address} shows its certificate number {round}"), is_shown).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut asked = 0;
    for client in clients {
        let (count, failed) = client.await.expect("it ends");
        assert_eq!(failed, Vec::<String>::new(), "of {count}");
        asked += count;
    }
    println!("{asked} requests, each over a connection of its own, and no failure");
    assert!(asked >= 24, "{asked}");
    let grpc = fleet.gateway.grpc_address().await;
    assert_eq!(shown_by_grpc(&fleet.tls, &grpc).await, new[4]);
    for address in fleet.addresses() {
        let reloads = fleet.metric(address, "muster_tls_reloads_total{result=\"ok\"}").await;
        assert!(reloads >= 3.0, "{address}: {reloads}");
        let expiry = fleet.metric(address, "muster_tls_certificate_expiry_seconds").await;
        assert!(expiry > 4e9, "{address}: {expiry}");
    }
}

async fn shown_by_grpc(tls: &Tls, address: &str) -> Vec<u8> {
    let stream = TcpStream::connect(address.trim_start_matches("https://")).await.expect("a connection");
    match tls.grpc_connector().connect("127.0.0.1", stream).await.expect("they agree") {
        MaybeTls::Tls(stream) => stream.get_ref().1.peer_certificates().expect("it shows one")[0].to_vec(),
        MaybeTls::Plain(_) => panic!("it is encrypted"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_do_not_fit_change_nothing_and_are_told_once() {
    let ours = Authority::new("ours");
    let first = ours.make("service", &HERE);
    ours.make("other", &HERE);
    let flags = ours.open_flags("service");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let controller = Process::start(&[&["controller", "--port", "0"], &flags[..]].concat());
    let tls = ours.client(None);
    assert_eq!(shown(&tls, &controller.address).await.expect("they agree"), first);

    std::fs::copy(ours.path("other.key"), ours.path("service.key")).expect("it can be copied");
    let warning = "changed TLS files cannot be used; the ones before stay in force";
    eventually("it is told", async || controller.errors().contains(warning)).await;
    assert!(controller.errors().contains("does not belong to the first certificate"), "{}", controller.errors());
    assert_eq!(shown(&tls, &controller.address).await.expect("they agree"), first);

    let second = ours.make("service", &HERE);
    let is_shown = async || shown(&tls, &controller.address).await.is_ok_and(|shown| shown == second);
    eventually("the good ones are in force", is_shown).await;
    let errors = controller.errors();
    assert_eq!(errors.matches(warning).count(), 1, "{errors}");
    assert_eq!(errors.matches("changed TLS files are in force for new connections").count(), 1, "{errors}");
    assert!(errors.contains("4096-01-01T00:00:00Z"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_trusted_no_more_is_refused_though_it_was_known() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    ["service", "client"].iter().for_each(|name| drop(ours.make(name, &HERE)));
    other.make("client", &HERE);
    std::fs::copy(ours.path("ca.pem"), ours.path("clients.pem")).expect("it can be copied");
    let flags = [ours.open_flags("service"), vec!["--tls-client-ca".to_owned(), ours.text("clients.pem")]].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let controller = Process::start(&[&["controller", "--port", "0"], &flags[..]].concat());
    let [old, new] = [&ours, &other].map(|authority| ours.client(Some((authority, "client"))));
    let answers = async |tls: &Tls| {
        let client = fleet_client(tls, Timeouts::default());
        client.get(format!("{}/health", controller.address)).send().await.is_ok()
    };
    assert_eq!((answers(&old).await, answers(&new).await), (true, false));
    std::fs::copy(other.path("ca.pem"), ours.path("clients.pem")).expect("it can be copied");
    eventually("the new ones may call", async || answers(&new).await).await;
    assert!(!answers(&old).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_stay_attached_when_all_certificates_are_of_another_authority() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    ["service", "client"].iter().for_each(|name| drop(ours.make(name, &HERE)));
    ["attach", "client"].iter().for_each(|name| drop(other.make(name, &HERE)));
    ours.make("attach", &HERE);
    std::fs::copy(ours.path("ca.pem"), ours.path("clients.pem")).expect("it can be copied");
    let start = |port: &str| {
        let files = [ours.open_flags("service"), vec!["--tls-client-ca".to_owned(), ours.text("clients.pem")]].concat();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        Process::start(&[&["controller", "--heartbeat", "300ms", "--port", port], &files[..]].concat())
    };
    let mut controller = start("0");
    let address = controller.address.clone();
    let server = Process::start(&["up", "--port", "0", "--model", "fake"]);
    let files = ours.open_flags("attach");
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let flags = ["attach", &server.address, "--id", "other", "--probe", "50ms", "--controller-address", &address];
    let attach = Process::start(&[&flags, &files[..]].concat());
    let is_known = async |tls: &Tls| {
        let client = fleet_client(tls, Timeouts::default());
        let Ok(answer) = client.get(format!("{address}/fleet")).send().await else { return false };
        answer.text().await.is_ok_and(|text| text.contains("\"other\"") && text.contains("\"ready\""))
    };
    let [old, new] = [&ours, &other].map(|authority| ours.client(Some((authority, "client"))));
    eventually("it is attached", async || is_known(&old).await).await;

    controller.kill();
    for (from, to) in [("ca.pem", "clients.pem"), ("attach.pem", "attach.pem"), ("attach.key", "attach.key")] {
        std::fs::copy(other.path(from), ours.path(to)).expect("it can be copied");
    }
    let port = address.rsplit(':').next().expect("a port");
    let _controller = start(port);
    eventually("it is attached again", async || is_known(&new).await).await;
    assert!(attach.errors().contains("changed TLS files are in force"), "{}", attach.errors());
}
