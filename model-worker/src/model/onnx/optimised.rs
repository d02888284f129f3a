//! Optimised graphs, kept in the user's cache from one start to the next.
//!
//! ONNX Runtime rewrites a graph when it loads it, and lays out weights as the processor's kernels want them: seconds
//! of work, and a private copy of all weights in every session. A graph saved after that loads at once, and maps its
//! weights from a file, so that sessions and processes share them.
//!
//! ```text
//! <cache>/muster/optimised/lock            held while an entry is made or removed
//!                         /KEY/model.onnx  the optimised graph
//!                             /model.data  its weights
//!                             /entry.json  written last; its time is that of the entry's last use
//! ```
//!
//! The key stands for all that the result depends on, see [`Identity`]. An entry is made in a folder beside it and
//! renamed. What is not as its `entry.json` says is removed and made anew.

mod identity;
mod store;

pub use identity::Identity;
pub use store::{CacheError, Store};
