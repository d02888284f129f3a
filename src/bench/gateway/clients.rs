//! The clients: each sends its next request when the one before is answered, on a connection that it keeps.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::connection::{Answer, Connection};
use super::tally::{Cause, Tally};
use super::target::Target;

/// Time that requests get to end after the measurement. Those of the next one must not meet them.
const GRACE: Duration = Duration::from_secs(5);
/// Pause of a client after a failure, so that a server that is gone is not stormed.
const PAUSE: Duration = Duration::from_millis(10);

/// What all clients of a level have in common.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) target: Target,
    pub(super) request: Arc<[u8]>,
    pub(super) streamed: bool,
    pub(super) clients: u32,
    /// When the first client begins; the last one begins shortly before `from`.
    pub(super) begin: Instant,
    /// What happens from here...
    pub(super) from: Instant,
    /// ... to here is measured.
    pub(super) until: Instant,
}

impl Plan {
    fn measures(&self, at: Instant) -> bool {
        self.from <= at && at <= self.until
    }

    /// When a client begins. A crowd that comes at once would walk in step for seconds.
    fn turn(&self, client: u32) -> Instant {
        self.begin + (self.from - self.begin).mul_f64(f64::from(client) / f64::from(self.clients))
    }
}

/// Plays some of the clients on this thread alone, which costs less than a pool of threads would.
pub(super) fn play(plan: &Arc<Plan>, clients: impl Iterator<Item = u32>) -> anyhow::Result<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (all, tally) = (LocalSet::new(), Rc::new(RefCell::new(Tally::default())));
    for number in clients {
        let client = Client {
            plan: Arc::clone(plan),
            tally: Rc::clone(&tally),
            connection: None,
            answer: Answer::new(plan.streamed),
        };
        all.spawn_local(client.run(plan.turn(number)));
    }
    // Requests that take longer are cut off, and count as unfinished.
    let _ = runtime.block_on(timeout_at(plan.until + GRACE, all));
    Ok(tally.take())
}

struct Client {
    plan: Arc<Plan>,
    tally: Rc<RefCell<Tally>>,
    connection: Option<Connection>,
    answer: Answer,
}

impl Client {
    async fn run(mut self, turn: Instant) {
        sleep_until(turn).await;
        loop {
            let sent = Instant::now();
            if sent >= self.plan.until {
                return;
            }
            self.tally.borrow_mut().sent += 1;
            match self.ask(sent).await {
                Ok(first) => self.note(sent, first),
                Err((cause, text)) => {
                    self.tally.borrow_mut().failures.add(cause, text);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Sends a request; gives the moment of its first text.
    async fn ask(&mut self, sent: Instant) -> Result<Option<Instant>, (Cause, String)> {
        loop {
            let (mut connection, kept) = match self.connection.take() {
                Some(connection) => (connection, true),
                None => (Connection::open(self.plan.target.address).await.map_err(broken)?, false),
            };
            let mut clock = Clock { plan: &self.plan, tally: &self.tally, first: None, last: None };
            let exchange = connection.exchange(&self.plan.request, &mut self.answer, |answer| clock.arrived(answer));
            match exchange.await {
                Ok(keep_alive) => {
                    let first = clock.first;
                    if keep_alive {
                        self.connection = Some(connection);
                    } else {
                        self.tally.borrow_mut().reconnects += 1;
                    }
                    return self.judge().map(|()| first);
                }
                Err(error) if error.early && kept && Instant::now() < self.plan.until => {
                    tracing::debug!(after = ?sent.elapsed(), reason = ?error.reason, "a kept connection was closed");
                    self.tally.borrow_mut().reconnects += 1;
                }
                Err(error) => return Err(broken(error.reason)),
            }
        }
    }

    /// Whether the answer that has come is a success.
    fn judge(&mut self) -> Result<(), (Cause, String)> {
        if let Some(refusal) = self.answer.refusal() {
            return Err((Cause::Status, refusal));
        }
        match &mut self.answer.events {
            Some(events) => match events.error.take() {
                Some(error) => Err((Cause::ErrorEvent, format!("the stream broke off: {error}"))),
                None if !events.done => Err((Cause::WithoutDone, "the stream ended without [DONE]".to_owned())),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Counts an answer.
    fn note(&self, sent: Instant, first: Option<Instant>) {
        let (now, mut tally) = (Instant::now(), self.tally.borrow_mut());
        tally.answered += 1;
        if self.plan.measures(now) {
            tally.latency.add(now - sent, 1);
            if let Some(first) = first {
                tally.ttft.add(first - sent, 1);
            }
        }
    }
}

fn broken(reason: anyhow::Error) -> (Cause, String) {
    (Cause::Connection, format!("{reason:#}"))
}

/// Takes down when the chunks of one stream come.
struct Clock<'a> {
    plan: &'a Plan,
    tally: &'a RefCell<Tally>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Clock<'_> {
    fn arrived(&mut self, answer: &mut Answer) {
        let Some(events) = &mut answer.events else { return };
        let chunks = events.take_fresh();
        if chunks == 0 {
            return;
        }
        let now = Instant::now();
        if events.text {
            self.first.get_or_insert(now);
        }
        let gap = self.last.replace(now).map(|last| now - last);
        if self.plan.measures(now) {
            self.tally.borrow_mut().add_chunks(chunks, gap);
        }
    }
}
