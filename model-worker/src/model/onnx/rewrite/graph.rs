//! A graph's nodes and names, as far as finding the head asks for them; tensors stay bytes.
//!
//! Numbers of fields are those of onnx/onnx.proto.

use std::collections::HashMap;
use std::ops::Range;

use super::super::wire::{self, Malformed, Value, fields};

/// Subgraphs lie in one another at most so deep: two is usual, more is nonsense, and recursion needs an end.
const DEPTH: usize = 16;
/// More numbers than a constant holds that tells an axis or a position.
const FEW: usize = 8;

/// The main graph. Names are bytes: whether they are text does not matter here.
#[derive(Debug, Default)]
pub(super) struct Graph<'a> {
    pub(super) message: &'a [u8],
    pub(super) nodes: Vec<Node<'a>>,
    /// Weights, each a `TensorProto`.
    pub(super) weights: HashMap<&'a [u8], &'a [u8]>,
    pub(super) inputs: Vec<Named<'a>>,
    pub(super) outputs: Vec<Named<'a>>,
    pub(super) value_infos: Vec<Named<'a>>,
    /// Which node gives a name.
    givers: HashMap<&'a [u8], usize>,
    /// How often nodes take a name, those of subgraphs included.
    uses: HashMap<&'a [u8], usize>,
}

/// An operator.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// Where its field lies in the graph's message.
    pub(super) range: Range<usize>,
    pub(super) message: &'a [u8],
    pub(super) operator: &'a [u8],
    pub(super) inputs: Vec<&'a [u8]>,
    pub(super) outputs: Vec<&'a [u8]>,
    domain: &'a [u8],
    /// Each an `AttributeProto`.
    attributes: Vec<&'a [u8]>,
}

/// A `ValueInfoProto`.
#[derive(Debug)]
pub(super) struct Named<'a> {
    pub(super) range: Range<usize>,
    pub(super) message: &'a [u8],
    pub(super) name: &'a [u8],
}

/// What is known of a constant.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Constant {
    pub(super) shape: Vec<i64>,
    /// Its numbers, where they are few and whole.
    pub(super) numbers: Option<Vec<i64>>,
}

impl<'a> Graph<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut graph = Self { message, ..Self::default() };
        for field in fields(message)? {
            let bytes = field.value.bytes();
            match field.number {
                1 => graph.nodes.push(Node::read(bytes, field.range)?),
                5 => _ = graph.weights.insert(last_bytes(bytes, 8)?, bytes),
                11 => graph.inputs.push(Named::read(bytes, field.range)?),
                12 => graph.outputs.push(Named::read(bytes, field.range)?),
                13 => graph.value_infos.push(Named::read(bytes, field.range)?),
                _ => {}
            }
        }
        for (index, node) in graph.nodes.iter().enumerate() {
            graph.givers.extend(node.outputs.iter().filter(|name| !name.is_empty()).map(|name| (*name, index)));
            count_uses(node, &mut graph.uses, DEPTH)?;
        }
        Ok(graph)
    }

    pub(super) fn giver(&self, name: &[u8]) -> Option<usize> {
        self.givers.get(name).copied()
    }

    pub(super) fn uses(&self, name: &[u8]) -> usize {
        self.uses.get(name).copied().unwrap_or(0)
    }

    /// Whether anything in the graph has this name.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        self.uses.contains_key(name)
            || self.givers.contains_key(name)
            || self.weights.contains_key(name)
            || self.inputs.iter().chain(&self.outputs).any(|value| value.name == name)
    }

    /// The declared shape of a tensor between nodes, or of an output.
    pub(super) fn declared(&self, name: &[u8]) -> Option<Vec<Option<i64>>> {
        self.outputs.iter().chain(&self.value_infos).find(|value| value.name == name)?.shape().ok()?
    }

    /// A weight or a constant, also behind operators that change neither its shape nor, for whole numbers, its value.
    pub(super) fn constant(&self, mut name: &'a [u8]) -> Option<Constant> {
        for _ in 0..DEPTH {
            if let Some(tensor) = self.weights.get(name) {
                return tensor_constant(tensor).ok();
            }
            let node = &self.nodes[self.giver(name)?];
            if node.is("Constant") {
                return node.constant();
            }
            if !(node.is("Identity") || node.is("Cast")) {
                return None;
            }
            name = node.inputs.first()?;
        }
        None
    }

    /// Number of dimensions of a weight, also behind operators that keep it.
    pub(super) fn rank(&self, mut name: &'a [u8]) -> Option<usize> {
        for _ in 0..DEPTH {
            if let Some(constant) = self.constant(name) {
                return Some(constant.shape.len());
            }
            let node = &self.nodes[self.giver(name)?];
            if !["Identity", "Cast", "Transpose", "DequantizeLinear"].iter().any(|operator| node.is(operator)) {
                return None;
            }
            name = node.inputs.first()?;
        }
        None
    }
}

