//! A controller that is asked over HTTP, with its fleet.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use muster_shared::id::{GatewayId, TicketId};
use reqwest::Url;

use super::clients::{Clients, Script, Until};
use super::offline::IN_FLIGHT;
use super::records::{Sample, Series, What};
use super::requests::{Words, Writer};
use crate::bench::child::Controller;
use crate::bench::gateway::target::reachable;
use crate::bench::process::Trees;
use crate::bench::standins::StandIns;

/// A controller.
pub(super) struct Server {
    address: SocketAddr,
    writer: Writer,
    words: Words,
    workers: u32,
    trees: Trees,
    /// The heartbeat of each worker.
    beats: Arc<[Vec<u8>]>,
    gateway: GatewayId,
    held: VecDeque<TicketId>,
    series: Vec<Series>,
    /// Ends with this.
    _child: Option<Controller>,
}

impl Server {
    /// Starts one in a process of its own. It waits for heartbeats for hours: between two measurements nobody beats.
    pub(super) async fn start(policy: String, words: Words, workers: u32) -> anyhow::Result<Self> {
        let started = policy.clone();
        let start = move || Controller::start(&["--policy", &started, "--heartbeat", "1h"]);
        let child = tokio::task::spawn_blocking(start).await??;
        let (url, pid) = (child.url.clone(), child.id());
        Ok(Self { _child: Some(child), ..Self::at(policy, &url, Some(pid), words, workers).await? })
    }

    /// Takes one that runs.
    pub(super) async fn at(
        name: String,
        url: &str,
        pid: Option<u32>,
        words: Words,
        workers: u32,
    ) -> anyhow::Result<Self> {
        let parsed = Url::parse(url)?;
        let host =
            format!("{}:{}", parsed.host_str().unwrap_or_default(), parsed.port_or_known_default().unwrap_or(80));
        let unreachable = || format!("cannot reach {url}; does a controller run there?");
        let address = reachable(&host).await.with_context(unreachable)?;
        let asked = match words {
            Words::Native => &[What::Lookup, What::Dispatch, What::Heartbeat][..],
            Words::FastChat => &[What::Lookup],
        };
        Ok(Self {
            address,
            writer: Writer { host, base: parsed.path().trim_end_matches('/').to_owned() },
            words,
            workers,
            trees: Trees::new(pid.as_slice())?,
            beats: Arc::default(),
            gateway: GatewayId::new(),
            held: VecDeque::new(),
            series: asked.iter().map(|&what| Series::new("http", &name, workers, what)).collect(),
            _child: None,
        })
    }

    /// Makes the fleet known, and as busy as it is going to be.
    pub(super) async fn register(&mut self, standins: &StandIns, clients: u32) -> anyhow::Result<()> {
        let of = |write: fn(&Writer, Words, &StandIns, u32) -> Vec<u8>| -> Arc<[Vec<u8>]> {
            (0..self.workers).map(|number| write(&self.writer, self.words, standins, number)).collect()
        };
        let registrations = of(Writer::registration);
        self.beats = of(Writer::heartbeat);
        let all = Until::Count(registrations.len());
        self.play(clients, Script::Turns(registrations), all).await.context("cannot register the fleet")?;
        if self.words == Words::Native {
            let script = self.dispatches(false);
            self.play(clients, script, Until::Count((self.workers * IN_FLIGHT) as usize)).await?;
        }
        Ok(())
    }

    /// Measures every question once. Before each, every worker beats, untimed: leases go on, and what was looked up has
    /// ended.
    pub(super) async fn measure(&mut self, clients: u32, length: Duration) -> anyhow::Result<()> {
        for number in 0..self.series.len() {
            self.play(clients, Script::Turns(Arc::clone(&self.beats)), Until::Count(self.beats.len())).await?;
            let script = match self.series[number].what() {
                What::Lookup => Script::Turns(Arc::new([self.writer.lookup()])),
                What::Dispatch => self.dispatches(true),
                What::Heartbeat => Script::Turns(Arc::clone(&self.beats)),
            };
            let sample = self.play(clients, script, Until::Time(Instant::now() + length)).await?;
            self.series[number].add(&sample);
        }
        Ok(())
    }

    pub(super) fn into_series(self) -> Vec<Series> {
        self.series
    }

    fn dispatches(&self, release: bool) -> Script {
        Script::Dispatch { writer: self.writer.clone(), gateway: self.gateway, release }
    }

    async fn play(&mut self, count: u32, script: Script, until: Until) -> anyhow::Result<Sample> {
        let before = self.trees.usage();
        let clients = Clients { address: self.address, count, script };
        let mut sample = clients.play(until, &mut self.held).await?;
        sample.cpu = before.zip(self.trees.usage()).map(|(before, after)| after.time_since(&before));
        Ok(sample)
    }
}
