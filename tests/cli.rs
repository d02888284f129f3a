//! The command line: `up` from start to stop, and every mistake a user can make before anything runs.

mod common;

use std::io::{BufRead as _, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use common::{CHAT, Process, facts, run};

#[tokio::test(flavor = "multi_thread")]
async fn up_serves_the_demo_models_and_stops_cleanly() {
    let mut up = Process::start(&["up", "--port", "0"]);
    let (question, right) = facts::capital(0);
    assert_eq!(common::ask(&up.address, CHAT, &question).await, right);
    let hints = async || {
        let lines = up.output().join("\n");
        lines.contains("curl ") || lines.contains("Ctrl-C")
    };
    common::eventually("the curl line is printed", hints).await;
    up.signal("INT");
    assert!(up.ended().await.success(), "{}", up.errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_loaded_leaves_the_others_serving() {
    let folder = tempfile::tempdir().expect("a folder");
    let corrupt = folder.path().join("corrupt");
    std::fs::create_dir(&corrupt).expect("a folder");
    std::fs::write(corrupt.join("model.onnx"), "not a model").expect("a file");
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).expect("a folder");
    let [corrupt, empty] = [&corrupt, &empty].map(|path| path.display().to_string());

    let models = ["--model", "fake", "--model", &corrupt, "--model", &empty, "--model", "/no/such/folder"];
    let up = Process::start(&[&["up", "--port", "0"], &models[..]].concat());
    assert!(common::ask(&up.address, "fake", "hi").await.starts_with("All models"));
    let errors = up.errors();
    for part in ["corrupt", "not an ONNX model", "model.onnx is missing", "/no/such/folder does not exist"] {
        assert!(errors.contains(part), "no `{part}` in:\n{errors}");
    }
    drop(up);

    let (status, _, errors) = run(&["up", "--port", "0", "--model", &corrupt]);
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains("no model could be loaded"), "{errors}");
}

#[test]
fn weights_outside_the_folder_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let graph = include_bytes!("models/external-data-escape.onnx");
    std::fs::write(folder.path().join("model.onnx"), graph).expect("a file");
    std::fs::write(folder.path().join("config.json"), "{}").expect("a file");
    let model = folder.path().display().to_string();
    let (status, _, errors) = run(&["worker", "--no-register", "--port", "0", "--model", &model]);
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("../outside.data") && errors.contains("model.onnx"), "{errors}");
}

#[test]
fn mistakes_on_the_command_line_are_explained() {
    for (arguments, parts) in [
        (&["up", "--prot", "1"][..], &["--prot", "--port", "--api-key-file"][..]),
        (&["fly"], &["fly", "up, controller, worker"]),
        (&["controller", "--policy", "coin"], &["coin", "lottery, shortest_queue"]),
        (&["controller", "--heartbeat", "soon"], &["soon", "15s"]),
        (&["controller", "--pause-cpu", "85"], &["--pause-cpu", "`85` is no share", "85%", "off"]),
        (&["controller", "--resume-memory", "95%"], &["resume_memory is 0.95", "pause_memory is 0.9"]),
        (&["worker", "--network-mbps", "0"], &["--network-mbps"]),
        (&["worker", "--speed", "fast"], &["fast", "measured"]),
        (&["worker", "--model", "a=fake", "--model", "a=fake"], &["two models are named `a`"]),
        (&["worker", "--model", "fake", "--model-names", "a,b"], &["2 names for 1 models"]),
        (&["gateway", "--controller-address", "nowhere"], &["nowhere", "http://HOST:PORT"]),
        (&["gateway", "--api-key-file", "/no/such/file"], &["/no/such/file"]),
        (&["controller", "--host", "0.0.0.0", "--port", "0"], &["0.0.0.0", "--fleet-token-file", "--insecure"]),
        (&["gateway", "--host", "0.0.0.0", "--port", "0"], &["0.0.0.0", "--api-key-file", "--insecure"]),
        (&["up", "--controller-address", "http://127.0.0.1:1"], &["--controller-address", "controller of its own"]),
        (&["worker", "--context-length", "3"], &["context_length is 3", "at least 4"]),
        (&["worker", "--itl-budget", "250"], &["itl_budget is 4m 10s", "above 0", "400ms"]),
        (&["worker", "--fastchat-heartbeat", "0"], &["fastchat_heartbeat is 0"]),
        (&["worker", "--host", "0.0.0.0", "--port", "0", "--insecure"], &["0.0.0.0", "--worker-address http://HOST"]),
        (&["gateway", "--cors-origin", "app.example"], &["`app.example` is no origin", "https://HOST"]),
        (&["worker", "--transport", "smoke"], &["smoke", "http, grpc, fastchat, openai"]),
        (&["worker", "--transport", "gRPC"], &["transport is grpc", "--grpc-port"]),
        (&["worker", "--transport", "openai"], &["do not speak", "http, grpc, fastchat"]),
        (&["worker", "--port", "7000", "--grpc-port", "7000"], &["both 7000", "a port of its own"]),
        (
            &["worker", "--grpc-port", "0", "--transport", "grpc", "--worker-address", "http://w.example/w1"],
            &["http://w.example/w1", "http://HOST:PORT"],
        ),
        (&["worker", "--fleet-token", " "], &["--fleet-token", "must not be empty"]),
        (&["gateway", "--api-key", "a,"], &["--api-key", "must not be empty"]),
        (&["gateway", "--api-key", "***"], &["--api-key", "printed in place of a key"]),
        (&["status", "--controller-address", "http://127.0.0.1:1"], &["127.0.0.1:1"]),
        (&["chat", "--base-url", "http://127.0.0.1:1", "hi"], &["127.0.0.1:1", "--base-url"]),
    ] {
        let (status, printed, errors) = run(arguments);
        assert!(!status.success() && printed.is_empty(), "{arguments:?}: {printed}");
        for part in parts {
            assert!(errors.contains(part), "{arguments:?}: no `{part}` in:\n{errors}");
        }
    }
}

