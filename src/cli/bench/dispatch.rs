//! The flags of `muster bench dispatch` and `muster bench fleet`.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Args, ValueEnum};
use muster_controller::config::PolicyName;

use super::{MOST_CLIENTS, positive_seconds};
use crate::config::Span;

/// Most workers of a measurement.
const MOST_WORKERS: i64 = 100_000;

/// Flags of `muster bench dispatch`.
#[derive(Debug, Args)]
pub(crate) struct DispatchArgs {
    /// Workers of the fleet, one measurement for each number.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000,10000", value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MOST_WORKERS))]
    pub(crate) workers: Vec<u32>,
    /// Rules by which workers are picked, one measurement for each.
    #[arg(long, value_delimiter = ',', default_value = "shortest_queue,lottery", value_name = "NAME")]
    pub(crate) policy: Vec<PolicyName>,
    /// Where the rules run.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "process,http", value_name = "WHERE")]
    pub(crate) over: Vec<Over>,
    /// Length of each measurement, in seconds.
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = positive_seconds)]
    pub(crate) seconds: Duration,
    /// Times that everything is measured, one time after the other.
    #[arg(long, default_value = "3")]
    pub(crate) rounds: NonZeroUsize,
    /// Clients of a controller at the same time; each sends its next request when it has its answer.
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MOST_CLIENTS))]
    pub(crate) clients: u32,
    /// Base URL of a controller that runs already, to be measured in place of one that is started for each fleet; its
    /// policy is its own.
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// Process of that controller on this machine, whose processor time is told.
    #[arg(long, requires = "url")]
    pub(crate) pid: Option<u32>,
    /// Base URL of another controller with FastChat's interface, to be measured in the same rounds; then lookups alone
    /// are measured, and all workers register in FastChat's words.
    #[arg(long, value_name = "URL")]
    pub(crate) against: Option<String>,
    /// Process of the other controller.
    #[arg(long, value_name = "PID", requires = "against")]
    pub(crate) against_pid: Option<u32>,
    /// Decisions that the rules in this process keep to be explained, one measurement for each number; 0: none.
    #[arg(long, value_delimiter = ',', default_value = "10000", value_name = "COUNT")]
    pub(crate) journal: Vec<usize>,
    /// Where chance begins, of the rules that run in this process.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object a line instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The values of `--over`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Over {
    /// In this process, without a socket.
    Process,
    /// In a controller that is asked over HTTP.
    Http,
}

/// Flags of `muster bench fleet`.
#[derive(Debug, Args)]
pub(crate) struct FleetArgs {
    /// Simulated workers.
    #[arg(long, default_value_t = 500, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=MOST_WORKERS))]
    pub(crate) workers: u32,
    /// How long they stay.
    #[arg(long, default_value = "300s")]
    pub(crate) duration: Span,
    /// Workers that fall silent at once when half of that time is over; fewer than all.
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    pub(crate) kill: u32,
    /// Time between two heartbeats of a worker.
    #[arg(long, default_value = "5s")]
    pub(crate) heartbeat: Span,
    /// Rule by which workers are picked.
    #[arg(long, default_value = "shortest_queue", value_name = "NAME")]
    pub(crate) policy: PolicyName,
    /// Requests in flight at the same time.
    #[arg(long, default_value_t = 64, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MOST_CLIENTS))]
    pub(crate) clients: u32,
    /// Longest time that a request takes; each takes from none to so long.
    #[arg(long, default_value = "200ms")]
    pub(crate) hold: Span,
    /// Where chance begins: who is killed, how requests end, how long they take.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}
