//! The connections of one listener, of which there are so many and no more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

use tokio::task::AbortHandle;

use super::tally::Tally;

/// Connections that have ended and are remembered nevertheless, at least.
const ENDED: usize = 64;

/// How many there are.
#[derive(Debug, Default)]
pub(super) struct Counts {
    all: AtomicIsize,
    /// Those on which a request runs. It may be told late, so it goes below zero for a moment.
    busy: AtomicIsize,
}

impl Counts {
    pub(super) fn come(&self) {
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn go(&self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn begin(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }

    fn all(&self) -> usize {
        usize::try_from(self.all.load(Ordering::Relaxed)).unwrap_or_default()
    }

    fn all_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) >= self.all.load(Ordering::Relaxed)
    }
}

/// A connection in the count of its listener, until it ends however it ends.
pub(super) struct Member(pub(super) Arc<Tally>);

impl Drop for Member {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The connections of one listener.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    counts: Arc<Counts>,
    /// Those that may be idle, the oldest first.
    next: VecDeque<(Arc<Tally>, AbortHandle)>,
    /// Those that were busy when one was looked for. They are looked at again when all others were: whoever makes many
    /// busy connections must not make each new one cost a look at all of them.
    passed: VecDeque<(Arc<Tally>, AbortHandle)>,
}

impl Crowd {
    /// What one more connection does.
    pub(super) fn tally(&self) -> Arc<Tally> {
        Tally::new(&self.counts)
    }

    pub(super) fn join(&mut self, tally: Arc<Tally>, task: AbortHandle) {
        if self.next.len() + self.passed.len() > 2 * self.counts.all() + ENDED {
            for some in [&mut self.next, &mut self.passed] {
                some.retain(|(_, task)| !task.is_finished());
            }
        }
        self.next.push_back((tally, task));
    }

    /// Whether one more can come where there may be so many; closes one on which no request runs if it must.
    pub(super) fn has_room(&mut self, most: usize) -> bool {
        self.counts.all() < most || self.close_one()
    }

    /// Closes a connection on which no request runs, one of the older ones; `false` where every one is busy.
    fn close_one(&mut self) -> bool {
        if self.counts.all_busy() {
            return false;
        }
        for _ in 0..2 {
            while let Some((tally, task)) = self.next.pop_front() {
                if task.is_finished() {
                    continue; // it ended by itself, and is counted no more
                }
                if !tally.is_busy() {
                    task.abort();
                    tally.leave(); // now: the task ends a little later
                    return true;
                }
                self.passed.push_back((tally, task));
            }
            std::mem::swap(&mut self.next, &mut self.passed);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One more idle connection, which ends when it is closed.
    fn come(crowd: &mut Crowd) -> tokio::task::JoinHandle<()> {
        let tally = crowd.tally();
        let member = Member(Arc::clone(&tally));
        let task = tokio::spawn(async move {
            let _member = member;
            std::future::pending().await
        });
        crowd.join(tally, task.abort_handle());
        task
    }

    #[tokio::test]
    async fn no_more_are_closed_than_must_be() {
        let mut crowd = Crowd::default();
        let mut tasks: Vec<_> = (0..4).map(|_| come(&mut crowd)).collect();
        // The runtime has not ended the one that is closed when the next question comes.
        assert!(crowd.has_room(4) && crowd.has_room(4));
        let closed = tasks.remove(0);
        assert!(closed.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(tasks.iter().filter(|task| task.is_finished()).count(), 0);
        assert_eq!(crowd.counts.all(), 3, "it is counted once");
    }

    #[tokio::test]
    async fn nobody_is_closed_where_all_are_busy() {
        let mut crowd = Crowd::default();
        let tallies: Vec<_> = (0..3)
            .map(|_| {
                let tally = crowd.tally();
                let task = tokio::spawn(std::future::pending::<()>());
                crowd.join(Arc::clone(&tally), task.abort_handle());
                tally
            })
            .collect();
        let mut running: Vec<_> = tallies.iter().map(|tally| tally.begin(false)).collect();
        assert!(!crowd.has_room(3));
        running.pop();
        assert!(crowd.has_room(3));
        assert!(!crowd.has_room(2));
    }
}
