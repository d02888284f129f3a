//! `muster explain`: why a request's worker was chosen. `muster journal`: all decisions that are known, saved.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use muster_shared::journal::{Decision, End, Explained, Explanation, Other, Verdict, Weighed, Why};

use crate::cli::{ExplainArgs, JournalArgs};
use crate::services::say;
use crate::text::{Room, aligned, indented, shown};
use crate::trouble::{asked, silent};

/// Time in which the next piece of a journal comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Candidates that are shown; there may be ten thousand.
const SHOWN: usize = 20;

/// Asks the controller and prints its answer.
pub(crate) async fn run(args: ExplainArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        !args.request.trim().is_empty(),
        "the request's id is empty; it is the `x-request-id` of an answer"
    );
    let client = args.ask.client()?;
    let explanation = asked(&client, client.explain(&args.request)).await?;
    if args.json {
        say(&serde_json::to_string_pretty(&explanation)?);
    } else {
        say(text(&explanation).trim_end());
    }
    Ok(())
}

/// Saves the journal. A file is written as a whole or not at all.
pub(crate) async fn save(args: JournalArgs) -> anyhow::Result<()> {
    let client = args.ask.client()?;
    let mut journal = std::pin::pin!(asked(&client, client.journal()).await?);
    // The next piece; `None` at the end.
    let mut next = async || match tokio::time::timeout(PATIENCE, journal.next()).await {
        Ok(chunk) => Ok(chunk.transpose()?),
        Err(_) => Err(anyhow::anyhow!("{} in the midst of the journal", silent(&client))),
    };
    let Some(path) = args.output else {
        let mut out = std::io::stdout();
        while let Some(chunk) = next().await? {
            match out.write_all(&chunk) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()), // seen enough
                written => written.context("standard output")?,
            }
        }
        return Ok(());
    };
    let mut name = path.file_name().with_context(|| format!("{} is no file name", path.display()))?.to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let saved = async {
        let mut file = std::fs::File::create(&part)?;
        let mut lines = 0;
        while let Some(chunk) = next().await? {
            lines += chunk.iter().filter(|&&byte| byte == b'\n').count();
            file.write_all(&chunk)?;
        }
        std::fs::rename(&part, &path)?;
        anyhow::Ok(lines)
    };
    match saved.await {
        Ok(lines) => say(&format!("{lines} lines in {}", path.display())),
        Err(error) => {
            let _ = std::fs::remove_file(&part); // it may not be there
            return Err(error).with_context(|| format!("cannot save the journal to {}", path.display()));
        }
    }
    Ok(())
}

fn text(explanation: &Explanation) -> String {
    let tries = explanation.decisions.len();
    let mut text = format!("request {} · {tries} decision{}", shown(&explanation.request), plural(tries));
    text += &match explanation.earlier {
        0 => "\n".to_owned(),
        earlier => format!(", and {earlier} earlier of the same id, which are not shown\n"),
    };
    for explained in &explanation.decisions {
        text += &format!("\n{}", one(explained));
    }
    text
}

fn one(explained: &Explained) -> String {
    let Explained { decision, reason, candidates, others } = explained;
    let mut text = format!("{}\n", head(decision));
    let told = match (&decision.verdict, reason) {
        (Verdict::Picked { worker, .. }, reason) => {
            format!("{} {}", shown(worker.as_str()), reason.as_deref().unwrap_or("was picked"))
        }
        (Verdict::Named { worker }, _) => {
            format!("nobody had room; the address of {} was told nevertheless", shown(worker.as_str()))
        }
        (Verdict::Refused { message, .. }, _) => format!("refused: {}", shown(message)),
    };
    text += &format!("  {told}\n");
    if let Verdict::Picked { spared: true, .. } = decision.verdict {
        text += "  every live worker was spared, so they were asked all the same\n";
    }
    if matches!(decision.verdict, Verdict::Picked { .. }) {
        text += &format!("  {}\n", end(decision.end));
    }
    if !candidates.is_empty() {
        text += &format!("\n{}", table(candidates));
    }
    if !others.is_empty() {
        text += &format!("\n  no candidates: {}\n", listed(others));
    }
    text
}

/// When, for whom, and what was asked.
fn head(decision: &Decision) -> String {
    let at = humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(decision.at_ms));
    let mut parts = vec![format!("decision {} at {at}", decision.number), format!("model {}", shown(&decision.model))];
    parts.extend(decision.asked.as_ref().map(|asked| format!("asked for as {}", shown(asked))));
    parts.extend(decision.policy.as_ref().map(|policy| format!("policy {}", shown(policy))));
    parts.extend(decision.key.as_ref().map(|key| format!("key {}", shown(key))));
    parts.extend(decision.gateway.map(|gateway| format!("gateway {gateway}")));
    if decision.waited_ms > 0 {
        parts.push(format!("waited {} ms", decision.waited_ms));
    }
    if let Verdict::Picked { seed, .. } = decision.verdict {
        parts.push(format!("seed {seed}"));
    }
    parts.join(" · ")
}

fn end(end: Option<End>) -> String {
    match end {
        None => "it runs, or its end was never told".to_owned(),
        Some(End::Lapsed) => {
            "its ticket was not given back: its worker or its gateway went away, or did not know it".to_owned()
        }
        Some(End::Released { outcome, took_ms, ttft_ms, tokens }) => {
            let mut text = format!("ended after {took_ms} ms: {}", format!("{outcome:?}").to_lowercase());
            text += &ttft_ms.map(|ms| format!(", first token after {ms} ms")).unwrap_or_default();
            text + &tokens.map(|tokens| format!(", {tokens} token{}", plural(tokens as usize))).unwrap_or_default()
        }
    }
}