impl<'a> Node<'a> {
    fn read(message: &'a [u8], range: Range<usize>) -> Result<Self, Malformed> {
        let (mut inputs, mut outputs, mut attributes) = (Vec::new(), Vec::new(), Vec::new());
        let (mut operator, mut domain) = (&[][..], &[][..]);
        for field in fields(message)? {
            let bytes = field.value.bytes();
            match field.number {
                1 => inputs.push(bytes),
                2 => outputs.push(bytes),
                4 => operator = bytes,
                5 => attributes.push(bytes),
                7 => domain = bytes,
                _ => {}
            }
        }
        Ok(Self { range, message, operator, inputs, outputs, domain, attributes })
    }

    /// Whether it is this operator of ONNX itself.
    pub(super) fn is(&self, operator: &str) -> bool {
        matches!(self.domain, b"" | b"ai.onnx") && self.operator == operator.as_bytes()
    }

    /// Whether it is this operator of ONNX Runtime.
    pub(super) fn is_contributed(&self, operator: &str) -> bool {
        self.domain == b"com.microsoft" && self.operator == operator.as_bytes()
    }

    /// An attribute by its name, as a field's value.
    fn attribute(&self, name: &str, number: u64) -> Option<Vec<Value<'a>>> {
        let attribute = self.attributes.iter().find(|bytes| last_bytes(bytes, 1) == Ok(name.as_bytes()))?;
        let found = fields(attribute).ok()?.into_iter().filter(|field| field.number == number);
        Some(found.map(|field| field.value).collect())
    }

    /// A whole number that is an attribute.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        match self.attribute(name, 3)?.last() {
            Some(Value::Number(number)) => Some(*number as i64),
            _ => None,
        }
    }

    /// Whole numbers that are an attribute.
    pub(super) fn numbers(&self, name: &str) -> Option<Vec<i64>> {
        let mut numbers = Vec::new();
        self.attribute(name, 8)?.into_iter().try_for_each(|value| value.push_numbers(&mut numbers)).ok()?;
        Some(numbers)
    }

    /// What a `Constant` holds.
    fn constant(&self) -> Option<Constant> {
        if let Some(tensor) = self.attribute("value", 5) {
            return tensor_constant(tensor.last()?.bytes()).ok();
        }
        if let Some(numbers) = self.numbers("value_ints") {
            return Some(Constant { shape: vec![numbers.len() as i64], numbers: Some(numbers) });
        }
        if let Some(number) = self.number("value_int") {
            return Some(Constant { shape: Vec::new(), numbers: Some(vec![number]) });
        }
        self.attribute("value_float", 2).map(|_| Constant::default())
    }
}

impl<'a> Named<'a> {
    fn read(message: &'a [u8], range: Range<usize>) -> Result<Self, Malformed> {
        Ok(Self { range, message, name: last_bytes(message, 1)? })
    }

    /// Its declared sizes, `None` where one is only known when running; `None` as a whole where none are declared.
    fn shape(&self) -> Result<Option<Vec<Option<i64>>>, Malformed> {
        let mut message = self.message;
        // ValueInfoProto.type, TypeProto.tensor_type, TypeProto.Tensor.shape.
        for number in [2, 1, 2] {
            match fields(message)?.into_iter().rfind(|field| field.number == number) {
                Some(field) => message = field.value.bytes(),
                None => return Ok(None),
            }
        }
        let dimensions = fields(message)?.into_iter().filter(|field| field.number == 1);
        let sizes = dimensions.map(|dimension| {
            let size = fields(dimension.value.bytes())?.into_iter().rfind(|field| field.number == 1);
            Ok(size.and_then(|size| if let Value::Number(size) = size.value { Some(size as i64) } else { None }))
        });
        sizes.collect::<Result<_, _>>().map(Some)
    }
}

