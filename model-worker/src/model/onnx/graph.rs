//! What an ONNX file says of itself: inputs, outputs, operators, and where its weights lie.
//!
//! The messages are the few fields of `onnx.proto` that muster asks for (source: onnx/onnx.proto, IR version 10);
//! everything else, the weights above all, is skipped while decoding.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use prost::Message as _;

use super::super::ModelError;
use super::super::files::hub_blobs;

/// What is known of a graph before it is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GraphFacts {
    /// Inputs that are no weights, by name.
    pub inputs: BTreeMap<String, TensorFacts>,
    /// Outputs by name.
    pub outputs: BTreeMap<String, TensorFacts>,
    /// Operator types of the main graph and of its subgraphs.
    pub operators: BTreeSet<String>,
    /// Files beside the graph that hold weights.
    pub external_data: BTreeSet<String>,
}

/// One input or output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TensorFacts {
    /// Number of the element type in `onnx.proto`: 1 is float32, 7 is int64, 10 is float16.
    pub element: i32,
    /// Sizes; `None` where the size is only known when running.
    pub shape: Vec<Option<i64>>,
    /// Whether the graph leaves open how many dimensions there are; `shape` is empty then as it is for a scalar.
    pub any_rank: bool,
}

impl TensorFacts {
    /// Whether its elements are 32-bit floats.
    pub fn is_float32(&self) -> bool {
        self.element == 1
    }
}

impl GraphFacts {
    /// Reads the facts out of an ONNX file's bytes.
    ///
    /// # Errors
    /// When the bytes are no ONNX model; the text says why.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let model = ModelProto::decode(bytes).map_err(|error| format!("not an ONNX model ({error})"))?;
        let graph = model.graph.ok_or("not an ONNX model (it holds no graph)")?;
        if graph.nodes.is_empty() || graph.outputs.is_empty() {
            return Err("not an ONNX model (its graph has no nodes or no outputs)".to_owned());
        }
        let mut facts = Self::default();
        facts.visit(&graph);
        model.functions.iter().for_each(|function| facts.visit_nodes(&function.nodes));
        let weights: BTreeSet<&str> = graph.initializers.iter().map(|weight| weight.name.as_str()).collect();
        let given = graph.inputs.iter().filter(|input| !weights.contains(input.name.as_str()));
        facts.inputs = given.map(ValueInfoProto::facts).collect();
        facts.outputs = graph.outputs.iter().map(ValueInfoProto::facts).collect();
        Ok(facts)
    }

    /// Whether activations are quantised while running, with one scale for each tensor: what one row of a run gives then
    /// depends on the others, and on what pads them.
    pub fn shares_scales(&self) -> bool {
        ["DynamicQuantizeLinear", "DynamicQuantizeMatMul"].iter().any(|&operator| self.operators.contains(operator))
    }

    fn visit(&mut self, graph: &GraphProto) {
        let sparse = graph.sparse_initializers.iter().flat_map(SparseTensorProto::parts);
        graph.initializers.iter().chain(sparse).for_each(|weight| self.note_external(weight));
        self.visit_nodes(&graph.nodes);
    }

    fn visit_nodes(&mut self, nodes: &[NodeProto]) {
        for node in nodes {
            self.operators.insert(node.op_type.clone());
            for attribute in &node.attributes {
                let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
                let sparse = sparse.flat_map(SparseTensorProto::parts);
                let tensors = attribute.tensor.as_deref().into_iter().chain(&attribute.tensors).chain(sparse);
                tensors.for_each(|tensor| self.note_external(tensor));
                attribute.graph.as_deref().into_iter().chain(&attribute.graphs).for_each(|graph| self.visit(graph));
            }
        }
    }

    fn note_external(&mut self, tensor: &TensorProto) {
        let location = tensor.external_data.iter().find(|entry| entry.key == "location");
        self.external_data.extend(location.map(|entry| entry.value.clone()));
    }
}

/// Checks that every file of weights lies inside the model's folder, also after links are followed.
///
/// In a hub's cache the repository's `blobs` count as inside: every file of a snapshot is a link there.
///
/// `graph` is the graph's file; locations are relative to its folder, which lies in `folder`.
///
/// # Errors
/// [`ModelError::ExternalData`] for the first that does not, or that is not there.
pub fn check_external_data(folder: &Path, graph: &Path, facts: &GraphFacts) -> Result<(), ModelError> {
    let file = graph.display().to_string();
    let home =
        folder.canonicalize().map_err(|source| ModelError::Read { file: folder.display().to_string(), source })?;
    for location in &facts.external_data {
        let refuse =
            |reason: String| ModelError::ExternalData { file: file.clone(), location: location.clone(), reason };
        let relative = Path::new(location);
        if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(refuse("is not a plain path below the graph".to_owned()));
        }
        let path = graph.parent().unwrap_or(folder).join(relative);
        let path = path.canonicalize().map_err(|error| refuse(format!("cannot be found ({error})")))?;
        let inside = path.starts_with(&home) || hub_blobs(&home).is_some_and(|blobs| path.starts_with(blobs));
        if !inside {
            return Err(refuse("leads out of the folder".to_owned()));
        }
    }
    Ok(())
}

