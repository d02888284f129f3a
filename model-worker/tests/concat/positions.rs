//! Makes the demo model into one that has no input `position_ids`, as older exports are.

use std::path::Path;

use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};
use tempfile::TempDir;

/// Where a graph takes positions from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// From the mask's ones so far.
    Ones,
    /// From the columns so far.
    Columns,
}

/// A copy of a model's folder whose graph finds positions itself.
pub(crate) fn without_position_ids(folder: &Path, counted: Counted) -> TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder.join(file), copy.path().join(file)).expect("it can be copied");
    }
    let graph = std::fs::read(folder.join("onnx/model.onnx")).expect("it is there");
    std::fs::create_dir(copy.path().join("onnx")).expect("a folder");
    std::fs::write(copy.path().join("onnx/model.onnx"), edit(&graph, counted)).expect("it can be written");
    copy
}

// Numbers of fields in `onnx.proto`.
const MODEL_GRAPH: u32 = 7;
const GRAPH_INPUT: u32 = 11;

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nodes {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    outputs: Vec<String>,
    #[prost(string, tag = "4")]
    operator: String,
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, optional, tag = "3")]
    int: Option<i64>,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    kind: i32,
}

fn edit(model: &[u8], counted: Counted) -> Vec<u8> {
    let mut edited = Vec::with_capacity(model.len() + 1000);
    for (tag, whole, payload) in fields(model) {
        if tag != MODEL_GRAPH {
            edited.extend_from_slice(whole);
            continue;
        }
        let mut graph = nodes(counted).encode_to_vec();
        for (tag, whole, payload) in fields(payload) {
            let is_input = |name: &str| Named::decode(payload).is_ok_and(|input| input.name == name);
            if !(tag == GRAPH_INPUT && is_input("position_ids")) {
                graph.extend_from_slice(whole);
            }
        }
        prost::encoding::bytes::encode(MODEL_GRAPH, &graph, &mut edited);
    }
    edited
}

/// Each field of a message: its number, all of its bytes, and those of its value.
fn fields(message: &[u8]) -> Vec<(u32, &[u8], &[u8])> {
    let (mut rest, mut fields) = (message, Vec::new());
    while !rest.is_empty() {
        let start = rest;
        let (tag, wire) = decode_key(&mut rest).expect("a field");
        let mut value = rest;
        skip_field(wire, tag, &mut rest, DecodeContext::default()).expect("a field");
        if wire == WireType::LengthDelimited {
            prost::encoding::decode_varint(&mut value).expect("a length");
        }
        fields.push((tag, &start[..start.len() - rest.len()], &value[..value.len() - rest.len()]));
    }
    fields
}

/// `position_ids` as the last columns of a running sum over the mask, or over as many ones.
fn nodes(counted: Counted) -> Nodes {
    let mask = match counted {
        Counted::Ones => "attention_mask",
        Counted::Columns => "muster_all_ones",
    };
    let nodes = vec![
        constant("muster_axis", Some(1), &[]),
        constant("muster_zero", None, &[0]),
        constant("muster_one", None, &[1]),
        constant("muster_end", None, &[i64::MAX]),
        node("Shape", &["input_ids"], "muster_shape"),
        node("Gather", &["muster_shape", "muster_one"], "muster_new"),
        node("Neg", &["muster_new"], "muster_start"),
        node("Mul", &["attention_mask", "muster_zero"], "muster_no_ones"),
        node("Add", &["muster_no_ones", "muster_one"], "muster_all_ones"),
        node("CumSum", &[mask, "muster_axis"], "muster_counted"),
        node("Sub", &["muster_counted", "muster_one"], "muster_positions"),
        node("Slice", &["muster_positions", "muster_start", "muster_end", "muster_one"], "position_ids"),
    ];
    Nodes { nodes }
}

fn node(operator: &str, inputs: &[&str], output: &str) -> Node {
    let inputs = inputs.iter().map(|&input| input.to_owned()).collect();
    Node { inputs, outputs: vec![output.to_owned()], operator: operator.to_owned(), attributes: Vec::new() }
}

fn constant(output: &str, int: Option<i64>, ints: &[i64]) -> Node {
    let (name, kind) = if int.is_some() { ("value_int", 2) } else { ("value_ints", 7) };
    let attribute = Attribute { name: name.to_owned(), int, ints: ints.to_vec(), kind };
    Node { attributes: vec![attribute], ..node("Constant", &[], output) }
}
