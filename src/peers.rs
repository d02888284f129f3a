//! `muster peers check`: what a peers file says, or what is wrong with it.

use std::path::Path;

use muster_controller::peers::{self, Peer, PeersError, file};
use muster_shared::control::Capabilities;

use crate::cli::{PeersArgs, PeersVerb};
use crate::services::say;
use crate::text::{Room, aligned};

/// Columns of the table.
const HEAD: [&str; 6] = ["ID", "ADDRESS", "TRANSPORT", "MODELS", "SITE", "HAS"];

/// Does what is said of a peers file.
pub(crate) fn run(args: &PeersArgs) -> anyhow::Result<()> {
    match &args.verb {
        PeersVerb::Check { file } => check(file),
    }
}

fn check(path: &Path) -> anyhow::Result<()> {
    let name = path.display().to_string();
    let text = peers::read(path)?;
    let peers = file::parse(&name, &text, None).map_err(PeersError::Wrong)?;
    let count = if peers.len() == 1 { "1 peer".to_owned() } else { format!("{} peers", peers.len()) };
    say(&format!("{name}: {count}"));
    if !peers.is_empty() {
        say(table(&peers).trim_end());
    }
    Ok(())
}

fn table(peers: &[Peer]) -> String {
    let rows: Vec<[String; 6]> = std::iter::once(HEAD.map(str::to_owned)).chain(peers.iter().map(row)).collect();
    aligned(&rows, Room::Any)
}

fn row(peer: &Peer) -> [String; 6] {
    let models: Vec<_> = peer.models.iter().map(|card| card.name.as_str()).collect();
    [
        peer.id.to_string(),
        peer.address.clone(),
        peer.transport.to_string(),
        if models.is_empty() { "as it tells".to_owned() } else { models.join(",") },
        peer.site.clone().unwrap_or_else(|| "-".to_owned()),
        peer.capabilities.as_ref().map_or_else(|| "-".to_owned(), words),
    ]
}

/// What a machine has, in words.
fn words(capabilities: &Capabilities) -> String {
    let Capabilities { cpus, memory_gb, gpu, gpu_memory_gb } = capabilities;
    let words = [
        cpus.map(|cpus| format!("{cpus} cpus")),
        memory_gb.map(|memory| format!("{memory} GB")),
        gpu.as_ref().map(|gpu| format!("gpu {gpu}")),
        gpu_memory_gb.map(|memory| format!("{memory} GB of it")),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
