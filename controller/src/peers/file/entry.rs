//! One peer of the file.

use std::net::SocketAddr;

use muster_shared::control::{Capabilities, Capacity, Gpu, ModelCard, ModelKind};
use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;

use super::super::Peer;
use super::address;
use super::fields::{Reader, one_of};
use super::mistake::Place;
use super::tree::{Node, Value, shortened};
use crate::peers::{MOST_CPUS, MOST_GPUS, MOST_MEMORY_GB};
use crate::registration;

/// Keys of a peer.
const KEYS: [&str; 7] = ["id", "address", "transport", "models", "site", "speed", "capabilities"];
/// Keys of a model.
const MODEL: [&str; 4] = ["name", "kind", "context_length", "capacity"];
/// Keys of a model's capacity.
const CAPACITY: [&str; 2] = ["running", "waiting"];
/// Keys of what a machine has.
const CAPABILITIES: [&str; 4] = ["cpus", "memory_gb", "gpu", "gpu_memory_gb"];
/// Most requests that a model may be said to run, or to have waiting.
const MOST_REQUESTS: u32 = 1_000_000;
/// Longest context that a model may be said to have.
const LONGEST_CONTEXT: u32 = 1 << 30;

/// A peer, and what no other may have, with its place, whatever else is wrong with it.
#[derive(Debug)]
pub(super) struct Placed {
    /// `None`: something about it is wrong that makes it none.
    pub(super) peer: Option<Peer>,
    pub(super) id: Option<(String, Place)>,
    pub(super) address: Option<(String, Place)>,
}

/// Reads one; `None` where it has not the form of one.
pub(super) fn read(reader: &mut Reader, node: &Node, own: Option<SocketAddr>) -> Option<Placed> {
    let fields = reader.map(node, "a peer", &KEYS)?;
    for (key, expected) in [("id", "a name"), ("address", address::FORMS)] {
        if fields.get(key).is_none() {
            reader.complain(node.place, format!("a peer has no `{key}`"), expected);
        }
    }
    let id = fields.get("id").and_then(|node| Some((named(reader, node, "id")?, node.place)));
    let address = fields.get("address").and_then(|node| Some((read_address(reader, node, own)?, node.place)));
    let transport = fields.get("transport").map_or(Some(Transport::Http), |node| read_transport(reader, node));
    let models = fields.get("models").map_or(Vec::new(), |node| read_models(reader, node));
    if transport == Some(Transport::Grpc) && fields.get("models").is_none() {
        let expected = "`models: [NAME, …]`: over grpc alone a peer is not asked for them";
        reader.complain(node.place, "a peer of the transport grpc has no `models`", expected);
    }
    let site = fields.get("site").and_then(|node| named(reader, node, "site"));
    let speed = fields.get("speed").and_then(|node| reader.amount(node, "the speed", registration::FASTEST));
    let capabilities = fields.get("capabilities").map(|node| read_capabilities(reader, node));
    let peer = id.as_ref().zip(address.as_ref()).zip(transport).map(|(((id, _), (address, _)), transport)| {
        let (id, address) = (WorkerId::new(id.as_str()), address.clone());
        Peer { id, address, transport, models, site, speed, capabilities }
    });
    Some(Placed { peer, id, address })
}

/// A name that can be told to others.
fn named(reader: &mut Reader, node: &Node, what: &str) -> Option<String> {
    let name = reader.text(node, &format!("the {what}"), "a name")?;
    match registration::check_name(name, what, &format!("the {what}")) {
        Ok(()) => Some(name.to_owned()),
        Err(problem) => {
            reader.complain(node.place, problem.message, "a name without control characters, of 1 to 512 bytes");
            None
        }
    }
}

fn read_address(reader: &mut Reader, node: &Node, own: Option<SocketAddr>) -> Option<String> {
    let text = reader.text(node, "the address", address::FORMS)?;
    let read = match address::read(text) {
        Ok(read) => read,
        Err((what, expected)) => {
            reader.complain(node.place, what, expected);
            return None;
        }
    };
    if let Err(problem) = registration::check_address(&read, "address") {
        reader.complain(node.place, problem.message, address::FORMS);
        return None;
    }
    if own.is_some_and(|own| address::is_own(&read, own)) {
        reader.complain(node.place, format!("{read} is this controller itself"), "the address of a worker");
        return None;
    }
    Some(read)
}

fn read_transport(reader: &mut Reader, node: &Node) -> Option<Transport> {
    let names = Transport::ALL.map(Transport::name);
    let text = reader.text(node, "the transport", &one_of(&names))?;
    match text.parse() {
        Ok(transport) => Some(transport),
        Err(_) => {
            reader.complain(node.place, format!("unknown transport {:?}", shortened(text)), one_of(&names));
            None
        }
    }
}

