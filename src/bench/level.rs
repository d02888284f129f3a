//! A level of load: so many clients, each sending its next request when the one before is answered.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::client::{Answer, Client};
use super::figures::{Spread, rate};
use super::process::{Memory, Watched, own_time};
use super::prompts::Prompt;
use super::report::{Record, cell};

/// What is asked of a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Counted from 1.
    pub(super) round: usize,
    pub(super) clients: usize,
    pub(super) prompt: usize,
    pub(super) new: usize,
    pub(super) watched: Option<Watched>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Level {
    round: usize,
    clients: usize,
    requests: usize,
    pub(super) failures: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_failure: Option<String>,
    /// Tokens of a prompt as asked for, and as the server counts them.
    prompt: usize,
    prompt_tokens: Option<usize>,
    new: usize,
    /// Answers that were shorter.
    short: usize,
    /// From sending a request to its first piece of text.
    ttft_ms: Spread,
    /// From one piece of text to the next.
    inter_token_ms: Spread,
    /// Tokens of all answers, over the time from the first request to the last answer.
    tokens_per_second: f64,
    /// The same for the time in which all clients got text; where each had one request.
    steady_tokens_per_second: Option<f64>,
    tokens: usize,
    wall_seconds: f64,
    /// Processor time of this process, which competes with a server beside it.
    client_cpu_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Server>,
}

/// What the server has taken.
#[derive(Debug, Serialize)]
struct Server {
    cpu_seconds: f64,
    memory_mib: Memory,
}

/// Sends `prompts`, one list for each client; all begin together.
pub(super) async fn measure(client: &Client, load: Load, prompts: Vec<Vec<Prompt>>) -> Level {
    let times = || (load.watched.and_then(Watched::time), own_time());
    let (before, begin) = (times(), Instant::now());
    let mut clients = JoinSet::new();
    for prompts in prompts {
        let client = client.clone();
        clients.spawn(async move {
            let mut answers = Vec::with_capacity(prompts.len());
            for prompt in prompts {
                answers.push(client.ask(&prompt, load.new, |_| ()).await);
            }
            answers
        });
    }
    let answers = clients.join_all().await;
    let (wall, after) = (begin.elapsed(), times());
    let server = before.0.zip(after.0).zip(load.watched.and_then(Watched::memory));
    Level {
        client_cpu_seconds: (after.1 - before.1).as_secs_f64(),
        server: server.map(|((before, after), memory_mib)| Server {
            cpu_seconds: after.saturating_sub(before).as_secs_f64(),
            memory_mib,
        }),
        ..Level::new(load, answers, wall)
    }
}

