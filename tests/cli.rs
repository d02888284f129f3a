//! The command line: `up` from start to stop, and every mistake a user can make before anything runs.

mod common;

use std::net::TcpListener;

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
        (&["worker", "--speed", "fast"], &["fast", "measured"]),
        (&["worker", "--model", "a=fake", "--model", "a=fake"], &["two models are named `a`"]),
        (&["worker", "--model", "fake", "--model-names", "a,b"], &["2 names for 1 models"]),
        (&["gateway", "--controller-address", "nowhere"], &["nowhere", "http://HOST:PORT"]),
        (&["gateway", "--api-key-file", "/no/such/file"], &["/no/such/file"]),
        (&["controller", "--host", "0.0.0.0", "--port", "0"], &["0.0.0.0", "--fleet-token-file", "--insecure"]),
        (&["gateway", "--host", "0.0.0.0", "--port", "0"], &["0.0.0.0", "--api-key-file", "--insecure"]),
        (&["status", "--controller-address", "http://127.0.0.1:1"], &["127.0.0.1:1"]),
        (&["chat", "--base-url", "http://127.0.0.1:1", "hi"], &["127.0.0.1:1", "--base-url"]),
    ] {
        let (status, _, errors) = run(arguments);
        assert!(!status.success(), "{arguments:?}");
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
