//! A request against what its model takes, before anything runs.

use std::collections::HashSet;
use std::time::Duration;

use muster_shared::problem::Problem;
use muster_shared::tensor::{Datatype, InferRequest, Parameter, Parameters, RequestedOutput, Tensor, layout};

use super::classify::{self, CLASSES};
use crate::model::tensor::{Array, Port, Ports};

/// What a request of a model must keep to.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What the graph takes and gives, as its configuration narrows it.
    pub ports: Ports,
    /// Largest first dimension, where the configuration declares one; all inputs have the same then.
    pub max_batch_size: Option<usize>,
    /// Whether first dimensions count rows that go together through the graph.
    pub rows: bool,
}

/// A request that fits its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Inputs, each with its place in the graph, in the graph's order.
    pub inputs: Vec<(usize, Array)>,
    /// Outputs that are wanted, in the order of the answer.
    pub wanted: Vec<Wanted>,
    /// The first dimension of all inputs, where that counts rows and is the same for all.
    pub rows: Option<usize>,
    /// Longest wait in the queue.
    pub timeout: Option<Duration>,
    /// How urgent it is: 1 before 2, and so on.
    pub priority: u64,
}

/// An output that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its place in the graph.
    pub place: usize,
    /// [`RequestedOutput::classification`].
    pub classification: usize,
}

/// Most elements that the sizes of an empty tensor may stand for without the 0. A graph may make a tensor of one of them
/// alone, positions say, which no data that was sent has paid for.
const EMPTY: usize = 1 << 24;

impl Rules {
    /// Takes a request apart.
    ///
    /// # Errors
    /// [`muster_shared::problem::Kind::Invalid`] for the first thing that does not fit, with its place in the request.
    pub fn check(&self, request: InferRequest) -> Result<Checked, Problem> {
        let (timeout, priority) = (timeout(&request.parameters)?, priority(&request.parameters)?);
        let wanted = self.wanted(&request.outputs)?;
        let inputs = self.inputs(request.inputs)?;
        let rows = if self.rows { self.common_rows(&inputs)? } else { None };
        Ok(Checked { inputs, wanted, rows, timeout, priority })
    }

    fn inputs(&self, given: Vec<Tensor>) -> Result<Vec<(usize, Array)>, Problem> {
        let mut arrays: Vec<Option<Array>> = vec![None; self.ports.inputs.len()];
        for (index, tensor) in given.into_iter().enumerate() {
            let field = |field: &str| format!("inputs[{index}].{field}");
            let name = &tensor.name;
            let Some(place) = self.ports.inputs.iter().position(|port| port.name == *name) else {
                let message = format!("the model has no input `{name}`; it takes {}", names(&self.ports.inputs));
                return Err(Problem::invalid(field("name"), message));
            };
            if arrays[place].is_some() {
                return Err(Problem::invalid(field("name"), format!("input `{name}` is given twice; give it once")));
            }
            arrays[place] = Some(self.input(&self.ports.inputs[place], index, tensor)?);
        }
        let missing = self.ports.inputs.iter().zip(&arrays).find(|(port, array)| port.required && array.is_none());
        if let Some((port, _)) = missing {
            let message = format!("input `{}` is missing; the model takes {}", port.name, names(&self.ports.inputs));
            return Err(Problem::invalid("inputs", message));
        }
        Ok(arrays.into_iter().enumerate().filter_map(|(place, array)| Some((place, array?))).collect())
    }

    fn input(&self, port: &Port, index: usize, tensor: Tensor) -> Result<Array, Problem> {
        let Tensor { name, datatype, shape, data, .. } = tensor;
        let refuse = |field: &str, message: String| {
            Err(Problem::invalid(format!("inputs[{index}].{field}"), format!("input `{name}` {message}")))
        };
        if datatype != port.datatype {
            return refuse("datatype", format!("is {datatype}; expected {}", port.datatype));
        }
        if !fits(port, &shape) {
            return refuse("shape", format!("has shape {shape:?}; expected {:?}", port.sizes()));
        }
        if shape.contains(&0) && shape.iter().fold(1_usize, |all, &size| all.saturating_mul(size.max(1))) > EMPTY {
            return refuse(
                "shape",
                format!("has shape {shape:?}; beside a size of 0 the others may make {EMPTY} at most"),
            );
        }
        if let (Some(limit), Some(&given)) = (self.max_batch_size, shape.first())
            && given > limit
        {
            return refuse("shape", format!("has {given} rows; expected at most {limit}, the model's max_batch_size"));
        }
        match wrong_data(datatype, &shape, &data) {
            Some(message) => refuse("data", message),
            None => Ok(Array { datatype, shape, data }),
        }
    }

    /// The first dimension that all inputs share; `None` where they do not, which is the graph's affair unless the
    /// configuration declares batches.
    fn common_rows(&self, inputs: &[(usize, Array)]) -> Result<Option<usize>, Problem> {
        let mut counts = inputs.iter().map(|(place, array)| (*place, array.shape.first().copied()));
        let Some((first, Some(rows))) = counts.next() else { return Ok(None) };
        match counts.find(|(_, count)| *count != Some(rows)) {
            // A weight that is replaced has no rows.
            None => Ok(Some(rows).filter(|_| inputs.iter().all(|(place, _)| self.ports.inputs[*place].required))),
            Some(_) if self.max_batch_size.is_none() => Ok(None),
            Some((other, count)) => {
                let name = |place: usize| &self.ports.inputs[place].name;
                let message = format!(
                    "input `{}` has {} rows and input `{}` has {rows}; expected the same of all inputs",
                    name(other),
                    count.unwrap_or_default(),
                    name(first)
                );
                Err(Problem::invalid("inputs", message))
            }
        }
    }

