//! The Open Inference Protocol over gRPC, on a port and a thread of its own.

mod calls;

use std::time::Duration;

use muster_shared::grpc::incoming;
use muster_shared::grpc::open_inference::proto::grpc_inference_service_server::GrpcInferenceServiceServer;
use muster_shared::grpc::problem::{PROBLEM, to_status};
use muster_shared::problem::{Kind, Problem};
use muster_shared::tls::Protocols;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::Server;
use tonic::{Code, Status};
use tower::ServiceExt;

use crate::shard::{LAST_WORDS, linked, unlink};
use crate::upstream::Common;
use crate::{Config, Error};
use calls::Calls;

/// Silence of a client after which it is asked whether it lives, and time it has to say so: one whose machine vanished
/// must not keep its requests running.
const PING: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(20)];
/// Requests that a client may have given up before they were looked at: hyper's own limit of 20 breaks the connection of
/// a proxy whose clients leave in a crowd.
const GIVEN_UP: usize = 1024;

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
    let limit = config.body_limit;
    let service = GrpcInferenceServiceServer::new(Calls(state.clone())).max_decoding_message_size(limit);
    let explained =
        ServiceExt::<http::Request<Body>>::map_response(service, move |response| explain_size(response, limit));
    tracing::info!(address = %listener.local_addr()?, "the Open Inference Protocol is spoken over gRPC");
    let incoming = incoming(listener, config.tls.acceptor(Protocols::Grpc));
    let served = Server::builder()
        .http2_keepalive_interval(Some(PING[0]))
        .http2_keepalive_timeout(Some(PING[1]))
        .http2_max_pending_accept_reset_streams(Some(GIVEN_UP))
        .serve_with_incoming_shutdown(explained, incoming, shutdown.clone().cancelled_owned());
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(config.drain + LAST_WORDS).await;
    };
    let result = tokio::select! {
        result = served => result.map_err(std::io::Error::other),
        () = too_late => Ok(()), // what still ran has heard so
    };
    unlink(&state, linked).await;
    result
}

/// Puts our own words on tonic's refusal of a message that is too long.
fn explain_size<B>(mut response: http::Response<B>, limit: usize) -> http::Response<B> {
    // One that is a problem of ours already speaks for itself, a worker's say.
    let told = response.headers().contains_key(PROBLEM);
    let refused = Status::from_header_map(response.headers()).is_some_and(|status| status.code() == Code::OutOfRange);
    let refused = refused && !told;
    if refused {
        let message = format!("the message is longer than this gateway takes, {limit} bytes; --body-limit sets that");
        // Should it not fit into headers, the refusal stays as it was.
        let _ = to_status(Problem::new(Kind::TooLarge, message)).add_header(response.headers_mut());
    }
    response
}
