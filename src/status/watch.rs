//! The fleet as it changes, however often the controller goes and comes.

use std::io::Write as _;
use std::time::Duration;

use muster_shared::client::{ClientError, ControllerClient, TopologyEvents};
use muster_shared::problem::{Kind, chain};
use muster_shared::serve::Signals;
use muster_shared::topology::{Event, Topology};

use crate::trouble::{asked, silent};

/// Silence after which a controller is taken for dead; it says something each second, and that it lives each 15 s.
const SILENCE: Duration = Duration::from_secs(20);
/// Time between two tries to reach it.
const AGAIN: Duration = Duration::from_secs(1);

/// A view of the fleet that is kept up to date.
pub(super) struct Watch {
    client: ControllerClient,
    events: TopologyEvents,
    topology: Box<Topology>,
}

impl Watch {
    /// Looks for the first time; a controller that cannot be reached is an error then.
    pub(super) async fn begin(client: ControllerClient) -> anyhow::Result<Self> {
        let (events, topology) = asked(&client, open(&client)).await?;
        Ok(Self { client, events, topology })
    }

    /// The fleet as it was told last.
    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Waits until more is told. A controller that goes away is waited for.
    ///
    /// # Errors
    /// When one is there that will not tell.
    pub(super) async fn next(&mut self) -> anyhow::Result<()> {
        match tokio::time::timeout(SILENCE, self.events.next()).await {
            Ok(Ok(Event::Update(update))) => self.topology.apply(*update),
            Ok(Ok(Event::Topology(topology))) => self.topology = topology,
            Ok(Err(error)) => self.again(&chain(&error)).await?,
            Err(_) => self.again(&silent(&self.client)).await?,
        }
        Ok(())
    }

    /// Says what has happened, and tries until the controller is back.
    async fn again(&mut self, why: &str) -> anyhow::Result<()> {
        eprintln!("muster: {why}; trying again");
        loop {
            tokio::time::sleep(AGAIN).await;
            match tokio::time::timeout(SILENCE, open(&self.client)).await {
                Ok(Ok((events, topology))) => {
                    eprintln!("muster: {} is back", self.client.address());
                    (self.events, self.topology) = (events, topology);
                    return Ok(());
                }
                Ok(Err(error @ ClientError::Refused { .. })) if !is_passing(&error) => {
                    return asked(&self.client, std::future::ready(Err(error))).await;
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }
}

/// Whether another try may do better: the controller stops, or too many look at it.
fn is_passing(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { problem, .. } if problem.kind == Kind::NoWorker)
}

async fn open(client: &ControllerClient) -> Result<(TopologyEvents, Box<Topology>), ClientError> {
    let mut events = client.events().await?;
    match events.next().await? {
        Event::Topology(topology) => Ok((events, topology)),
        Event::Update(_) => {
            let detail = "its first event is not the whole topology".to_owned();
            Err(ClientError::Unexpected { address: client.address().to_owned(), status: 200, detail })
        }
    }
}

/// A page in the place of the one before it, without a flicker: what is left of each line and of the page is cleared.
/// Lines for which a terminal of so many rows has no room would push the first ones out.
pub(super) fn over_the_last(page: &str, rows: usize) -> String {
    let (count, room) = (page.lines().count(), rows.saturating_sub(2).max(1));
    let shown = if count <= room { room } else { room - 1 };
    let more = (count > room).then(|| format!("… {} more lines\x1b[K\n", count - shown));
    let lines: String = page.lines().take(shown).map(|line| format!("{line}\x1b[K\n")).collect();
    format!("\x1b[H{lines}{}\x1b[J", more.unwrap_or_default())
}

/// Prints a page.
///
/// # Errors
/// When nobody reads any more.
pub(super) fn print(page: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{page}")?;
    out.flush()
}

/// Resolves when somebody has had enough.
pub(super) async fn stopped() {
    Signals::install().next().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_too_long_says_how_much_of_it_is_missing() {
        assert_eq!(over_the_last("a\nb", 24), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(over_the_last("a\nb\nc\nd", 5), "\x1b[Ha\x1b[K\nb\x1b[K\n… 2 more lines\x1b[K\n\x1b[J");
        assert_eq!(over_the_last("a\nb\nc", 5), "\x1b[Ha\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J");
    }
}
