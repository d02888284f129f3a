//! What both wires check of a tensor before they read its elements.

use std::collections::HashSet;

use bytes::Bytes;

use super::layout::{self, byte_size, element_count};
use super::{Datatype, Parameters, Tensor};
use crate::problem::Problem;

/// Most inputs, and most outputs, of a request or an answer: far more than graphs have, and few enough that nobody
/// makes much work of a short message.
pub(crate) const TENSORS_LIMIT: usize = 1024;
/// Most dimensions of a tensor.
const DIMENSIONS_LIMIT: usize = 64;

/// Where a tensor stands in a message.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// Among the inputs.
    Input(usize),
    /// Among the outputs.
    Output(usize),
}

impl Place {
    /// The name of one of its fields, for [`Problem::param`].
    pub(crate) fn field(self, field: &str) -> String {
        match self {
            Self::Input(index) => format!("inputs[{index}].{field}"),
            Self::Output(index) => format!("outputs[{index}].{field}"),
        }
    }

    /// What it is.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Input(_) => "input",
            Self::Output(_) => "output",
        }
    }
}

/// A tensor without its elements.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) datatype: Datatype,
    pub(crate) shape: Vec<usize>,
    /// How many elements the shape has.
    pub(crate) count: usize,
}

impl Head {
    pub(crate) fn new(place: Place, name: String, datatype: &str, shape: &[i64]) -> Result<Self, Problem> {
        if name.is_empty() {
            return Err(missing(place, "name", "the name of the tensor in the graph"));
        }
        let noun = place.noun();
        if datatype.is_empty() {
            let expected = format!("what the elements of {noun} `{name}` are, like FP32");
            return Err(missing(place, "datatype", &expected));
        }
        let datatype: Datatype = datatype
            .parse()
            .map_err(|error| Problem::invalid(place.field("datatype"), format!("{noun} `{name}`: {error}")))?;
        let bad_shape = |reason| Problem::invalid(place.field("shape"), format!("{noun} `{name}`: {reason}"));
        let shape = sizes(shape).map_err(bad_shape)?;
        let count = element_count(&shape)
            .filter(|_| datatype == Datatype::Bytes || byte_size(datatype, &shape).is_some())
            .ok_or_else(|| bad_shape(format!("shape {shape:?} of {datatype} is more than any memory holds")))?;
        Ok(Self { place, name, datatype, shape, count })
    }

    /// The tensor with its elements, which are checked.
    pub(crate) fn with(self, parameters: Parameters, data: Bytes) -> Result<Tensor, Problem> {
        let Self { place, name, datatype, shape, .. } = self;
        let tensor = Tensor { name, datatype, shape, parameters, data };
        match layout::check(tensor.datatype, &tensor.shape, &tensor.data) {
            Ok(()) => Ok(tensor),
            Err(error) => {
                Err(Problem::invalid(place.field("data"), format!("{} `{}`: {error}", place.noun(), tensor.name)))
            }
        }
    }

    /// A problem with one of its fields.
    pub(crate) fn problem(&self, field: &str, reason: impl std::fmt::Display) -> Problem {
        Problem::invalid(self.place.field(field), format!("{} `{}`: {reason}", self.place.noun(), self.name))
    }
}

fn sizes(shape: &[i64]) -> Result<Vec<usize>, String> {
    if shape.len() > DIMENSIONS_LIMIT {
        return Err(format!("shape has {} dimensions; {DIMENSIONS_LIMIT} are the most", shape.len()));
    }
    let size = |size: &i64| usize::try_from(*size);
    let sizes = shape.iter().map(size).collect::<Result<_, _>>();
    sizes.map_err(|_| format!("shape {shape:?} has a size below 0; a request's sizes are those of its data"))
}

/// A field that must be there and is not.
pub(crate) fn missing(place: Place, field: &str, expected: &str) -> Problem {
    let field = place.field(field);
    Problem::invalid(field.clone(), format!("`{field}` is missing: {expected}"))
}

/// Checks that no two tensors have one name.
pub(crate) fn distinct<'a>(names: impl Iterator<Item = (Place, &'a str)>) -> Result<(), Problem> {
    let mut seen = HashSet::new();
    for (place, name) in names {
        if !seen.insert(name) {
            let message = format!("{} `{name}` is there twice; every name must be another", place.noun());
            return Err(Problem::invalid(place.field("name"), message));
        }
    }
    Ok(())
}

/// Refuses what points to memory that the client shares with a server: there is none here.
pub(crate) fn refuse_shared_memory(place: Place, name: &str, parameters: &Parameters) -> Result<(), Problem> {
    let Some(parameter) = parameters.keys().find(|parameter| parameter.starts_with("shared_memory_")) else {
        return Ok(());
    };
    let message = format!(
        "{} `{name}`: shared memory is not supported; leave `{parameter}` out and send the elements themselves",
        place.noun()
    );
    Err(Problem::invalid(place.field("parameters"), message))
}