#[test]
fn a_port_in_use_is_one_line_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for service in ["controller", "worker", "gateway", "up"] {
        let (status, _, errors) = run(&[service, "--port", &port]);
        assert_eq!(status.code(), Some(1), "{service}: {errors}");
        let lines: Vec<&str> = errors.lines().collect();
        assert!(matches!(lines[..], [line] if line.contains(&port) && line.contains("in use")), "{service}: {errors}");
    }
}

#[test]
fn a_grpc_port_in_use_is_told_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let (status, _, errors) = run(&["worker", "--port", "0", "--grpc-port", &port, "--model", "fake"]);
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains(&format!("port {port} is in use")) && errors.contains("--grpc-port"), "{errors}");
}

#[test]
fn a_configuration_file_is_read_and_its_mistakes_have_a_place() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    std::fs::write(file.path(), "controller:\n  port: 7777\n  policy: lottery\n  heartbeat: 2s\n").expect("a file");
    let (status, printed, errors) = run(&["--config", &path, "controller", "--port", "7778", "--print-config"]);
    assert!(status.success(), "{errors}");
    for part in ["port: 7778", "policy: lottery", "heartbeat: 2s", "missed_beats: 3"] {
        assert!(printed.contains(part), "no `{part}` in:\n{printed}");
    }

    std::fs::write(file.path(), "controller:\n  port: 7777\n  polisy: lottery\n").expect("a file");
    let (status, _, errors) = run(&["--config", &path, "controller"]);
    assert_eq!(status.code(), Some(1));
    for part in ["line 3", "column 3", "polisy", "policy"] {
        assert!(errors.contains(part), "no `{part}` in:\n{errors}");
    }
}

/// The binary's end with variables set: exit status, standard output and standard error.
fn run_with(variables: &[(&str, &str)], arguments: &[&str]) -> (bool, String, String) {
    let output = common::muster(arguments).envs(variables.iter().copied()).output().expect("the binary runs");
    let [printed, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), printed, errors)
}

#[test]
fn variables_in_the_file_change_nothing_else_and_are_never_shown() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    let print = ["--config", &path, "gateway", "--print-config"];
    let key = "hunter2\n  insecure: true # \"";

    std::fs::write(file.path(), "gateway:\n  api_key: [\"x ${KEY}\"]\n  host: ${HOST}\n").expect("a file");
    let (success, printed, errors) = run_with(&[("KEY", "a: \"b\" #"), ("HOST", key)], &print);
    assert!(success && printed.contains("insecure: false"), "{printed}\n{errors}");

    for text in ["gateway:\n  port: ${KEY}\n", "gateway:\n  drain: ${KEY}\n", "gateway:\n  host: x${KEY}\n"] {
        std::fs::write(file.path(), text).expect("a file");
        let (success, _, errors) = run_with(&[("KEY", key)], &print);
        assert!(!success && errors.contains("line 2, column"), "{errors}");
        assert!(!errors.contains("hunter2") && errors.lines().count() == 1, "{errors}");
    }

    std::fs::write(file.path(), "gateway:\n  fleet_token: ${KEY}\n").expect("a file");
    let (success, _, errors) = run_with(&[("KEY", "")], &print);
    assert!(!success && errors.contains("line 2") && errors.contains("must not be empty"), "{errors}");
}

