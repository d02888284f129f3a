//! Flags of the verbs that look at a controller's fleet, and of those that change what it does.

use std::path::PathBuf;

use clap::Args;
use muster_shared::client::ControllerClient;
use muster_shared::secret::Secret;

use super::Ask;
use crate::config::SecretParser;

/// Flags of `muster status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Print it as JSON; with --watch, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it again each second, until Ctrl-C.
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Flags of `muster models`.
#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Print them as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `muster drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    pub(crate) operator: Operator,
    /// Wait until its last request has ended.
    #[arg(long)]
    pub(crate) wait: bool,
    /// The worker's name, as `muster status` shows it.
    pub(crate) worker: String,
}

/// Flags of `muster resume`.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) operator: Operator,
    /// The worker's name, as `muster status` shows it.
    pub(crate) worker: String,
}

/// Which controller is told what to do, and by whom.
#[derive(Debug, Args)]
pub(crate) struct Operator {
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// The controller's admin key, where it has one; the fleet's token is not enough then.
    #[arg(long, env = "MUSTER_ADMIN_KEY", hide_env_values = true, value_parser = SecretParser)]
    pub(crate) admin_key: Option<Secret>,
    /// File that holds the admin key.
    #[arg(long, env = "MUSTER_ADMIN_KEY_FILE")]
    pub(crate) admin_key_file: Option<PathBuf>,
}

impl Operator {
    /// A client of that controller, with the admin key if one is given.
    ///
    /// # Errors
    /// As [`Ask::client`].
    pub(crate) fn client(self) -> anyhow::Result<ControllerClient> {
        let Self { mut ask, admin_key, admin_key_file } = self;
        if admin_key.is_some() || admin_key_file.is_some() {
            (ask.fleet_token, ask.fleet_token_file) = (admin_key, admin_key_file);
        }
        ask.client()
    }
}