    fn wanted(&self, outputs: &[RequestedOutput]) -> Result<Vec<Wanted>, Problem> {
        if outputs.is_empty() {
            return Ok((0..self.ports.outputs.len()).map(|place| Wanted { place, classification: 0 }).collect());
        }
        let mut seen = HashSet::new();
        outputs.iter().enumerate().map(|(index, output)| self.output(index, output, &mut seen)).collect()
    }

    fn output(&self, index: usize, output: &RequestedOutput, seen: &mut HashSet<usize>) -> Result<Wanted, Problem> {
        let RequestedOutput { name, classification } = output;
        let Some(place) = self.ports.outputs.iter().position(|port| port.name == *name) else {
            let message = format!("the model has no output `{name}`; it gives {}", names(&self.ports.outputs));
            return Err(Problem::invalid(format!("outputs[{index}].name"), message));
        };
        if !seen.insert(place) {
            let message = format!("output `{name}` is wanted twice; ask for it once");
            return Err(Problem::invalid(format!("outputs[{index}].name"), message));
        }
        let port = &self.ports.outputs[place];
        let known = classify::classes(&port.sizes(), self.rows);
        if *classification > 0 {
            if port.datatype == Datatype::Bytes {
                let message = format!("output `{name}` is BYTES; classes take numbers");
                return Err(Problem::invalid(format!("outputs[{index}].classification"), message));
            }
            if *classification > CLASSES {
                let message = format!("classification is {classification}; ask for {CLASSES} classes at most");
                return Err(Problem::invalid(format!("outputs[{index}].classification"), message));
            }
            if let Some(classes) = known.filter(|classes| classes < classification) {
                return Err(too_many_classes(index, name, *classification, classes));
            }
        }
        Ok(Wanted { place, classification: *classification })
    }
}

/// More classes were asked for than an output has.
pub fn too_many_classes(index: usize, name: &str, wanted: usize, classes: usize) -> Problem {
    let message =
        format!("classification is {wanted}, and output `{name}` has {classes} classes; ask for at most that many");
    Problem::invalid(format!("outputs[{index}].classification"), message)
}

fn names(ports: &[Port]) -> String {
    let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn fits(port: &Port, shape: &[usize]) -> bool {
    let Some(dimensions) = &port.dimensions else { return true };
    let mut pairs = dimensions.iter().zip(shape);
    dimensions.len() == shape.len() && pairs.all(|(dimension, &size)| dimension.size.is_none_or(|fixed| fixed == size))
}

/// What is wrong with the elements of a tensor, if anything is.
fn wrong_data(datatype: Datatype, shape: &[usize], data: &[u8]) -> Option<String> {
    match layout::check(datatype, shape, data) {
        Err(error) => Some(format!("holds other data than it should: {error}")),
        Ok(()) if datatype == Datatype::Bytes => wrong_text(data),
        Ok(()) => None,
    }
}

/// Strings of ONNX are UTF-8, and ONNX Runtime takes them up to the first zero byte.
fn wrong_text(data: &[u8]) -> Option<String> {
    layout::strings(data).map_while(Result::ok).enumerate().find_map(|(place, text)| match std::str::from_utf8(text) {
        Err(error) => Some(format!("is not UTF-8 in element {place} ({error}); the graph takes text")),
        Ok(text) if text.contains('\0') => {
            Some(format!("has a zero byte in element {place}, which the graph's text cannot hold"))
        }
        Ok(_) => None,
    })
}

/// `timeout`: microseconds in the queue; 0: no limit.
fn timeout(parameters: &Parameters) -> Result<Option<Duration>, Problem> {
    let micros = number(parameters, "timeout", "microseconds")?;
    Ok(Some(micros).filter(|&micros| micros > 0).map(Duration::from_micros))
}

/// `priority`: 1 goes first; 0 is usual, and counts as 1, so that a request can only step back.
fn priority(parameters: &Parameters) -> Result<u64, Problem> {
    Ok(number(parameters, "priority", "a whole number")?.max(1))
}

fn number(parameters: &Parameters, name: &str, unit: &str) -> Result<u64, Problem> {
    let number = match parameters.get(name) {
        None => Some(0),
        Some(Parameter::Int(number)) => u64::try_from(*number).ok(),
        Some(Parameter::Uint(number)) => Some(*number),
        Some(Parameter::String(text)) => text.parse().ok(), // KServe's gRPC has no word for unsigned numbers
        Some(_) => None,
    };
    number.ok_or_else(|| {
        let given = parameters.get(name).and_then(|value| serde_json::to_string(value).ok()).unwrap_or_default();
        Problem::invalid(format!("parameters.{name}"), format!("{name} is {given}; expected {unit}, 0 or more"))
    })
}

#[cfg(test)]
mod tests;
