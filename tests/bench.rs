//! `muster bench engine`, both ways: a model in its own process, and a real server.

mod common;

use std::path::Path;

use common::{Process, run};
use serde_json::Value;

/// What the binary prints with `--json`, a value a line.
fn measured(arguments: &[&str]) -> Vec<Value> {
    let (status, printed, errors) = run(&[&["bench", "engine", "--json"], arguments].concat());
    assert!(status.success(), "{arguments:?}: {errors}");
    printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn of_kind<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["kind"] == kind).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// The folder of the demo model, which is in the layout of ONNX Runtime GenAI.
fn demo() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("model-worker/demo/chat").display().to_string()
}

#[test]
fn a_model_in_this_process_is_measured_at_every_size_asked_for() {
    for model in [demo(), "fake".to_owned()] {
        let records = measured(&[
            "--model",
            &model,
            "--threads",
            "1",
            "--batch",
            "1,3",
            "--prompt",
            "20",
            "--new",
            "4",
            "--prefill",
            "24",
            "--chunk",
            "10",
            "--rounds",
            "2",
        ]);
        let setting = of_kind(&records, "setting")[0];
        assert_eq!((&setting["threads"], &setting["rows"]), (&1.into(), &3.into()));
        let prefill = of_kind(&records, "prefill");
        assert_eq!(prefill.iter().map(|record| &record["piece"]).collect::<Vec<_>>(), [24, 10]);
        let decode = of_kind(&records, "decode");
        assert_eq!(decode.iter().map(|record| &record["batch"]).collect::<Vec<_>>(), [1, 3]);
        for record in [prefill, decode].concat() {
            let rates = &record["tokens_per_second"];
            assert_eq!(rates["rounds"].as_array().map(Vec::len), Some(2), "{record}");
            assert!(number(&rates["best"]) >= number(&rates["median"]) && number(&rates["median"]) > 0.0, "{record}");
        }
        assert_eq!(of_kind(&records, "decode")[1]["step_ms"]["count"], 8);
    }
}

#[test]
fn a_text_model_is_measured_beside_sessions_that_run_single_texts() {
    let embedding = Path::new(env!("CARGO_MANIFEST_DIR")).join("model-worker/demo/embedding").display().to_string();
    let arguments = ["--model", &embedding, "--threads", "2", "--tokens", "3000", "--rounds", "2"];
    let (status, printed, errors) = run(&[&["bench", "embed", "--json"][..], &arguments].concat());
    assert!(status.success(), "{errors}");
    let records: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(of_kind(&records, "setting")[0]["threads"], 2);
    assert!(number(&of_kind(&records, "tokenize")[0]["tokens_per_cpu_second"]) > 0.0);
    let loads = of_kind(&records, "embed");
    assert_eq!(loads.iter().map(|record| &record["clients"]).collect::<Vec<_>>(), [16, 64]);
    for record in loads {
        assert!(number(&record["tokens"]) >= 3000.0 && number(&record["texts"]) > 10.0, "{record}");
        for rates in ["singles_tokens_per_second", "pool_tokens_per_second", "ratio"].map(|name| &record[name]) {
            assert_eq!(rates["rounds"].as_array().map(Vec::len), Some(2), "{record}");
            assert!(number(&rates["median"]) > 0.0, "{record}");
        }
    }
}

