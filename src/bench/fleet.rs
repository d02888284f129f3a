//! `muster bench fleet`: a fleet of simulated workers that beat over HTTP, some of which fall silent at once, and whether
//! the controller sees who lives and who does not.
//!
//! Reading order: [`member`] is a worker that registers and beats; [`dispatcher`] asks for workers, and ends requests in
//! all kinds of ways; [`watch`] reads the controller's view; [`verdict`] is what must hold. Nothing but the workers'
//! addresses is made up: registrations, heartbeats, dispatches and releases are those of a real fleet, at its pace.

mod dispatcher;
mod member;
mod verdict;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use muster_shared::client::{ControllerClient, Timeouts, http_client};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::index;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use dispatcher::{Dispatched, Dispatcher};
use member::Member;
use verdict::{Setting, Verdict};
use watch::Watch;

use super::child::Controller;
use super::process::{Trees, allow_files};
use super::report::Report;
use super::standins::StandIns;
use crate::cli::FleetArgs;
use crate::services::say;

/// Time a call to the controller may take.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), read: Duration::from_secs(5) };
/// Workers that register at the same time.
const AT_ONCE: usize = 32;

/// Simulates, prints, and fails when something did not hold.
pub(super) async fn run(args: FleetArgs) -> anyhow::Result<()> {
    ensure!(
        args.kill < args.workers,
        "--kill {}: one of the {} workers must stay; kill fewer",
        args.kill,
        args.workers
    );
    ensure!(!args.heartbeat.0.is_zero(), "--heartbeat is 0; it must be longer");
    // Half of it comes before the silence, and a lease is three beats.
    let least = args.heartbeat.0 * 8;
    ensure!(
        args.duration.0 >= least,
        "--duration is {:?}, too short to see a lease end; take {:?} or more, or a shorter --heartbeat",
        args.duration.0,
        least
    );
    allow_files();
    let (beat, policy) = (format!("{}ms", args.heartbeat.0.as_millis().max(1)), args.policy.to_string());
    let start = move || Controller::start(&["--heartbeat", &beat, "--policy", &policy]);
    let child = tokio::task::spawn_blocking(start).await??;
    let controller = ControllerClient::new(http_client(TIMEOUTS), &child.url, None);
    let standins = StandIns::start().await?;
    let members = members(&args, &controller, &standins).await?;
    let verdict = simulate(&args, &controller, &members, &Trees::new(&[child.id()])?).await?;
    if args.json {
        say(&serde_json::to_string(&verdict)?);
    } else {
        Report::new(false).add(&verdict)?;
    }
    verdict.check()?;
    if !args.json {
        say("all held: nobody who beat was taken for gone, and nobody who fell silent was handed out after a lease");
    }
    Ok(())
}

/// Registers all workers.
async fn members(
    args: &FleetArgs,
    controller: &ControllerClient,
    standins: &StandIns,
) -> anyhow::Result<Arc<[Arc<Member>]>> {
    let register = |number| async move { Member::register(controller.clone(), standins, number).await.map(Arc::new) };
    let registered: Vec<_> = stream::iter(0..args.workers).map(register).buffered(AT_ONCE).try_collect().await?;
    Ok(registered.into())
}

async fn simulate(
    args: &FleetArgs,
    controller: &ControllerClient,
    members: &Arc<[Arc<Member>]>,
    trees: &Trees,
) -> anyhow::Result<Verdict> {
    let (begin, before, stop) = (Instant::now(), trees.usage(), CancellationToken::new());
    let (mut beating, mut dispatching) = (JoinSet::new(), JoinSet::new());
    for member in members.iter() {
        beating.spawn(Arc::clone(member).live(stop.clone()));
    }
    for number in 0..u64::from(args.clients) {
        let dispatcher = Dispatcher::new(controller.clone(), Arc::clone(members), args.hold.0, args.seed + number);
        dispatching.spawn(dispatcher.run(stop.clone()));
    }
    let mut watching = JoinSet::new();
    watching.spawn(Watch::new(controller.clone(), Arc::clone(members), args.heartbeat.0).run(stop.clone()));

    sleep_until((begin + args.duration.0 / 2).into()).await;
    let mut rng = StdRng::seed_from_u64(args.seed);
    for victim in index::sample(&mut rng, members.len(), args.kill as usize) {
        members[victim].fall_silent();
    }
    sleep_until((begin + args.duration.0).into()).await;
    let (took, after) = (begin.elapsed(), trees.usage());

    // Requests end before the workers do, so that what is left then is left over.
    stop.cancel();
    let mut dispatched = Dispatched::default();
    while let Some(one) = dispatching.join_next().await {
        dispatched.merge(one?);
    }
    let watched = watching.join_next().await.context("the watch has vanished")??;
    while let Some(ended) = beating.join_next().await {
        ended?;
    }
    let fleet = controller.fleet().await?;
    let setting = Setting { seconds: took.as_secs_f64(), heartbeat: args.heartbeat.0, usage: before.zip(after) };
    Ok(Verdict::new(setting, members, &dispatched, &watched, &fleet))
}
