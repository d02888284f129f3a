//! `muster bench fleet`.

use crate::cli::FleetArgs;

pub(super) async fn run(_args: FleetArgs) -> anyhow::Result<()> {
    Ok(())
}
