//! The controller's rules in this process: what is left when there is no socket, no lock and no JSON.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use muster_controller::Config;
use muster_controller::config::PolicyName;
use muster_controller::offline::Offline;
use muster_shared::control::{Dispatch, Grant, Heartbeat, HeartbeatReply, ModelLoad, Outcome, Registration, Release};
use muster_shared::id::GatewayId;

use super::records::{Sample, Series, What};
use crate::bench::standins::{MODEL, registration};

/// Requests in flight for each worker, and the most it takes.
pub(super) const IN_FLIGHT: u32 = 2;
const ROOM: u32 = 8;
/// By how much the rules' clock goes on from one call to the next.
const STEP: Duration = Duration::from_micros(1);
/// Time in which every worker beats once.
const BEAT: Duration = Duration::from_secs(5);
/// Calls between two looks at the real clock's limit.
const BLOCK: usize = 16;

/// A fleet with its rules. The rules' clock is made up, so that no lease ends because this machine is slow.
pub(super) struct Rules {
    rules: Offline,
    now: Instant,
    gateway: GatewayId,
    workers: Vec<Registration>,
    /// Oldest first; the worker's number is its place.
    held: VecDeque<Grant>,
    questions: u64,
    dispatches: Series,
    heartbeats: Series,
}

impl Rules {
    /// A fleet that is as busy as it is going to be.
    pub(super) fn new(policy: PolicyName, workers: u32, journal: usize, seed: u64) -> anyhow::Result<Self> {
        let now = Instant::now();
        let usual = Config::default();
        let name = match journal == usual.journal {
            true => policy.to_string(),
            false => format!("{policy}, journal of {journal}"),
        };
        let config = Config { policy, journal, ..usual };
        let series = |what| Series::new("process", &name, workers, what);
        let mut fleet = Self {
            rules: Offline::new(&config, seed, now),
            now,
            gateway: GatewayId::from_random(1),
            workers: (0..workers).map(|number| registration(format!("http://127.0.0.1:1/w{number}"), ROOM)).collect(),
            held: VecDeque::new(),
            questions: 0,
            dispatches: series(What::Dispatch),
            heartbeats: series(What::Heartbeat),
        };
        for worker in fleet.workers.clone() {
            let now = fleet.tick();
            fleet.rules.register(worker, now).map_err(|problem| anyhow!("{problem}"))?;
        }
        for _ in 0..workers * IN_FLIGHT {
            let grant = fleet.ask()?;
            fleet.held.push_back(grant);
        }
        fleet.age()?;
        Ok(fleet)
    }

    /// Measures decisions, then heartbeats.
    pub(super) fn measure(&mut self, length: Duration) -> anyhow::Result<()> {
        let mut sample = Sample::default();
        let begin = Instant::now();
        while begin.elapsed() < length {
            for _ in 0..BLOCK {
                let asked = Instant::now();
                let grant = self.ask()?;
                sample.times.add(asked.elapsed(), 1);
                self.held.push_back(grant);
                self.release()?;
                sample.count += 1;
            }
        }
        sample.took = begin.elapsed();
        self.dispatches.add(&sample);
        self.age()?;
        let (beats, mut sample) = (self.beats(), Sample::default());
        let (begin, mut turns) = (Instant::now(), beats.iter().cycle());
        while begin.elapsed() < length {
            for beat in turns.by_ref().take(BLOCK) {
                let now = self.tick();
                let sent = Instant::now();
                let reply = self.rules.heartbeat(beat, now);
                sample.times.add(sent.elapsed(), 1);
                renewed(reply)?;
                sample.count += 1;
            }
        }
        sample.took = begin.elapsed();
        self.heartbeats.add(&sample);
        Ok(())
    }

    pub(super) fn into_series(self) -> [Series; 2] {
        [self.dispatches, self.heartbeats]
    }

    fn ask(&mut self) -> anyhow::Result<Grant> {
        let now = self.tick();
        self.questions += 1;
        let request = Some(format!("01a22371-0cac-72db-892e-{:012x}", self.questions)); // as long as a gateway's
        self.rules.ask(self.questions, Dispatch { request, ..Dispatch::new(self.gateway, MODEL) }, now);
        let (_, answer) = self.rules.take_answers().pop().context("a dispatch was not answered at once")?;
        answer.map_err(|problem| anyhow!("a dispatch was refused: {problem}"))
    }

    fn release(&mut self) -> anyhow::Result<()> {
        let now = self.tick();
        let ticket = self.held.pop_front().context("no request is in flight")?.ticket;
        let release = Release { ticket, outcome: Outcome::Done, ttft_ms: None, tokens: None };
        self.rules.release(self.gateway, &release, now);
        Ok(())
    }

    /// Lets two beats of every worker pass, so that requests are as old as most are.
    fn age(&mut self) -> anyhow::Result<()> {
        let beats = self.beats();
        for _ in 0..2 {
            self.now += BEAT;
            self.rules.renew(self.gateway, self.now);
            for beat in &beats {
                let now = self.tick();
                renewed(self.rules.heartbeat(beat, now))?;
            }
        }
        Ok(())
    }

    /// A true beat of every worker.
    fn beats(&self) -> Vec<Heartbeat> {
        let mut running = std::collections::HashMap::<_, u32>::new();
        self.held.iter().for_each(|grant| *running.entry(&grant.worker).or_default() += 1);
        let beat = |worker: &Registration| {
            let running = running.get(&worker.id).copied().unwrap_or(0);
            let load = ModelLoad { model: MODEL.to_owned(), running, waiting: 0 };
            let load = Some(if running > 0 { vec![load] } else { Vec::new() });
            Heartbeat { load, ..Heartbeat::bare(worker.id.clone(), worker.incarnation) }
        };
        self.workers.iter().map(beat).collect()
    }

    fn tick(&mut self) -> Instant {
        self.now += STEP;
        self.now
    }
}

fn renewed(reply: Result<HeartbeatReply, muster_shared::problem::Problem>) -> anyhow::Result<()> {
    match reply {
        Ok(HeartbeatReply::Renewed(_)) => Ok(()),
        Ok(HeartbeatReply::Unknown) => Err(anyhow!("the rules have forgotten a worker that beats")),
        Err(problem) => Err(anyhow!("a heartbeat was refused: {problem}")),
    }
}
