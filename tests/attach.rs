//! `muster attach`: servers that cannot register themselves as workers of a fleet.

mod common;

use std::net::TcpListener;

use axum::Router;
use axum::routing::get;
use common::{CHAT, EMBEDDING, Process, eventually, run};
use serde_json::{Value, json};

/// A controller whose leases last three heartbeats.
fn controller(heartbeat: &str) -> Process {
    Process::start(&["controller", "--port", "0", "--heartbeat", heartbeat])
}

/// A server with an OpenAI-compatible address: the gateway of a fleet of its own.
fn up(port: &str) -> Process {
    Process::start(&["up", "--port", port])
}

/// Attaches servers, and waits until one of them is registered.
fn attach(controller: &str, flags: &[&str]) -> Process {
    Process::start(&[&["attach", "--controller-address", controller, "--probe", "50ms"], flags].concat())
}

fn port(process: &Process) -> String {
    process.address.rsplit(':').next().expect("a port").to_owned()
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

/// A worker as the controller knows it, by its id; null when it knows none.
async fn worker(controller: &Process, id: &str) -> Value {
    let fleet = controller.get("/fleet").await;
    let workers = fleet["workers"].as_array().expect("workers");
    workers.iter().find(|worker| worker["id"] == id).cloned().unwrap_or_default()
}

async fn has_state(controller: &Process, id: &str, state: &str) {
    eventually(&format!("{id} is {state}"), async || worker(controller, id).await["state"] == state).await;
}

fn names(worker: &Value) -> Vec<&str> {
    let models = worker["models"].as_array().expect("models");
    models.iter().map(|model| model["name"].as_str().expect("a name")).collect()
}

fn warnings(process: &Process) -> Vec<String> {
    process.errors().lines().filter(|line| line.contains(" WARN ")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_a_worker_while_it_lives_and_again_when_it_comes_back() {
    let controller = controller("300ms");
    let mut server = up("0");
    let attach = attach(&controller.address, &[&format!("{}/v1/", server.address)]);
    assert_eq!(attach.address, server.address, "the line names the server");

    let known = worker(&controller, &server.address).await;
    assert_eq!((&known["state"], &known["transport"]), (&json!("ready"), &json!("openai")));
    assert_eq!(names(&known), [CHAT, EMBEDDING]);
    assert_eq!(known["models"][1]["kind"], "embed", "what the server says of its models is passed on");
    assert_eq!(known["reported"], json!([]));

    server.kill();
    has_state(&controller, &server.address, "gone").await;
    let told = warnings(&attach);
    assert!(matches!(&told[..], [line] if line.contains("cannot reach") && line.contains(&server.address)), "{told:?}");

    let server = up(&port(&server));
    has_state(&controller, &server.address, "ready").await;
    assert_eq!(warnings(&attach).len(), 1, "{}", attach.errors());
    let again = worker(&controller, &server.address).await;
    assert!(again["incarnation"].as_u64() > known["incarnation"].as_u64(), "{known} {again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_leaves_when_it_is_told_to_after_its_last_request() {
    let (controller, server) = (controller("1s"), up("0"));
    let mut attach =
        attach(&controller.address, &[&server.address, "--id", "other", "--running", "3", "--waiting", "1"]);
    let known = worker(&controller, "other").await;
    assert_eq!((&known["address"], &known["speed"]), (&json!(server.address), &json!(1.0)));
    assert_eq!(known["models"][0]["capacity"], json!({ "running": 3, "waiting": 1 }));

    let gateway = "0190b1a8-7f1c-7000-8000-000000000001";
    let (status, grant) = controller.post("/dispatch", &json!({ "gateway": gateway, "model": CHAT })).await;
    assert_eq!((status, &grant["address"]), (200, &json!(server.address)), "{grant}");
    attach.signal("TERM");
    has_state(&controller, "other", "draining").await;
    // It beats on: the lease goes up again.
    let lease = async || worker(&controller, "other").await["lease_ms"].as_u64().expect("a lease");
    eventually("the lease wears off a little", async || lease().await < 2500).await;
    eventually("the lease is renewed", async || lease().await > 2600).await;
    assert_eq!(worker(&controller, "other").await["tickets"], 1);

    let release = json!({ "gateway": gateway, "releases": [{ "ticket": grant["ticket"], "outcome": "done" }] });
    assert_eq!(controller.post("/release", &release).await.0, 200);
    assert!(attach.ended().await.success(), "{}", attach.errors());
    assert_eq!(worker(&controller, "other").await["state"], "gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_for_one_server_the_older_takes_over_when_the_younger_leaves() {
    let (controller, server) = (controller("300ms"), up("0"));
    let older = attach(&controller.address, &[&server.address]);
    let mut younger = attach(&controller.address, &[&server.address]);
    eventually("the older one is refused", async || warnings(&older).iter().any(|line| line.contains("older"))).await;
    assert_eq!(worker(&controller, &server.address).await["state"], "ready");
    younger.signal("TERM");
    assert!(younger.ended().await.success(), "{}", younger.errors());
    has_state(&controller, &server.address, "ready").await;
    assert_eq!(warnings(&older).len(), 1, "{}", older.errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_comes_up_in_any_order() {
    let (gone, absent) = (controller("1s"), nobody());
    let (address, at) = (gone.address.clone(), port(&gone));
    drop(gone);
    let server = up("0");
    let starting = std::thread::spawn({
        let (address, server, absent) = (address.clone(), server.address.clone(), absent.clone());
        move || attach(&address, &[&absent, &server])
    });
    // Nothing tells from outside that it waits; a controller that comes at once would be as good.
    let controller = Process::start(&["controller", "--port", &at, "--heartbeat", "300ms"]);
    let mut attach = starting.join().expect("it registers");
    assert_eq!(attach.address, server.address);
    has_state(&controller, &server.address, "ready").await;
    eventually("the absent one is named", async || warnings(&attach).iter().any(|line| line.contains(&absent))).await;
    assert_eq!(worker(&controller, &absent).await, Value::Null);

    let late = up(absent.rsplit(':').next().expect("a port"));
    has_state(&controller, &late.address, "ready").await;

    drop(controller);
    let silence = async || warnings(&attach).iter().any(|line| line.contains("heartbeat failed"));
    eventually("the silence of the controller is told", silence).await;
    let controller = Process::start(&["controller", "--port", &at, "--heartbeat", "300ms"]);
    for server in [&server, &late] {
        has_state(&controller, &server.address, "ready").await;
    }
    attach.signal("INT");
    assert!(attach.ended().await.success(), "{}", attach.errors());
    for server in [&server, &late] {
        assert_eq!(worker(&controller, &server.address).await["state"], "gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_that_change_are_registered_again_and_requests_keep_their_tickets() {
    let (controller, inner) = (controller("5s"), controller("5s"));
    // A fleet whose models come and go: a gateway without workers lists none.
    let gateway = common::gateway(&inner.address, &[]);
    let _first = common::worker(&inner.address, &["--model", "a=fake"]);
    let _attach = attach(&controller.address, &[&gateway.address, "--speed", "2.5"]);
    let known = worker(&controller, &gateway.address).await;
    assert_eq!((names(&known), &known["speed"]), (vec!["a"], &json!(2.5)));
    let dispatch = json!({ "gateway": "0190b1a8-7f1c-7000-8000-000000000001", "model": "a" });
    assert_eq!(controller.post("/dispatch", &dispatch).await.0, 200);

    let _second = common::worker(&inner.address, &["--model", "b=fake"]);
    let both = async || names(&worker(&controller, &gateway.address).await) == ["a", "b"];
    eventually("the second model is offered", both).await;
    let changed = worker(&controller, &gateway.address).await;
    assert_eq!((&changed["incarnation"], &changed["tickets"]), (&known["incarnation"], &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_every_transport_can_be_attached() {
    let controller = controller("5s");
    let native = Process::start(&["worker", "--no-register", "--port", "0", "--model", "fake"]);
    let flags: [&[&str]; 4] = [
        &["--transport", "http"],
        &["--transport", "FastChat"],
        &["--transport", "grpc", "--model", "fake"],
        &["--transport", "http", "--model", "fake,alias"],
    ];
    for flags in flags {
        let mut attach = attach(&controller.address, &[&[native.address.as_str()], flags].concat());
        let known = worker(&controller, &native.address).await;
        assert_eq!(known["transport"], flags[1].to_lowercase());
        assert!(names(&known).contains(&"fake"), "{known}");
        let capacity = &known["models"].as_array().expect("models").last().expect("one")["capacity"];
        assert_eq!(capacity.is_object(), flags[1] == "http", "a muster worker says its own: {known}");
        attach.signal("TERM");
        assert!(attach.ended().await.success(), "{}", attach.errors());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_no_openai_server_is_named_as_such() {
    let controller = controller("5s");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let page = format!("http://{}", listener.local_addr().expect("an address"));
    let router = Router::new().route("/v1/models", get(async || "<html>It works!</html>"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let locked = Process::start(&["up", "--port", "0", "--api-key", "k"]);
    let nothing = Process::start(&["controller", "--port", "0"]);
    let empty = common::gateway(&nothing.address, &[]);
    // A good one: a line is printed when it is registered.
    let server = up("0");
    let attach = attach(&controller.address, &[&page, &locked.address, &empty.address, &server.address]);
    for (address, part) in [
        (&page, "something else than OpenAI's list of models"),
        (&locked.address, "servers that want a key cannot be attached yet"),
        (&empty.address, "serves no model now"),
    ] {
        let named = async || warnings(&attach).iter().any(|line| line.contains(address) && line.contains(part));
        eventually(part, named).await;
        assert_eq!(worker(&controller, address).await, Value::Null);
    }
    assert_eq!(warnings(&attach).len(), 3, "{}", attach.errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_refuses_is_quoted_once() {
    let locked = Process::start(&["controller", "--port", "0", "--heartbeat", "200ms", "--fleet-token", "t"]);
    let server = up("0");
    let flags = ["attach", &server.address, "--probe", "50ms", "--controller-address"];
    let mut child = common::muster(&[&flags[..], &[&locked.address]].concat());
    let child = child.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = child.spawn().expect("the binary starts");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().expect("piped")));
    let told = lines.find_map(|line| line.ok().filter(|line| line.contains(" WARN "))).expect("a warning");
    assert!(told.contains("fleet token"), "{told}");
    child.kill().and_then(|()| child.wait()).expect("it ends");

    let token = [&flags[1..], &[&locked.address, "--fleet-token", "t"]].concat();
    let _attach = Process::start(&[&["attach"], &token[..]].concat());
}

#[test]
fn mistakes_on_the_command_line_are_explained() {
    for (arguments, parts) in [
        (&[][..], &["no server is given", "muster attach http://HOST:PORT"][..]),
        (&["vllm"], &["`vllm` is no URL", "http://HOST:PORT"]),
        (&["ftp://vllm/v1"], &["ftp://vllm/v1", "http://HOST or https://HOST"]),
        (&["http://a", "http://A:80/v1/"], &["http://a is given twice", "http://A:80/v1/"]),
        (&["http://a", "--transport", "smoke"], &["smoke", "http, grpc, fastchat, openai"]),
        (&["http://a", "--transport", "grpc"], &["grpc", "--model"]),
        (&["http://a", "--speed", "0"], &["speed is 0", "above 0"]),
        (&["http://a", "--speed", "NaN"], &["speed is NaN", "above 0"]),
        (&["http://a", "--speed", "-1"], &["speed is -1", "above 0"]),
        (&["http://a", "--running", "0"], &["--running", "0"]),
        (&["http://a", "--waiting", "3"], &["--running N"]),
        (&["http://a", "--probe", "0"], &["probe is 0", "2s"]),
        (&["http://a", "http://b", "--id", "x"], &["id names one server", "2 are given"]),
        (&["http://a", "--controller-address", "nowhere"], &["nowhere", "http://HOST:PORT"]),
        (&["http://a", "--fleet-token-file", "/no/such/file"], &["/no/such/file"]),
    ] {
        let (status, printed, errors) = run(&[&["attach"], arguments].concat());
        assert!(!status.success() && printed.is_empty(), "{arguments:?}: {printed}");
        for part in parts {
            assert!(errors.contains(part), "{arguments:?}: no `{part}` in:\n{errors}");
        }
    }
}

#[test]
fn a_configuration_file_and_variables_say_the_same_as_flags() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    let text = "attach:\n  url: [\"http://a\", \"http://b/v1\"]\n  transport: fastchat\n  probe: 9s\n  speed: 2\n";
    std::fs::write(file.path(), text).expect("a file");
    let mut command = common::muster(&["--config", &path, "attach", "--speed", "3", "--print-config"]);
    let output = command.env("MUSTER_ATTACH_PROBE", "7s").output().expect("the binary runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    for part in
        ["- http://a", "transport: fastchat", "probe: 7s", "speed: 3", "controller_address: http://127.0.0.1:21001"]
    {
        assert!(printed.contains(part), "no `{part}` in:\n{printed}{}", String::from_utf8_lossy(&output.stderr));
    }
}
