//! The access log: one line for every request that has ended.
//!
//! A line costs as much as all else that the gateway does for a request, and whoever reads it may be slow. So a request's
//! thread only hands over what there is to tell, and a thread of the log's own writes it. Lines wait in memory, up to
//! [`MOST`]; beyond them they are counted and not kept, for a full disk must not stop a fleet.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::Level;

use crate::account::{Entry, Outcome};
use crate::metrics;
use crate::observe::Route;
use crate::state::RequestId;

/// Lines that may wait to be written: some seconds of the busiest gateway, and some ten megabytes.
const MOST: usize = 1 << 16;
/// Time for which the writer lets lines gather, so that it is not woken for each.
const GATHER: Duration = Duration::from_millis(2);
/// Longest part of a request's body that is told, in bytes.
const PROMPT: usize = 4 << 10;
/// Bytes of bodies that may wait to be written.
const PROMPTS: usize = 16 << 20;
/// Longest wait for a reader of the log when the gateway ends.
const LAST: Duration = Duration::from_secs(5);

/// The log of the process, once it is open: there is one standard error, whoever writes to it.
static LOG: OnceLock<Log> = OnceLock::new();

/// Lines on their way to the log.
#[derive(Debug, Default)]
pub(crate) struct Log {
    queue: Mutex<Queue>,
    /// Rung when the first line comes.
    come: Condvar,
    /// Rung when all are written.
    written: Condvar,
    /// Whether bodies of requests are told.
    prompts: bool,
}

#[derive(Debug, Default)]
struct Queue {
    lines: Vec<Line>,
    /// Bytes of bodies in those.
    prompts: usize,
    /// Lines that were not kept since the last that was written.
    lost: u64,
    /// Whether the writer has lines in its hands.
    writes: bool,
}

/// What one line tells.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) id: RequestId,
    pub(crate) route: Route,
    pub(crate) took: Duration,
    pub(crate) entry: Entry,
    /// The request's trace, where it is traced.
    pub(crate) trace: Option<String>,
}

/// Opens the log, if anybody reads it. `prompts`: requests' bodies are told.
pub(crate) fn open(prompts: bool) {
    if !tracing::enabled!(target: "muster::access", Level::INFO) || LOG.get().is_some() {
        return;
    }
    if LOG.set(Log { prompts, ..Log::default() }).is_err() {
        return; // another gateway of the process was faster
    }
    if let Some(log) = LOG.get()
        && let Err(error) = std::thread::Builder::new().name("access log".to_owned()).spawn(|| log.run())
    {
        tracing::error!(%error, "the system gives no thread for the access log, which stays empty");
    }
}

/// The log, where there is one.
pub(crate) fn log() -> Option<&'static Log> {
    LOG.get()
}

/// A request's body as far as it may be told: nothing unless that was asked for when the gateway was started.
pub(crate) fn prompt(body: &Bytes) -> Option<Bytes> {
    LOG.get().filter(|log| log.prompts).map(|_| beginning(body))
}

/// A copy: a part of the body itself would keep all of it.
fn beginning(body: &Bytes) -> Bytes {
    Bytes::copy_from_slice(&body[..body.len().min(PROMPT)])
}

/// Waits until what was told is written.
pub(crate) fn flush() {
    if let Some(log) = LOG.get() {
        log.flush(LAST);
    }
}

impl Log {
    /// Has a line written soon.
    pub(crate) fn tell(&self, line: Line) {
        let prompt = line.entry.prompt.as_ref().map_or(0, Bytes::len);
        let mut queue = self.lock();
        if queue.lines.len() >= MOST || queue.prompts + prompt > PROMPTS {
            queue.lost += 1;
            return;
        }
        queue.prompts += prompt;
        queue.lines.push(line);
        if queue.lines.len() == 1 && !queue.writes {
            self.come.notify_one(); // otherwise it will look by itself
        }
    }

    /// Writes lines, for ever.
    fn run(&self) {
        let mut lines = Vec::new();
        loop {
            let lost = self.wait(&mut lines);
            if lost > 0 {
                metrics::access_lines_lost(lost);
                tracing::warn!(lines = lost, "the log is read too slowly; lines of the access log are missing");
            }
            lines.drain(..).for_each(|line| line.write());
        }
    }