#[test]
fn a_server_is_measured_at_every_level_asked_for() {
    let up = Process::start(&["up", "--port", "0", "--model", "fake", "--fake-token-time", "2ms", "--slots", "4"]);
    let records = measured(&[
        "--url",
        &up.address,
        "--clients",
        "1,3",
        "--prompt",
        "40",
        "--new",
        "12",
        "--vocab",
        "256",
        "--pid",
        &up.id().to_string(),
    ]);
    assert_eq!(of_kind(&records, "setting")[0]["model"], "fake");
    let levels = of_kind(&records, "level");
    assert_eq!(levels.len(), 2);
    for (level, clients) in levels.iter().zip([1, 3]) {
        assert_eq!((&level["clients"], &level["requests"]), (&clients.into(), &clients.into()));
        assert_eq!((&level["failures"], &level["short"], &level["prompt_tokens"]), (&0.into(), &0.into(), &40.into()));
        assert_eq!((&level["tokens"], &level["ttft_ms"]["count"]), (&(clients * 12).into(), &clients.into()));
        assert_eq!(level["inter_token_ms"]["count"], clients * 11);
        // A token takes 2 ms; several of a row may be read at once where the client waits for a processor.
        assert!(number(&level["ttft_ms"]["p50"]) >= 2.0, "{level}");
        assert!(number(&level["wall_seconds"]) >= 0.024 && number(&level["tokens_per_second"]) > 0.0, "{level}");
        assert!(cfg!(not(target_os = "linux")) || number(&level["server"]["memory_mib"]["peak"]) > 1.0, "{level}");
    }
}

#[test]
fn several_requests_a_client_and_prompts_of_text_are_answered() {
    let up = Process::start(&["up", "--port", "0", "--model", "fake"]);
    let url = format!("{}/v1", up.address);
    let text = ["--url", &url, "--clients", "2", "--requests-per-client", "3", "--new", "5", "--prompt-kind", "text"];
    let records = measured(&[&text[..], &["--extra", "{\"temperature\": 1}"]].concat());
    let level = of_kind(&records, "level")[0];
    assert_eq!((&level["requests"], &level["failures"], &level["tokens"]), (&6.into(), &0.into(), &30.into()));
    assert!(level["steady_tokens_per_second"].is_null(), "{level}");
    assert!(number(&level["prompt_tokens"]) > 100.0, "{level}");
}

#[test]
fn common_beginnings_and_newcomers_are_measured() {
    let up = Process::start(&["up", "--port", "0", "--model", "fake", "--fake-token-time", "2ms", "--slots", "4"]);
    let server = ["--url", &up.address, "--vocab", "256"];
    let records = measured(&[&server[..], &["--shared-prefix", "100", "--prompt", "16", "--rounds", "2"]].concat());
    let prefixes = of_kind(&records, "prefix");
    assert_eq!((prefixes.len(), &prefixes[0]["shared"], &prefixes[1]["round"]), (2, &100.into(), &2.into()));
    assert!(prefixes.iter().all(|prefix| number(&prefix["first_ms"]) >= 2.0 && number(&prefix["second_ms"]) > 0.0));
    assert!(of_kind(&records, "level").is_empty());

    let records = measured(&[&server[..], &["--beside", "200", "--clients", "2", "--new", "60"]].concat());
    let beside = of_kind(&records, "beside")[0];
    assert_eq!((&beside["clients"], &beside["beside"], &beside["failures"]), (&2.into(), &200.into(), &0.into()));
    assert!(number(&beside["newcomer_ttft_ms"]) >= 2.0, "{beside}");
    assert!(number(&beside["before_ms"]["count"]) > 0.0, "{beside}");
}

#[test]
fn people_get_a_table() {
    let (status, printed, errors) =
        run(&["bench", "engine", "--model", "fake", "--threads", "1", "--batch", "5", "--prefill", "32"]);
    assert!(status.success(), "{errors}");
    let heads: Vec<&str> = printed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(heads.iter().filter(|head| ["THREADS", "READ", "TOGETHER"].contains(head)).count(), 3, "{printed}");
    let row = |line: &&str| line.split_whitespace().next() == Some("5");
    assert_eq!(printed.lines().filter(row).count(), 1, "{printed}");
}

#[test]
fn requests_that_fail_are_counted_and_make_the_command_fail() {
    // The prompt that warms up fits the context, those of the level do not.
    let up = Process::start(&["up", "--port", "0", "--model", "fake", "--context-length", "64"]);
    let (status, printed, errors) =
        run(&["bench", "engine", "--json", "--url", &up.address, "--clients", "2", "--prompt", "90", "--vocab", "256"]);
    assert_eq!(status.code(), Some(1), "{printed}");
    let level: Value = serde_json::from_str(printed.lines().last().expect("a level")).expect("JSON");
    assert_eq!((&level["failures"], &level["tokens"]), (&2.into(), &0.into()), "{level}");
    assert!(errors.contains("2 of 2 requests failed") && errors.contains("90"), "{errors}");
}

