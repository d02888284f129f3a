//! Why a worker was chosen, told by the real binary: `muster explain`, `muster journal`, `muster replay`.

mod common;

use std::collections::BTreeSet;

use common::{Cluster, Process, chat_body, eventually, run};
use futures_util::{StreamExt as _, stream};
use muster_controller::config::PolicyName;
use serde_json::{Value, json};

/// Requests under each policy.
const MANY: usize = 60;
const FAKE: [&str; 4] = ["--model", "fake", "--fake-answer", "3"];

/// Asks once; gives the status and the id of the request.
async fn ask(gateway: &Process, model: &str, question: &str) -> (u16, String) {
    let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", gateway.address));
    let response = request.json(&chat_body(model, question)).send().await.expect("an answer");
    let id = response.headers()["x-request-id"].to_str().expect("a text").to_owned();
    let status = response.status().as_u16();
    response.bytes().await.expect("a whole answer");
    (status, id)
}

/// What `muster explain --json` says.
fn explained(controller: &Process, id: &str) -> Value {
    let (status, out, errors) = run(&["explain", id, "--json", "--controller-address", &controller.address]);
    assert!(status.success(), "{errors}");
    serde_json::from_str(&out).expect("JSON")
}

/// The worker of each decision about a request.
fn workers(explanation: &Value) -> Vec<String> {
    let decisions = explanation["decisions"].as_array().expect("decisions");
    let worker = |it: &Value| it["decision"]["verdict"]["picked"]["worker"].as_str().unwrap_or_default().to_owned();
    decisions.iter().map(worker).collect()
}

fn saved(controller: &Process) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("a path");
    let (status, _, errors) = run(&["journal", "--output", path, "--controller-address", &controller.address]);
    assert!(status.success(), "{errors}");
    file
}

