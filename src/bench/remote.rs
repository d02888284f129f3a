//! A server as its clients see it.

use anyhow::ensure;
use serde::Serialize;

use super::client::Client;
use super::level::{self, Load};
use super::probes;
use super::process::Watched;
use super::prompts::{Prompt, Prompts};
use super::report::{Record, Report};
use crate::cli::EngineArgs;

/// Tokens of a prompt, where nothing is said.
const PROMPT: usize = 128;
/// Tokens of an answer, where nothing is said.
const NEW: usize = 48;
/// Tokens of the request that comes before each measurement, so that nothing is paid for the first time in it.
const WARM_UP: (usize, usize) = (16, 4);

/// Measures levels of load, or the special cases that are asked for, and prints.
pub(super) async fn run(args: EngineArgs, url: &str) -> anyhow::Result<()> {
    let remote = &args.remote;
    let watched = remote.pid.map(Watched::new).transpose()?;
    let client = Client::new(&args, url).await?;
    let mut bench = Bench {
        prompts: Prompts::new(remote.prompt_kind, remote.vocab.get(), args.seed),
        report: Report::new(args.json),
        failures: Failures::default(),
        args: &args,
        client,
    };
    bench.report.add(&Setting { url: url.to_owned(), model: bench.client.model().to_owned(), seed: args.seed })?;
    for round in 1..=args.rounds.get() {
        let load = |clients| Load {
            round,
            clients,
            prompt: args.prompt.map_or(PROMPT, |prompt| prompt.get()),
            new: args.new.map_or(NEW, |new| new.get()),
            watched,
        };
        if let Some(shared) = remote.shared_prefix {
            bench.prefix(load(1), shared.get()).await?;
        }
        for clients in &remote.clients {
            match remote.beside {
                Some(beside) => bench.beside(load(clients.get()), beside.get()).await?,
                None if remote.shared_prefix.is_none() => bench.level(load(clients.get())).await?,
                None => break,
            }
        }
    }
    bench.failures.check()
}

struct Bench<'a> {
    args: &'a EngineArgs,
    client: Client,
    prompts: Prompts,
    report: Report,
    failures: Failures,
}

impl Bench<'_> {
    async fn level(&mut self, load: Load) -> anyhow::Result<()> {
        self.warm_up().await?;
        let requests = self.args.remote.requests_per_client.get();
        let prompts = (0..load.clients).map(|_| self.take(load.prompt, requests)).collect();
        let level = level::measure(&self.client, load, prompts).await;
        self.report.add(&level)?;
        self.failures.add(load.clients * requests, level.failures, level.first_failure);
        Ok(())
    }

    async fn prefix(&mut self, load: Load, shared: usize) -> anyhow::Result<()> {
        self.warm_up().await?;
        let start = self.prompts.take(shared);
        let prompts = [0; 2].map(|_| self.prompts.after(Some(&start), load.prompt));
        let prefix = probes::prefix(&self.client, load, shared, prompts).await?;
        self.report.add(&prefix)
    }

    async fn beside(&mut self, load: Load, beside: usize) -> anyhow::Result<()> {
        self.warm_up().await?;
        let (prompts, newcomer) = (self.take(load.prompt, load.clients), self.prompts.take(beside));
        let record = probes::beside(&self.client, load, prompts, (beside, newcomer)).await?;
        self.report.add(&record)?;
        self.failures.add(load.clients, record.failures, record.first_failure);
        Ok(())
    }

    /// Errors that every request would have are found here.
    async fn warm_up(&mut self) -> anyhow::Result<()> {
        let (prompt, new) = WARM_UP;
        self.client.ask(&self.prompts.take(prompt), new, |_| ()).await.map(drop)
    }

    fn take(&mut self, tokens: usize, count: usize) -> Vec<Prompt> {
        (0..count).map(|_| self.prompts.take(tokens)).collect()
    }
}

/// Requests that were not answered.
#[derive(Debug, Default)]
struct Failures {
    requests: usize,
    failed: usize,
    first: Option<String>,
}

impl Failures {
    fn add(&mut self, requests: usize, failed: usize, first: Option<String>) {
        self.requests += requests;
        self.failed += failed;
        self.first = self.first.take().or(first);
    }

    /// Figures of a run with failures were printed; whoever started it must hear that they are not whole.
    fn check(self) -> anyhow::Result<()> {
        let first = self.first.unwrap_or_default();
        ensure!(self.failed == 0, "{} of {} requests failed; the first: {first}", self.failed, self.requests);
        Ok(())
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Setting {
    url: String,
    model: String,
    seed: u64,
}

impl Record for Setting {
    const KIND: &str = "setting";
    const COLUMNS: &[&str] = &["SEED", "SERVER"];

    fn cells(&self) -> Vec<String> {
        vec![self.seed.to_string(), format!("{} at {}", self.model, self.url)]
    }
}
