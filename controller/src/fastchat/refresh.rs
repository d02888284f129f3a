//! Asks FastChat's workers for their state, in the background.

use std::convert::Infallible;

use futures_util::StreamExt as _;
use futures_util::stream;
use muster_shared::id::WorkerId;

use crate::registration;
use crate::service::Service;

/// Workers asked at the same time.
const AT_ONCE: usize = 32;

/// Asks all workers whenever that is wished for. Requests that come while it asks are one more round, not many.
pub(crate) async fn run(service: &Service) -> Infallible {
    loop {
        service.refresh.notified().await;
        let workers = service.read(|registry, now| registry.fastchat_workers(now));
        stream::iter(workers).for_each_concurrent(AT_ONCE, |id| ask(service, id)).await;
    }
}

/// A worker that does not answer stays as it is: its lease decides, not one lost call.
async fn ask(service: &Service, id: WorkerId) {
    // A FastChat worker's name is its address.
    let mut status = match service.outbound.ask_status(id.as_str()).await {
        Ok(status) => status,
        Err(reason) => {
            tracing::debug!(worker = %id, reason, "a worker did not tell its state");
            return;
        }
    };
    match registration::check_status(&mut status) {
        Ok(()) => service.change(|registry, now| registry.update_fastchat(&id, status, now)),
        Err(problem) => tracing::debug!(worker = %id, %problem, "a worker told a bad state"),
    }
}
