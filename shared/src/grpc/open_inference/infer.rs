//! A run of a model, and what it gave.

use std::collections::HashMap;

use bytes::Bytes;

use super::contents;
use super::proto::infer_parameter::ParameterChoice;
use super::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::proto::model_infer_response::InferOutputTensor;
use super::proto::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};
use crate::problem::Problem;
use crate::tensor::head::{Head, Place, TENSORS_LIMIT, distinct, missing, refuse_shared_memory};
use crate::tensor::{InferRequest, InferResponse, Parameter, Parameters, RequestedOutput, Tensor};

/// How the elements of tensors travel in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// As bytes beside the tensors.
    Raw,
    /// One by one within them. FP16 and BF16 cannot.
    Typed,
}

/// A client's request. Bytes of tensors are slices of the message. The request's id in the fleet is no field of it:
/// [`InferRequest::request_id`] is left empty.
///
/// # Errors
/// A [`Problem`] that names the field at fault.
pub fn read_request(message: ModelInferRequest) -> Result<InferRequest, Problem> {
    let ModelInferRequest { model_name, model_version, id, parameters, inputs, outputs, raw_input_contents } = message;
    if model_name.is_empty() {
        return Err(Problem::invalid("model_name", "`model_name` is missing: the name of the model to run"));
    }
    let inputs = inputs.into_iter().map(|InferInputTensor { name, datatype, shape, parameters, contents }| Described {
        name,
        datatype,
        shape,
        parameters,
        contents,
    });
    Ok(InferRequest {
        request_id: String::new(),
        model: model_name,
        version: (!model_version.is_empty()).then_some(model_version),
        id,
        parameters: read_parameters(parameters, "parameters")?,
        inputs: tensors(inputs, Place::Input, raw_input_contents, "raw_input_contents")?,
        outputs: wanted(outputs)?,
    })
}

/// A worker's answer. Bytes of tensors are slices of the message.
///
/// # Errors
/// A [`Problem`] that names the field at fault.
pub fn read_response(message: ModelInferResponse) -> Result<InferResponse, Problem> {
    let ModelInferResponse { model_name, model_version, id, parameters, outputs, raw_output_contents } = message;
    let outputs = outputs.into_iter().map(|InferOutputTensor { name, datatype, shape, parameters, contents }| {
        Described { name, datatype, shape, parameters, contents }
    });
    Ok(InferResponse {
        model: model_name,
        version: model_version,
        id,
        parameters: read_parameters(parameters, "parameters")?,
        outputs: tensors(outputs, Place::Output, raw_output_contents, "raw_output_contents")?,
    })
}

/// What inputs and outputs say alike.
struct Described {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    parameters: HashMap<String, InferParameter>,
    contents: Option<InferTensorContents>,
}

fn tensors(
    described: impl ExactSizeIterator<Item = Described>,
    place: fn(usize) -> Place,
    raw: Vec<Bytes>,
    raw_field: &str,
) -> Result<Vec<Tensor>, Problem> {
    let count = described.len();
    let noun = place(0).noun();
    if count > TENSORS_LIMIT {
        let message = format!("there are {count} {noun}s; {TENSORS_LIMIT} are the most");
        return Err(Problem::invalid(format!("{noun}s"), message));
    }
    if !raw.is_empty() && raw.len() != count {
        let message =
            format!("`{raw_field}` has {} entries for {count} {noun}s; each must have one, or none", raw.len());
        return Err(Problem::invalid(raw_field, message));
    }
    let mut raw = raw.into_iter();
    let tensor = |(index, described)| tensor(described, place(index), raw.next());
    let tensors = described.enumerate().map(tensor).collect::<Result<Vec<_>, _>>()?;
    distinct(tensors.iter().enumerate().map(|(index, tensor)| (place(index), tensor.name.as_str())))?;
    Ok(tensors)
}

fn tensor(described: Described, place: Place, raw: Option<Bytes>) -> Result<Tensor, Problem> {
    let Described { name, datatype, shape, parameters, contents } = described;
    let head = Head::new(place, name, &datatype, &shape)?;
    let parameters = read_parameters(parameters, &place.field("parameters"))?;
    refuse_shared_memory(place, &head.name, &parameters)?;
    let contents = contents.filter(|contents| *contents != InferTensorContents::default());
    let data = match (raw, contents) {
        (Some(raw), None) => raw,
        (None, Some(contents)) => contents::read(&head, &contents)?,
        (None, None) if head.count == 0 => Bytes::new(),
        (None, None) => return Err(head.problem("contents", "it has neither `contents` nor an entry of raw contents")),
        (Some(_), Some(_)) => {
            return Err(head.problem("contents", "it has `contents` and an entry of raw contents; one of them must go"));
        }
    };
    head.with(parameters, data)
}

fn wanted(outputs: Vec<InferRequestedOutputTensor>) -> Result<Vec<RequestedOutput>, Problem> {
    if outputs.len() > TENSORS_LIMIT {
        let message = format!("{} outputs are wanted; {TENSORS_LIMIT} are the most", outputs.len());
        return Err(Problem::invalid("outputs", message));
    }
    let read = |(index, InferRequestedOutputTensor { name, parameters })| {
        let place = Place::Output(index);
        if String::is_empty(&name) {
            return Err(missing(place, "name", "the name of the tensor in the graph"));
        }
        let path = place.field("parameters");
        let mut parameters = read_parameters(parameters, &path)?;
        refuse_shared_memory(place, &name, &parameters)?;
        let classification = match parameters.remove("classification") {
            None => 0,
            Some(given) => count(&given).ok_or_else(|| {
                let field = format!("{path}.classification");
                let message = format!("`{field}` is {given:?}; it must be a whole number, and not below 0");
                Problem::invalid(field, message)
            })?,
        };
        Ok(RequestedOutput { name, classification })
    };
    let outputs = outputs.into_iter().enumerate().map(read).collect::<Result<Vec<_>, Problem>>()?;
    distinct(outputs.iter().enumerate().map(|(index, output)| (Place::Output(index), output.name.as_str())))?;
    Ok(outputs)
}