#[derive(Clone, PartialEq, prost::Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<FunctionProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FunctionProto {
    #[prost(message, repeated, tag = "7")]
    nodes: Vec<NodeProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    initializers: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    inputs: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    outputs: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "15")]
    sparse_initializers: Vec<SparseTensorProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SparseTensorProto {
    #[prost(message, optional, tag = "1")]
    values: Option<TensorProto>,
    #[prost(message, optional, tag = "2")]
    indices: Option<TensorProto>,
}

impl SparseTensorProto {
    fn parts(&self) -> impl Iterator<Item = &TensorProto> {
        self.values.iter().chain(&self.indices)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct NodeProto {
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AttributeProto {
    #[prost(message, optional, boxed, tag = "5")]
    tensor: Option<Box<TensorProto>>,
    #[prost(message, optional, boxed, tag = "6")]
    graph: Option<Box<GraphProto>>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<GraphProto>,
    #[prost(message, optional, tag = "22")]
    sparse_tensor: Option<SparseTensorProto>,
    #[prost(message, repeated, tag = "23")]
    sparse_tensors: Vec<SparseTensorProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TensorProto {
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value_type: Option<TypeProto>,
}

impl ValueInfoProto {
    fn facts(&self) -> (String, TensorFacts) {
        let tensor = self.value_type.as_ref().and_then(|value_type| value_type.tensor.as_ref());
        let facts = tensor.map_or_else(TensorFacts::default, |tensor| TensorFacts {
            element: tensor.element,
            any_rank: tensor.shape.is_none(),
            shape: tensor.shape.iter().flat_map(|shape| &shape.dimensions).map(|dimension| dimension.size).collect(),
        });
        (self.name.clone(), facts)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<ShapeProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ShapeProto {
    #[prost(message, repeated, tag = "1")]
    dimensions: Vec<DimensionProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DimensionProto {
    #[prost(int64, optional, tag = "1")]
    size: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_external(location: &str) -> GraphFacts {
        GraphFacts { external_data: [location.to_owned()].into(), ..GraphFacts::default() }
    }

    #[test]
    fn bytes_that_are_no_model_are_refused() {
        for bytes in [&b""[..], b"hello", &[0xff; 64], &[0x08, 0x0a]] {
            assert!(GraphFacts::read(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn weights_in_subgraphs_and_attributes_are_seen() {
        let tensor = |location: &str| TensorProto {
            name: String::new(),
            external_data: vec![StringStringEntryProto { key: "location".into(), value: location.into() }],
        };
        let inner = GraphProto { initializers: vec![tensor("inner.data")], ..GraphProto::default() };
        let attributes = vec![AttributeProto {
            tensor: Some(Box::new(tensor("constant.data"))),
            graph: Some(Box::new(inner)),
            ..AttributeProto::default()
        }];
        let graph = GraphProto {
            nodes: vec![NodeProto { op_type: "If".into(), attributes }],
            outputs: vec![ValueInfoProto::default()],
            ..GraphProto::default()
        };
        let sparse = SparseTensorProto { values: Some(tensor("sparse.data")), indices: None };
        let attribute = AttributeProto { sparse_tensor: Some(sparse), ..AttributeProto::default() };
        let functions =
            vec![FunctionProto { nodes: vec![NodeProto { op_type: "Constant".into(), attributes: vec![attribute] }] }];
        let bytes = ModelProto { graph: Some(graph), functions }.encode_to_vec();
        let facts = GraphFacts::read(&bytes).expect("a model");
        assert_eq!(facts.external_data.iter().collect::<Vec<_>>(), ["constant.data", "inner.data", "sparse.data"]);
    }

    #[test]
    fn weights_outside_the_folder_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let outside = tempfile::NamedTempFile::new().expect("a file");
        let graph = folder.path().join("model.onnx");
        std::fs::write(folder.path().join("model.data"), "").expect("a file");
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link.data")).expect("a link");
        let check = |location: &str| check_external_data(folder.path(), &graph, &with_external(location));

        check("model.data").expect("inside");
        for location in ["../model.data", "/etc/passwd", "link.data", "missing.data"] {
            let error = check(location).expect_err(location).to_string();
            assert!(error.contains(location) && error.contains("model.onnx"), "{error}");
        }
        let own = outside.path().display().to_string();
        assert!(check(&own).is_err());
    }
}
