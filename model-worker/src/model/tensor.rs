//! Any graph as plain arrays: what it takes, what it gives, and one run of it.

use bytes::Bytes;
use muster_shared::tensor::Datatype;

use super::ModelError;

/// An array without a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// What its elements are.
    pub datatype: Datatype,
    /// Sizes of its dimensions; none for a scalar.
    pub shape: Vec<usize>,
    /// Elements in row-major order, little-endian; of [`Datatype::Bytes`] each after its length in 4 bytes.
    pub data: Bytes,
}

/// One dimension of what a graph takes or gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dimension {
    /// Its size, where the graph fixes it.
    pub size: Option<usize>,
    /// Its name, where the graph gives one: dimensions of one name have one size.
    pub symbol: Option<String>,
}

/// An input or output of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// What its elements are.
    pub datatype: Datatype,
    /// Its dimensions; `None` where the graph leaves even their number open.
    pub dimensions: Option<Vec<Dimension>>,
    /// Whether a run must have it: an input whose value the graph brings along may be left out.
    pub required: bool,
}

impl Port {
    /// Sizes of its dimensions, -1 where a run decides.
    pub fn sizes(&self) -> Vec<i64> {
        let size = |dimension: &Dimension| dimension.size.map_or(-1, |size| i64::try_from(size).unwrap_or(i64::MAX));
        self.dimensions.iter().flatten().map(size).collect()
    }
}

/// What a graph takes and gives, each in the graph's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports {
    /// Its inputs.
    pub inputs: Vec<Port>,
    /// Its outputs.
    pub outputs: Vec<Port>,
}

/// A graph that runs on arrays.
pub trait TensorModel: Send {
    /// Runs it on inputs, each with its place in [`Ports::inputs`]; gives the outputs at `wanted` places, in that order.
    ///
    /// # Errors
    /// [`ModelError::Run`] with ONNX Runtime's words, without paths; the next run is none the worse for it.
    fn run(&mut self, inputs: &[(usize, &Array)], wanted: &[usize]) -> Result<Vec<Array>, ModelError>;
}