#[test]
fn flags_win_over_variables_and_the_file_for_knobs_that_belong_together() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    std::fs::write(file.path(), "gateway:\n  api_key_file: /from/file\n  fleet_token_file: /from/file\n")
        .expect("a file");
    let variables = [("MUSTER_FLEET_TOKEN_FILE", "/from/variable"), ("MUSTER_API_KEY_FILE", "/from/variable")];
    let arguments = ["--config", &path, "gateway", "--print-config"];

    let (success, printed, errors) =
        run_with(&variables, &[&arguments[..], &["--api-key", "a", "--fleet-token", "b"]].concat());
    assert!(success && printed.contains("***") && !printed.contains("/from/"), "{printed}\n{errors}");
    let (success, printed, errors) = run_with(&[("MUSTER_FLEET_TOKEN", "a"), ("MUSTER_API_KEY", "b")], &arguments);
    assert!(success && printed.contains("***") && !printed.contains("/from/"), "{printed}\n{errors}");
}

#[test]
fn switches_in_variables_are_read_as_people_write_them() {
    for (value, expected) in [("1", "true"), ("yes", "true"), ("ON", "true"), ("0", "false"), ("off", "false")] {
        let spin = if expected == "true" { "always" } else { "\"off\"" };
        let variables =
            [("MUSTER_INSECURE", value), ("MUSTER_WORKER_NO_REGISTER", value), ("MUSTER_WORKER_SPIN", value)];
        let (success, printed, errors) = run_with(&variables, &["worker", "--print-config"]);
        assert!(success, "{value}: {errors}");
        for (knob, expected) in [("insecure", expected), ("no_register", expected), ("spin", spin)] {
            assert!(printed.contains(&format!("{knob}: {expected}")), "{value}: {printed}");
        }
    }
    let (success, _, errors) = run_with(&[("MUSTER_INSECURE", "perhaps")], &["worker", "--print-config"]);
    assert!(!success && errors.contains("--insecure"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_named_origins_may_ask() {
    let (success, printed, errors) =
        run_with(&[("MUSTER_GATEWAY_CORS_ORIGINS", "http://a,http://b")], &["gateway", "--print-config"]);
    assert!(success && printed.contains("- http://a\n") && printed.contains("- http://b"), "{printed}{errors}");
    let (success, printed, errors) = run_with(&[], &["gateway", "--allowed-origins", "*", "--print-config"]);
    assert!(success && printed.contains("cors_origins:") && printed.contains('*'), "{printed}{errors}");

    let gateway = common::gateway("http://127.0.0.1:1", &["--cors-origin", "http://a", "--cors-origin", "http://b/"]);
    for (origin, allowed) in [("http://a", Some("http://a")), ("http://b", Some("http://b")), ("http://c", None)] {
        let request = reqwest::Client::new().get(format!("{}/v1/models", gateway.address)).header("origin", origin);
        let response = request.send().await.expect("an answer");
        let header = response.headers().get("access-control-allow-origin");
        assert_eq!(header.map(|value| value.to_str().expect("ASCII")), allowed, "{origin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_registers_nowhere_needs_no_address() {
    let flags = ["--no-register", "--insecure", "--host", "0.0.0.0", "--port", "0", "--model", "fake"];
    let worker = Process::start(&[&["worker"], &flags[..]].concat());
    assert!(worker.address.starts_with("http://0.0.0.0:"), "{}", worker.address);
}

/// `muster up` with variables set; killed when dropped.
struct Up {
    child: Child,
    gateway: String,
    controller: String,
    errors: tempfile::NamedTempFile,
}

impl Up {
    /// Starts it, and waits until it says that it is ready.
    fn start(variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let errors = tempfile::NamedTempFile::new().expect("a file");
        let stderr = errors.reopen().expect("a file");
        let mut command = common::muster(arguments);
        let mut child =
            command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(stderr).spawn().expect("it starts");
        let line = line_with("muster is ready", child.stdout.take().expect("piped"));
        let mut up = Self { child, gateway: String::new(), controller: String::new(), errors };
        let line = line.unwrap_or_else(|| panic!("it is not ready; standard error:\n{}", up.errors()));
        let mut addresses = line.split([' ', ',']).filter(|word| word.starts_with("http://")).map(str::to_owned);
        up.gateway = addresses.next().expect("the gateway").trim_end_matches("/v1").to_owned();
        up.controller = addresses.next().expect("the controller");
        up
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.errors.path()).expect("a file")
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line of `stream` that has `part`; `None` when there is none until the end, or for too long.
fn line_with(part: &'static str, stream: impl Read + Send + 'static) -> Option<String> {
    let (sender, found) = channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        // The test may have given up.
        let _ = sender.send(lines.into_iter().find(|line| line.contains(part)));
    });
    found.recv_timeout(common::PATIENCE).ok().flatten()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_token_of_up_protects_every_service_inside() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "hunter2\n").expect("a file");
    let path = file.path().display().to_string();
    let arguments = ["up", "--port", "0", "--model", "fake"];
    for (variables, flags) in [
        (&[][..], &["--fleet-token", "hunter2"][..]),
        (&[], &["--fleet-token-file", &path]),
        (&[("MUSTER_FLEET_TOKEN", "hunter2")], &[]),
    ] {
        let up = Up::start(variables, &[&arguments[..], flags].concat());
        let (status, _, errors) = run(&["status", "--controller-address", &up.controller]);
        assert!(!status.success(), "the controller wants no token: {errors}");
        let (status, table, errors) =
            run(&["status", "--controller-address", &up.controller, "--fleet-token", "hunter2"]);
        assert!(status.success(), "{errors}");
        let worker = table.split_whitespace().find(|word| word.starts_with("http://127.0.0.1")).expect("the worker");
        let request = reqwest::Client::new().post(format!("{worker}/embed")).json(&serde_json::json!({}));
        assert_eq!(request.send().await.expect("an answer").status().as_u16(), 401, "the worker wants no token");
        assert!(common::ask(&up.gateway, "fake", "hi").await.starts_with("All models"));
    }
}

#[test]
fn up_says_what_it_ignores_and_needs_no_proxy() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    let nowhere = "http://127.0.0.1:1";
    let section = format!(
        "worker:\n  no_register: true\n  worker_address: {nowhere}\n  worker_id: me\n  controller_address: {nowhere}\n"
    );
    std::fs::write(file.path(), section).expect("a file");
    let variables = ["MUSTER_CONTROLLER_ADDRESS", "http_proxy", "HTTP_PROXY", "ALL_PROXY"].map(|name| (name, nowhere));
    let up = Up::start(&variables, &["--config", &path, "up", "--port", "0", "--model", "fake"]);
    let errors = up.errors();
    for name in ["MUSTER_CONTROLLER_ADDRESS", "no_register", "worker_address", "worker_id", "worker.controller_address"]
    {
        assert!(errors.contains(name), "no `{name}` in:\n{errors}");
    }
}

#[test]
fn up_refuses_a_file_with_several_fleet_tokens() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    std::fs::write(file.path(), "controller: {fleet_token: hunter2}\nworker: {fleet_token: hunter3}\n")
        .expect("a file");
    let (status, _, errors) = run(&["--config", &path, "up", "--port", "0", "--model", "fake"]);
    assert!(!status.success() && errors.contains("different fleet tokens") && !errors.contains("hunter"), "{errors}");
}

#[test]
fn up_says_what_it_waits_for() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("model.onnx"), "").expect("a file");
    // Reading a pipe that nobody writes to takes for ever.
    let pipe = Command::new("mkfifo").arg(folder.path().join("config.json")).status();
    assert!(pipe.expect("mkfifo runs").success());
    let model = format!("stuck={}", folder.path().display());
    let mut command = common::muster(&["up", "--port", "0", "--model", "fake", "--model", &model]);
    let mut up = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let word = line_with("not ready after", up.stderr.take().expect("piped"));
    up.kill().expect("it runs");
    up.wait().expect("it ends");
    assert!(word.as_deref().is_some_and(|word| word.contains("10 s") && word.contains("stuck")), "{word:?}");
}

