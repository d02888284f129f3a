//! Static peers: workers that an operator has written down, for networks in which they do not register.
//!
//! * [`mod@file`]: what is written down, checked; pure.
//! * `merged`: what is written down and what a peer tells of itself, together; pure.
//! * `pulse`: when each is probed, and what follows from its answers; pure. `probe`: asks one.
//! * `keeper`: does all that, for ever.

pub mod file;
mod keeper;
pub(crate) mod merged;
mod probe;
mod pulse;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use keeper::{Notes, keep};
use muster_shared::control::{Capabilities, ModelCard};
use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;
use muster_shared::watch;

/// Most processors that a machine can be believed to have.
pub(crate) const MOST_CPUS: u32 = 4096;
/// Most memory that a machine can be believed to have, in units of 10^9 bytes.
pub(crate) const MOST_MEMORY_GB: f64 = 65_536.0;
/// Most GPUs that a machine can be believed to have.
pub(crate) const MOST_GPUS: u32 = 64;

/// A worker as it is written down.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Its name in the fleet, whatever it calls itself.
    pub id: WorkerId,
    /// Base URL at which gateways reach it, without a trailing slash.
    pub address: String,
    /// The protocol it speaks.
    pub transport: Transport,
    /// What of its models is offered; none: all that it tells.
    pub models: Vec<ModelCard>,
    /// Where it is.
    pub site: Option<String>,
    /// Tokens per second for one request, where somebody knows better than the peer.
    pub speed: Option<f64>,
    /// What its machine has.
    pub capabilities: Option<Capabilities>,
}

/// The peers file of a controller, as it was at its start.
#[derive(Debug, Clone)]
pub struct PeersConfig {
    path: PathBuf,
    text: String,
    peers: Vec<Peer>,
    own: SocketAddr,
    probe_interval: Duration,
}

impl PeersConfig {
    /// Time between two probes of a peer, unless told otherwise.
    pub const PROBE_INTERVAL: Duration = Duration::from_secs(30);

    /// Reads the file. `own`: where the controller listens; its peers are others. `probe_interval`: above zero.
    ///
    /// # Errors
    /// When it cannot be read, or with everything that is wrong with it.
    pub fn load(path: PathBuf, own: SocketAddr, probe_interval: Duration) -> Result<Self, PeersError> {
        let text = read(&path)?;
        let peers = file::parse(&path.display().to_string(), &text, Some(own)).map_err(PeersError::Wrong)?;
        Ok(Self { path, text, peers, own, probe_interval })
    }
}

/// Reads a peers file's text.
///
/// # Errors
/// [`PeersError::Unreadable`].
pub fn read(path: &std::path::Path) -> Result<String, PeersError> {
    watch::read(path).map_err(|source| PeersError::Unreadable { path: path.to_owned(), source })
}

/// Why there are no peers.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The file cannot be read.
    #[error("cannot read the peers file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is wrong. Editors look for `file:line:column` at the beginning of a line.
    #[error("the peers file cannot be used\n{0}")]
    Wrong(file::Mistakes),
}
