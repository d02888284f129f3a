//! One listener that stands in for any number of workers, as far as a controller looks at them: whatever is asked, it is
//! alive. A worker's address is the listener's with a path of its own.

use std::net::SocketAddr;

use muster_shared::control::{Capacity, ModelCard, Registration};
use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::http::request_head;

/// Name of the model that stand-ins serve.
pub(super) const MODEL: &str = "bench";
/// What every request is answered with.
const ALIVE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
/// Room for what one read brings.
const ROOM: usize = 4 << 10;

/// The listener; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct StandIns {
    address: SocketAddr,
    _serving: JoinSet<()>,
}

impl StandIns {
    /// Listens on a free port of the loopback.
    ///
    /// # Errors
    /// When the system gives no port.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, mut serving) = (listener.local_addr()?, JoinSet::new());
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    taken = listener.accept() => if let Ok((stream, _)) = taken {
                        connections.spawn(async move {
                            // Whoever asks may leave at any time.
                            let _ = serve(stream).await;
                        });
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, _serving: serving })
    }

    /// Where the worker of that number is.
    pub(super) fn url(&self, number: u32) -> String {
        format!("http://{}/w{number}", self.address)
    }

    /// How the worker of that number registers, with room for so many requests.
    pub(super) fn registration(&self, number: u32, room: u32) -> Registration {
        registration(self.url(number), room)
    }
}

/// A worker at that address with room for so many requests.
pub(super) fn registration(address: String, room: u32) -> Registration {
    let capacity = Some(Capacity { running: room, waiting: 0 });
    Registration {
        id: WorkerId::new(&address),
        address,
        incarnation: 1,
        transport: Transport::Http,
        models: vec![ModelCard { capacity, ..ModelCard::bare(MODEL.to_owned()) }],
        speed: 1.0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: None,
    }
}

/// Answers requests, which have no bodies, until the client leaves.
async fn serve(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut inbox = Vec::with_capacity(ROOM);
    loop {
        while let Some(head) = request_head(&inbox)? {
            let length = head.length;
            inbox.drain(..length);
            stream.write_all(ALIVE).await?;
        }
        if stream.read_buf(&mut inbox).await? == 0 {
            return Ok(());
        }
    }
}