const HEAD: [&str; 11] =
    ["", "CANDIDATE", "SCORE", "CHANCE", "LOAD", "TAKES", "GIVEN", "SPEED", "USUALLY", "CPU", "MEMORY"];

fn table(candidates: &[Weighed]) -> String {
    let mut order: Vec<&Weighed> = candidates.iter().collect();
    if order.len() > SHOWN {
        order.sort_by(|one, other| other.picked.cmp(&one.picked).then(one.score.total_cmp(&other.score)));
    } else {
        order.sort_by(|one, other| one.worker.cmp(&other.worker));
    }
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(order.iter().take(SHOWN).map(|candidate| row(candidate)));
    let mut text = indented(&aligned(&rows, Room::Any));
    if order.len() > SHOWN {
        text += &format!("  and {} more, which --json shows\n", order.len() - SHOWN);
    }
    text
}

fn row(candidate: &Weighed) -> [String; 11] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let percent = |share: Option<f64>, digits| or_dash(share.map(|share| format!("{:.digits$}%", share * 100.0)));
    [
        if candidate.picked { "→" } else { "" }.to_owned(),
        candidate.worker.to_string(),
        format!("{:.3}", candidate.score),
        percent(candidate.chance, 1),
        candidate.load.to_string(),
        or_dash(candidate.capacity.map(|capacity| capacity.to_string())),
        candidate.given.to_string(),
        format!("{:.1}", candidate.speed),
        or_dash(candidate.response_ms.map(|ms| format!("{ms:.0}ms"))),
        percent(candidate.resources.cpu, 0),
        percent(candidate.resources.memory, 0),
    ]
}

/// Who was no candidate, with why.
fn listed(others: &[Other]) -> String {
    let shown = others.iter().take(SHOWN).map(|other| format!("{} ({})", shown(other.worker.as_str()), why(other.why)));
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if others.len() > SHOWN {
        text += &format!(" and {} more, which --json shows", others.len() - SHOWN);
    }
    text
}

fn why(why: Why) -> &'static str {
    match why {
        Why::Full => "full",
        Why::Excluded => "had failed this request",
        Why::Open => "suspended after failures, or had not answered yet",
        Why::Spared => "spared while another was not",
        Why::Leaving => "draining, down or gone",
        Why::Protocol => "speaks another protocol",
        Why::Room => "had room",
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_is_a_text_for_people() {
        let explanation = serde_json::json!({
            "request": "r1", "kept": { "decisions": 2, "limit": 10, "since_ms": 0 },
            "decisions": [{
                "decision": {
                    "number": 41, "at_ms": 1_700_000_000_123_u64, "request": "r1", "model": "m", "asked": "chat",
                    "key": "team", "waited_ms": 250, "policy": "shortest_queue",
                    "verdict": { "picked": { "worker": "w\u{1b}1", "place": 0, "transport": "http", "seed": 7 } },
                    "end": { "released": { "outcome": "done", "took_ms": 93, "ttft_ms": 12, "tokens": 1 } },
                },
                "reason": "had the least load ÷ speed, 0.50, of 2 candidates",
                "candidates": [
                    { "worker": "w2", "score": 1.0, "chance": 0.0, "load": 2, "given": 1, "speed": 2.0, "resources": {} },
                    { "worker": "w\u{1b}1", "picked": true, "score": 0.5, "chance": 1.0, "load": 1, "capacity": 4,
                      "given": 1, "speed": 2.0, "response_ms": 80.4, "resources": { "cpu": 0.5, "memory": 0.25 } },
                ],
                "others": [{ "worker": "w3", "why": "full" }, { "worker": "w4", "why": "leaving" }],
            }],
        });
        let text = text(&serde_json::from_value(explanation).expect("an explanation"));
        let expected = "\
request r1 · 1 decision

decision 41 at 2023-11-14T22:13:20.123Z · model m · asked for as chat · policy shortest_queue · key team · waited 250 ms · seed 7
  w\\u{1b}1 had the least load ÷ speed, 0.50, of 2 candidates
  ended after 93 ms: done, first token after 12 ms, 1 token

     CANDIDATE  SCORE  CHANCE  LOAD  TAKES  GIVEN  SPEED  USUALLY  CPU  MEMORY
  →  w\\u{1b}1   0.500  100.0%  1     4      1      2.0    80ms     50%  25%
     w2         1.000  0.0%    2     -      1      2.0    -        -    -

  no candidates: w3 (full), w4 (draining, down or gone)
";
        assert_eq!(text, expected);
    }

    #[test]
    fn of_many_candidates_the_picked_one_and_the_best_are_shown() {
        let weighed = |number: u32| {
            serde_json::json!({ "worker": format!("w{number}"), "score": f64::from(number), "picked": number == 99,
                "load": 0, "given": 0, "speed": 1.0, "resources": {} })
        };
        let candidates: Vec<Weighed> =
            (0..100).map(|number| serde_json::from_value(weighed(number)).expect("one")).collect();
        let text = table(&candidates);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 22);
        assert!(lines[1].contains("→  w99") && lines[2].contains("w0 ") && lines[20].contains("w18"), "{text}");
        assert_eq!(lines[21], "  and 80 more, which --json shows");
    }
}
