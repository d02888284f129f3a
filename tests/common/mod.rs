//! Real processes of the real binary, on free ports of the loopback interface.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod answers;
pub(crate) mod facts;
pub(crate) mod hub;
pub(crate) mod relay;

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest wait for anything; far more than a healthy run needs on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Name of the chat model in the binary.
pub(crate) const CHAT: &str = "muster-demo-chat";
/// Name of the embedding model in the binary.
pub(crate) const EMBEDDING: &str = "muster-demo-embedding";

/// A running process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    errors: Arc<Mutex<String>>,
    /// The base URL it listens on.
    pub(crate) address: String,
}

/// The binary with these arguments, and nothing of this process's muster settings.
pub(crate) fn muster(arguments: &[&str]) -> Command {
    let _ = muster_shared::tls::provider(); // or `reqwest::get` and its like, which every test may use, find none
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["MUSTER_", "FASTCHAT_", "OPENAI_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Runs the binary to its end; gives its exit status, standard output and standard error.
pub(crate) fn run(arguments: &[&str]) -> (ExitStatus, String, String) {
    let output = muster(arguments).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status, text(output.stdout), text(output.stderr))
}

impl Process {
    /// Starts a service and waits for the line that says where it listens.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::spawn(muster(arguments))
    }

    /// The same for a command with an environment of its own.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test may be over.
                let _ = sender.send(line);
            }
        });
        let errors = collect(child.stderr.take().expect("piped"));
        let mut process = Self { child, lines, errors, address: String::new() };
        process.address = process.next_address();
        process
    }

    fn next_address(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(address) = line.split_whitespace().find(|word| word.contains("://")) {
                        return address.trim_end_matches(['/', ',']).trim_end_matches("/v1").to_owned();
                    }
                }
                Err(_) => panic!("no address was printed; standard error:\n{}", self.errors()),
            }
        }
    }

    /// The lines printed since the last look.
    pub(crate) fn output(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// Where a worker says that it speaks gRPC.
    pub(crate) async fn grpc_address(&self) -> String {
        let mut said = Vec::new();
        let word = async || {
            said.extend(self.output());
            said.iter().any(|line: &String| line.contains("gRPC"))
        };
        eventually("the worker says where", word).await;
        let line = said.into_iter().find(|line| line.contains("gRPC")).expect("it is there");
        line.split_whitespace().last().expect("an address").to_owned()
    }

    /// The sum of a metric's samples.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let metrics = reqwest::get(format!("{}/metrics", self.address)).await.expect("an answer");
        let metrics = metrics.text().await.expect("text");
        let samples =
            metrics.lines().filter_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse::<f64>().ok());
        samples.sum()
    }

    /// Sequences that hold a row of a worker.
    pub(crate) async fn running(&self) -> usize {
        self.metric("muster_worker_sequences_running{").await as usize
    }

    /// Its number in the system.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error so far.
    pub(crate) fn errors(&self) -> String {
        self.errors.lock().expect("no panic while holding it").clone()
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                return status;
            }
            assert!(Instant::now() < deadline, "it still runs; standard error:\n{}", self.errors());
            tick().await;
        }
    }

    /// A `GET` of one of its paths, as JSON.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = reqwest::get(format!("{}{path}", self.address)).await.expect("an answer");
        response.json().await.expect("JSON")
    }

    /// A `POST` to one of its paths; gives status and JSON body.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = reqwest::Client::new().post(format!("{}{path}", self.address)).json(body);
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or_default())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- standard error of {} ---\n{}", self.address, self.errors());
        }
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&text);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            sink.lock().expect("no panic while holding it").push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
    });
    text
}

/// The pause between two looks at something that cannot call back.
pub(crate) async fn tick() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// Looks until it holds; panics when it never does.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tick().await;
    }
}

/// A controller, a gateway and workers, each a process.
pub(crate) struct Cluster {
    pub(crate) controller: Process,
    pub(crate) gateway: Process,
    pub(crate) workers: Vec<Process>,
}

impl Cluster {
    /// A cluster whose workers serve the given models, one list of flags for each.
    pub(crate) async fn start(workers: &[&[&str]]) -> Self {
        Self::with_controller(&["--heartbeat", "1s"], workers).await
    }

