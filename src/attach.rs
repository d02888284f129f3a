//! `muster attach`: makes servers that cannot register themselves workers of a fleet.
//!
//! ```text
//!   server ◀──look── watch_over ──sightings──▶ keeper ──register, heartbeat──▶ controller
//! ```
//!
//! Requests do not pass here: gateways send them to the server, and the controller counts its own tickets.

mod keeper;
mod listing;
mod server;

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context as _;
use muster_shared::client::{ControllerClient, Timeouts, fleet_client};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use keeper::Keeper;
use server::{Server, Sighting};

use crate::cli::AttachArgs;
use crate::config::{AttachConfig, AttachSection, File, Target};
use crate::{services, stop};

/// Time a call to the controller or a server may take.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), read: Duration::from_secs(5) };

/// Attaches servers until told to stop.
pub(crate) async fn run(args: Box<AttachArgs>, file: File) -> anyhow::Result<()> {
    let section = args.section.or(file.attach).or(AttachSection::defaults());
    let config = section.config().context("attach")?;
    if args.print.print_config {
        return services::print_attach(&section);
    }
    let stop = stop::on_signal();
    let http = fleet_client(&config.tls, TIMEOUTS);
    let mut servers = JoinSet::new();
    for target in config.targets.clone() {
        servers.spawn(attach(target, config.clone(), http.clone(), stop.clone()));
    }
    tokio::select! {
        result = all_end(servers) => result,
        never = config.tls.keep() => match never {},
    }
}

async fn all_end(mut servers: JoinSet<()>) -> anyhow::Result<()> {
    while let Some(ended) = servers.join_next().await {
        ended.context("attach: a fault in muster; the servers' leases end by themselves")?;
    }
    Ok(())
}

/// Attaches one server until `stop`.
async fn attach(target: Target, config: AttachConfig, http: reqwest::Client, stop: CancellationToken) {
    let server = Server {
        http: http.clone(),
        address: target.address.clone(),
        offer: config.offer.clone(),
        token: config.token.clone(),
    };
    let keeper = Keeper::new(target, config.offer, ControllerClient::new(http, config.controller, config.token));
    // One: while the keeper speaks, nobody need look.
    let (sender, sightings) = mpsc::channel(1);
    tokio::select! {
        never = watch_over(&server, config.probe, sender) => match never {},
        () = keeper.work(sightings, config.drain, stop) => {}
    }
}

/// Looks at a server for ever. A look that takes long holds up no heartbeat.
async fn watch_over(server: &Server, probe: Duration, sender: mpsc::Sender<Sighting>) -> Infallible {
    loop {
        // The keeper may be leaving, and look no more.
        let _ = sender.send(server.look().await).await;
        tokio::time::sleep(probe).await;
    }
}
