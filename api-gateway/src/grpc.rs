//! The Open Inference Protocol over gRPC, on a port and a thread of its own.

mod calls;
mod door;

use std::net::SocketAddr;

use muster_shared::grpc;
use muster_shared::serve::Met;
use muster_shared::tls::Protocols;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::shard::{linked, patience, unlink};
use crate::upstream::Common;
use crate::{Config, Error};
use door::Door;

/// Starts the thread; it ends some time after `shutdown`, when what runs has ended.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn start(
    listener: TcpListener,
    config: &Config,
    common: &Common,
    shutdown: &CancellationToken,
) -> Result<oneshot::Receiver<()>, Error> {
    let (running, ended) = oneshot::channel();
    let (config, common, shutdown) = (config.clone(), common.clone(), shutdown.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
    let listener = listener.into_std().map_err(Error::Thread)?;
    let serve = move || {
        if let Err(error) = runtime.block_on(serve(listener, config, common, shutdown)) {
            tracing::error!(%error, "gRPC is not spoken any more");
        }
        drop(running);
    };
    std::thread::Builder::new().name("gateway gRPC".to_owned()).spawn(serve).map_err(Error::Thread)?;
    Ok(ended)
}

async fn serve(
    listener: std::net::TcpListener,
    config: Config,
    common: Common,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let (state, linked) = linked(&config, common);
    let door = Door::new(state.clone(), config.body_limit);
    tracing::info!(address = %listener.local_addr()?, "the Open Inference Protocol is spoken over gRPC");
    let met = Met { door: listener, acceptor: config.tls.acceptor(Protocols::Grpc) };
    let serving = move |peer: Option<SocketAddr>| door.serving(peer.map(|peer| peer.ip()));
    grpc::serve(met, serving, shutdown, patience(&config)).await;
    unlink(&state, linked).await;
    Ok(())
}
