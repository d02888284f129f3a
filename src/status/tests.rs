use super::*;

/// A topology with a controller and these workers.
fn topology(workers: serde_json::Value) -> Topology {
    let mut nodes = vec![serde_json::json!({
        "kind": "controller", "id": "controller", "site": "local", "version": "1", "started_ms": 1_000_000,
        "policy": "lottery", "waiting": 0,
    })];
    nodes.extend(workers.as_array().expect("workers").clone());
    let topology = serde_json::json!({
        "at_ms": 1_061_000, "epoch": muster_shared::id::Epoch::new(), "nodes": nodes, "links": [], "models": [],
        "sites": [{ "name": "local", "nodes": [] }], "changes": [], "history": [], "warnings": [],
    });
    serde_json::from_value(topology).expect("a topology")
}

fn worker_node(id: &str) -> serde_json::Value {
    serde_json::json!({
        "kind": "worker", "id": id, "site": "local", "address": "http://w", "transport": "http", "source": "registered",
        "state": "ready", "since_ms": 1_056_000, "models": [], "version": "1", "speed": 1.0, "tickets": 3,
        "reported": [], "totals": { "requests": 0, "failures": 0, "tokens": 0 },
    })
}

fn lines(topology: &Topology) -> Vec<Vec<String>> {
    let text = table::of(topology, Room::Any);
    text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn the_table_tells_how_busy_machines_are_and_why_one_is_paused() {
    let mut paused = worker_node("a");
    paused["state"] = "paused".into();
    paused["reason"] = "memory 93 % is above 90 %, resumes below 85 %".into();
    paused["resources"] = serde_json::json!({ "cpu": 0.514, "memory": 0.93 });
    paused["tokens_per_second"] = 41.26.into();
    paused["ttft_ms"] = 83.4.into();
    let lines = lines(&topology(serde_json::json!([paused, worker_node("b")])));
    assert_eq!(lines[0].join(" "), "controller 1 · up 1m 1s · policy lottery · 0 waiting");
    assert_eq!(
        lines[2],
        ["WORKER", "STATE", "TICKETS", "TOKENS/S", "TTFT", "CPU", "MEMORY", "SINCE", "SPEED", "MODELS"]
    );
    assert_eq!(lines[3], ["a", "paused", "3", "41.3", "83ms", "51%", "93%", "5s", "1.0"]);
    assert_eq!(lines[4], ["b", "ready", "3", "-", "-", "-", "-", "5s", "1.0"]);
    assert_eq!(lines[6].join(" "), "a is paused: memory 93 % is above 90 %, resumes below 85 %");
}

#[test]
fn sites_and_sources_are_shown_where_there_are_several() {
    let mut peer = worker_node("p");
    peer["source"] = "static".into();
    peer["site"] = "halle-2".into();
    let mut topology = topology(serde_json::json!([peer, worker_node("w")]));
    topology.sites.push(muster_shared::topology::Site { name: "halle-2".to_owned(), nodes: vec!["p".to_owned()] });
    let lines = lines(&topology);
    assert_eq!(lines[2][9..11], ["SOURCE", "SITE"]);
    assert_eq!(
        (lines[3][9..11].to_vec(), lines[4][9..11].to_vec()),
        (vec!["static".to_owned(), "halle-2".to_owned()], vec!["registered".to_owned(), "local".to_owned()])
    );
    let narrow = table::of(&topology, Room::Columns(80));
    assert!(narrow.contains("TTFT") && !narrow.contains("SITE"), "{narrow}");
}

#[test]
fn what_is_amiss_is_told_and_nothing_of_it_moves_the_cursor() {
    let mut topology = topology(serde_json::json!([worker_node("\u{1b}[31mred\n")]));
    topology.warnings.push("w: \u{1b}[2J".to_owned());
    topology.changes.push(muster_shared::topology::Change {
        number: 1,
        at_ms: 1_060_000,
        worker: "w\u{7}".to_owned(),
        from: None,
        to: Some(WorkerState::Ready),
        reason: "registered".to_owned(),
    });
    topology.peers = Some(muster_shared::topology::PeersFile {
        path: "peers.yaml".to_owned(),
        loaded_ms: 1_000_000,
        peers: 1,
        error: Some("peers.yaml:3:5: no id\n  3 |".to_owned()),
    });
    let text = table::of(&topology, Room::Any);
    assert!(!text.replace('\n', "").contains(char::is_control), "{text:?}");
    for part in [
        "\\u{1b}[31mred\\n",
        "warning: w: \\u{1b}[2J",
        "1s ago",
        "w\\u{7}",
        "unknown → ready",
        "peers file peers.yaml: 1 peer, read 1m 1s ago\nwhat is there now is not in force:\n  peers.yaml:3:5: no id\n    3 |",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
}

#[test]
fn models_are_told_with_what_stands_behind_their_names() {
    let model = |name: &str, stands_for: &[&str]| {
        serde_json::json!({
            "name": name, "kind": "generate", "context_length": 512, "workers": 2, "stands_for": stands_for,
            "waiting": 4, "tickets": 5,
        })
    };
    let models = |models: serde_json::Value| {
        let models: Vec<muster_shared::topology::ModelNode> = serde_json::from_value(models).expect("models");
        table::of_models(&models, Room::Any)
    };
    assert_eq!(models(serde_json::json!([])), "no model is served\n");
    assert_eq!(
        models(serde_json::json!([model("m", &[])])),
        "MODEL  KIND      CONTEXT  WORKERS  WAITING  TICKETS\nm      generate  512      2        4        5\n"
    );
    let text = models(serde_json::json!([model("chat", &["a", "b"]), model("m", &[])]));
    assert!(text.contains("BEHIND IT\n") && text.contains("5        stands for a, b\n"), "{text}");
}
