//! A worker as a member of the fleet: what it registers, beats and gets wrong.

use std::time::Duration;

use muster_shared::control::{Capacity, Heartbeat, ModelCard, ModelLoad, Registration};
use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::MODEL;
use super::scenario::{Fault, Machine};
use super::worker::{QUEUE, SLOTS, Worker};

/// A worker with its name and its fault.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: WorkerId,
    pub(super) worker: Worker,
    fault: Option<Fault>,
    beats: u64,
    told: Duration,
}

impl Member {
    pub(super) fn new(number: usize, machine: &Machine) -> Self {
        Self {
            id: WorkerId::new(format!("http://worker-{number}")),
            worker: Worker::new(machine.pace, machine.gpu),
            fault: machine.fault,
            beats: 0,
            told: Duration::ZERO,
        }
    }

    /// What it registers, before it has measured its speed.
    pub(super) fn registration(&self) -> Registration {
        let capacity = Some(Capacity { running: SLOTS as u32, waiting: QUEUE as u32 });
        Registration {
            id: self.id.clone(),
            address: self.id.to_string(),
            incarnation: 1,
            transport: Transport::Http,
            models: vec![ModelCard { capacity, ..ModelCard::bare(MODEL.to_owned()) }],
            speed: 1.0,
            version: String::new(),
            capabilities: None,
        }
    }

    /// Its next heartbeat.
    pub(super) fn beat(&mut self, now: Duration) -> Heartbeat {
        self.worker.advance(now);
        let (running, waiting) = self.worker.load();
        let (resources, tokens) = self.worker.tell(now - self.told);
        self.told = now;
        self.beats += 1;
        let load = ModelLoad { model: MODEL.to_owned(), running: running as u32, waiting: waiting as u32 };
        Heartbeat {
            load: Some(vec![load]),
            speed: self.worker.measured(),
            sequence: Some(self.beats),
            resources: Some(resources),
            tokens_per_second: Some(tokens),
            ..Heartbeat::bare(self.id.clone(), 1)
        }
    }

    /// Where in its work a request breaks off that it is given now.
    pub(super) fn breaks(&self, now: Duration, rng: &mut StdRng) -> Option<f64> {
        let fault = self.fault.filter(|fault| fault.from <= now)?;
        let [chance, part] = rng.random::<[f64; 2]>();
        (chance < fault.share).then_some(part)
    }
}
