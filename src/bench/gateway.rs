//! `muster bench gateway`: closed-loop load on an OpenAI-compatible server, by clients that cost little themselves.
//!
//! Reading order: [`target`] is the server and the request; [`probe`] asks once, so that what would fail always is said
//! in one line; [`clients`] load the server over [`connection`]s, whose streams [`events`] reads; [`tally`] is what they
//! saw, [`level`] what is told of it.

mod clients;
pub(super) mod connection;
mod events;
mod level;
mod probe;
mod tally;
pub(super) mod target;

use std::sync::Arc;

use serde::Serialize;
use tokio::time::Instant;

use clients::Plan;
use level::{Level, Streams, Whole};
use target::Target;

use super::process::{Trees, allow_files};
use super::report::Report;
use crate::cli::{LoadArgs, LoadKind};
use crate::services::say;

/// Measures level after level, and prints.
pub(super) async fn run(args: LoadArgs) -> anyhow::Result<()> {
    let trees = Trees::new(&args.pid)?;
    allow_files();
    let target = Target::find(&args.url).await?;
    let request: Arc<[u8]> = target.request(&args).into();
    probe::check(&target, &request, args.kind).await?;
    let (mut levels, mut report) = (Vec::with_capacity(args.clients.len()), Report::new(false));
    for &clients in &args.clients {
        let begin = Instant::now();
        let from = begin + args.warm_up;
        let plan = Plan {
            target: target.clone(),
            request: Arc::clone(&request),
            streamed: args.kind == LoadKind::Stream,
            clients,
            begin,
            from,
            until: from + args.seconds,
        };
        let level = level::measure(plan, args.threads, &trees).await?;
        match args.kind {
            _ if args.json => {}
            LoadKind::Stream => report.add(&Streams(&level))?,
            LoadKind::Chat | LoadKind::Embeddings => report.add(&Whole(&level))?,
        }
        levels.push(level);
    }
    let measured = Measured::new(&args, &target, levels);
    if args.json {
        say(&serde_json::to_string(&measured)?);
    }
    measured.check()
}

/// Everything that was asked for and found.
#[derive(Debug, Serialize)]
struct Measured<'a> {
    url: &'a str,
    model: &'a str,
    kind: &'static str,
    seconds: f64,
    warm_up_seconds: f64,
    /// Bytes of a request, head and body.
    request_bytes: usize,
    max_tokens: u32,
    threads: u32,
    levels: Vec<Level>,
}

impl<'a> Measured<'a> {
    fn new(args: &'a LoadArgs, target: &'a Target, levels: Vec<Level>) -> Self {
        Self {
            url: &target.url,
            model: &args.model,
            kind: args.kind.name(),
            seconds: args.seconds.as_secs_f64(),
            warm_up_seconds: args.warm_up.as_secs_f64(),
            request_bytes: target.request(args).len(),
            max_tokens: args.max_tokens.get(),
            threads: args.threads,
            levels,
        }
    }

    /// Figures of a run with failures were printed; whoever started it must hear that they are not whole.
    fn check(&self) -> anyhow::Result<()> {
        let failures = || self.levels.iter().map(|level| &level.failures);
        let failed: u64 = failures().map(|failures| failures.total).sum();
        let sent: u64 = self.levels.iter().map(|level| level.sent).sum();
        let first = failures().find_map(|failures| failures.first.as_deref()).unwrap_or_default();
        anyhow::ensure!(failed == 0, "{failed} of {sent} requests failed; the first: {first}");
        Ok(())
    }
}