    /// Waits for lines, and takes them all; gives the number of those that were lost.
    fn wait(&self, lines: &mut Vec<Line>) -> u64 {
        let mut queue = self.lock();
        queue.writes = false;
        if queue.lines.is_empty() {
            self.written.notify_all();
            queue = self.come.wait_while(queue, |queue| queue.lines.is_empty()).unwrap_or_else(PoisonError::into_inner);
        }
        let begun = Instant::now();
        queue.writes = true; // nobody needs to ring any more
        while let Some(left) = GATHER.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            queue = self.come.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut queue.lines, lines);
        queue.prompts = 0;
        std::mem::take(&mut queue.lost)
    }

    fn flush(&self, longest: Duration) {
        let busy = |queue: &mut Queue| queue.writes || !queue.lines.is_empty();
        drop(self.written.wait_timeout_while(self.lock(), longest, busy));
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Writes it to the log of the process.
    fn write(&self) {
        let Self { id, route, took, entry, trace } = self;
        let (outcome, error) = match entry.outcome {
            Outcome::Done => ("done", None),
            Outcome::Cancelled => ("cancelled", None),
            Outcome::Failed(kind) => ("failed", Some(kind.name())),
        };
        let usage = entry.usage.as_ref();
        tracing::info!(
            target: "muster::access",
            request_id = %id,
            route = route.name(),
            client = entry.client.as_ref().map(tracing::field::display),
            key = entry.key.as_ref().map(|key| key.name.as_str()),
            model = entry.model.as_deref(),
            worker = entry.worker.as_ref().map(tracing::field::display),
            status = entry.status,
            outcome,
            error,
            prompt_tokens = usage.map(|usage| usage.prompt_tokens),
            completion_tokens = usage.map(|usage| usage.completion_tokens),
            cached_tokens = usage.map(|usage| usage.cached_tokens),
            ttft_ms = entry.ttft.map(millis),
            duration_ms = millis(*took),
            attempts = entry.attempts,
            stream = entry.stream,
            trace_id = trace.as_deref(),
            prompt = entry.prompt.as_ref().map(|prompt| String::from_utf8_lossy(prompt)).as_deref(),
            "request"
        );
    }
}

/// Milliseconds, with three digits after the point.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        let id = RequestId("r".into());
        Line { id, route: Route::Chat, took: Duration::ZERO, entry: Entry::default(), trace: None }
    }

    #[test]
    fn lines_that_nobody_writes_are_bounded_and_counted() {
        let log = Log::default();
        (0..MOST + 3).for_each(|_| log.tell(line()));
        assert_eq!(log.lock().lines.len(), MOST);
        let mut lines = Vec::new();
        assert_eq!(log.wait(&mut lines), 3);
        let queue = log.lock();
        assert_eq!((lines.len(), queue.lines.len(), queue.lost), (MOST, 0, 0));
    }

    #[test]
    fn bodies_are_told_in_part_and_the_rest_of_them_is_let_go() {
        let body = Bytes::from(vec![b'a'; 1 << 20]);
        let told = beginning(&body);
        assert!(told.len() == PROMPT && body.is_unique());
        assert_eq!(beginning(&Bytes::from_static(b"short")), "short");
    }

    #[test]
    fn bodies_that_nobody_writes_are_bounded_in_bytes() {
        let log = Log::default();
        let prompt = Some(Bytes::from(vec![b'a'; PROMPT]));
        let line = || Line { entry: Entry { prompt: prompt.clone(), ..Entry::default() }, ..line() };
        (0..PROMPTS / PROMPT + 3).for_each(|_| log.tell(line()));
        let mut lines = Vec::new();
        assert_eq!((log.wait(&mut lines), lines.len()), (3, PROMPTS / PROMPT));
        log.tell(line());
        let queue = log.lock();
        assert_eq!((queue.lines.len(), queue.lost), (1, 0), "there is room again");
    }

    #[test]
    fn the_end_waits_until_all_is_written() {
        let log: &'static Log = Box::leak(Box::default());
        (0..100).for_each(|_| log.tell(line()));
        std::thread::spawn(|| log.run());
        log.flush(Duration::from_secs(60));
        let queue = log.lock();
        assert!(queue.lines.is_empty() && !queue.writes);
    }

    /// What a request's thread pays for a line: `cargo test --release -- --ignored cost_of_a_line --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn the_cost_of_a_line() {
        const LINES: u32 = 1_000_000;
        let log: &'static Log = Box::leak(Box::default());
        std::thread::spawn(|| log.run());
        let id = RequestId("0193-a-request".into());
        let begun = Instant::now();
        for _ in 0..LINES {
            let id = id.clone();
            log.tell(Line { id, route: Route::Chat, took: Duration::ZERO, entry: Entry::default(), trace: None });
        }
        println!("{:?} a line", begun.elapsed() / LINES);
    }

    #[test]
    fn times_are_told_in_milliseconds() {
        assert_eq!(millis(Duration::from_nanos(1_234_567)), 1.235);
    }
}