#[test]
fn doctor_tells_of_a_missing_runtime_once() {
    let home = tempfile::tempdir().expect("a folder");
    let output = common::muster(&["doctor"])
        .env("HOME", home.path())
        .env_remove("XDG_CACHE_HOME")
        .env("ORT_DYLIB_PATH", "/no/such/library.so")
        .output()
        .expect("the binary runs");
    let [report, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(!output.status.success());
    assert_eq!(report.matches("/no/such/library.so").count(), 1, "{report}");
    assert!(errors.trim_end().ends_with("not usable: ONNX Runtime"), "{errors}");
}

#[test]
fn secrets_are_not_printed() {
    let (status, printed, _) = run(&["gateway", "--api-key", "hunter2", "--fleet-token", "hunter3", "--print-config"]);
    assert!(status.success());
    assert!(!printed.contains("hunter") && printed.contains("***"), "{printed}");
}

#[test]
fn a_missing_runtime_names_the_command_that_gets_it() {
    let home = tempfile::tempdir().expect("a folder");
    let output = common::muster(&["up", "--port", "0"])
        .env("HOME", home.path())
        .env_remove("XDG_CACHE_HOME")
        .env("ORT_DYLIB_PATH", "/no/such/library.so")
        .output()
        .expect("the binary runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("/no/such/library.so") && errors.contains("scripts/fetch-onnxruntime.sh"), "{errors}");
}

#[test]
fn a_library_of_the_wrong_version_is_a_clear_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, library) = (folder.path().join("old.c"), folder.path().join("libonnxruntime.so"));
    // The two functions by which a library tells its version.
    let old = "struct Base { const void *(*api)(unsigned); const char *(*version)(void); };\n\
        static const void *api(unsigned wanted) { return 0; }\n\
        static const char *version(void) { return \"1.14.0\"; }\n\
        static const struct Base base = { api, version };\n\
        const struct Base *OrtGetApiBase(void) { return &base; }\n";
    std::fs::write(&source, old).expect("a file");
    let built = std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.expect("the C compiler that Rust links with").success());
    let output = common::muster(&["worker", "--port", "0", "--no-register"])
        .env("ORT_DYLIB_PATH", &library)
        .output()
        .expect("the binary runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    for part in ["1.14.0", "1.17", "scripts/fetch-onnxruntime.sh"] {
        assert!(errors.contains(part), "no `{part}` in:\n{errors}");
    }
}