    /// The same, with flags for the controller.
    pub(crate) async fn with_controller(flags: &[&str], workers: &[&[&str]]) -> Self {
        let controller = Process::start(&[&["controller", "--port", "0"], flags].concat());
        let workers: Vec<Process> = workers.iter().map(|flags| worker(&controller.address, flags)).collect();
        let gateway = gateway(&controller.address, &[]);
        let cluster = Self { controller, gateway, workers };
        cluster.registered(cluster.workers.len()).await;
        eventually("the gateway is ready", async || is_ready(&cluster.gateway.address).await).await;
        // It asks the controller anew for that, and so knows all workers, too.
        cluster.gateway.get("/v1/models").await;
        cluster
    }

    /// Waits until so many workers are ready.
    pub(crate) async fn registered(&self, count: usize) {
        let ready = async || {
            let fleet = self.controller.get("/fleet").await;
            let workers = fleet["workers"].as_array().expect("workers");
            workers.iter().filter(|worker| worker["state"] == "ready").count() == count
        };
        eventually("the workers are registered", ready).await;
    }

    /// Starts a worker that was killed again, where it was, and waits until the controller knows the new process.
    pub(crate) async fn restart(&mut self, worker: usize, flags: &[&str]) {
        let id = self.workers[worker].address.clone();
        let known = async || {
            let fleet = self.controller.get("/fleet").await;
            let workers = fleet["workers"].as_array().expect("workers").clone();
            workers.into_iter().find(|worker| worker["id"] == id.as_str()).unwrap_or_default()
        };
        let before = known().await["incarnation"].clone();
        let port = id.rsplit(':').next().expect("a port");
        let started = ["worker", "--port", port, "--controller-address", &self.controller.address];
        let process = Process::start(&[&started[..], flags].concat());
        let is_back = async || {
            let now = known().await;
            now["state"] == "ready" && now["incarnation"] != before
        };
        eventually("the new process is registered", is_back).await;
        self.workers[worker] = process;
    }

    /// Tickets of all workers.
    pub(crate) async fn tickets(&self) -> u64 {
        let fleet = self.controller.get("/fleet").await;
        fleet["workers"]
            .as_array()
            .expect("workers")
            .iter()
            .map(|worker| worker["tickets"].as_u64().expect("a count"))
            .sum()
    }

    /// One greedy answer.
    pub(crate) async fn ask(&self, model: &str, question: &str) -> String {
        ask(&self.gateway.address, model, question).await
    }
}

/// A worker process.
pub(crate) fn worker(controller: &str, flags: &[&str]) -> Process {
    Process::start(&[&["worker", "--port", "0", "--controller-address", controller], flags].concat())
}

/// A gateway process.
pub(crate) fn gateway(controller: &str, flags: &[&str]) -> Process {
    Process::start(&[&["gateway", "--port", "0", "--controller-address", controller], flags].concat())
}

/// Whether a service says that it is ready.
pub(crate) async fn is_ready(address: &str) -> bool {
    reqwest::get(format!("{address}/ready")).await.is_ok_and(|response| response.status().is_success())
}

/// The body of a greedy chat.
pub(crate) fn chat_body(model: &str, question: &str) -> Value {
    json!({ "model": model, "temperature": 0, "messages": [{ "role": "user", "content": question }] })
}

/// One greedy answer of a gateway.
pub(crate) async fn ask(gateway: &str, model: &str, question: &str) -> String {
    let request =
        reqwest::Client::new().post(format!("{gateway}/v1/chat/completions")).json(&chat_body(model, question));
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let body: Value = response.json().await.expect("JSON");
    assert!(status.is_success(), "{question}: {status} {body}");
    body["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
}

/// A streamed answer, read to its end: the data of each event.
pub(crate) async fn stream(gateway: &str, mut body: Value) -> Vec<String> {
    body["stream"] = json!(true);
    let request = reqwest::Client::new().post(format!("{gateway}/v1/chat/completions")).json(&body);
    let response = request.send().await.expect("an answer");
    assert!(response.status().is_success(), "{}", response.text().await.unwrap_or_default());
    let text = response.text().await.expect("a whole stream");
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// The text of a streamed answer's first choice.
pub(crate) fn text_of(events: &[String]) -> String {
    let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}
