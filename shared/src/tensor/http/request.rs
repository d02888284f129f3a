//! A request for a run.

use bytes::Bytes;

use super::fields::{Item, Message, field, name, parameters, take_count, take_form};
use super::response::tensors;
use super::write::{self, OutputJson, RequestJson};
use super::{Body, Form, Wanted, split};
use crate::problem::Problem;
use crate::tensor::head::{Place, TENSORS_LIMIT, distinct, missing, refuse_shared_memory};
use crate::tensor::{InferRequest, Parameter, RequestedOutput};

/// Reads the body of `POST /v2/models/{model}/infer`. `header_length`: see [`super::header_length`].
///
/// The request's id in the fleet is not in the body: [`InferRequest::request_id`] is left empty. Bytes of tensors are
/// slices of the body.
///
/// # Errors
/// A [`Problem`] that names the field at fault.
pub fn read_request(
    model: &str,
    version: Option<&str>,
    body: Bytes,
    header_length: Option<usize>,
) -> Result<(InferRequest, Wanted), Problem> {
    let (json, mut binary) = split(body, header_length)?;
    let message = Message::read(&json)?;
    let mut more = parameters(message.parameters, "parameters")?;
    let default = take_form(&mut more, "binary_data_output", "parameters")?.unwrap_or_default();
    let mut wanted = Wanted::all(default);
    let inputs = message.inputs.ok_or_else(|| {
        Problem::invalid("inputs", "`inputs` is missing: the list of the tensors that the model is to be run with")
    })?;
    let inputs = tensors(inputs.0, Place::Input, &mut binary)?;
    let outputs = message.outputs.map(|items| items.0).unwrap_or_default();
    let outputs = outputs.iter().enumerate();
    let outputs = outputs.map(|(index, item)| output(item, index, &mut wanted)).collect::<Result<Vec<_>, _>>()?;
    distinct(outputs.iter().enumerate().map(|(index, output)| (Place::Output(index), output.name.as_str())))?;
    let request = InferRequest {
        request_id: String::new(),
        model: model.to_owned(),
        version: version.map(str::to_owned),
        id: field(message.id, || "id".to_owned(), "a text")?.unwrap_or_default(),
        parameters: more,
        inputs,
        outputs,
    };
    Ok((request, wanted))
}

fn output(item: &Item<'_>, index: usize, wanted: &mut Wanted) -> Result<RequestedOutput, Problem> {
    debug_assert!(index < TENSORS_LIMIT, "a list is not longer");
    let place = Place::Output(index);
    let name = name(item, place)?;
    if name.is_empty() {
        return Err(missing(place, "name", "the name of the tensor in the graph"));
    }
    let path = place.field("parameters");
    let mut more = parameters(item.parameters, &path)?;
    refuse_shared_memory(place, &name, &more)?;
    if let Some(form) = take_form(&mut more, "binary_data", &path)? {
        wanted.outputs.insert(name.clone(), form);
    }
    let classification = take_count(&mut more, "classification", &path)?.unwrap_or(0);
    Ok(RequestedOutput { name, classification })
}

/// The body of a request, all of whose inputs are in one form, and whose outputs are wanted in the same.
///
/// # Errors
/// A [`Problem`] where JSON cannot say a tensor's elements; never with [`Form::Binary`].
pub fn write_request(request: &InferRequest, form: Form) -> Result<Body, Problem> {
    let mut parameters = request.parameters.clone();
    if form == Form::Binary {
        parameters.insert("binary_data_output".to_owned(), Parameter::Bool(true));
    }
    let (inputs, binary) = write::tensors(&request.inputs, Place::Input, |_| form)?;
    let outputs = request.outputs.iter().map(OutputJson::from).collect();
    let json = RequestJson { id: &request.id, parameters: &parameters, inputs, outputs };
    write::body(&json, binary)
}
