//! The clock of one request: one timer for all its limits, and the end of the gateway.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Why a request is not waited for any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lapse {
    /// The moment has passed.
    Late,
    /// The gateway stops.
    Stopping,
}

/// Ends what takes too long.
///
/// The moment may move with every token at no cost: the timer runs on, and is set anew when it goes off too early.
#[derive(Debug)]
pub(crate) struct Watch {
    until: Instant,
    timer: Pin<Box<Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Watch {
    /// Waits until then, or until `cut`.
    pub(crate) fn new(until: Instant, cut: CancellationToken) -> Self {
        let timer = Box::pin(tokio::time::sleep_until(until.into()));
        Self { until, timer, cut: Box::pin(cut.cancelled_owned()) }
    }

    /// Waits until then from now on.
    pub(crate) fn set(&mut self, until: Instant) {
        self.until = until;
        if self.timer.deadline() > until.into() {
            self.timer.as_mut().reset(until.into());
        }
    }

    /// Whether it is over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Lapse> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.until {
                return Poll::Ready(Lapse::Late);
            }
            self.timer.as_mut().reset(self.until.into());
        }
        self.cut.as_mut().poll(cx).map(|()| Lapse::Stopping)
    }

    /// Waits for something, for as long as may be.
    ///
    /// # Errors
    /// Why it is not waited for any longer.
    pub(crate) async fn run<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Lapse> {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.poll(cx).map(Err),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[tokio::test]
    async fn it_ends_at_its_moment_or_when_the_gateway_does() {
        let cut = CancellationToken::new();
        let mut watch = Watch::new(Instant::now() + SECOND / 100, cut.clone());
        assert_eq!(watch.run(async { 1 }).await, Ok(1));
        assert_eq!(watch.run(pending::<()>()).await, Err(Lapse::Late));
        watch.set(Instant::now() + SECOND * 1000);
        cut.cancel();
        assert_eq!(watch.run(pending::<()>()).await, Err(Lapse::Stopping));
    }

    #[tokio::test]
    async fn a_moment_that_moves_is_the_one_that_counts() {
        let began = now();
        let mut watch = Watch::new(began + SECOND / 100, CancellationToken::new());
        watch.set(began + SECOND / 20);
        assert_eq!(watch.run(pending::<()>()).await, Err(Lapse::Late));
        assert!(began.elapsed() >= SECOND / 20);
        watch.set(began + SECOND * 1000);
        watch.set(now());
        assert_eq!(watch.run(pending::<()>()).await, Err(Lapse::Late), "an earlier moment counts at once");
    }
}
