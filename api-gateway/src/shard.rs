//! The gateway's threads. Each serves connections of its own, from a client's first byte to its last, with a link to the
//! controller and connections to workers of its own.
//!
//! What a request does takes some ten microseconds, less than it takes to wake another thread for a part of it. So a
//! runtime whose threads take work from each other costs more here than threads that share nothing but what is known of
//! the fleet.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use muster_shared::id::GatewayId;
use muster_shared::serve::{self, Accept, Met, Patience};
use muster_shared::tls::Protocols;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::front::Front;
use crate::keys::reload;
use crate::keys::ring::Keys;
use crate::openai::error;
use crate::state::{State, now_seconds};
use crate::upstream::{Common, Upstream, controller_client};
use crate::{Config, Error, Listeners, grpc, routes};

/// Time that requests which outlive the time to drain get to say so to their clients.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);
/// Connections that may wait for their thread; one more waits with whoever accepts.
const WAITING: usize = 1024;
/// Pause after the system gave no connection, for want of file descriptors say.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// One thread.
struct Shard {
    door: mpsc::Sender<std::net::TcpStream>,
    /// Connections it serves.
    connections: Arc<AtomicUsize>,
    ended: oneshot::Receiver<()>,
}

/// Serves clients by as many threads as are configured, until `shutdown`; then lets them finish what runs.
///
/// # Errors
/// When the system gives no thread.
pub(crate) async fn run(config: Config, listeners: Listeners, shutdown: CancellationToken) -> Result<(), Error> {
    let Listeners { http: listener, grpc } = listeners;
    let address =
        listener.local_addr().map(|address| format!("{}://{address}", config.tls.scheme())).unwrap_or_default();
    let common = Common::new(&config, address);
    let ring = Arc::clone(&common.keys);
    let shards = (0..config.threads.get()).map(|number| start(number, &config, &common, &shutdown));
    let shards: Vec<Shard> = shards.collect::<Result<_, _>>()?;
    let grpc = grpc.map(|listener| grpc::start(listener, &config, &common, &shutdown)).transpose()?;
    tokio::select! {
        () = shutdown.cancelled() => {}
        never = accept(&listener, &shards) => match never {},
        never = reload::follow(&ring, config.keys_reload.as_ref()) => match never {},
    }
    drop(listener);
    let ended = async {
        for shard in shards {
            let _ = shard.ended.await; // one that has crashed has ended, too
        }
        if let Some(ended) = grpc {
            let _ = ended.await;
        }
    };
    tokio::select! {
        () = ended => {}
        never = cut_after(config.drain, &common.cut) => match never {},
    }
    Ok(())
}

/// Starts one thread.
fn start(number: usize, config: &Config, common: &Common, shutdown: &CancellationToken) -> Result<Shard, Error> {
    let (door, connections) = mpsc::channel(WAITING);
    let (running, ended) = oneshot::channel();
    let count = Arc::new(AtomicUsize::new(0));
    let (config, common, shutdown, counted) = (config.clone(), common.clone(), shutdown.clone(), Arc::clone(&count));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
    let serve = move || {
        runtime.block_on(serve(config, common, connections, counted, shutdown));
        drop(running);
    };
    std::thread::Builder::new().name(format!("gateway {number}")).spawn(serve).map_err(Error::Thread)?;
    Ok(Shard { door, connections: count, ended })
}

/// What one thread does.
async fn serve(
    config: Config,
    common: Common,
    connections: mpsc::Receiver<std::net::TcpStream>,
    count: Arc<AtomicUsize>,
    shutdown: CancellationToken,
) {
    let (state, linked) = linked(&config, common);
    let router = routes::router(state.clone(), &config.cors_origins);
    let front = Front::new(state.clone(), router, config.cors_origins.is_empty());
    let patience = patience(&config);
    let serving = move |peer: Option<SocketAddr>| front.serving(peer.map(|peer| peer.ip()));
    let door = Met { door: Counted { connections, count }, acceptor: config.tls.acceptor(Protocols::Http) };
    serve::serve_requests(door, serving, shutdown, patience).await;
    unlink(&state, linked).await;
}

/// What clients of one thread may take their time for.
pub(crate) fn patience(config: &Config) -> Patience {
    Patience {
        drain: config.drain + LAST_WORDS,
        stalled: config.client_timeout,
        head: config.head_timeout,
        idle: config.idle_timeout,
        body: config.body_timeout,
        connections: serve::connections(config.max_connections.get()).div_ceil(config.threads.get()),
        streams: serve::STREAMS,
        late: error::LATE,
    }
}

/// What handlers of a thread share, with a link of its own.
pub(crate) fn linked(config: &Config, common: Common) -> (State, JoinHandle<()>) {
    let keys = Arc::new(Keys::new(Arc::clone(&common.keys)));
    let upstream = Upstream::new(config.clone(), GatewayId::new(), common);
    let link = upstream.link().clone();
    let (controller, settings) = (controller_client(config), config.clone());
    let linked = tokio::spawn(async move { link.run(controller, settings).await });
    (State { upstream, keys, body_limit: config.body_limit, started: now_seconds() }, linked)
}

/// Gives back the tickets of a thread that ends.
pub(crate) async fn unlink(state: &State, linked: JoinHandle<()>) {
    state.upstream.link().close();
    if tokio::time::timeout(state.upstream.config().connect_timeout * 2, linked).await.is_err() {
        tracing::warn!("some tickets were not given back; they lapse at the controller");
    }
}

/// The connections of one thread, counted.
struct Counted {
    connections: mpsc::Receiver<std::net::TcpStream>,
    count: Arc<AtomicUsize>,
}

impl Accept for Counted {
    async fn accept(&mut self) -> std::io::Result<TcpStream> {
        self.connections.accept().await
    }

    fn count(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.count)
    }
}

/// Takes connections, for ever, each to the thread that serves the fewest.
async fn accept(listener: &TcpListener, shards: &[Shard]) -> Infallible {
    loop {
        let accepted = listener.accept().await.and_then(|(stream, _)| stream.into_std());
        match accepted {
            Ok(stream) => {
                let idlest = shards.iter().min_by_key(|shard| shard.connections.load(Ordering::Relaxed));
                if let Some(shard) = idlest {
                    shard.connections.fetch_add(1, Ordering::Relaxed); // until it is served to its end
                    // A thread that has crashed takes none; the connection is closed then.
                    let _ = shard.door.send(stream).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; the open-files limit may be too low");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// Ends what still runs after that time.
async fn cut_after(drain: Duration, cut: &CancellationToken) -> Infallible {
    tokio::time::sleep(drain).await;
    tracing::debug!(?drain, "the time to drain is over; what still runs is ended");
    cut.cancel();
    std::future::pending().await
}
