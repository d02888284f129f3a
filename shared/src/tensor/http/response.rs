//! The answer to a request for a run, and the tensors of both.

use bytes::Bytes;

use super::fields::{Item, Message, field, name, parameters, take_count};
use super::write::{self, ResponseJson};
use super::{Body, HEADER_LENGTH, Wanted, elements, split};
use crate::problem::Problem;
use crate::tensor::head::{Head, Place, distinct, missing, refuse_shared_memory};
use crate::tensor::{InferResponse, Tensor};

/// The body of an answer, each output in the form in which it is wanted.
///
/// # Errors
/// A [`Problem`] where JSON cannot say what is wanted as JSON.
pub fn write_response(response: &InferResponse, wanted: &Wanted) -> Result<Body, Problem> {
    let InferResponse { model, version, id, parameters, outputs } = response;
    let (outputs, binary) = write::tensors(outputs, Place::Output, |output| wanted.form(output))?;
    let json = ResponseJson { model_name: model, model_version: version, id, parameters, outputs };
    write::body(&json, binary)
}

/// Reads the body of an answer. `header_length`: see [`super::header_length`]. Bytes of tensors are slices of the body.
///
/// # Errors
/// A [`Problem`] that names the field at fault.
pub fn read_response(body: Bytes, header_length: Option<usize>) -> Result<InferResponse, Problem> {
    let (json, mut binary) = split(body, header_length)?;
    let message = Message::read(&json)?;
    let text = |given, name: &str| field(given, || name.to_owned(), "a text").map(Option::unwrap_or_default);
    let outputs = message.outputs.ok_or_else(|| {
        Problem::invalid("outputs", "`outputs` is missing: the list of the tensors that the model gave")
    })?;
    Ok(InferResponse {
        model: text(message.model_name, "model_name")?,
        version: text(message.model_version, "model_version")?,
        id: text(message.id, "id")?,
        parameters: parameters(message.parameters, "parameters")?,
        outputs: tensors(outputs.0, Place::Output, &mut binary)?,
    })
}

/// Reads tensors, those in binary form from what follows the JSON; nothing may be left of it.
pub(super) fn tensors(
    items: Vec<Item<'_>>,
    place: fn(usize) -> Place,
    binary: &mut Bytes,
) -> Result<Vec<Tensor>, Problem> {
    let items = items.into_iter().enumerate();
    let tensors = items.map(|(index, item)| tensor(&item, place(index), binary)).collect::<Result<Vec<_>, _>>()?;
    distinct(tensors.iter().enumerate().map(|(index, tensor)| (place(index), tensor.name.as_str())))?;
    if binary.is_empty() {
        return Ok(tensors);
    }
    let message = format!(
        "{} bytes follow that belong to no tensor; check {HEADER_LENGTH} and each `binary_data_size`",
        binary.len()
    );
    Err(Problem::invalid("body", message))
}

fn tensor(item: &Item<'_>, place: Place, binary: &mut Bytes) -> Result<Tensor, Problem> {
    let name = name(item, place)?;
    let datatype: Option<String> = field(item.datatype, || place.field("datatype"), "a text")?;
    let sizes = "a list of whole numbers, the sizes of the dimensions";
    let shape: Option<Vec<i64>> = field(item.shape, || place.field("shape"), sizes)?;
    let shape = shape.ok_or_else(|| missing(place, "shape", sizes))?;
    let head = Head::new(place, name, &datatype.unwrap_or_default(), &shape)?;
    let path = place.field("parameters");
    let mut more = parameters(item.parameters, &path)?;
    refuse_shared_memory(place, &head.name, &more)?;
    let data = match (take_count(&mut more, "binary_data_size", &path)?, item.data) {
        (Some(size), None) => behind_json(&head, size, binary)?,
        (None, Some(data)) => elements::read(&head, data.get())?.into(),
        (None, None) if head.count == 0 => Bytes::new(),
        (None, None) => return Err(head.problem("data", "`data` is missing, and so is `binary_data_size`")),
        (Some(_), Some(_)) => {
            return Err(head.problem("data", "both `data` and `binary_data_size` are there; one of them must go"));
        }
    };
    head.with(more, data)
}

fn behind_json(head: &Head, size: usize, binary: &mut Bytes) -> Result<Bytes, Problem> {
    if size <= binary.len() {
        return Ok(binary.split_to(size));
    }
    let left = binary.len();
    let reason = format!(
        "`binary_data_size` is {size}, and {left} bytes are left of what follows the JSON; {HEADER_LENGTH} says where \
         it ends"
    );
    Err(head.problem("parameters.binary_data_size", reason))
}
