//! What a controller knows of its fleet, in the terminal: `muster status`, `muster models`, `muster drain`,
//! `muster resume`.

mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::io::IsTerminal as _;

use anyhow::{Context as _, bail};
use muster_shared::control::{Leave, WorkerState};
use muster_shared::id::WorkerId;
use muster_shared::topology::{Node, Topology, WorkerNode};

use crate::cli::{DrainArgs, ModelsArgs, ResumeArgs, StatusArgs};
use crate::services::say;
use crate::text::{self, Room, shown};
use crate::trouble::asked;

use watch::{Watch, stopped};

/// Shows the fleet once, or again and again.
pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let client = args.ask.client()?;
    if !args.watch {
        let topology = asked(&client, client.topology()).await?;
        say(&page(&topology, args.json, Room::of_terminal())?);
        return Ok(());
    }
    tokio::select! {
        () = stopped() => Ok(()),
        ended = redraw(Watch::begin(client).await?, args.json) => ended,
    }
}

/// Shows the fleet whenever it is told, until nobody reads.
async fn redraw(mut watch: Watch, json: bool) -> anyhow::Result<()> {
    let terminal = std::io::stdout().is_terminal();
    loop {
        let page = page(watch.topology(), json, Room::of_terminal())?;
        let page = match (terminal, json) {
            (true, false) => watch::over_the_last(&page, text::rows()),
            (false, false) => format!("{page}\n"), // an empty line between two
            (_, true) => page,
        };
        if watch::print(&page).is_err() {
            return Ok(()); // whoever read it has seen enough
        }
        watch.next().await?;
    }
}

fn page(topology: &Topology, json: bool, room: Room) -> anyhow::Result<String> {
    match json {
        true => Ok(serde_json::to_string(topology)?),
        false => Ok(table::of(topology, room).trim_end().to_owned()),
    }
}

/// Lists the models.
pub(crate) async fn models(args: ModelsArgs) -> anyhow::Result<()> {
    let client = args.ask.client()?;
    let Topology { models, .. } = asked(&client, client.topology()).await?;
    if args.json {
        say(&serde_json::to_string_pretty(&models)?);
    } else {
        say(table::of_models(&models, Room::of_terminal()).trim_end());
    }
    Ok(())
}

/// Stops requests to a worker, and waits for the end of those that run if that is wanted.
pub(crate) async fn drain(args: DrainArgs) -> anyhow::Result<()> {
    let client = args.operator.client()?;
    let leave = Leave { id: WorkerId::new(args.worker.as_str()), incarnation: None };
    asked(&client, client.drain(&leave)).await?;
    let name = shown(&args.worker);
    if !args.wait {
        let topology = asked(&client, client.topology()).await?;
        say(&drained(&name, worker(&topology, &args.worker)));
        return Ok(());
    }
    let mut watch = Watch::begin(client).await?;
    let (mut is_told, mut failures) = (false, None);
    loop {
        let worker = worker(watch.topology(), &args.worker);
        if let Some(worker) = worker {
            let failed = worker.totals.failures.saturating_sub(*failures.get_or_insert(worker.totals.failures));
            if let failed @ 1.. = u32::try_from(failed).unwrap_or(u32::MAX) {
                bail!("worker `{name}` failed {} while it drained", text::counted(failed, "request"));
            }
        }
        match worker.map(|worker| (worker.state, running(worker))) {
            Some((WorkerState::Draining, running @ 1..)) => {
                if !std::mem::replace(&mut is_told, true) {
                    say(&format!("worker `{name}` drains; waiting for {}", text::counted(running, "request")));
                }
            }
            None | Some((WorkerState::Draining | WorkerState::Gone, _)) => {
                say(&drained(&name, worker));
                return Ok(());
            }
            Some(_) => bail!(
                "worker `{name}` takes requests again: somebody has resumed it, it was started anew, or the controller was"
            ),
        }
        watch.next().await?;
    }
}

fn drained(name: &str, worker: Option<&WorkerNode>) -> String {
    match worker.map(|worker| (worker.state, running(worker))) {
        None | Some((WorkerState::Gone, _)) => format!("worker `{name}` has gone"),
        Some((_, 0)) => format!("worker `{name}` drains; no request runs"),
        Some((_, running)) => format!("worker `{name}` drains; {} still run", text::counted(running, "request")),
    }
}

/// Requests that a worker has, as far as is known: what the controller sent it, or what it tells itself.
fn running(worker: &WorkerNode) -> u32 {
    let reported = worker.reported.iter().map(|load| load.running.saturating_add(load.waiting));
    worker.tickets.max(reported.fold(0, u32::saturating_add))
}

fn worker<'a>(topology: &'a Topology, id: &str) -> Option<&'a WorkerNode> {
    topology.nodes.iter().find_map(|node| match node {
        Node::Worker(worker) if worker.id == id => Some(&**worker),
        _ => None,
    })
}

/// Lets a drained worker have requests again.
pub(crate) async fn resume(args: ResumeArgs) -> anyhow::Result<()> {
    let client = args.operator.client()?;
    let leave = Leave { id: WorkerId::new(args.worker.as_str()), incarnation: None };
    asked(&client, client.resume(&leave)).await?;
    let topology = asked(&client, client.topology()).await?;
    let state = worker(&topology, &args.worker).context("the worker has gone meanwhile")?.state;
    say(&format!("worker `{}` is {}", shown(&args.worker), table::state(state)));
    Ok(())
}
