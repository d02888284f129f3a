//! Flags of the verbs that tell of decisions.

use std::path::PathBuf;

use clap::Args;
use muster_controller::config::PolicyName;

use super::Ask;
use crate::config::policy_help;

/// Flags of `muster explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The request's id: the header `x-request-id` of its answer.
    pub(crate) request: String,
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Print the controller's answer as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `muster journal`.
#[derive(Debug, Args)]
pub(crate) struct JournalArgs {
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// File to write; standard output when absent.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Flags of `muster replay`.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// A journal that `muster journal` saved; `-` reads standard input.
    pub(crate) journal: PathBuf,
    /// Rule that decides anew; without, each decision's own rule, and one that comes out otherwise is an error.
    #[arg(long, visible_alias = "dispatch-method", help = replay_help())]
    pub(crate) policy: Option<PolicyName>,
    /// Print each decision that comes to another worker.
    #[arg(long)]
    pub(crate) list: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

fn replay_help() -> String {
    let names = policy_help();
    let names = names.split_once(':').map_or("", |(_, names)| names);
    format!("Rule that decides anew, in any case:{names}; without, each decision's own, which must come to the same")
}
