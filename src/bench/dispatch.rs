//! `muster bench dispatch`: what a controller's decisions cost, by the size of its fleet.
//!
//! Reading order: [`offline`] asks the controller's rules in this process; [`server`] is a controller that is asked over
//! HTTP, with [`requests`] as they go over the wire and [`clients`] that send them; [`records`] is what is told. All
//! fleets stand from the beginning to the end, and every round measures each of them once, so that a slow minute of the
//! machine is one for all.

mod clients;
mod offline;
mod records;
mod requests;
mod server;

use anyhow::ensure;
use tracing::subscriber::NoSubscriber;

use offline::Rules;
use records::{Growth, Series};
use requests::Words;
use server::Server;

use super::process::allow_files;
use super::report::Report;
use super::standins::StandIns;
use crate::cli::{DispatchArgs, Over};
use crate::config::plain_url;

/// Measures round after round, and prints.
pub(super) async fn run(args: DispatchArgs) -> anyhow::Result<()> {
    check(&args)?;
    allow_files();
    let standins = StandIns::start().await?;
    let mut rules = if args.over.contains(&Over::Process) { quietly(|| fleets(&args))? } else { Vec::new() };
    let mut servers = Vec::new();
    if args.over.contains(&Over::Http) {
        for &workers in &args.workers {
            servers.extend(start(&args, &standins, workers).await?);
        }
    }
    for round in 0..args.rounds.get() {
        for rules in &mut rules {
            tokio::task::block_in_place(|| quietly(|| rules.measure(args.seconds)))?;
        }
        let turn = round % servers.len().max(1);
        servers.rotate_left(turn); // whoever comes first in one round does not in the next
        for server in &mut servers {
            server.measure(args.clients, args.seconds).await?;
        }
        servers.rotate_right(turn);
    }
    let rules = rules.into_iter().flat_map(Rules::into_series);
    let series: Vec<Series> = rules.chain(servers.into_iter().flat_map(Server::into_series)).collect();
    tell(&args, &series)
}

fn check(args: &DispatchArgs) -> anyhow::Result<()> {
    ensure!(
        args.url.is_none() || args.policy.len() == 1,
        "--url: a controller that runs has one policy; name it with --policy, which then is its name in the table"
    );
    ensure!(
        (args.url.is_none() && args.against.is_none()) || args.workers.len() == 1,
        "--workers: a controller that runs gets one fleet; measure each size in a run of its own"
    );
    ensure!(args.against.is_none() || args.over.contains(&Over::Http), "--against: it is measured with --over http");
    Ok(())
}

/// What the rules log of made-up workers is for nobody.
fn quietly<T>(act: impl FnOnce() -> T) -> T {
    tracing::subscriber::with_default(NoSubscriber::default(), act)
}

/// The rules of every policy before every fleet.
fn fleets(args: &DispatchArgs) -> anyhow::Result<Vec<Rules>> {
    let pairs = args.workers.iter().flat_map(|&workers| args.policy.iter().map(move |&policy| (workers, policy)));
    let all = pairs.flat_map(|(workers, policy)| args.journal.iter().map(move |&journal| (workers, policy, journal)));
    all.map(|(workers, policy, journal)| Rules::new(policy, workers, journal, args.seed)).collect()
}

/// The controllers that get a fleet of that size.
async fn start(args: &DispatchArgs, standins: &StandIns, workers: u32) -> anyhow::Result<Vec<Server>> {
    let words = if args.against.is_some() { Words::FastChat } else { Words::Native };
    let mut servers = Vec::new();
    for policy in &args.policy {
        let name = policy.to_string();
        servers.push(match &args.url {
            Some(url) => Server::at(name, &plain_url("--url", url)?, args.pid, words, workers).await?,
            None => Server::start(name, words, workers).await?,
        });
    }
    if let Some(url) = &args.against {
        let url = plain_url("--against", url)?;
        servers.push(Server::at("against".to_owned(), &url, args.against_pid, words, workers).await?);
    }
    for server in &mut servers {
        server.register(standins, args.clients).await?;
    }
    Ok(servers)
}

fn tell(args: &DispatchArgs, series: &[Series]) -> anyhow::Result<()> {
    let mut report = Report::new(args.json);
    for series in series {
        report.add(&series.record())?;
    }
    for growth in series.iter().filter_map(|small| Growth::of(small, series)) {
        report.add(&growth)?;
    }
    Ok(())
}
