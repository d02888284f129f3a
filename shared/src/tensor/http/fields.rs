//! The JSON of a message, taken apart field by field, so that an error can name the one at fault.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Form;
use crate::problem::Problem;
use crate::tensor::head::{Place, TENSORS_LIMIT};
use crate::tensor::{Parameter, Parameters};

/// Longest piece of a client's JSON that is repeated to it.
const SHOWN: usize = 64;

/// A request or an answer. Fields that are not known are left alone, as extensions of the protocol may bring them.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    pub(super) model_name: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) model_version: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) parameters: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) inputs: Option<Items<'a>>,
    #[serde(borrow)]
    pub(super) outputs: Option<Items<'a>>,
}

impl<'a> Message<'a> {
    pub(super) fn read(json: &'a [u8]) -> Result<Self, Problem> {
        serde_json::from_slice(json).map_err(|error| {
            let advice = "it must be an object of JSON, as the Open Inference Protocol has it";
            Problem::invalid("body", format!("the body cannot be read: {error}; {advice}"))
        })
    }
}

/// An input or output. Its data is a piece of the JSON until its datatype is known, which may stand behind it.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object that describes a tensor")]
pub(super) struct Item<'a> {
    #[serde(borrow)]
    pub(super) name: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) datatype: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) shape: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) parameters: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) data: Option<&'a RawValue>,
}

/// Inputs or outputs, at most [`TENSORS_LIMIT`].
#[derive(Debug)]
pub(super) struct Items<'a>(pub(super) Vec<Item<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ItemsVisitor)
    }
}

struct ItemsVisitor;

impl<'de> Visitor<'de> for ItemsVisitor {
    type Value = Items<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tensors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Items<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            if items.len() == TENSORS_LIMIT {
                return Err(A::Error::custom(format_args!("more than {TENSORS_LIMIT} tensors in one list")));
            }
            items.push(item);
        }
        Ok(Items(items))
    }
}

/// A field of a message or tensor; `None` where it is not there.
pub(super) fn field<T: DeserializeOwned>(
    given: Option<&RawValue>,
    name: impl FnOnce() -> String,
    expected: &str,
) -> Result<Option<T>, Problem> {
    let Some(given) = given else { return Ok(None) };
    serde_json::from_str(given.get()).map(Some).map_err(|_| wrong(name(), given, expected))
}

fn wrong(name: String, given: &RawValue, expected: &str) -> Problem {
    let message = format!("`{name}` is {}; it must be {expected}", shown(given.get()));
    Problem::invalid(name, message)
}

/// A client's own words, cut where they are long.
pub(super) fn shown(given: &str) -> String {
    let end = given.floor_char_boundary(SHOWN);
    let dots = if end < given.len() { "…" } else { "" };
    format!("`{}{dots}`", &given[..end])
}

/// The parameters of a message or a tensor.
pub(super) fn parameters(given: Option<&RawValue>, name: &str) -> Result<Parameters, Problem> {
    let Some(given) = given else { return Ok(Parameters::new()) };
    let values: BTreeMap<String, &RawValue> = serde_json::from_str(given.get())
        .map_err(|_| wrong(name.to_owned(), given, "an object of JSON with a value for each name"))?;
    let read = |(key, value): (String, &RawValue)| match parameter(value.get()) {
        Some(parameter) => Ok((key, parameter)),
        None => Err(wrong(format!("{name}.{key}"), value, "true, false, a number or a text")),
    };
    values.into_iter().map(read).collect()
}

/// One value: numbers are read from their digits, so that none is changed.
fn parameter(text: &str) -> Option<Parameter> {
    match text.as_bytes().first()? {
        b'"' => serde_json::from_str(text).ok().map(Parameter::String),
        b't' | b'f' => text.parse().ok().map(Parameter::Bool),
        _ => {
            let whole = text.parse().map(Parameter::Int).or_else(|_| text.parse().map(Parameter::Uint));
            let double = || text.parse().ok().filter(|number: &f64| number.is_finite()).map(Parameter::Double);
            whole.ok().or_else(double)
        }
    }
}

/// Takes a parameter that says how tensors travel out of the others.
pub(super) fn take_form(parameters: &mut Parameters, key: &str, name: &str) -> Result<Option<Form>, Problem> {
    match parameters.remove(key) {
        None => Ok(None),
        Some(Parameter::Bool(binary)) => Ok(Some(binary.into())),
        Some(other) => Err(bad_parameter(name, key, &other, "true or false")),
    }
}

/// Takes a parameter that is a count out of the others.
pub(super) fn take_count(parameters: &mut Parameters, key: &str, name: &str) -> Result<Option<usize>, Problem> {
    let count = match parameters.remove(key) {
        None => return Ok(None),
        Some(Parameter::Int(count)) => usize::try_from(count).map_err(|_| Parameter::Int(count)),
        Some(other) => Err(other),
    };
    count.map(Some).map_err(|other| bad_parameter(name, key, &other, "a whole number, and not below 0"))
}

fn bad_parameter(name: &str, key: &str, given: &Parameter, expected: &str) -> Problem {
    let name = format!("{name}.{key}");
    let given = serde_json::to_string(given).unwrap_or_default();
    let message = format!("`{name}` is {}; it must be {expected}", shown(&given));
    Problem::invalid(name, message)
}

/// The name of a tensor; empty where there is none.
pub(super) fn name(item: &Item<'_>, place: Place) -> Result<String, Problem> {
    Ok(field(item.name, || place.field("name"), "a text")?.unwrap_or_default())
}
