//! Finds a language model's head: the product that turns a hidden vector into logits.
//!
//! Where the head multiplies whole numbers, its activation is quantised right before it, with one scale for the whole
//! tensor; the cut lies before that:
//!
//! ```text
//! hidden ─▶ DynamicQuantizeLinear ─▶ MatMulInteger ─▶ Cast ─▶ Mul ─▶ … ─▶ logits
//!                  └─ scale ─▶ Mul(weight's scales) ──────────┘
//! ```

use super::graph::{Constant, Graph, Node};

/// More operators than any model has between its head and its logits.
const STEPS: usize = 16;
/// Products that a quantised activation's scale goes through on its way to the logits: with the weight's scales, and
/// with what the head gives.
const SCALE_STEPS: usize = 2;

/// The head, and where to cut.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found<'a> {
    /// Number of the node to cut before: the head, or what quantises for it. Its first input is the activation.
    pub(super) node: usize,
    /// The hidden states of all positions, `[batch, sequence, hidden]`.
    pub(super) hidden: &'a [u8],
    /// Tensors from the cut to the logits, the latter first: their shapes change with the cut.
    pub(super) outputs: Vec<&'a [u8]>,
}

/// Walks back from the logits to the head.
///
/// # Errors
/// What stands in the way, for a log.
pub(super) fn find<'a>(graph: &Graph<'a>, logits: &'a [u8]) -> Result<Found<'a>, String> {
    let shape = graph.declared(logits).ok_or("the logits have no declared shape")?;
    if shape.len() != 3 {
        return Err(format!("the logits have {} dimensions, not 3", shape.len()));
    }
    let mut name = logits;
    let mut outputs = Vec::new();
    for _ in 0..STEPS {
        let alone = if outputs.is_empty() { 0 } else { 1 };
        if graph.uses(name) != alone || (alone == 1 && graph.outputs.iter().any(|output| output.name == name)) {
            return Err("what the head gives goes elsewhere, too".to_owned());
        }
        outputs.push(name);
        let index = graph.giver(name).ok_or("the logits come from no operator")?;
        let node = &graph.nodes[index];
        if let Some(activation) = head_input(graph, node)? {
            let hidden = hidden_states(graph, activation, shape[1] == Some(1))?;
            return Ok(Found { node: index, hidden, outputs });
        }
        if let Some((node, activation)) = quantised_input(graph, node, &outputs)? {
            let hidden = hidden_states(graph, activation, shape[1] == Some(1))?;
            outputs.extend(graph.nodes[node].outputs.first());
            return Ok(Found { node, hidden, outputs });
        }
        name = elementwise_input(graph, node).ok_or_else(|| {
            format!("the operator {} before the logits is not known", String::from_utf8_lossy(node.operator))
        })?;
    }
    Err("there are too many operators before the logits".to_owned())
}

/// The activation, if this node is a head that takes it as it is.
fn head_input<'a>(graph: &Graph<'a>, node: &Node<'a>) -> Result<Option<&'a [u8]>, String> {
    let [activation, weight, ..] = node.inputs[..] else { return Ok(None) };
    if node.is_contributed("MatMulNBits") || node.is_contributed("MatMulBnb4") {
        return Ok(Some(activation));
    }
    if node.is("Gemm") {
        // Its activation has two dimensions: batch and sequence are one by then.
        return Err("the head is a Gemm, which joins rows and positions".to_owned());
    }
    if !(node.is("MatMul") || node.is_contributed("DynamicQuantizeMatMul")) {
        return Ok(None);
    }
    check_matrix(graph, weight)?;
    Ok(Some(activation))
}

/// A matrix is the same for all positions, so the product commutes with a choice among them.
fn check_matrix<'a>(graph: &Graph<'a>, weight: &'a [u8]) -> Result<(), String> {
    if graph.rank(weight) == Some(2) { Ok(()) } else { Err("the head's weight is no matrix".to_owned()) }
}

/// What quantises the activation, and the activation itself, if this node is a head that takes whole numbers.
///
/// `outputs` are the tensors from the head to the logits.
fn quantised_input<'a>(
    graph: &Graph<'a>,
    node: &Node<'a>,
    outputs: &[&'a [u8]],
) -> Result<Option<(usize, &'a [u8])>, String> {
    let [quantised, weight, ..] = node.inputs[..] else { return Ok(None) };
    if !(node.is("MatMulInteger") || node.is_contributed("MatMulIntegerToFloat")) {
        return Ok(None);
    }
    check_matrix(graph, weight)?;
    let unknown = "the head's activation is quantised in a way that is not known";
    let index = graph.giver(quantised).ok_or(unknown)?;
    let quantiser = &graph.nodes[index];
    let activation = match quantiser.inputs[..] {
        [activation] if quantiser.is("DynamicQuantizeLinear") => activation,
        _ => return Err(unknown.to_owned()),
    };
    // Others would get the chosen positions only, too, or a scale that is not theirs.
    if quantiser.outputs.iter().all(|name| graph.uses(name) == 0 || leads_to(graph, name, outputs, SCALE_STEPS)) {
        return Ok(Some((index, activation)));
    }
    Err("the head's quantised activation goes elsewhere, too".to_owned())
}

