//! A level of load, measured and told.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::clients::{Plan, play};
use super::tally::{Failures, Tally};
use crate::bench::figures::rate;
use crate::bench::histogram::Percentiles;
use crate::bench::process::{Trees, Usage, own_time};
use crate::bench::report::{Record, cell};

/// What came of a level.
#[derive(Debug, Serialize)]
pub(super) struct Level {
    clients: u32,
    /// Requests answered in the measurement.
    requests: u64,
    requests_per_second: f64,
    latency_ms: Percentiles,
    #[serde(flatten)]
    stream: Option<Streamed>,
    pub(super) failures: Failures,
    /// Requests that had no answer when the time to end was over.
    unfinished: u64,
    /// Requests sent, those of warm-up and end included.
    pub(super) sent: u64,
    reconnects: u64,
    /// Processor time of this process in the measurement; it competes with a server beside it.
    client_cpu_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Server>,
}

/// What only streams have.
#[derive(Debug, Serialize)]
struct Streamed {
    ttft_ms: Percentiles,
    chunk_gap_ms: Percentiles,
    chunks: u64,
    chunks_per_second: f64,
}

/// What the server took in the measurement.
#[derive(Debug, Serialize)]
struct Server {
    cpu_seconds: f64,
    cpu_seconds_per_1000_requests: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us_per_chunk: Option<f64>,
    /// Memory that lies in main memory, at the end.
    resident_mib: f64,
}

/// Runs a level, on so many threads.
pub(super) async fn measure(plan: Plan, threads: u32, trees: &Trees) -> anyhow::Result<Level> {
    let plan = Arc::new(plan);
    let mut players = JoinSet::new();
    for thread in 0..threads.min(plan.clients) {
        let plan = Arc::clone(&plan);
        let clients = (thread..plan.clients).step_by(threads as usize);
        players.spawn_blocking(move || play(&plan, clients));
    }
    let look = || (trees.usage(), own_time());
    sleep_until(plan.from).await;
    let before = look();
    sleep_until(plan.until).await;
    let after = look();
    let mut tally = Tally::default();
    while let Some(played) = players.join_next().await {
        tally.merge(played??);
    }
    let own = after.1.saturating_sub(before.1);
    Ok(Level::new(&plan, tally, before.0.as_ref().zip(after.0.as_ref()), own))
}

impl Level {
    fn new(plan: &Plan, tally: Tally, usage: Option<(&Usage, &Usage)>, own: Duration) -> Self {
        let (time, latency) = (plan.until - plan.from, tally.latency.percentiles());
        let chunks = plan.streamed.then_some(tally.chunks);
        let count = |number| rate(usize::try_from(number).unwrap_or(usize::MAX), time);
        Self {
            clients: plan.clients,
            requests: latency.count,
            requests_per_second: count(latency.count),
            latency_ms: latency,
            stream: chunks.map(|chunks| Streamed {
                ttft_ms: tally.ttft.percentiles(),
                chunk_gap_ms: tally.gaps.percentiles(),
                chunks,
                chunks_per_second: count(chunks),
            }),
            unfinished: tally.sent - tally.answered - tally.failures.total,
            failures: tally.failures,
            sent: tally.sent,
            reconnects: tally.reconnects,
            client_cpu_seconds: digits(own.as_secs_f64(), 4),
            server: usage.map(|(before, after)| Server::new(before, after, latency.count, chunks)),
        }
    }

    fn cpu(&self, of: impl Fn(&Server) -> Option<f64>, places: usize) -> String {
        shown(self.server.as_ref().and_then(of), places)
    }
}

impl Server {
    fn new(before: &Usage, after: &Usage, requests: u64, chunks: Option<u64>) -> Self {
        let seconds = after.time_since(before).as_secs_f64();
        let each = |count: u64, unit: f64| (count > 0).then(|| digits(seconds * unit / count as f64, 6));
        Self {
            cpu_seconds: digits(seconds, 4),
            cpu_seconds_per_1000_requests: each(requests, 1e3),
            cpu_us_per_chunk: chunks.and_then(|chunks| each(chunks, 1e6)),
            resident_mib: after.resident_mib,
        }
    }
}

/// Rounded to so many places.
fn digits(number: f64, places: i32) -> f64 {
    let unit = 10_f64.powi(places);
    (number * unit).round() / unit
}

fn shown(number: Option<f64>, places: usize) -> String {
    number.map_or("-".to_owned(), |number| format!("{number:.places$}"))
}

/// A level of answers that come whole, as a line of a table.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Whole<'a>(pub(super) &'a Level);

impl Record for Whole<'_> {
    const KIND: &'static str = "whole";
    const COLUMNS: &'static [&'static str] =
        &["CLIENTS", "REQ/S", "p50 ms", "p90", "p99", "p99.9", "FAILED", "UNFINISHED", "CPU s/1000 REQ", "RSS MiB"];

    fn cells(&self) -> Vec<String> {
        let (level, latency) = (self.0, self.0.latency_ms);
        let times = [latency.p50, latency.p90, latency.p99, latency.p999].map(|time| shown(time, 3));
        let front = [level.clients.to_string(), cell(Some(level.requests_per_second))];
        let back = [
            level.failures.total.to_string(),
            level.unfinished.to_string(),
            level.cpu(|server| server.cpu_seconds_per_1000_requests, 4),
            level.cpu(|server| Some(server.resident_mib), 1),
        ];
        front.into_iter().chain(times).chain(back).collect()
    }
}

/// A level of streams, as a line of a table.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Streams<'a>(pub(super) &'a Level);

impl Record for Streams<'_> {
    const KIND: &'static str = "streams";
    const COLUMNS: &'static [&'static str] = &[
        "CLIENTS",
        "REQ/S",
        "CHUNKS/S",
        "TTFT p50 ms",
        "p90",
        "p99",
        "p99.9",
        "GAP p50 ms",
        "p90",
        "p99",
        "p99.9",
        "FAILED",
        "UNFINISHED",
        "CPU us/CHUNK",
        "RSS MiB",
    ];

    fn cells(&self) -> Vec<String> {
        let level = self.0;
        let spread = |of: fn(&Streamed) -> Percentiles| {
            let found = level.stream.as_ref().map(of).unwrap_or_default();
            [found.p50, found.p90, found.p99, found.p999].map(|time| shown(time, 3))
        };
        let chunks = level.stream.as_ref().map(|stream| stream.chunks_per_second);
        let front = [level.clients.to_string(), cell(Some(level.requests_per_second)), cell(chunks)];
        let times = [spread(|stream| stream.ttft_ms), spread(|stream| stream.chunk_gap_ms)].concat();
        let back = [
            level.failures.total.to_string(),
            level.unfinished.to_string(),
            level.cpu(|server| server.cpu_us_per_chunk, 2),
            level.cpu(|server| Some(server.resident_mib), 1),
        ];
        front.into_iter().chain(times).chain(back).collect()
    }
}
