//! `muster bench fake-worker`: a worker that answers at once, so that the gateway before it is what is measured.
//!
//! Reading order: [`connection`] reads requests and writes answers; [`route`] and [`asked`] say what is wanted;
//! [`worker`] chooses the model; [`openai`], [`native`] and [`fastchat`] answer, each in the words of one transport, with
//! what [`wire`] has made ready; [`registration`] makes the worker known to a controller.

mod asked;
mod connection;
mod fastchat;
mod native;
mod openai;
mod registration;
mod route;
mod wire;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use muster_shared::secret::Secret;
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use registration::Registrar;
use worker::Worker;

use super::process::allow_files;
use crate::bind::{Guard, bind};
use crate::cli::FakeWorkerArgs;
use crate::config::{base_url, one_secret};
use crate::services::announce;
use crate::stop;

/// Time that running requests get when the worker stops.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be taken: the system may be out of files for a moment.
const PAUSE: Duration = Duration::from_millis(20);

/// Serves until it is told to stop.
pub(super) async fn run(args: FakeWorkerArgs) -> anyhow::Result<()> {
    let controller = args.controller_address.as_deref().map(|url| base_url("--controller-address", url)).transpose()?;
    let token = one_secret(args.fleet_token.clone(), args.fleet_token_file.as_deref())?;
    allow_files();
    let stop = stop::on_signal();
    let listener = bind("fake worker", "127.0.0.1", args.port, Guard::token(false, None)).await?;
    let address = format!("http://{}", listener.local_addr()?);
    announce("fake worker", "http", &listener)?;
    let worker = Arc::new(Worker::new(&args));
    let registrar = controller.map(|controller| registrar(&controller, token, &worker, &args, address));
    let (serving, closed) = (Arc::clone(&worker), CancellationToken::new());
    let listener = listener.into_std()?;
    let server = {
        let closed = closed.clone();
        // A thread of its own, and no other: handing requests from thread to thread would cost more than they do.
        tokio::task::spawn_blocking(move || serve(listener, &serving, &closed))
    };
    let stay = async {
        match &registrar {
            Some(registrar) => registrar.stay().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        never = stay => match never {},
    }
    if let Some(registrar) = &registrar {
        registrar.drain().await;
    }
    closed.cancel();
    let served = server.await.context("the fake worker crashed")?;
    if let Some(registrar) = &registrar {
        registrar.deregister().await;
    }
    served
}

fn registrar(
    controller: &str,
    token: Option<Secret>,
    worker: &Arc<Worker>,
    args: &FakeWorkerArgs,
    address: String,
) -> Registrar {
    Registrar::new(controller, token, Arc::clone(worker), worker.registration(args, address))
}

/// Takes connections until `closed`, and lets requests that run then end.
fn serve(listener: std::net::TcpListener, worker: &Arc<Worker>, closed: &CancellationToken) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let (listener, connections) = (TcpListener::from_std(listener)?, TaskTracker::new());
        while let Some(taken) = closed.run_until_cancelled(listener.accept()).await {
            match taken {
                Ok((stream, _)) => {
                    let served = connection::serve(stream, Arc::clone(worker), closed.clone());
                    tokio::task::spawn_local(connections.track_future(served));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        connections.close();
        let _ = tokio::time::timeout(DRAIN, connections.wait()).await; // those that run still are cut off
        Ok(())
    })
}
