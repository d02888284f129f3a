//! Proof by simulation: the shipped registry, queue, policies and tickets, under a virtual clock and seeded faults.
//!
//! ```text
//!   clients ─▶ gateways ══links, HTTP══▶ controller: Desk, as it is shipped ◀──HTTP── workers ◀─┐
//!                 └───────────────────────── requests ────────────────────────────────────────┘
//!   messages are lost, late, doubled, out of order; pairs are cut off; every process dies and comes back
//! ```
//!
//! Nothing here runs by itself: no threads, no sockets, no clock. All chance comes from one seed, so a failure is
//! replayed by it. After every event what the controller did is compared with books that are kept beside it, and after
//! every storm with the truth.
//!
//! What must hold:
//!
//! 1. No ticket takes a worker above its capacity (`books`).
//! 2. Every request of a client ends once, in its time (`clients`).
//! 3. Every question is answered once, or taken back (`asks`).
//! 4. At rest the load of every worker is what the worker has, and its room what is given (`rest`).
//! 5. No worker is handed out after its lease, while it drains, or as what it was before (`books`).
//! 6. Nobody waits where there is room, nor beyond their turn (`asks`, `controller`).
//! 7. What is refused changes nothing, and neither does a listing (`controller`).
//!
//! Beyond that, controller and books count the same tickets after every event: each ends for a reason.

use std::time::{Duration, Instant};

mod asks;
mod books;
mod clients;
mod controller;
mod faults;
mod gateway;
mod job;
mod network;
mod rest;
mod sim;
mod trace;
mod view;
mod wire;
mod worker;
mod world;

use faults::Fault;
use network::End;
use wire::Wire;

/// Models that workers offer.
const MODELS: [&str; 2] = ["a", "b"];
/// Time between two heartbeats, as the controller wishes it.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Whether a heartbeat that comes after a later one is refused.
const LATE_BEATS_ARE_REFUSED: bool = true;

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Actor {
    Controller,
    Worker(usize),
    Gateway(usize),
    /// Operators, clients that go past the controller, the weather.
    World,
}

impl Actor {
    fn numbers(self) -> (u64, u64) {
        match self {
            Self::Controller => (0, 0),
            Self::Worker(index) => (1, index as u64),
            Self::Gateway(index) => (2, index as u64),
            Self::World => (3, 0),
        }
    }
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Controller => f.pad("controller"),
            Self::Worker(index) => f.pad(&format!("worker {index}")),
            Self::Gateway(index) => f.pad(&format!("gateway {index}")),
            Self::World => f.pad("world"),
        }
    }
}

/// What happens.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there are few at a time, most of them messages")]
enum Event {
    Deliver(Actor, Wire),
    /// An end of a link hears that the other is gone.
    LinkEnds(u64, End),
    Timer(Actor, Timer),
    Arrive {
        gateway: usize,
        storm: u64,
    },
    Strike(Fault, u64),
    Heal(Actor, Actor),
    BypassLeaves {
        worker: usize,
        attempt: u64,
    },
    Calm(u64),
    Confirm(u64),
}

impl Event {
    fn is_for_the_controller(&self) -> bool {
        matches!(
            self,
            Self::Deliver(Actor::Controller, _)
                | Self::LinkEnds(_, End::Controller)
                | Self::Timer(Actor::Controller, _)
        )
    }
}

/// What an actor has set itself. Numbers tell what it was set for, which may be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    Start,
    Tick(u64, Instant),
    Sweep(u64),
    Join(u64),
    Beat(u64),
    Finish { life: u64, attempt: u64 },
    Connect(u64),
    GiveUpOpening(u64),
    Flush(u64),
    Sync(u64),
    AskLimit(u64, u32),
    AttemptLimit(u64, u64),
    Again(u64),
    Deadline(u64),
    ClientLeaves(u64),
    Watch(u64, u64),
}

mod tests;