/// Whether a tensor is used once, for one of `outputs`, on a way of at most `steps` products before.
fn leads_to<'a>(graph: &Graph<'a>, name: &'a [u8], outputs: &[&'a [u8]], steps: usize) -> bool {
    if graph.uses(name) != 1 || graph.outputs.iter().any(|output| output.name == name) {
        return false;
    }
    // None where a subgraph uses it.
    let Some(user) = graph.nodes.iter().find(|node| node.inputs.contains(&name)) else { return false };
    let [output] = user.outputs[..] else { return false };
    outputs.contains(&output) || (steps > 0 && user.is("Mul") && leads_to(graph, output, outputs, steps - 1))
}

/// The one operand that differs between positions, of an operator that treats all of them alike.
fn elementwise_input<'a>(graph: &Graph<'a>, node: &Node<'a>) -> Option<&'a [u8]> {
    if ["Cast", "Tanh", "Identity", "Neg"].iter().any(|operator| node.is(operator)) {
        return node.inputs.first().copied();
    }
    if !["Add", "Sub", "Mul", "Div"].iter().any(|operator| node.is(operator)) {
        return None;
    }
    let [left, right] = node.inputs[..] else { return None };
    match [left, right].map(|name| same_everywhere(graph, name, SCALE_STEPS)) {
        [false, true] => Some(left),
        [true, false] => Some(right),
        _ => None,
    }
}

/// Whether a tensor holds the same for all positions: a constant without their dimension, the scale of a whole
/// activation, or a product of such, of at most `steps` factors more.
fn same_everywhere<'a>(graph: &Graph<'a>, name: &'a [u8], steps: usize) -> bool {
    if let Some(Constant { shape, .. }) = graph.constant(name) {
        let (_, outer) = shape.split_last().unwrap_or((&1, &[]));
        return shape.len() <= 3 && outer.iter().all(|&size| size == 1);
    }
    let Some(giver) = graph.giver(name) else { return false };
    let node = &graph.nodes[giver];
    if node.is("DynamicQuantizeLinear") {
        return node.outputs.get(1) == Some(&name);
    }
    steps > 0 && node.is("Mul") && node.inputs.iter().all(|factor| same_everywhere(graph, factor, steps - 1))
}

/// The hidden states of all positions: the activation itself, or what an exporter took the last position of.
fn hidden_states<'a>(graph: &Graph<'a>, activation: &'a [u8], one_position: bool) -> Result<&'a [u8], String> {
    let hidden = match before_last_position(graph, activation) {
        Some(hidden) => hidden,
        None if one_position => return Err("the exporter cut the head to the last position".to_owned()),
        None => activation,
    };
    let giver = graph.giver(hidden).ok_or("the head's activation comes from no operator")?;
    let giver = &graph.nodes[giver];
    if ["Gather", "GatherND", "GatherElements", "Slice"].iter().any(|operator| giver.is(operator)) {
        return Err("the exporter chose positions already, in a way that is not known".to_owned());
    }
    match graph.declared(hidden) {
        Some(shape) if shape.len() != 3 => Err("the head's activation has not 3 dimensions".to_owned()),
        _ => Ok(hidden),
    }
}

/// Undoes the ways in which exporters take the last position.
fn before_last_position<'a>(graph: &Graph<'a>, activation: &'a [u8]) -> Option<&'a [u8]> {
    let node = &graph.nodes[graph.giver(activation)?];
    let numbers = |node: &Node<'a>, input: usize| {
        node.inputs.get(input).filter(|name| !name.is_empty()).and_then(|name| graph.constant(name)?.numbers)
    };
    if node.is("Unsqueeze") {
        let axes = node.numbers("axes").or_else(|| numbers(node, 1))?;
        let gather = &graph.nodes[graph.giver(node.inputs.first()?)?];
        return (axes == [1]).then(|| gathered_last(graph, gather, 0)).flatten();
    }
    if node.is("Slice") {
        let step = match node.inputs.get(4) {
            Some(name) if !name.is_empty() => numbers(node, 4)?,
            _ => vec![1],
        };
        let to_end = numbers(node, 2)?.first().is_some_and(|&end| end >= i64::from(i32::MAX));
        let last = numbers(node, 1)? == [-1] && to_end && numbers(node, 3)? == [1] && step == [1];
        return last.then(|| node.inputs.first().copied()).flatten();
    }
    gathered_last(graph, node, 1)
}

/// What a node gathers the last position from; its index has `rank` dimensions.
fn gathered_last<'a>(graph: &Graph<'a>, node: &Node<'a>, rank: usize) -> Option<&'a [u8]> {
    let [from, index] = node.inputs[..] else { return None };
    let index = graph.constant(index)?;
    let last = index.numbers.as_deref() == Some(&[-1]) && index.shape.len() == rank;
    (node.is("Gather") && node.number("axis") == Some(1) && last).then_some(from)
}
