//! `muster replay`: the decisions of a saved journal, made again.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::Context as _;
use muster_controller::journal::{Difference, Replay, replay};
use serde_json::json;

use crate::cli::ReplayArgs;
use crate::services::say;
use crate::text::{Room, aligned, shown};

/// What a replay is not, for those who would take it for more.
const HONEST: &str = "each decision was made again among the candidates as they were then, with the same random numbers; \
    what another choice would have done to later ones is not in a journal (muster bench policies simulates that)";

/// Reads the journal, makes its decisions again, and prints what came out.
pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let name = if is_stdin(&args.journal) { "standard input".into() } else { args.journal.display().to_string() };
    let replayed = replay(open(&args.journal)?, args.policy).with_context(|| name)?;
    if args.json {
        say(&serde_json::to_string(&record(args, &replayed))?);
    } else {
        say(text(args, &replayed).trim_end());
    }
    match (args.policy, replayed.differences.first()) {
        (None, Some(first)) => Err(anyhow::anyhow!(
            "{} of {} decisions did not come out as they were made; the first: {}",
            replayed.differences.len(),
            replayed.decisions,
            line(first)
        )),
        _ => Ok(()),
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    if is_stdin(path) {
        return Ok(Box::new(std::io::stdin().lock()));
    }
    let file = File::open(path)
        .with_context(|| format!("cannot open {}; `muster journal --output FILE` saves a journal", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

fn text(args: &ReplayArgs, replayed: &Replay) -> String {
    let Replay { decisions, without, same, differences, workers } = replayed;
    let policy = args.policy.map_or("the policy of each".to_owned(), |policy| policy.to_string());
    let mut text = format!(
        "{decisions} {} made again under {policy}: {same} came to the same worker, {} to another\n",
        if *decisions == 1 { "decision" } else { "decisions" },
        differences.len()
    );
    if *without > 0 {
        text += &format!("{without} more had no candidate, under any policy\n");
    }
    text += &format!("{HONEST}\n");
    let mut rows = vec![["WORKER", "THEN", "NOW"].map(str::to_owned)];
    rows.extend(
        workers
            .iter()
            .map(|(worker, tally)| [worker.to_string(), share(tally.then, *decisions), share(tally.now, *decisions)]),
    );
    if rows.len() > 1 {
        text += &format!("\n{}", aligned(&rows, Room::Any));
    }
    if args.list && !differences.is_empty() {
        text += &format!("\n{}\n", differences.iter().map(line).collect::<Vec<_>>().join("\n"));
    }
    text
}

/// A count with its share of all.
fn share(count: u64, all: u64) -> String {
    format!("{count} ({:.1} %)", 100.0 * count as f64 / all.max(1) as f64)
}

fn line(difference: &Difference) -> String {
    let Difference { line, number, request, model, policy, then, now } = difference;
    let request = request.as_deref().map(|id| format!(", request {}", shown(id))).unwrap_or_default();
    let now = now.as_ref().map_or("nobody".into(), |now| shown(now.as_str()));
    format!(
        "line {line}: decision {number}{request}, model {}: {} under {}, {now} now",
        shown(model),
        shown(then.as_str()),
        shown(policy)
    )
}

fn record(args: &ReplayArgs, replayed: &Replay) -> serde_json::Value {
    let Replay { decisions, without, same, differences, workers } = replayed;
    let workers: serde_json::Map<String, serde_json::Value> = workers
        .iter()
        .map(|(worker, tally)| (worker.to_string(), json!({ "then": tally.then, "now": tally.now })))
        .collect();
    let mut record = json!({
        "policy": args.policy.map(|policy| policy.to_string()),
        "decisions": decisions,
        "without_candidates": without,
        "same": same,
        "others": differences.len(),
        "workers": workers,
    });
    if args.list {
        let told = |it: &Difference| {
            json!({ "line": it.line, "number": it.number, "request": it.request, "model": it.model,
                "policy": it.policy, "then": it.then, "now": it.now })
        };
        record["differences"] = differences.iter().map(told).collect();
    }
    record
}