#[test]
fn a_variable_set_to_nothing_is_not_set() {
    let mut command = common::muster(&["worker", "--print-config"]);
    command.envs([("MUSTER_MODEL", ""), ("ORT_DYLIB_PATH", ""), ("MUSTER_WORKER_PORT", "")]);
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("port: 21002"));
}

#[test]
fn onnx_runtime_leaves_no_telemetry_behind() {
    // The official library writes a device id and a database below HOME as soon as it opens its telemetry.
    let (_, report, _) = run(&["doctor"]);
    let line = report.lines().find(|line| line.starts_with("ONNX Runtime")).expect("the library's place");
    let library = line.split_whitespace().nth(2).expect("a path");
    let home = tempfile::tempdir().expect("a folder");
    let output = common::muster(&["doctor"])
        .env("HOME", home.path())
        .env_remove("XDG_CACHE_HOME")
        .env_remove("ORT_DISABLE_TELEMETRY")
        .env("ORT_DYLIB_PATH", library)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_dir(home.path()).expect("a folder").count(), 0, "something was written below HOME");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_chat_and_doctor_tell_what_there_is() {
    let up = Process::start(&["up", "--port", "0"]);
    let told = up.output();
    drop(told);
    let (status, answer, errors) = run(&["chat", "--base-url", &up.address, "What is the capital of France?"]);
    assert!(status.success(), "{errors}");
    assert_eq!(answer.trim(), "The capital of France is Paris.");

    let cluster = common::Cluster::start(&[&["--model", "fake"]]).await;
    let (status, table, errors) = run(&["status", "--controller-address", &cluster.controller.address]);
    assert!(status.success(), "{errors}");
    assert!(table.contains("ready") && table.contains("fake") && table.contains("shortest_queue"), "{table}");

    let (status, report, errors) = run(&["doctor"]);
    assert!(status.success(), "{report}\n{errors}");
    assert!(report.contains("ONNX Runtime") && report.contains("threads"), "{report}");
}