/// The last field of a number, empty when there is none: the last one counts where a field stands twice.
pub(super) fn last_bytes(message: &[u8], number: u64) -> Result<&[u8], Malformed> {
    let last = fields(message)?.into_iter().rfind(|field| field.number == number);
    Ok(last.map_or(&[], |field| field.value.bytes()))
}

fn count_uses<'a>(node: &Node<'a>, uses: &mut HashMap<&'a [u8], usize>, depth: usize) -> Result<(), Malformed> {
    for name in &node.inputs {
        *uses.entry(name).or_default() += 1;
    }
    for attribute in &node.attributes {
        // AttributeProto.g and .graphs.
        let graphs = fields(attribute)?.into_iter().filter(|field| matches!(field.number, 6 | 11));
        for graph in graphs {
            let depth = depth.checked_sub(1).ok_or(Malformed)?;
            for field in fields(graph.value.bytes())? {
                match field.number {
                    1 => count_uses(&Node::read(field.value.bytes(), 0..0)?, uses, depth)?,
                    // An output of a subgraph may be a name of the graph around it.
                    12 => *uses.entry(last_bytes(field.value.bytes(), 1)?).or_default() += 1,
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn tensor_constant(tensor: &[u8]) -> Result<Constant, Malformed> {
    let (mut shape, mut element, mut numbers, mut raw) = (Vec::new(), 0, Vec::new(), &[][..]);
    for field in fields(tensor)? {
        match (field.number, field.value) {
            (1, value) => value.push_numbers(&mut shape)?,
            (2, Value::Number(number)) => element = number,
            (5 | 7, value) if value.bytes().len() <= 10 * FEW => value.push_numbers(&mut numbers)?,
            (9, Value::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let size = shape.iter().try_fold(1_i64, |size, dimension| size.checked_mul(*dimension)).unwrap_or(i64::MAX);
    let whole = match (element, usize::try_from(size)) {
        // INT32 and INT64, which lie in fields of their own or raw, little end first.
        (6 | 7, Ok(size)) if size == numbers.len() && size <= FEW => Some(numbers),
        (7, Ok(size)) if size <= FEW && raw.len() == size * 8 => {
            let (words, _) = raw.as_chunks::<8>();
            Some(words.iter().map(|word| i64::from_le_bytes(*word)).collect())
        }
        (6, Ok(size)) if size <= FEW && raw.len() == size * 4 => {
            let (words, _) = raw.as_chunks::<4>();
            Some(words.iter().map(|word| i64::from(i32::from_le_bytes(*word))).collect())
        }
        _ => None,
    };
    Ok(Constant { shape, numbers: whole })
}

/// A `Gather` of positions `[n]` along the second dimension, as a field of a graph.
pub(super) fn gather(from: &[u8], positions: &[u8], to: &[u8]) -> Vec<u8> {
    let mut axis = Vec::new();
    wire::push_bytes(&mut axis, 1, b"axis");
    wire::push_number(&mut axis, 3, 1);
    // AttributeProto.type: INT.
    wire::push_number(&mut axis, 20, 2);
    let mut node = Vec::new();
    for (field, bytes) in [(1, from), (1, positions), (2, to), (3, to), (4, &b"Gather"[..]), (5, &axis)] {
        wire::push_bytes(&mut node, field, bytes);
    }
    wire::message(1, &node)
}

/// An input of whole numbers `[n]`, as a field of a graph.
pub(super) fn positions_input(name: &[u8]) -> Vec<u8> {
    let shape = wire::message(1, &wire::message(2, name));
    let mut tensor = Vec::new();
    // INT64.
    wire::push_number(&mut tensor, 1, 7);
    wire::push_bytes(&mut tensor, 2, &shape);
    let mut input = wire::message(1, name);
    wire::push_bytes(&mut input, 2, &wire::message(1, &tensor));
    wire::message(11, &input)
}
