//! Flags of the verbs that ask a controller.

use std::path::PathBuf;

use clap::Args;
use muster_shared::client::{ControllerClient, Timeouts, fleet_client};
use muster_shared::secret::Secret;

use crate::config::{CallerTls, SecretParser, base_url, one_secret};

/// Which controller is asked, and as whom.
#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// Base URL of the controller.
    #[arg(long, env = "MUSTER_CONTROLLER_ADDRESS", default_value = "http://127.0.0.1:21001")]
    pub(crate) controller_address: String,
    /// The fleet's token.
    #[arg(long, env = "MUSTER_FLEET_TOKEN", hide_env_values = true, value_parser = SecretParser)]
    pub(crate) fleet_token: Option<Secret>,
    /// File that holds the fleet's token.
    #[arg(long, env = "MUSTER_FLEET_TOKEN_FILE")]
    pub(crate) fleet_token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tls: CallerTls,
}

impl Ask {
    /// A client of that controller.
    ///
    /// # Errors
    /// When the address is no base URL, or the token or a certificate cannot be read.
    pub(crate) fn client(self) -> anyhow::Result<ControllerClient> {
        let address = base_url("controller_address", &self.controller_address)?;
        let token = one_secret(self.fleet_token, self.fleet_token_file.as_deref())?;
        Ok(ControllerClient::new(fleet_client(&self.tls.load()?, Timeouts::default()), address, token))
    }
}
