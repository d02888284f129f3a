//! Any graph: one run on plain arrays of every datatype.

use std::borrow::Cow;
use std::fmt::Debug;

use bytes::Bytes;
use half::{bf16, f16};
use muster_shared::tensor::{Datatype, layout};
use ort::session::{OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::{
    DynValue, PrimitiveTensorElementType, Shape, SymbolicDimensions, Tensor, TensorElementType, TensorRef, ValueType,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, TryFromBytes};

use super::super::ModelError;
use super::super::tensor::{Array, Dimension, Port, Ports, TensorModel};
use super::graph::GraphFacts;

use super::words::without_paths;

// The protocol's raw form is little-endian, and so is the memory that ONNX Runtime reads.
const _: () = assert!(cfg!(target_endian = "little"), "tensors are passed on as they are, which takes little-endian");

/// A graph in ONNX Runtime.
#[derive(Debug)]
pub struct OnnxTensorModel {
    session: Session,
    ports: Ports,
}

impl OnnxTensorModel {
    /// Wraps a loaded graph; `name` is its name for people, and `facts` what its file says.
    ///
    /// Outputs that are no tensors are left out: nobody could ask for them.
    ///
    /// # Errors
    /// [`ModelError::UnknownLayout`] when it takes something that is no tensor, or gives nothing that is one.
    pub fn new(session: Session, facts: &GraphFacts, name: &str) -> Result<Self, ModelError> {
        let ports = ports(&session, facts).map_err(|reason| ModelError::UnknownLayout { file: name.into(), reason })?;
        Ok(Self { session, ports })
    }

    /// What it takes and gives.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    fn try_run(&mut self, inputs: &[(usize, &Array)], wanted: &[usize]) -> ort::Result<Vec<Array>> {
        let ports = &self.ports;
        let values = inputs
            .iter()
            .map(|&(place, array)| Ok((Cow::from(ports.inputs[place].name.as_str()), input(array)?)))
            .collect::<ort::Result<Vec<_>>>()?;
        let names = wanted.iter().map(|&place| ports.outputs[place].name.as_str());
        let selected = names.clone().fold(OutputSelector::no_default(), OutputSelector::with);
        let options = RunOptions::new()?.with_outputs(selected);
        let outputs = self.session.run_with_options(values, &options)?;
        names.map(|name| outputs.get(name).map_or_else(|| Err(missing(name)), output)).collect()
    }
}

impl TensorModel for OnnxTensorModel {
    fn run(&mut self, inputs: &[(usize, &Array)], wanted: &[usize]) -> Result<Vec<Array>, ModelError> {
        self.try_run(inputs, wanted).map_err(|error| ModelError::Run(without_paths(error.message())))
    }
}

fn missing(name: &str) -> ort::Error {
    ort::Error::new(format!("the run gave no output `{name}`"))
}

/// Puts each datatype's Rust type in the place of `$number` in an expression; strings have one of their own.
macro_rules! for_datatype {
    ($datatype:expr, $number:ident => $with_number:expr, $boolean:expr, $strings:expr) => {
        match $datatype {
            Datatype::Bool => $boolean,
            Datatype::Uint8 => for_datatype!(@ $number = u8, $with_number),
            Datatype::Uint16 => for_datatype!(@ $number = u16, $with_number),
            Datatype::Uint32 => for_datatype!(@ $number = u32, $with_number),
            Datatype::Uint64 => for_datatype!(@ $number = u64, $with_number),
            Datatype::Int8 => for_datatype!(@ $number = i8, $with_number),
            Datatype::Int16 => for_datatype!(@ $number = i16, $with_number),
            Datatype::Int32 => for_datatype!(@ $number = i32, $with_number),
            Datatype::Int64 => for_datatype!(@ $number = i64, $with_number),
            Datatype::Fp16 => for_datatype!(@ $number = f16, $with_number),
            Datatype::Bf16 => for_datatype!(@ $number = bf16, $with_number),
            Datatype::Fp32 => for_datatype!(@ $number = f32, $with_number),
            Datatype::Fp64 => for_datatype!(@ $number = f64, $with_number),
            Datatype::Bytes => $strings,
        }
    };
    (@ $number:ident = $type:ty, $with_number:expr) => {{
        type $number = $type;
        $with_number
    }};
}

/// An array as ONNX Runtime takes it: in place, where its bytes lie as numbers must; else copied.
fn input(array: &Array) -> ort::Result<SessionInputValue<'_>> {
    for_datatype!(array.datatype, Number => numbers::<Number>(array), booleans(array), strings(array))
}

fn numbers<T>(array: &Array) -> ort::Result<SessionInputValue<'_>>
where
    T: PrimitiveTensorElementType + FromBytes + Immutable + Clone + Debug + 'static,
{
    if let Ok(slice) = <[T]>::ref_from_bytes(&array.data) {
        return Ok(TensorRef::from_array_view((array.shape.as_slice(), slice))?.into());
    }
    let pieces = array.data.chunks_exact(size_of::<T>());
    let copied: Vec<T> = pieces.filter_map(|piece| T::read_from_bytes(piece).ok()).collect();
    Ok(Tensor::from_array((array.shape.as_slice(), copied))?.into())
}

