//! The clients of a controller: each sends its next request when it has its answer, on a connection that it keeps.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use muster_shared::id::{GatewayId, TicketId};
use tokio::task::LocalSet;

use super::records::Sample;
use super::requests::{Granted, Writer};
use crate::bench::gateway::connection::{Answer, Connection};

/// What is asked.
#[derive(Debug, Clone)]
pub(super) enum Script {
    /// These requests, in turn, by whichever client is next.
    Turns(Arc<[Vec<u8>]>),
    /// For a worker; with `release`, the request that has run longest ends for it.
    Dispatch { writer: Writer, gateway: GatewayId, release: bool },
}

/// When clients have asked enough.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    Time(Instant),
    Count(usize),
}

/// Clients on a thread of their own, which costs less than a pool of threads would.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    pub(super) address: SocketAddr,
    pub(super) count: u32,
    pub(super) script: Script,
}

/// What clients of one thread share.
#[derive(Debug)]
struct Shared {
    clients: Clients,
    until: Until,
    asked: usize,
    sample: Sample,
    /// Requests in flight, oldest first.
    held: VecDeque<TicketId>,
}

impl Shared {
    /// The number of the next question; nothing when it is enough.
    fn next(&mut self) -> Option<usize> {
        let more = match self.until {
            Until::Time(end) => Instant::now() < end,
            Until::Count(count) => self.asked < count,
        };
        self.asked += 1;
        more.then_some(self.asked - 1)
    }
}

impl Clients {
    /// Asks until it is enough. `held`: requests in flight, before and after.
    ///
    /// # Errors
    /// At the first request that fails: figures of a controller that refuses say nothing.
    pub(super) async fn play(self, until: Until, held: &mut VecDeque<TicketId>) -> anyhow::Result<Sample> {
        let before = std::mem::take(held);
        let played = tokio::task::spawn_blocking(move || self.play_here(until, before));
        let (sample, after) = played.await.context("the clients crashed")??;
        *held = after;
        Ok(sample)
    }

    fn play_here(self, until: Until, held: VecDeque<TicketId>) -> anyhow::Result<(Sample, VecDeque<TicketId>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let count = self.count;
        let begin = Instant::now();
        let shared = Rc::new(RefCell::new(Shared { clients: self, until, asked: 0, sample: Sample::default(), held }));
        let (all, clients) = (LocalSet::new(), (0..count).map(|_| run(Rc::clone(&shared))));
        let running: Vec<_> = clients.map(|client| all.spawn_local(client)).collect();
        all.block_on(&runtime, async {
            for client in running {
                client.await??;
            }
            anyhow::Ok(())
        })?;
        let mut shared = shared.borrow_mut();
        shared.sample.took = begin.elapsed();
        Ok((std::mem::take(&mut shared.sample), std::mem::take(&mut shared.held)))
    }
}

async fn run(shared: Rc<RefCell<Shared>>) -> anyhow::Result<()> {
    let (address, script) = {
        let shared = shared.borrow();
        (shared.clients.address, shared.clients.script.clone())
    };
    let (mut connection, mut answer) = (Connection::open(address).await?, Answer::new(false));
    let mut request = Vec::new();
    loop {
        let Some(number) = shared.borrow_mut().next() else { return Ok(()) };
        let begin = Instant::now();
        match &script {
            Script::Turns(requests) => ask(&mut connection, &requests[number % requests.len()], &mut answer).await?,
            Script::Dispatch { writer, gateway, release } => {
                if request.is_empty() {
                    request = writer.dispatch(*gateway);
                }
                ask(&mut connection, &request, &mut answer).await?;
                let granted: Granted = serde_json::from_slice(&answer.start)
                    .with_context(|| format!("the controller granted no ticket: {}", answer.shown()))?;
                shared.borrow_mut().held.push_back(granted.ticket);
                if *release {
                    shared.borrow_mut().sample.times.add(begin.elapsed(), 1);
                    let oldest = shared.borrow_mut().held.pop_front();
                    let mut ending = Vec::new();
                    writer.release(*gateway, oldest.context("no request is in flight")?, &mut ending);
                    ask(&mut connection, &ending, &mut answer).await?;
                }
            }
        }
        let sample = &mut shared.borrow_mut().sample;
        if !matches!(script, Script::Dispatch { .. }) {
            sample.times.add(begin.elapsed(), 1);
        }
        sample.count += 1;
    }
}

/// Sends one request; an answer that is none ends everything.
async fn ask(connection: &mut Connection, request: &[u8], answer: &mut Answer) -> anyhow::Result<()> {
    match connection.exchange(request, answer, |_| {}).await {
        Ok(keep_alive) => {
            if let Some(refusal) = answer.refusal() {
                bail!("{refusal}");
            }
            ensure!(
                keep_alive,
                "the server does not keep connections, so that it cannot be measured with these clients"
            );
            Ok(())
        }
        Err(broken) => Err(broken.reason),
    }
}
