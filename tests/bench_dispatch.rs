//! `muster bench dispatch` and `muster bench fleet`, in small, against real controllers.

mod common;

use common::{Process, run};
use serde_json::Value;

/// What the binary prints with `--json`, a value a line.
fn measured(arguments: &[&str]) -> Vec<Value> {
    let short = ["bench", "dispatch", "--json", "--seconds", "0.1"];
    let (status, printed, errors) = run(&[&short, arguments].concat());
    assert!(status.success(), "{arguments:?}: {errors}");
    printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// Every field that a measurement has; gives what tells it from the others.
fn checked(record: &Value, rounds: usize) -> (String, String, u64, String) {
    let rates = &record["per_second"];
    assert_eq!(rates["rounds"].as_array().map(Vec::len), Some(rounds), "{record}");
    assert!(number(&rates["best"]) >= number(&rates["median"]) && number(&rates["median"]) > 0.0, "{record}");
    let [p50, p99, max] = ["p50_us", "p99_us", "max_us"].map(|field| number(&record[field]));
    assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{record}");
    let text = |field: &str| record[field].as_str().expect("a text").to_owned();
    (text("over"), text("policy"), record["workers"].as_u64().expect("a count"), text("what"))
}

#[test]
fn every_question_is_measured_for_every_fleet_and_policy() {
    let records = measured(&["--workers", "1,3", "--rounds", "2", "--clients", "2"]);
    let mut expected = Vec::new();
    for (over, whats) in [
        ("process", &["dispatch+release", "heartbeat"][..]),
        ("http", &["get_worker_address", "dispatch+release", "heartbeat"]),
    ] {
        for workers in [1, 3] {
            for policy in ["shortest_queue", "lottery"] {
                expected.extend(whats.iter().map(|what| (over.into(), policy.into(), workers, (*what).into())));
            }
        }
    }
    let mut found: Vec<_> = records.iter().map(|record| checked(record, 2)).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    if cfg!(target_os = "linux") {
        let served = records.iter().filter(|record| record["over"] == "http");
        assert!(served.into_iter().all(|record| number(&record["cpu_us"]) > 0.0));
    }
}

#[test]
fn a_fleet_is_compared_with_one_a_hundred_times_as_large() {
    let records = measured(&["--over", "process", "--policy", "lottery", "--workers", "1,2,100", "--rounds", "1"]);
    let grown: Vec<&Value> = records.iter().filter(|record| record["kind"] == "growth").collect();
    let whats: Vec<&Value> = grown.iter().map(|record| &record["what"]).collect();
    assert_eq!(whats, ["dispatch+release", "heartbeat"]);
    assert!(grown.iter().all(|record| number(&record["time_ratio"]) > 0.0), "{grown:?}");
}

#[tokio::test]
async fn two_running_controllers_are_measured_against_each_other() {
    let controllers = [(); 2].map(|()| Process::start(&["controller", "--port", "0"]));
    let [url, against] = controllers.each_ref().map(|controller| controller.address.as_str());
    let pid = controllers[0].id().to_string();
    let what = ["--url", url, "--pid", &pid, "--policy", "lottery", "--against", against];
    let how = ["--over", "http", "--workers", "3", "--rounds", "2", "--clients", "2"];
    let records = measured(&[what, how].concat());
    let found: Vec<_> = records.iter().map(|record| checked(record, 2)).collect();
    let of = |policy: &str| ("http".to_owned(), policy.to_owned(), 3, "get_worker_address".to_owned());
    assert_eq!(found, [of("lottery"), of("against")]);
    assert_eq!(
        (records[0]["cpu_us"].is_f64() || !cfg!(target_os = "linux"), records[1]["cpu_us"].is_null()),
        (true, true)
    );
    for controller in &controllers {
        // Both were asked in FastChat's words.
        let fleet = controller.get("/fleet").await;
        let transports: Vec<&Value> =
            fleet["workers"].as_array().expect("workers").iter().map(|worker| &worker["transport"]).collect();
        assert_eq!(transports, ["fastchat"; 3]);
    }
}

#[test]
fn a_fleet_that_beats_is_seen_as_it_is() {
    let fleet = ["bench", "fleet", "--workers", "20", "--heartbeat", "200ms", "--kill", "5", "--clients", "16"];
    let (status, printed, errors) = run(&[&fleet[..], &["--duration", "3s", "--json"]].concat());
    assert!(status.success(), "{printed}{errors}");
    let found: Value = serde_json::from_str(&printed).expect("JSON");
    for (field, expected) in [
        ("workers", 20),
        ("killed", 5),
        ("false_expiries", 0),
        ("dead_hand_outs", 0),
        ("not_gone", 0),
        ("tickets_left", 0),
    ] {
        assert_eq!(found[field], expected, "{field} of {found}");
    }
    assert!(number(&found["lease_s"]) > 0.5 && number(&found["beats"]) > 100.0, "{found}");
    assert!(number(&found["dispatches"]) > 100.0 && number(&found["looks"]) > 10.0, "{found}");
    // They were handed out until their leases ended, and the controller said in time that they are gone.
    assert!(number(&found["silent_hand_outs"]) > 0.0, "{found}");
    assert!(number(&found["latest_hand_out_s"]) <= number(&found["lease_s"]), "{found}");
    assert!(number(&found["gone_after_s"]) > 0.5, "{found}");
}

#[test]
fn mistakes_are_explained() {
    let controller = Process::start(&["controller", "--port", "0"]);
    let dispatch = |more: &[&'static str]| [&["bench", "dispatch"], more].concat();
    let fleet = |more: &[&'static str]| [&["bench", "fleet"], more].concat();
    let twice = ["bench", "dispatch", "--workers", "1", "--url", &controller.address];
    let sizes = ["bench", "dispatch", "--workers", "1,2", "--policy", "lottery", "--url", &controller.address];
    for (arguments, code, parts) in [
        (dispatch(&["--workers", "0"]), 2, &["--workers", "0", "1..=100000"][..]),
        (dispatch(&["--policy", "coin"]), 2, &["--policy", "coin", "lottery", "shortest_queue"]),
        (dispatch(&["--seconds", "0"]), 2, &["--seconds", "longer than 0"]),
        (dispatch(&["--rounds", "0"]), 2, &["--rounds", "0"]),
        (dispatch(&["--over", "carrier"]), 2, &["--over", "carrier", "process, http"]),
        (dispatch(&["--clients", "4097"]), 2, &["--clients", "4097"]),
        (dispatch(&["--pid", "1"]), 2, &["--pid", "--url"]),
        (dispatch(&["--workers", "1", "--against", "x"]), 1, &["--against `x`", "http://HOST:PORT"]),
        (
            dispatch(&["--workers", "1", "--policy", "lottery", "--url", "http://127.0.0.1:1", "--over", "http"]),
            1,
            &["cannot reach http://127.0.0.1:1", "controller"],
        ),
        (dispatch(&["--workers", "1", "--against", "http://h", "--over", "process"]), 1, &["--against", "--over http"]),
        (twice.to_vec(), 1, &["--url", "--policy"]),
        (sizes.to_vec(), 1, &["--workers", "a run of its own"]),
        (fleet(&["--workers", "1"]), 2, &["--workers", "1", "2..=100000"]),
        (fleet(&["--workers", "5", "--kill", "5"]), 1, &["--kill 5", "5 workers"]),
        (fleet(&["--heartbeat", "0s"]), 1, &["--heartbeat", "longer"]),
        (fleet(&["--duration", "soon"]), 2, &["--duration", "soon"]),
    ] {
        let (status, _, errors) = run(&arguments);
        assert_eq!(status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(parts.iter().all(|part| errors.contains(part)), "{arguments:?}: {errors}");
    }
}