#[test]
fn policies_stand_beside_round_robin_and_the_same_seed_gives_the_same_figures() {
    let arguments =
        ["bench", "policies", "--json", "--requests", "200", "--scenario", "Uniform,bursts", "--policy", "LOTTERY"];
    let (status, printed, errors) = run(&arguments);
    assert!(status.success() && errors.is_empty(), "{errors}");
    let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<_> = lines.iter().map(|line| (line["scenario"].as_str(), line["policy"].as_str())).collect();
    let expected =
        [("uniform", "round_robin"), ("uniform", "lottery"), ("bursts", "round_robin"), ("bursts", "lottery")];
    assert_eq!(names, expected.map(|(scenario, policy)| (Some(scenario), Some(policy))));
    assert_eq!(lines[0]["mean_better"], 1.0);
    assert_eq!(run(&arguments).1, printed);
}

#[test]
fn mistakes_are_explained() {
    let embedding = Path::new(env!("CARGO_MANIFEST_DIR")).join("model-worker/demo/embedding").display().to_string();
    let demo = demo();
    for (arguments, parts) in [
        (&["bench"][..], &["engine"][..]),
        (&["bench", "engines"], &["engines", "legal here: engine, embed, gateway, fake-worker"]),
        (&["bench", "engine"], &["--model"]),
        (&["bench", "engine", "--modle", "x"], &["--modle", "--model", "--shared-prefix"]),
        (&["bench", "engine", "--model", "fake", "--clients", "2"], &["--url"]),
        (&["bench", "engine", "--url", "http://127.0.0.1:1", "--batch", "2"], &["--batch", "--url"]),
        (&["bench", "engine", "--url", "http://127.0.0.1:1"], &["127.0.0.1:1", "--url"]),
        (&["bench", "engine", "--url", "nowhere"], &["nowhere", "http://HOST:PORT"]),
        (&["bench", "engine", "--url", "http://127.0.0.1:1", "--extra", "[1]"], &["--extra", "[1]", "JSON object"]),
        (&["bench", "engine", "--url", "http://127.0.0.1:1", "--prompt-kind", "verse"], &["verse", "ids, text"]),
        (&["bench", "engine", "--url", "http://127.0.0.1:1", "--pid", "4294967295"], &["--pid 4294967295"]),
        (&["bench", "engine", "--model", "/no/such/folder"], &["/no/such/folder does not exist"]),
        (&["bench", "engine", "--model", &embedding], &[&embedding, "language model"]),
        (&["bench", "engine", "--model", "muster-demo-embedding"], &["embeds texts", "give a language model"]),
        (&["bench", "engine", "--model", &demo, "--prefill", "9000"], &["9000", "2048", "--prefill"]),
        (&["bench", "embed"], &["--model"]),
        (&["bench", "embed", "--model", &demo], &["--model chat embeds no texts", "give an embedding model"]),
        (&["bench", "embed", "--model", "/no/such/folder"], &["/no/such/folder does not exist"]),
        (&["bench", "embed", "--model", &embedding, "--rounds", "0"], &["--rounds", "0"]),
        (&["bench", "engine", "--model", "fake", "--batch", "0"], &["--batch", "0"]),
        (&["bench", "policies", "--policy", "coin"], &["coin", "lottery, shortest_queue, round_robin, power_of_two"]),
        (&["bench", "policies", "--scenario", "calm"], &["calm", "uniform, heterogeneous", "slow-and-failing"]),
        (&["bench", "policies", "--requests", "0"], &["--requests", "0"]),
    ] {
        let (status, printed, errors) = run(arguments);
        assert!(!status.success() && printed.is_empty(), "{arguments:?}: {printed}");
        for part in parts {
            assert!(errors.contains(part), "{arguments:?}: no `{part}` in:\n{errors}");
        }
    }
}
