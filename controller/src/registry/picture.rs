//! The registry as `GET /topology` shows it. Nothing here changes anything.

use std::collections::HashMap;
use std::time::Instant;

use muster_shared::control::{WorkerState, WorkerStatus};
use muster_shared::id::GatewayId;
use muster_shared::topology::{Change, WorkerNode};

use super::worker::Worker;
use super::{Origin, Registry};
use crate::topology::Clock;

impl Registry {
    /// Every worker, by id, each with whether it beats. `site`: of those that do not say another.
    pub(crate) fn nodes(&self, clock: &Clock, site: &str, now: Instant) -> Vec<(WorkerNode, bool)> {
        let node = |worker: &Worker| (node(worker, self.status(worker, now), clock, site), beats(worker));
        self.all().map(node).collect()
    }

    /// The last changes of workers' states, newest first.
    pub(crate) fn changes(&self, clock: &Clock) -> Vec<Change> {
        let change = |changed: &super::Changed| Change {
            number: changed.number,
            at_ms: clock.at(changed.at),
            worker: changed.worker.to_string(),
            from: changed.from,
            to: changed.to,
            reason: changed.reason.to_string(),
        };
        self.changes.newest_first().map(change).collect()
    }

    /// Held tickets of each gateway that has any, or had some lately.
    pub(crate) fn held_by_gateway(&self) -> HashMap<GatewayId, u32> {
        self.gateways.held().map(|(gateway, held)| (gateway, u32::try_from(held).unwrap_or(u32::MAX))).collect()
    }
}

fn beats(worker: &Worker) -> bool {
    !matches!(worker.origin, Origin::Static | Origin::FastChat { beats: false, .. })
}

fn node(worker: &Worker, status: WorkerStatus, clock: &Clock, site: &str) -> WorkerNode {
    WorkerNode {
        id: status.id.to_string(),
        site: worker.site.clone().unwrap_or_else(|| site.to_owned()),
        address: status.address,
        transport: status.transport,
        source: status.source,
        state: status.state,
        since_ms: clock.at(worker.told.since),
        reason: match status.state {
            WorkerState::Ready => None,
            WorkerState::Paused => status.paused, // in the words of the last heartbeat
            WorkerState::Down => worker.down_reason().map(str::to_owned), // in those of the last probe
            _ => Some(worker.told.reason.to_string()).filter(|reason| !reason.is_empty()),
        },
        models: status.models,
        version: status.version,
        speed: status.speed,
        tickets: status.tickets,
        reported: status.reported,
        resources: status.resources,
        capabilities: worker.capabilities.clone(),
        tokens_per_second: status.tokens_per_second,
        ttft_ms: status.ttft_ms,
        response_ms: status.response_ms,
        totals: worker.totals,
        warnings: worker.warnings().to_vec(),
    }
}
