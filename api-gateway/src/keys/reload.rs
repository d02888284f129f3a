//! Follows the file of keys while the gateway runs: whole, or not at all.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_shared::watch::{Sight, Watch};
use tokio::time::MissedTickBehavior;

use super::ApiKey;
use super::ring::Keyring;
use crate::limits::metrics;

/// Time between two looks at the file.
const LOOK: Duration = Duration::from_secs(1);
/// Pause between two looks at a file that is just being written.
const REST: Duration = Duration::from_millis(50);
/// Looks after which it is taken as it is.
const RESTLESS: u32 = 20;

/// Makes keys of the text of a file, those that stand elsewhere included; what is wrong with it is told as at the start.
type Read = dyn Fn(&str) -> Result<Vec<ApiKey>, String> + Send + Sync;

/// A file of keys that is followed.
#[derive(Clone)]
pub struct Reload {
    path: PathBuf,
    text: String,
    read: Arc<Read>,
}

impl Reload {
    /// The file at `path`, of which `text` is in force, and what makes keys of a text.
    pub fn new(
        path: PathBuf,
        text: String,
        read: impl Fn(&str) -> Result<Vec<ApiKey>, String> + Send + Sync + 'static,
    ) -> Self {
        Self { path, text, read: Arc::new(read) }
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("path", &self.path).finish_non_exhaustive() // the text holds keys
    }
}

/// Follows the file, for ever; without one, rests.
pub(crate) async fn follow(ring: &Keyring, reload: Option<&Reload>) -> Infallible {
    let Some(Reload { path, text, read }) = reload else { return std::future::pending().await };
    let watch = Arc::new(Mutex::new(Watch::new(path.clone(), text.clone())));
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut sight = look(&watch).await;
        for _ in 0..RESTLESS {
            if sight == Sight::Same {
                break;
            }
            tokio::time::sleep(REST).await; // it may be half written
            match look(&watch).await {
                Sight::Same => break,
                next => sight = next,
            }
        }
        take(ring, &path.display().to_string(), sight, read);
    }
}

/// Takes what has become of the file.
fn take(ring: &Keyring, file: &str, sight: Sight, read: &Arc<Read>) {
    let keys = match sight {
        Sight::Same => return,
        Sight::Text(text) => read(&text),
        Sight::Unreadable(error) => Err(error),
    };
    metrics::reloaded(keys.is_ok());
    match keys {
        Ok(keys) => {
            let changes = ring.change(keys);
            tracing::info!(file, new = changes.new, changed = changes.changed, gone = changes.gone, "keys read again");
        }
        Err(error) => tracing::warn!(file, "the keys stay as they were read last: {error}"),
    }
}

/// Looks once, off the threads of the runtime: the file may lie on a network that is slow.
async fn look(watch: &Arc<Mutex<Watch>>) -> Sight {
    let watch = Arc::clone(watch);
    let look = move || watch.lock().unwrap_or_else(PoisonError::into_inner).look();
    tokio::task::spawn_blocking(look).await.unwrap_or(Sight::Same)
}
