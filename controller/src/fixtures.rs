//! Made-up workers and messages for the tests beside the code.

use std::time::Duration;

use muster_shared::control::{Capacity, Heartbeat, Leave, ModelCard, ModelLoad, Outcome, Registration, Release};
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use muster_shared::transport::Transport;

use crate::config::Config;
use crate::registry::{Asker, Holder, Note, Origin, Request, Rules};

/// The usual rules.
pub(crate) fn rules() -> Rules {
    Config::default().rules()
}

/// A FastChat worker that beats and has nothing to do.
pub(crate) const FASTCHAT: Origin = Origin::FastChat { beats: true, multimodal: false, queue_length: 0 };

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A worker of the model `m` with room for that many requests.
pub(crate) fn worker(id: &str, capacity: u32) -> Registration {
    let capacity = Some(Capacity { running: capacity, waiting: 0 });
    Registration {
        id: WorkerId::new(id),
        address: format!("http://{id}"),
        incarnation: 1,
        transport: Transport::Http,
        models: vec![ModelCard { capacity, ..ModelCard::bare("m") }],
        speed: 1.0,
        version: String::new(),
        capabilities: None,
    }
}

/// A worker of the model `m` as FastChat's interface registers it.
pub(crate) fn fastchat_worker(id: &str) -> Registration {
    let mut registration = worker(id, 0);
    registration.incarnation = 0;
    registration.transport = Transport::FastChat;
    registration.models[0].capacity = None;
    registration
}

/// A heartbeat of the first incarnation, with that many running requests of `m`.
pub(crate) fn beat(id: &str, running: u32) -> Heartbeat {
    let load = vec![ModelLoad { model: "m".to_owned(), running, waiting: 0 }];
    Heartbeat { load: Some(load), ..Heartbeat::bare(WorkerId::new(id), 1) }
}

/// A heartbeat of the first incarnation that does not tell a load.
pub(crate) fn silent_beat(id: &str) -> Heartbeat {
    Heartbeat { load: None, ..beat(id, 0) }
}

pub(crate) fn leave(id: &str) -> Leave {
    Leave { id: WorkerId::new(id), incarnation: None }
}

/// A request for the model `m`.
pub(crate) fn asker(gateway: GatewayId) -> Asker {
    let request =
        Request { model: "m".to_owned(), exact: false, affinity: None, exclude: Vec::new(), transports: Vec::new() };
    Asker { holder: Holder::Gateway(gateway), key: None, request, note: Note::default() }
}

pub(crate) fn release(ticket: TicketId, outcome: Outcome) -> Release {
    Release { ticket, outcome, ttft_ms: None, tokens: None }
}
