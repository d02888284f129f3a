//! What actors say to each other: the shipped messages, each with what its connection would tell besides.

use bytes::BytesMut;
use muster_shared::control::{Dispatch, Grant, Heartbeat, HeartbeatReply, Lease, Leave, Registration, Releases, Renew};
use muster_shared::link::{Ask, Message, Tell};
use muster_shared::problem::Problem;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A run of a process. What is meant for one that has ended reaches nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Run {
    /// Which worker, or which gateway.
    pub(super) index: usize,
    /// Numbers the runs.
    pub(super) life: u64,
}

/// A message.
#[derive(Debug, Clone)]
pub(super) enum Wire {
    Register {
        from: Run,
        registration: Registration,
    },
    Lease {
        to: Run,
        answer: Result<Lease, Problem>,
    },
    Beat {
        from: Run,
        beat: Heartbeat,
    },
    Beaten {
        to: Run,
        answer: Result<HeartbeatReply, Problem>,
    },
    Drain(Leave),
    Resume(Leave),
    Deregister(Leave),
    /// A dispatch over HTTP; `call` is numbered by its gateway.
    Dispatch {
        from: Run,
        call: u32,
        dispatch: Dispatch,
    },
    /// The connection of that call is closed.
    HangUp {
        from: Run,
        call: u32,
    },
    Answer {
        to: Run,
        call: u32,
        answer: Result<Grant, Problem>,
    },
    Releases(Releases),
    Renew(Renew),
    /// `GET /link`.
    Open {
        link: u64,
    },
    /// `101 Switching Protocols`.
    Opened {
        link: u64,
    },
    Asks {
        link: u64,
        asks: Vec<Ask>,
    },
    Tells {
        link: u64,
        tells: Vec<Tell>,
    },
    /// A request on its way to a worker; `from` is nobody's where it goes past the controller.
    Work(Work),
    /// The connection of a request is closed.
    Cancel {
        attempt: u64,
        from: Option<Run>,
    },
    /// What a gateway hears of its request.
    Said {
        to: Run,
        attempt: u64,
        word: Word,
    },
}

/// A request as a worker gets it.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) attempt: u64,
    pub(super) from: Option<Run>,
    pub(super) address: String,
    pub(super) model: String,
    /// How long it takes in milliseconds; `None`: until the client leaves.
    pub(super) takes: Option<u64>,
    pub(super) fails: bool,
}

/// What becomes of a request at its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Began,
    Done,
    Failed,
    Unreachable,
    /// The worker has no room, or leaves.
    Full,
    /// The worker does not know the model.
    Unknown,
}

/// A message over a link, after it has been bytes.
pub(super) fn through_link<M: Message + PartialEq + std::fmt::Debug>(message: &M) -> Result<M, String> {
    let read = read_again(message)?;
    if read == *message { Ok(read) } else { Err(format!("{message:?} was read as {read:?}")) }
}

/// The same, where something else may come of it.
pub(super) fn read_again<M: Message + std::fmt::Debug>(message: &M) -> Result<M, String> {
    let mut bytes = BytesMut::new();
    message.write(&mut bytes);
    M::read(&bytes).map_err(|error| format!("{message:?} cannot be read: {error}"))
}

/// A message over HTTP, after it has been JSON.
pub(super) fn through_json<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    message: &M,
) -> Result<M, String> {
    let bytes = serde_json::to_vec(message).map_err(|error| format!("{message:?} is no JSON: {error}"))?;
    let read = serde_json::from_slice(&bytes).map_err(|error| format!("{message:?} cannot be read: {error}"))?;
    if read == *message { Ok(read) } else { Err(format!("{message:?} was read as {read:?}")) }
}
