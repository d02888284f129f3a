//! `muster status`: a controller's fleet as a table.

use anyhow::Context as _;
use muster_shared::client::{ControllerClient, Timeouts, http_client};
use muster_shared::control::{Fleet, ModelStatus, WorkerState, WorkerStatus};

use crate::cli::StatusArgs;
use crate::config::{base_url, one_secret};
use crate::services::say;

/// Asks the controller and prints its answer.
pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let address = base_url("controller_address", &args.controller_address)?;
    let token = one_secret(args.fleet_token, args.fleet_token_file.as_deref())?;
    let client = ControllerClient::new(http_client(Timeouts::default()), address, token);
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
    let mut rows = vec![["WORKER", "STATE", "TRANSPORT", "TICKETS", "SPEED", "LEASE", "MODELS"].map(str::to_owned)];
    rows.extend(fleet.workers.iter().map(row));
    text.push_str(&aligned(&rows));
    let said: Vec<String> = fleet.models.iter().flat_map(said_of).collect();
    if !said.is_empty() {
        text.push_str(&format!("\n{}\n", said.join("\n")));
    }
    text
}

/// What the configuration says of a model, if anything.
fn said_of(model: &ModelStatus) -> impl Iterator<Item = String> {
    let ModelStatus { name, stands_for, fallbacks, policy, .. } = model;
    let alias = (!stands_for.is_empty()).then(|| format!("{name} stands for {}", stands_for.join(", ")));
    let others = (!fallbacks.is_empty()).then(|| format!("{name} falls back to {}", fallbacks.join(", ")));
    let policy = policy.as_ref().map(|policy| format!("{name} has the policy {policy}"));
    alias.into_iter().chain(others).chain(policy)
}

fn row(worker: &WorkerStatus) -> [String; 7] {
    let lease = worker.lease_ms.map_or("-".to_owned(), |ms| format!("{:.1}s", ms as f64 / 1000.0));
    let models: Vec<&str> = worker.models.iter().map(|model| model.name.as_str()).collect();
    [
        worker.id.to_string(),
        state(worker.state).to_owned(),
        worker.transport.to_string(),
        worker.tickets.to_string(),
        format!("{:.1}", worker.speed),
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
}
