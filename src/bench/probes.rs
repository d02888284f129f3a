//! Two special cases: prompts that begin alike, and a long prompt that arrives while others are answered.

use std::time::Instant;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::client::{Answer, Client};
use super::figures::{Spread, milliseconds};
use super::level::Load;
use super::prompts::Prompt;
use super::report::{Record, cell};

/// What a common beginning saves.
#[derive(Debug, Serialize)]
pub(super) struct Prefix {
    round: usize,
    /// Tokens that both prompts begin with.
    shared: usize,
    /// Tokens that each adds.
    own: usize,
    /// Time to the first token of the request that brings the beginning.
    first_ms: f64,
    /// The same of the request that finds it there.
    second_ms: f64,
}

/// Sends two prompts that share their first `shared` tokens, one after the other.
///
/// # Errors
/// When one of them is not answered.
pub(super) async fn prefix(client: &Client, load: Load, shared: usize, prompts: [Prompt; 2]) -> anyhow::Result<Prefix> {
    let mut times = [0.0; 2];
    for (prompt, time) in prompts.iter().zip(&mut times) {
        *time = milliseconds(client.ask(prompt, load.new, |_| ()).await?.first());
    }
    let [first_ms, second_ms] = times;
    Ok(Prefix { round: load.round, shared, own: load.prompt, first_ms, second_ms })
}

impl Record for Prefix {
    const KIND: &str = "prefix";
    const COLUMNS: &[&str] = &["SHARED", "OWN", "TTFT FIRST ms", "TTFT SECOND ms", "TIMES FASTER"];

    fn cells(&self) -> Vec<String> {
        let counts = [self.shared, self.own].map(|count| count.to_string());
        let faster = self.first_ms / self.second_ms.max(0.01);
        let times = [self.first_ms, self.second_ms, faster].map(|number| cell(Some(number)));
        counts.into_iter().chain(times).collect()
    }
}

/// What a newcomer costs the streams that run.
#[derive(Debug, Serialize)]
pub(super) struct Beside {
    round: usize,
    /// Streams that ran.
    clients: usize,
    /// Tokens of the newcomer's prompt.
    beside: usize,
    /// The newcomer's time to its first token.
    newcomer_ttft_ms: f64,
    /// Between two pieces of a running stream, from the moment all ran until the newcomer was sent.
    before_ms: Spread,
    /// The same until the newcomer had its first token; a pause counts if it reaches into that time.
    during_ms: Spread,
    /// Streams that had not ended then; where it is not all of them, `new` is too small.
    outlived: usize,
    pub(super) failures: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_failure: Option<String>,
}

/// Runs a stream for each of `prompts`; when all are a quarter through, sends `newcomer`, whose prompt has `beside`
/// tokens.
///
/// # Errors
/// When the newcomer is not answered.
pub(super) async fn beside(
    client: &Client,
    load: Load,
    prompts: Vec<Prompt>,
    (beside, newcomer): (usize, Prompt),
) -> anyhow::Result<Beside> {
    // One word a stream, and room for all of them.
    let (sender, mut running) = mpsc::channel(prompts.len().max(1));
    let mut streams = JoinSet::new();
    for prompt in prompts {
        let (client, mut sender) = (client.clone(), Some(sender.clone()));
        streams.spawn(async move {
            let word = |pieces| {
                if pieces >= (load.new / 4).max(1)
                    && let Some(sender) = sender.take()
                {
                    let _ = sender.try_send(()); // the measurement may be over
                }
            };
            client.ask(&prompt, load.new, word).await
        });
    }
    drop(sender);
    // Ends when every stream has said its word or has failed.
    while running.recv().await.is_some() {}
    let newcomer = client.ask(&newcomer, 1, |_| ()).await?;
    Ok(Beside::new(load, beside, &newcomer, streams.join_all().await))
}

impl Beside {
    fn new(load: Load, beside: usize, newcomer: &Answer, outcomes: Vec<anyhow::Result<Answer>>) -> Self {
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok(answer) => answers.push(answer),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        let (sent, first) = (newcomer.sent, newcomer.sent + newcomer.first());
        let all_run = answers.iter().filter_map(|answer| answer.pieces.first()).max().copied().unwrap_or(sent);
        let spread = |counts: &dyn Fn(Instant, Instant) -> bool| {
            let pairs = answers.iter().flat_map(|answer| answer.pieces.windows(2));
            Spread::of(pairs.filter(|pair| counts(pair[0], pair[1])).map(|pair| pair[1] - pair[0]))
        };
        Self {
            round: load.round,
            clients: load.clients,
            beside,
            newcomer_ttft_ms: milliseconds(newcomer.first()),
            before_ms: spread(&|from, to| from >= all_run && to <= sent),
            during_ms: spread(&|from, to| to > sent && from < first),
            outlived: answers.iter().filter(|answer| answer.pieces.last().is_some_and(|&last| last > first)).count(),
            failures: failures.len(),
            first_failure: failures.into_iter().next(),
        }
    }
}

impl Record for Beside {
    const KIND: &str = "beside";
    const COLUMNS: &[&str] = &[
        "STREAMS",
        "NEWCOMER",
        "TTFT ms",
        "BEFORE p50 ms",
        "p99",
        "max",
        "DURING p50 ms",
        "p99",
        "max",
        "OUTLIVED",
        "FAILED",
    ];

    fn cells(&self) -> Vec<String> {
        let (before, during) = (self.before_ms, self.during_ms);
        let spreads = [before.p50, before.p99, before.max, during.p50, during.p99, during.max].map(cell);
        let front = [self.clients.to_string(), self.beside.to_string(), cell(Some(self.newcomer_ttft_ms))];
        let back = [self.outlived, self.failures].map(|count| count.to_string());
        front.into_iter().chain(spreads).chain(back).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pauses_belong_to_the_time_they_reach_into() {
        let begin = Instant::now();
        let at = |milliseconds: &[u64]| -> Vec<Instant> {
            milliseconds.iter().map(|&at| begin + Duration::from_millis(at)).collect()
        };
        let answer = |sent: u64, pieces: &[u64]| Answer {
            sent: begin + Duration::from_millis(sent),
            pieces: at(pieces),
            tokens: pieces.len(),
            prompt_tokens: None,
        };
        // The first gap of the first stream comes before the second has begun.
        let streams = vec![
            Ok(answer(0, &[10, 30, 40, 50, 150, 160, 170])),
            Ok(answer(0, &[30, 45, 120])),
            Err(anyhow::anyhow!("refused")),
        ];
        let newcomer = answer(60, &[155]);
        let load = Load { round: 1, clients: 3, prompt: 8, new: 7, watched: None };
        let beside = Beside::new(load, 512, &newcomer, streams);
        assert_eq!(beside.before_ms, Spread { count: 3, p50: Some(10.0), p99: Some(15.0), max: Some(15.0) });
        assert_eq!(beside.during_ms, Spread { count: 3, p50: Some(75.0), p99: Some(100.0), max: Some(100.0) });
        assert_eq!((beside.newcomer_ttft_ms, beside.outlived, beside.failures), (95.0, 1, 1));
    }
}