impl Level {
    fn new(load: Load, outcomes: Vec<Vec<anyhow::Result<Answer>>>, wall: Duration) -> Self {
        let single = outcomes.iter().all(|outcomes| outcomes.len() == 1);
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        for outcome in outcomes.into_iter().flatten() {
            match outcome {
                Ok(answer) => answers.push(answer),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        let tokens = answers.iter().map(|answer| answer.tokens).sum();
        Self {
            round: load.round,
            clients: load.clients,
            requests: answers.len() + failures.len(),
            failures: failures.len(),
            first_failure: failures.into_iter().next(),
            prompt: load.prompt,
            prompt_tokens: answers.iter().find_map(|answer| answer.prompt_tokens),
            new: load.new,
            short: answers.iter().filter(|answer| answer.tokens < load.new).count(),
            ttft_ms: Spread::of(answers.iter().map(Answer::first)),
            inter_token_ms: Spread::of(answers.iter().flat_map(|answer| gaps(&answer.pieces))),
            tokens_per_second: rate(tokens, wall),
            steady_tokens_per_second: single.then(|| steady(&answers)).flatten(),
            tokens,
            wall_seconds: wall.as_secs_f64(),
            client_cpu_seconds: 0.0,
            server: None,
        }
    }
}

/// Times between neighbours.
fn gaps(pieces: &[Instant]) -> impl Iterator<Item = Duration> {
    pieces.windows(2).map(|pair| pair[1] - pair[0])
}

/// Tokens a second from the moment the last stream has begun to the moment the first one ends.
fn steady(answers: &[Answer]) -> Option<f64> {
    let from = answers.iter().filter_map(|answer| answer.pieces.first()).max()?;
    let to = answers.iter().filter_map(|answer| answer.pieces.last()).min()?;
    let time = to.checked_duration_since(*from).filter(|time| !time.is_zero())?;
    let all = || answers.iter().flat_map(|answer| &answer.pieces);
    let pieces = all().filter(|piece| *piece > from && *piece <= to).count();
    // A piece may hold several tokens, or a part of one.
    let tokens: usize = answers.iter().map(|answer| answer.tokens).sum();
    let tokens = pieces as f64 * tokens as f64 / all().count() as f64;
    Some((tokens / time.as_secs_f64() * 10.0).round() / 10.0)
}

impl Record for Level {
    const KIND: &str = "level";
    const COLUMNS: &[&str] = &[
        "CLIENTS",
        "TTFT p50 ms",
        "p99",
        "NEXT p50 ms",
        "p99",
        "max",
        "TOK/S",
        "STEADY",
        "FAILED",
        "CPU s",
        "PEAK MiB",
    ];

    fn cells(&self) -> Vec<String> {
        let (first, next) = (self.ttft_ms, self.inter_token_ms);
        let rates = [Some(self.tokens_per_second), self.steady_tokens_per_second];
        let numbers = [first.p50, first.p99, next.p50, next.p99, next.max].into_iter().chain(rates).map(cell);
        let server = self.server.as_ref();
        let peak = server.map_or("-".to_owned(), |server| server.memory_mib.peak.to_string());
        let rest = [self.failures.to_string(), cell(server.map(|server| server.cpu_seconds)), peak];
        std::iter::once(self.clients.to_string()).chain(numbers).chain(rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of which a piece came at each of these milliseconds.
    fn answer(begin: Instant, milliseconds: &[u64], tokens: usize) -> Answer {
        let pieces = milliseconds.iter().map(|&at| begin + Duration::from_millis(at)).collect();
        Answer { sent: begin, pieces, tokens, prompt_tokens: Some(7) }
    }

    const LOAD: Load = Load { round: 1, clients: 2, prompt: 8, new: 4, watched: None };

    #[test]
    fn the_steady_rate_counts_only_while_all_streams_run() {
        let begin = Instant::now();
        let answers = [answer(begin, &[100, 200, 300, 400], 4), answer(begin, &[300, 400, 500, 600], 4)];
        // From 300 to 400 ms: one piece of each.
        assert_eq!(steady(&answers), Some(20.0));
        let apart = [answer(begin, &[100, 200], 2), answer(begin, &[300, 400], 2)];
        assert_eq!(steady(&apart), None);
        // Two tokens a piece.
        assert_eq!(steady(&[answer(begin, &[100, 200, 300], 6)]), Some(20.0));
    }

    #[test]
    fn failures_are_counted_and_the_first_is_told() {
        let begin = Instant::now();
        let outcomes =
            vec![vec![Ok(answer(begin, &[50, 60, 80], 3))], vec![Err(anyhow::anyhow!("no room").context("refused"))]];
        let level = Level::new(LOAD, outcomes, Duration::from_secs(1));
        assert_eq!((level.requests, level.failures, level.short, level.tokens), (2, 1, 1, 3));
        assert_eq!(level.first_failure.as_deref(), Some("refused: no room"));
        assert_eq!((level.ttft_ms.max, level.inter_token_ms.max), (Some(50.0), Some(20.0)));
        assert_eq!((level.tokens_per_second, level.prompt_tokens), (3.0, Some(7)));
    }

    #[test]
    fn with_several_requests_a_client_there_is_no_steady_rate() {
        let begin = Instant::now();
        let two = || vec![Ok(answer(begin, &[1, 2, 3, 4], 4)), Ok(answer(begin, &[5, 6, 7, 8], 4))];
        assert_eq!(Level::new(LOAD, vec![two(), two()], Duration::from_secs(1)).steady_tokens_per_second, None);
    }
}
