//! The JSON of what is sent.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use super::elements::{Elements, check_writable};
use super::{Body, Form};
use crate::problem::{Kind, Problem};
use crate::tensor::head::Place;
use crate::tensor::{Datatype, Parameter, Parameters, RequestedOutput, Tensor};

#[derive(Debug, Serialize)]
pub(super) struct RequestJson<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) id: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) parameters: &'a Parameters,
    pub(super) inputs: Vec<TensorJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) outputs: Vec<OutputJson<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct ResponseJson<'a> {
    pub(super) model_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) model_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) id: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) parameters: &'a Parameters,
    pub(super) outputs: Vec<TensorJson<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct OutputJson<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<&'static str, usize>,
}

impl<'a> From<&'a RequestedOutput> for OutputJson<'a> {
    fn from(RequestedOutput { name, classification }: &'a RequestedOutput) -> Self {
        let parameters = (*classification > 0).then_some(("classification", *classification));
        Self { name, parameters: parameters.into_iter().collect() }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct TensorJson<'a> {
    name: &'a str,
    datatype: Datatype,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<&'a str, Parameter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Elements<'a>>,
}

/// Tensors as they stand in the JSON, and what of them follows it.
pub(super) fn tensors<'a>(
    tensors: &'a [Tensor],
    place: fn(usize) -> Place,
    form: impl Fn(&str) -> Form,
) -> Result<(Vec<TensorJson<'a>>, Option<Vec<Bytes>>), Problem> {
    let mut binary = None;
    let tensors = tensors.iter().enumerate().map(|(index, tensor)| {
        let Tensor { name, datatype, shape, parameters, data } = tensor;
        let mut json = TensorJson { name, datatype: *datatype, shape, parameters: borrowed(parameters), data: None };
        match form(name) {
            Form::Json => {
                check_writable(tensor, place(index))?;
                json.data = Some(Elements(tensor));
            }
            Form::Binary => {
                let size = i64::try_from(data.len()).unwrap_or(i64::MAX); // no memory is longer
                json.parameters.insert("binary_data_size", Parameter::Int(size));
                binary.get_or_insert_with(Vec::new).push(data.clone());
            }
        }
        Ok(json)
    });
    let tensors = tensors.collect::<Result<_, Problem>>()?;
    Ok((tensors, binary))
}

fn borrowed(parameters: &Parameters) -> BTreeMap<&str, Parameter> {
    parameters.iter().map(|(name, value)| (name.as_str(), value.clone())).collect()
}

pub(super) fn body(json: &impl Serialize, binary: Option<Vec<Bytes>>) -> Result<Body, Problem> {
    let json = serde_json::to_vec(json);
    let json = json.map_err(|error| Problem::new(Kind::Bug, format!("a message could not be written: {error}")))?;
    Ok(Body { json: json.into(), binary })
}