fn booleans(array: &Array) -> ort::Result<SessionInputValue<'_>> {
    let slice = <[bool]>::try_ref_from_bytes(&array.data).map_err(|_| ort::Error::new("a BOOL is neither 0 nor 1"))?;
    Ok(TensorRef::from_array_view((array.shape.as_slice(), slice))?.into())
}

/// ONNX Runtime keeps strings of its own, so they are copied in any case.
fn strings(array: &Array) -> ort::Result<SessionInputValue<'_>> {
    let text = |bytes| std::str::from_utf8(bytes).map(str::to_owned).map_err(ort::Error::wrap);
    let texts = layout::strings(&array.data).map(|bytes| bytes.map_err(ort::Error::wrap).and_then(text));
    let texts = texts.collect::<ort::Result<Vec<_>>>()?;
    Ok(Tensor::from_string_array((array.shape.as_slice(), texts.as_slice()))?.into())
}

/// A copy, and not ONNX Runtime's own memory: an answer that a slow client reads must not keep a session alive.
fn output(value: &DynValue) -> ort::Result<Array> {
    let element = match value.dtype() {
        ValueType::Tensor { ty, .. } => *ty,
        other => return Err(ort::Error::new(format!("an output is {other}, which is no tensor"))),
    };
    let datatype = datatype(element)
        .ok_or_else(|| ort::Error::new(format!("an output holds {element}, which has no datatype")))?;
    let (shape, data) = for_datatype!(
        datatype,
        Number => value.try_extract_tensor::<Number>().map(copy)?,
        value.try_extract_tensor::<bool>().map(copy)?,
        {
            let (shape, texts) = value.try_extract_strings()?;
            let data = layout::join_strings(texts.iter().map(|text| text.as_bytes()));
            (sizes(shape), data.ok_or_else(|| ort::Error::new("an output holds a text of 4 GiB or more"))?)
        }
    );
    Ok(Array { datatype, shape, data })
}

fn copy<T: IntoBytes + Immutable>((shape, values): (&Shape, &[T])) -> (Vec<usize>, Bytes) {
    (sizes(shape), Bytes::copy_from_slice(values.as_bytes()))
}

fn sizes(shape: &Shape) -> Vec<usize> {
    shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect()
}

fn datatype(element: TensorElementType) -> Option<Datatype> {
    Some(match element {
        TensorElementType::Bool => Datatype::Bool,
        TensorElementType::Uint8 => Datatype::Uint8,
        TensorElementType::Uint16 => Datatype::Uint16,
        TensorElementType::Uint32 => Datatype::Uint32,
        TensorElementType::Uint64 => Datatype::Uint64,
        TensorElementType::Int8 => Datatype::Int8,
        TensorElementType::Int16 => Datatype::Int16,
        TensorElementType::Int32 => Datatype::Int32,
        TensorElementType::Int64 => Datatype::Int64,
        TensorElementType::Float16 => Datatype::Fp16,
        TensorElementType::Bfloat16 => Datatype::Bf16,
        TensorElementType::Float32 => Datatype::Fp32,
        TensorElementType::Float64 => Datatype::Fp64,
        TensorElementType::String => Datatype::Bytes,
        _ => return None,
    })
}

fn ports(session: &Session, facts: &GraphFacts) -> Result<Ports, String> {
    let mut inputs = Vec::new();
    for input in session.inputs() {
        let any_rank = facts.inputs.get(input.name()).is_some_and(|facts| facts.any_rank);
        let port = port(input.name(), input.dtype(), any_rank, true);
        inputs.push(port.map_err(|what| format!("input `{}` is {what}, which no request can hold", input.name()))?);
    }
    for weight in session.overridable_initializers() {
        inputs.extend(port(weight.name(), weight.dtype(), false, false)); // else it stays as the graph has it
    }
    let mut outputs = Vec::new();
    for output in session.outputs() {
        let any_rank = facts.outputs.get(output.name()).is_some_and(|facts| facts.any_rank);
        match port(output.name(), output.dtype(), any_rank, true) {
            Ok(port) => outputs.push(port),
            Err(what) => tracing::warn!(output = output.name(), what, "an output that no answer can hold is left out"),
        }
    }
    if outputs.is_empty() {
        return Err("none of its outputs is a tensor of a datatype that requests know".to_owned());
    }
    Ok(Ports { inputs, outputs })
}

/// An input or output; else what it is.
fn port(name: &str, kind: &ValueType, any_rank: bool, required: bool) -> Result<Port, String> {
    let ValueType::Tensor { ty, shape, dimension_symbols } = kind else { return Err(kind.to_string()) };
    let datatype = datatype(*ty).ok_or_else(|| format!("a tensor of {ty}"))?;
    let dimensions = (!any_rank).then(|| dimensions(shape, dimension_symbols));
    Ok(Port { name: name.to_owned(), datatype, dimensions, required })
}

fn dimensions(shape: &Shape, symbols: &SymbolicDimensions) -> Vec<Dimension> {
    let dimension = |(&size, symbol): (&i64, &String)| Dimension {
        size: usize::try_from(size).ok(),
        symbol: Some(symbol.clone()).filter(|symbol| !symbol.is_empty()),
    };
    shape.iter().zip(symbols.iter()).map(dimension).collect()
}
