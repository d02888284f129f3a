//! Changes a language model's graph so that its head runs on chosen positions only.
//!
//! The head is the product of a hidden vector with a matrix as tall as the vocabulary: in a small model a third of all
//! weights. Exporters run it for every token of a prompt, though only the last one's logits are wanted, or cut it to
//! the last for good. Here a `Gather` is put before it, with a new input [`POSITIONS`], INT64 `[n]`: the logits become
//! `[batch, n, vocab]`. `n` may be 0, as an inner piece of a prompt wants: ONNX Runtime gives an empty tensor.
//!
//! ```text
//! before   hidden [batch, sequence, hidden] ─▶ head ─▶ … ─▶ logits [batch, sequence, vocab]
//! after    hidden ─▶ Gather(axis 1, logits_positions) ─▶ head ─▶ … ─▶ logits [batch, n, vocab]
//! ```
//!
//! Where the head multiplies whole numbers (int8), its activation is quantised behind the `Gather`: with one scale for all
//! of it, which is now that of the chosen positions. It is never coarser than before, and logits differ by its rounding.
//!
//! Both are bytes of an ONNX file. Fields that nothing here knows, the weights above all, are kept byte for byte.

mod graph;
mod head;

use super::wire::{self, Malformed, Value};
use graph::Graph;

/// The input that tells for which positions of the run's tokens logits are wanted; negative ones count from the end.
pub const POSITIONS: &str = "logits_positions";
/// Goes up when the rewritten graph changes, for those who keep it.
pub const VERSION: u32 = 2;

const LOGITS: &[u8] = b"logits";
const GATHERED: &[u8] = b"muster/head_hidden";

/// For which positions a graph gives logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// For those that the input [`POSITIONS`] tells.
    Positions,
    /// For the last one.
    Last,
    /// For all of them.
    All,
}

/// What became of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// What the graph gives as it came.
    pub own: Head,
    /// The graph whose head is [`Head::Positions`], or why there is none.
    pub changed: Result<Vec<u8>, String>,
}

/// Lets the head of a language model's graph run on chosen positions only. `model` is an ONNX file's content.
pub fn choose_positions(model: &[u8]) -> Rewrite {
    rewrite(model)
        .unwrap_or_else(|Malformed| Rewrite { own: Head::All, changed: Err("it is no ONNX model".to_owned()) })
}

fn rewrite(model: &[u8]) -> Result<Rewrite, Malformed> {
    let fields = wire::fields(model)?;
    // ModelProto.graph. A field that stands twice means the union of both, which nobody writes.
    let mut graphs = fields.iter().filter(|field| field.number == 7);
    let (Some(field), None) = (graphs.next(), graphs.next()) else { return Err(Malformed) };
    let Value::Bytes(message) = field.value else { return Err(Malformed) };
    let graph = Graph::read(message)?;
    let changed = rewrite_graph(&graph);
    let changed = changed.map(|graph| wire::splice(model, vec![(field.range.clone(), wire::message(7, &graph))]));
    Ok(Rewrite { own: own_head(&graph), changed })
}

fn own_head(graph: &Graph<'_>) -> Head {
    match graph.declared(LOGITS).as_deref() {
        Some([_, Some(1), _]) => Head::Last,
        _ => Head::All,
    }
}

fn rewrite_graph(graph: &Graph<'_>) -> Result<Vec<u8>, String> {
    if graph.has(POSITIONS.as_bytes()) || graph.has(GATHERED) {
        return Err(format!("it has something named {POSITIONS} already"));
    }
    let found = head::find(graph, LOGITS)?;
    let node = &graph.nodes[found.node];
    let changed = wire::change_field(node.message, 1, 0, |_| Some(GATHERED.to_vec())).ok_or("the head has no input")?;
    // Nodes stand in the order of their work, so the new one comes right before the one that takes what it gives.
    let mut nodes = graph::gather(found.hidden, POSITIONS.as_bytes(), GATHERED);
    wire::push_bytes(&mut nodes, 1, &changed);
    let logits = graph.outputs.iter().find(|output| output.name == LOGITS).ok_or("it has no output logits")?;
    let declared = chosen_positions(logits.message).ok_or("the logits have no declared shape")?;
    let end = graph.message.len();
    let mut edits = vec![
        (node.range.clone(), nodes),
        (logits.range.clone(), wire::message(12, &declared)),
        (end..end, graph::positions_input(POSITIONS.as_bytes())),
    ];
    // What is declared of the tensors behind the cut is no longer so.
    let stale = graph.value_infos.iter().filter(|value| found.outputs.contains(&value.name));
    edits.extend(stale.map(|value| (value.range.clone(), Vec::new())));
    Ok(wire::splice(graph.message, edits))
}

/// The output with its second dimension named, whatever it was.
fn chosen_positions(output: &[u8]) -> Option<Vec<u8>> {
    // ValueInfoProto.type, TypeProto.tensor_type, TypeProto.Tensor.shape, TensorShapeProto.dim.
    wire::change_field(output, 2, 0, |kind| {
        wire::change_field(kind, 1, 0, |tensor| {
            wire::change_field(tensor, 2, 0, |shape| {
                wire::change_field(shape, 1, 1, |_| Some(wire::message(2, POSITIONS.as_bytes())))
            })
        })
    })
}

#[cfg(test)]
mod tests;
