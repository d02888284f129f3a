//! Static peers: workers that an operator has written down, for networks in which they do not register.
//!
//! * [`file`]: what is written down, checked; pure.
//! * `merged`: what is written down and what a peer tells of itself, together; pure.

pub mod file;
pub(crate) mod merged;

use muster_shared::control::{Capabilities, ModelCard};
use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;

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