fn count(parameter: &Parameter) -> Option<usize> {
    match parameter {
        Parameter::Int(count) => usize::try_from(*count).ok(),
        Parameter::Uint(count) => usize::try_from(*count).ok(),
        Parameter::Bool(_) | Parameter::Double(_) | Parameter::String(_) => None,
    }
}

fn read_parameters(parameters: HashMap<String, InferParameter>, path: &str) -> Result<Parameters, Problem> {
    let read = |(name, parameter): (String, InferParameter)| {
        let bad = |reason| {
            let field = format!("{path}.{name}");
            let message = format!("`{field}` {reason}; a parameter is a bool, a number or a text");
            Err(Problem::invalid(field, message))
        };
        let parameter = match parameter.parameter_choice {
            Some(ParameterChoice::BoolParam(yes)) => Parameter::Bool(yes),
            Some(ParameterChoice::Int64Param(number)) => Parameter::Int(number),
            Some(ParameterChoice::Uint64Param(number)) => Parameter::Uint(number),
            Some(ParameterChoice::DoubleParam(number)) if number.is_finite() => Parameter::Double(number),
            Some(ParameterChoice::DoubleParam(_)) => return bad("is not finite"),
            Some(ParameterChoice::StringParam(text)) => Parameter::String(text),
            None => return bad("has no value"),
        };
        Ok((name, parameter))
    };
    parameters.into_iter().map(read).collect()
}

fn parameters(parameters: Parameters) -> HashMap<String, InferParameter> {
    let write = |(name, parameter)| {
        let choice = match parameter {
            Parameter::Bool(yes) => ParameterChoice::BoolParam(yes),
            Parameter::Int(number) => ParameterChoice::Int64Param(number),
            Parameter::Uint(number) => ParameterChoice::Uint64Param(number),
            Parameter::Double(number) => ParameterChoice::DoubleParam(number),
            Parameter::String(text) => ParameterChoice::StringParam(text),
        };
        (name, InferParameter { parameter_choice: Some(choice) })
    };
    parameters.into_iter().map(write).collect()
}

/// A request for a worker.
///
/// # Errors
/// A [`Problem`] where [`Contents::Typed`] cannot say a datatype; never with [`Contents::Raw`].
pub fn request(request: InferRequest, form: Contents) -> Result<ModelInferRequest, Problem> {
    let InferRequest { request_id: _, model, version, id, parameters: more, inputs, outputs } = request;
    let (inputs, raw_input_contents) = split(inputs, Place::Input, form)?;
    let input = |Described { name, datatype, shape, parameters, contents }| InferInputTensor {
        name,
        datatype,
        shape,
        parameters,
        contents,
    };
    Ok(ModelInferRequest {
        model_name: model,
        model_version: version.unwrap_or_default(),
        id,
        parameters: parameters(more),
        inputs: inputs.into_iter().map(input).collect(),
        outputs: outputs.into_iter().map(requested).collect(),
        raw_input_contents,
    })
}

fn requested(RequestedOutput { name, classification }: RequestedOutput) -> InferRequestedOutputTensor {
    let count = i64::try_from(classification).unwrap_or(i64::MAX);
    let more = (count > 0).then(|| ("classification".to_owned(), Parameter::Int(count)));
    InferRequestedOutputTensor { name, parameters: parameters(more.into_iter().collect()) }
}

/// An answer for a client: raw contents, which every datatype has.
pub fn response(response: InferResponse) -> ModelInferResponse {
    response_in(response, Contents::Raw).expect("raw contents can say every datatype")
}

/// The same in either form.
///
/// # Errors
/// A [`Problem`] where [`Contents::Typed`] cannot say a datatype.
pub fn response_in(response: InferResponse, form: Contents) -> Result<ModelInferResponse, Problem> {
    let InferResponse { model, version, id, parameters: more, outputs } = response;
    let (outputs, raw_output_contents) = split(outputs, Place::Output, form)?;
    let output = |Described { name, datatype, shape, parameters, contents }| InferOutputTensor {
        name,
        datatype,
        shape,
        parameters,
        contents,
    };
    let outputs = outputs.into_iter().map(output).collect();
    let parameters = parameters(more);
    Ok(ModelInferResponse { model_name: model, model_version: version, id, parameters, outputs, raw_output_contents })
}

/// Tensors as they stand in a message, and their bytes where those stand beside them.
fn split(
    tensors: Vec<Tensor>,
    place: fn(usize) -> Place,
    form: Contents,
) -> Result<(Vec<Described>, Vec<Bytes>), Problem> {
    let mut raw = Vec::new();
    let described = tensors.into_iter().enumerate().map(|(index, tensor)| {
        let contents = match form {
            Contents::Raw => {
                raw.push(tensor.data.clone());
                None
            }
            Contents::Typed => Some(contents::write(&tensor, place(index))?),
        };
        let Tensor { name, datatype, shape, parameters: more, data: _ } = tensor;
        let size = |size| i64::try_from(size).unwrap_or(i64::MAX); // no shape that was checked is larger
        let shape = shape.into_iter().map(size).collect();
        Ok(Described { name, datatype: datatype.to_string(), shape, parameters: parameters(more), contents })
    });
    let described = described.collect::<Result<_, Problem>>()?;
    Ok((described, raw))
}
