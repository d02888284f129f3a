//! Names of workers, gateways and tickets.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Names a worker. Opaque: never parsed and never normalised.
///
/// A FastChat worker's identity is its base URL, and ours follow unless told otherwise, so
/// `http://127.0.0.1:21002` and `http://localhost:21002` are two workers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(String);

impl WorkerId {
    /// Takes the name as it is.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one run of a gateway process; its tickets are renewed, and lapse, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GatewayId(Uuid);

impl GatewayId {
    /// A new name, different from every other.
    #[expect(clippy::new_without_default, reason = "a default that differs each time would surprise")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The gateway of that number, for simulations, which are the same each time.
    pub fn from_random(number: u128) -> Self {
        Self(uuid::Builder::from_random_bytes(number.to_be_bytes()).into_uuid())
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one ticket: one request in flight on one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TicketId(Uuid);

impl TicketId {
    /// A new name, different from every other, also of a controller that ran before.
    #[expect(clippy::new_without_default, reason = "a default that differs each time would surprise")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The ticket of that number, for whoever draws it: two that are the same must not meet.
    pub fn from_random(number: u128) -> Self {
        Self(uuid::Builder::from_random_bytes(number.to_be_bytes()).into_uuid())
    }
}

impl fmt::Display for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one run of a controller process; a change tells its callers that the registry began anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(Uuid);

impl Epoch {
    /// A new name, different from every other.
    #[expect(clippy::new_without_default, reason = "a default that differs each time would surprise")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}