fn replayed(journal: &tempfile::NamedTempFile, flags: &[&str]) -> Value {
    let path = journal.path().to_str().expect("a path");
    let (status, out, errors) = run(&[&["replay", path, "--json"], flags].concat());
    assert!(status.success(), "{errors}");
    serde_json::from_str(&out).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn any_request_is_explained_and_every_choice_is_reproduced_under_each_policy() {
    for policy in PolicyName::all() {
        let flags = ["--heartbeat", "1s", "--policy", policy.as_str()];
        let cluster = Cluster::with_controller(&flags, &[&FAKE, &FAKE, &FAKE]).await;
        let asks = (0..MANY).map(|number| {
            let gateway = &cluster.gateway;
            async move { ask(gateway, "fake", &format!("question {}", number % 7)).await }
        });
        let answers: Vec<(u16, String)> = stream::iter(asks).buffer_unordered(6).collect().await;
        assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
        for (_, id) in answers.iter().step_by(MANY / 4) {
            let told = explained(&cluster.controller, id);
            let decision = &told["decisions"][0];
            let (candidates, worker) = (decision["candidates"].as_array().expect("candidates"), &workers(&told)[0]);
            let picked: Vec<&Value> = candidates.iter().filter(|it| it["picked"] == true).collect();
            assert_eq!((candidates.len(), picked.len()), (3, 1), "{policy}: {told}");
            assert_eq!(picked[0]["worker"], json!(worker));
            assert_eq!(decision["decision"]["policy"], policy.as_str());
            let (_, text, _) = run(&["explain", id, "--controller-address", &cluster.controller.address]);
            let reason = decision["reason"].as_str().expect("a reason");
            assert!(text.contains(&format!("{worker} {reason}")) && text.contains("→"), "{text}");
        }
        let ended =
            async || explained(&cluster.controller, &answers[0].1)["decisions"][0]["decision"]["end"].is_object();
        eventually("its end is told", ended).await;
        let journal = saved(&cluster.controller);
        let own = replayed(&journal, &[]);
        assert!(own["decisions"].as_u64() >= Some(MANY as u64), "{own}");
        assert_eq!((&own["same"], &own["others"]), (&own["decisions"], &json!(0)), "{policy}: {own}");
        let other = if policy.as_str() == "lottery" { "round_robin" } else { "lottery" };
        let other = replayed(&journal, &["--policy", other, "--list"]);
        assert!(other["others"].as_u64() > Some(0), "{policy} and lottery are alike: {other}");
        assert_eq!(other["others"].as_u64(), other["differences"].as_array().map(|list| list.len() as u64));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_a_refusal_an_alias_and_a_fallback_are_explained() {
    let flags = ["--heartbeat", "1s", "--alias", "chat=fake", "--fallback", "big=fake", "--policy", "round_robin"];
    let mut cluster = Cluster::with_controller(&flags, &[&FAKE, &FAKE]).await;
    for (name, asked) in [("chat", json!("chat")), ("big", json!("big")), ("fake", Value::Null)] {
        let (status, id) = ask(&cluster.gateway, name, "hi").await;
        let decision = explained(&cluster.controller, &id)["decisions"][0]["decision"].clone();
        assert_eq!((status, &decision["model"], &decision["asked"]), (200, &json!("fake"), &asked), "{decision}");
    }
    let (status, id) = ask(&cluster.gateway, "unheard-of", "hi").await;
    assert_eq!(status, 404);
    if let Some(refused) = known(&cluster.controller, &id) {
        let kind = &refused["decisions"][0]["decision"]["verdict"]["refused"]["kind"];
        assert_eq!(kind, "unknown_model", "{refused}");
    }
    let dead = cluster.workers[0].address.clone();
    cluster.workers[0].kill();
    let mut tried = Vec::new();
    // Whose turn it is comes at the second at the latest.
    for _ in 0..2 {
        let (status, id) = ask(&cluster.gateway, "fake", "hi").await;
        assert_eq!(status, 200);
        tried.push(explained(&cluster.controller, &id));
    }
    let retried = tried.iter().find(|told| told["decisions"].as_array().is_some_and(|all| all.len() == 2));
    let retried = retried.unwrap_or_else(|| panic!("nobody was tried twice: {tried:?}"));
    assert_eq!(workers(retried), [dead.clone(), cluster.workers[1].address.clone()]);
    assert_eq!(retried["decisions"][1]["decision"]["exclude"], json!([dead]));
    let own = replayed(&saved(&cluster.controller), &[]);
    assert_eq!(own["same"], own["decisions"]);
    cluster.workers[1].kill();
    let (status, id) = ask(&cluster.gateway, "fake", "hi").await;
    assert!(status >= 500, "{status}");
    let refused = explained(&cluster.controller, &id);
    let last = refused["decisions"].as_array().expect("decisions").last().expect("one").clone();
    assert!(last["decision"]["verdict"]["refused"]["message"].is_string(), "{refused}");
    let others: BTreeSet<_> =
        last["others"].as_array().expect("others").iter().map(|it| it["worker"].as_str()).collect();
    assert_eq!(others.len(), 2, "both are told of: {refused}");
}

fn known(controller: &Process, id: &str) -> Option<Value> {
    let (status, out, _) = run(&["explain", id, "--json", "--controller-address", &controller.address]);
    status.success().then(|| serde_json::from_str(&out).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn spared_workers_are_asked_when_all_are_and_that_is_told() {
    // Every machine uses more memory than that.
    let flags = ["--heartbeat", "200ms", "--pause-memory", "0.0001"];
    let controller = Process::start(&[&["controller", "--port", "0"], &flags[..]].concat());
    let _workers = [common::worker(&controller.address, &FAKE), common::worker(&controller.address, &FAKE)];
    let paused = async || {
        let fleet = controller.get("/fleet").await;
        fleet["workers"].as_array().expect("workers").iter().filter(|it| it["state"] == "paused").count() == 2
    };
    eventually("both are paused", paused).await;
    let gateway = common::gateway(&controller.address, &[]);
    eventually("the gateway is ready", async || common::is_ready(&gateway.address).await).await;
    let (status, id) = ask(&gateway, "fake", "hi").await;
    let told = explained(&controller, &id);
    let decision = &told["decisions"][0];
    assert_eq!((status, &decision["decision"]["verdict"]["picked"]["spared"]), (200, &json!(true)), "{told}");
    assert_eq!(decision["candidates"].as_array().map(Vec::len), Some(2), "{told}");
    let own = replayed(&saved(&controller), &[]);
    assert_eq!((&own["same"], own["decisions"].as_u64() > Some(0)), (&own["decisions"], true));
}

#[test]
fn what_cannot_be_explained_or_replayed_says_why() {
    let controller = Process::start(&["controller", "--port", "0", "--journal", "0"]);
    let at = ["--controller-address", controller.address.as_str()];
    let nowhere = ["--controller-address", "http://127.0.0.1:1"];
    let folder = tempfile::tempdir().expect("a folder");
    let (foreign, missing) = (folder.path().join("foreign"), folder.path().join("missing"));
    std::fs::write(&foreign, "hello\n").expect("a file");
    let (foreign, missing) = (foreign.to_str().expect("a path"), missing.to_str().expect("a path"));
    for (words, parts) in [
        (&["explain", "r1", at[0], at[1]][..], &["keeps no journal", "--journal 0"][..]),
        (&["journal", at[0], at[1]], &["keeps no journal"]),
        (&["explain", "", at[0], at[1]], &["id is empty", "x-request-id"]),
        (&["explain", "r1", nowhere[0], nowhere[1]], &["is a controller running there", "cannot reach"]),
        (&["journal", nowhere[0], nowhere[1]], &["is a controller running there"]),
        (&["replay", missing], &["cannot open", "missing", "muster journal --output"]),
        (&["replay", foreign], &["foreign", "line 1", "no journal of muster"]),
        (&["replay", foreign, "--policy", "coin"], &["coin", "lottery"]),
        (&["controller", "--journal", "1000001"], &["1000001", "1000000 decisions are the most"]),
        (&["controller", "--journal", "-1"], &["-1"]),
    ] {
        let (status, out, errors) = run(words);
        assert!(!status.success() && out.is_empty(), "{words:?}: {out}");
        assert!(parts.iter().all(|part| errors.contains(part)), "{words:?}: {errors}");
    }
    let controller = Process::start(&["controller", "--port", "0"]);
    let (status, _, errors) = run(&["explain", "no/such id", "--controller-address", &controller.address]);
    assert!(!status.success() && errors.contains("`no/such id`") && errors.contains("no decision"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_requests_that_share_an_id_the_last_are_explained() {
    let cluster = Cluster::with_controller(&["--heartbeat", "1s"], &[&FAKE]).await;
    for _ in 0..11 {
        let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", cluster.gateway.address));
        let request = request.header("x-request-id", "same").json(&chat_body("fake", "hi"));
        assert_eq!(request.send().await.expect("an answer").status(), 200);
    }
    let told = explained(&cluster.controller, "same");
    assert_eq!((told["decisions"].as_array().map(Vec::len), &told["earlier"]), (Some(8), &json!(3)));
    let (_, text, _) = run(&["explain", "same", "--controller-address", &cluster.controller.address]);
    assert!(text.contains("8 decisions, and 3 earlier of the same id"), "{text}");
}
