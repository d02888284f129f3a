//! `muster status`: a controller's fleet as a table.

use anyhow::Context as _;
use muster_shared::control::{Fleet, ModelStatus, WorkerState, WorkerStatus};

use crate::cli::StatusArgs;
use crate::services::say;

/// Asks the controller and prints its answer.
pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let client = args.ask.client()?;
    let fleet = client.fleet().await.context("no status; is a controller running there? (--controller-address)")?;
    if args.json {
        say(&serde_json::to_string_pretty(&fleet)?);
    } else {
        say(table(&fleet).trim_end());
    }
    Ok(())
}

fn table(fleet: &Fleet) -> String {
    let mut text = format!(
        "controller {} · up {} · policy {} · {} waiting\n\n",
        fleet.version,
        humantime::format_duration(std::time::Duration::from_secs(fleet.uptime_ms / 1000)),
        fleet.policy,
        fleet.waiting
    );
    if fleet.workers.is_empty() {
        text.push_str("no worker has registered\n");
        return text;
    }
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(fleet.workers.iter().map(row));
    text.push_str(&aligned(&rows));
    let said: Vec<String> = fleet.workers.iter().filter_map(why).chain(fleet.models.iter().flat_map(said_of)).collect();
    if !said.is_empty() {
        text.push_str(&format!("\n{}\n", said.join("\n")));
    }
    text
}

/// Why a worker is paused, if it is.
fn why(worker: &WorkerStatus) -> Option<String> {
    worker.paused.as_ref().map(|reason| format!("{} is paused: {reason}", worker.id))
}

/// What the configuration says of a model, if anything.
fn said_of(model: &ModelStatus) -> impl Iterator<Item = String> {
    let ModelStatus { name, stands_for, fallbacks, policy, .. } = model;
    let alias = (!stands_for.is_empty()).then(|| format!("{name} stands for {}", stands_for.join(", ")));
    let others = (!fallbacks.is_empty()).then(|| format!("{name} falls back to {}", fallbacks.join(", ")));
    let policy = policy.as_ref().map(|policy| format!("{name} has the policy {policy}"));
    alias.into_iter().chain(others).chain(policy)
}

const HEAD: [&str; 11] =
    ["WORKER", "STATE", "TRANSPORT", "TICKETS", "SPEED", "CPU", "MEMORY", "TOKENS/S", "TTFT", "LEASE", "MODELS"];

fn row(worker: &WorkerStatus) -> [String; 11] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let percent = |share: Option<f64>| or_dash(share.map(|share| format!("{:.0}%", share * 100.0)));
    let resources = worker.resources.unwrap_or_default();
    let lease = or_dash(worker.lease_ms.map(|ms| format!("{:.1}s", ms as f64 / 1000.0)));
    let models: Vec<&str> = worker.models.iter().map(|model| model.name.as_str()).collect();
    [
        worker.id.to_string(),
        state(worker.state).to_owned(),
        worker.transport.to_string(),
        worker.tickets.to_string(),
        format!("{:.1}", worker.speed),
        percent(resources.cpu),
        percent(resources.memory),
        or_dash(worker.tokens_per_second.map(|tokens| format!("{tokens:.1}"))),
        or_dash(worker.ttft_ms.map(|ms| format!("{ms:.0}ms"))),
        lease,
        models.join(", "),
    ]
}

fn state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Ready => "ready",
        WorkerState::Suspect => "suspect",
        WorkerState::Open => "open",
        WorkerState::Paused => "paused",
        WorkerState::Draining => "draining",
        WorkerState::Down => "down",
        WorkerState::Gone => "gone",
    }
}

/// Columns two spaces apart; the last is as long as it likes.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(|row| line(row) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "bb"], ["ccc", "d"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "a    bb\nccc  d\n");
    }

    #[test]
    fn what_stands_behind_a_name_is_said() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let said = |model: ModelStatus| said_of(&model).collect::<Vec<_>>();
        let plain = ModelStatus::bare("m", 1);
        assert!(said(plain.clone()).is_empty());
        assert_eq!(said(ModelStatus { stands_for: names(&["a", "b"]), ..plain.clone() }), ["m stands for a, b"]);
        let both = ModelStatus { fallbacks: names(&["a"]), policy: Some("lottery".to_owned()), ..plain };
        assert_eq!(said(both), ["m falls back to a", "m has the policy lottery"]);
    }

    fn worker(id: &str) -> serde_json::Value {
        serde_json::json!({
            "id": id, "address": "http://w", "transport": "http", "source": "registered", "state": "ready",
            "models": [], "speed": 1.0, "tickets": 3, "reported": [], "lease_ms": 14_200, "incarnation": 1, "version": "1",
        })
    }

    #[test]
    fn the_table_tells_how_busy_machines_are_and_why_one_is_paused() {
        let mut paused = worker("a");
        paused["state"] = "paused".into();
        paused["paused"] = "memory 93 % is above 90 %, resumes below 85 %".into();
        paused["resources"] = serde_json::json!({ "cpu": 0.514, "memory": 0.93 });
        paused["tokens_per_second"] = 41.26.into();
        paused["ttft_ms"] = 83.4.into();
        let fleet = serde_json::json!({
            "epoch": muster_shared::id::Epoch::new(), "version": "1", "uptime_ms": 61_000, "policy": "lottery", "waiting": 0,
            "workers": [paused, worker("b")], "models": [],
        });
        let text = table(&serde_json::from_value(fleet).expect("a fleet"));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[2], HEAD);
        assert_eq!(lines[3], ["a", "paused", "http", "3", "1.0", "51%", "93%", "41.3", "83ms", "14.2s"]);
        assert_eq!(lines[4], ["b", "ready", "http", "3", "1.0", "-", "-", "-", "-", "14.2s"]);
        assert!(text.ends_with("\n\na is paused: memory 93 % is above 90 %, resumes below 85 %\n"), "{text}");
    }
}