fn read_models(reader: &mut Reader, node: &Node) -> Vec<ModelCard> {
    let Value::List(entries) = &node.value else {
        let expected = "a list of names, or of maps with a `name`";
        reader.complain(node.place, format!("`models` is {}", node.value.words()), expected);
        return Vec::new();
    };
    if entries.is_empty() {
        reader.complain(
            node.place,
            "`models` is an empty list",
            "names of models, or no `models` for all of the peer's",
        );
    }
    if let Err(problem) = registration::check_count(entries.len(), "models") {
        reader.complain(node.place, problem.message, "fewer");
        return Vec::new();
    }
    let mut cards: Vec<ModelCard> = Vec::new();
    for entry in entries {
        let Some(card) = read_model(reader, entry) else { continue };
        if cards.iter().any(|known| known.name == card.name) {
            reader.complain(entry.place, format!("the model `{}` is named twice", card.name), "each once");
            continue;
        }
        cards.push(card);
    }
    cards
}

fn read_model(reader: &mut Reader, node: &Node) -> Option<ModelCard> {
    if !matches!(node.value, Value::Map(_)) {
        return named(reader, node, "name of a model").map(ModelCard::bare);
    }
    let fields = reader.map(node, "a model", &MODEL)?;
    let Some(name) = fields.get("name") else {
        reader.complain(node.place, "a model has no `name`", "`name`");
        return None;
    };
    let name = named(reader, name, "name of a model");
    let kind = fields.get("kind").and_then(|node| read_kind(reader, node));
    let context_length = fields.get("context_length");
    let context_length = context_length.and_then(|node| reader.whole(node, "the context_length", 1, LONGEST_CONTEXT));
    let capacity = fields.get("capacity").and_then(|node| read_capacity(reader, node));
    Some(ModelCard { kind, context_length, capacity, ..ModelCard::bare(name?) })
}

fn read_kind(reader: &mut Reader, node: &Node) -> Option<ModelKind> {
    let names =
        ModelKind::ALL.map(|kind| serde_json::to_value(kind).ok().and_then(|it| it.as_str().map(str::to_owned)));
    let names: Vec<&str> = names.iter().flatten().map(String::as_str).collect();
    let text = reader.text(node, "the kind", &one_of(&names))?;
    let kind: Result<ModelKind, serde::de::value::Error> = ModelKind::deserialize(text.into_deserializer());
    if kind.is_err() {
        reader.complain(node.place, format!("unknown kind {:?}", shortened(text)), one_of(&names));
    }
    kind.ok()
}

fn read_capacity(reader: &mut Reader, node: &Node) -> Option<Capacity> {
    let fields = reader.map(node, "the capacity", &CAPACITY)?;
    let Some(running) = fields.get("running") else {
        reader.complain(node.place, "the capacity has no `running`", "`running`, and perhaps `waiting`");
        return None;
    };
    let running = reader.whole(running, "running", 1, MOST_REQUESTS);
    let waiting = match fields.get("waiting") {
        Some(node) => reader.whole(node, "waiting", 0, MOST_REQUESTS),
        None => Some(0),
    };
    Some(Capacity { running: running?, waiting: waiting? })
}

fn read_capabilities(reader: &mut Reader, node: &Node) -> Capabilities {
    let Some(fields) = reader.map(node, "`capabilities`", &CAPABILITIES) else { return Capabilities::default() };
    let gpu = fields.get("gpu").and_then(|node| read_gpu(reader, node));
    let gpu_memory_gb = fields.get("gpu_memory_gb");
    if let (Some(node), Some(false)) = (gpu_memory_gb, gpu.as_ref().map(Gpu::is_there)) {
        reader.complain(node.place, "gpu_memory_gb of a machine without a gpu", "a `gpu`, or no memory of it");
    }
    Capabilities {
        cpus: fields.get("cpus").and_then(|node| reader.whole(node, "cpus", 1, MOST_CPUS)),
        memory_gb: fields.get("memory_gb").and_then(|node| reader.amount(node, "memory_gb", MOST_MEMORY_GB)),
        gpu,
        gpu_memory_gb: gpu_memory_gb.and_then(|node| reader.amount(node, "gpu_memory_gb", MOST_MEMORY_GB)),
    }
}

fn read_gpu(reader: &mut Reader, node: &Node) -> Option<Gpu> {
    match &node.value {
        Value::Switch(switch) => Some(Gpu::Any(*switch)),
        Value::Whole(_) => reader.whole(node, "gpu", 0, MOST_GPUS).map(Gpu::Count),
        Value::Text(_) => named(reader, node, "gpu").map(Gpu::Named),
        other => {
            let expected = "true, false, how many there are, or the name of one";
            reader.complain(node.place, format!("gpu is {}", other.words()), expected);
            None
        }
    }
}
