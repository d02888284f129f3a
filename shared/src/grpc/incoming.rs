//! Connections to a service that speaks gRPC: those whose TLS is agreed upon, as they become so.
//!
//! Each agrees on a task of its own, so that one who is slow at it holds up nobody.

use std::io;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::tls::{Acceptor, MaybeTls};

/// Those that may be agreeing at once; one more waits with the system.
const AGREEING: usize = 1024;
/// Pause after the system gave no connection, for want of file descriptors say.
const EXHAUSTED: Duration = Duration::from_millis(100);

impl Connected for MaybeTls {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.tcp().connect_info()
    }
}

/// What comes to a listener.
struct Incoming {
    listener: TcpListener,
    acceptor: Acceptor,
    agreeing: JoinSet<Option<MaybeTls>>,
}

/// The connections that come to a listener, for tonic. They are sent what is small at once.
pub fn incoming(listener: TcpListener, acceptor: Acceptor) -> impl Stream<Item = io::Result<MaybeTls>> {
    let incoming = Incoming { listener, acceptor, agreeing: JoinSet::new() };
    stream::unfold(incoming, |mut incoming| async move { Some((Ok(incoming.next().await), incoming)) })
}

impl Incoming {
    async fn next(&mut self) -> MaybeTls {
        loop {
            let accepted = tokio::select! {
                Some(agreed) = self.agreeing.join_next() => match agreed {
                    Ok(Some(stream)) => return stream,
                    _ => continue, // none of ours
                },
                accepted = self.listener.accept(), if self.agreeing.len() < AGREEING => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true); // a failure costs latency only
                    let acceptor = self.acceptor.clone();
                    self.agreeing.spawn(async move { acceptor.accept(stream).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted; the open-files limit may be too low");
                    tokio::time::sleep(EXHAUSTED).await;
                }
            }
        }
    }
}
