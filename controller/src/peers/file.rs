//! The peers file: YAML in, peers or everything that is wrong with it out. Pure.
//!
//! ```yaml
//! peers:
//!   - id: bench-1
//!     address: 10.0.0.7:21002
//!     transport: http            # grpc, fastchat, openai
//!     models: [smollm2]          # or {name: smollm2, capacity: {running: 4, waiting: 8}, kind: generate, context_length: 2048}
//!     site: factory-2
//!     speed: 1.5
//!     capabilities: {cpus: 16, memory_gb: 64, gpu: true, gpu_memory_gb: 24}
//! ```
//!
//! The file is read as a tree in which every value knows its place, and then looked at value by value: an operator is told
//! of all mistakes at once, each with its line. It is read here and not where the configuration is, since it is read again
//! whenever it changes.
//!
//! * `tree`: YAML with places; `mistake`: a mistake with its line.
//! * `address`: the forms of an address; `entry`: one peer; `fields`: its values.

mod address;
mod entry;
mod fields;
mod mistake;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;

pub(crate) use address::normal;
pub use mistake::Mistakes;
use mistake::Place;
use tree::{Node, Value};

use super::Peer;
use fields::Reader;

/// Keys of the file.
const KEYS: [&str; 1] = ["peers"];

/// Reads what a file says. `name`: its path, for errors. `own`: where the controller itself listens; its peers are others.
///
/// # Errors
/// Everything that is wrong with it, each with its line and column.
pub fn parse(name: &str, text: &str, own: Option<SocketAddr>) -> Result<Vec<Peer>, Mistakes> {
    let read = || {
        let root = tree::read(text).map_err(|mistake| vec![mistake])?;
        let mut reader = Reader::default();
        let peers = read_peers(&mut reader, &root, own);
        if reader.mistakes.is_empty() { Ok(peers) } else { Err(reader.mistakes) }
    };
    read().map_err(|mistakes| Mistakes::new(name, text, mistakes))
}

fn read_peers(reader: &mut Reader, root: &Node, own: Option<SocketAddr>) -> Vec<Peer> {
    let Some(fields) = reader.map(root, "the file", &KEYS) else { return Vec::new() };
    let Some(list) = fields.get("peers") else {
        reader.complain(root.place, "the file has no `peers`", "`peers:` and a list (`peers: []` for none)");
        return Vec::new();
    };
    let Value::List(entries) = &list.value else {
        let expected = "a list of peers (`peers: []` for none)";
        reader.complain(list.place, format!("`peers` is {}", list.value.words()), expected);
        return Vec::new();
    };
    let peers: Vec<_> = entries.iter().filter_map(|entry| entry::read(reader, entry, own)).collect();
    let (mut ids, mut addresses) = (HashMap::new(), HashMap::new());
    for peer in &peers {
        if let Some((id, place)) = &peer.id
            && let Some(line) = taken(&mut ids, id, *place)
        {
            let what = format!("the id `{id}` is that of the peer in line {line}");
            reader.complain(*place, what, "an id of its own for each");
        }
        if let Some((address, place)) = &peer.address
            && let Some(line) = taken(&mut addresses, address, *place)
        {
            let what = format!("the address {address} is that of the peer in line {line}");
            reader.complain(*place, what, "an address of its own for each");
        }
    }
    peers.into_iter().filter_map(|placed| placed.peer).collect()
}

/// The line in which that was said before.
fn taken<'a>(known: &mut HashMap<&'a str, usize>, what: &'a str, at: Place) -> Option<usize> {
    match known.entry(what) {
        Entry::Occupied(before) => Some(*before.get()),
        Entry::Vacant(free) => {
            free.insert(at.line);
            None
        }
    }
}
