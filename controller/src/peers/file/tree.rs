//! YAML as a tree in which every value knows its place.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{MessageFormatter as _, Spanned, UserMessageFormatter};

use super::mistake::{Mistake, Place};

/// How deep values may be in each other; a peers file needs six.
const DEEPEST: usize = 16;
/// Most values of a file: tens of thousands of peers.
const MOST: usize = 2_000_000;

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What YAML can say.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Nothing,
    Switch(bool),
    Whole(i128),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Value {
    /// What it is, in words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Nothing => "empty".to_owned(),
            Self::Switch(switch) => format!("the switch {switch}"),
            Self::Whole(number) => format!("the number {number}"),
            Self::Number(number) => format!("the number {number}"),
            Self::Text(text) => format!("the text {:?}", shortened(text)),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
        }
    }
}

/// A text that fits into a message.
pub(super) fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Reads a text.
pub(super) fn read(text: &str) -> Result<Node, Mistake> {
    let expected = "`peers:` and a list (`peers: []` for none)";
    let is_comment = |line: &str| line.trim_start().starts_with('#') || line.trim().is_empty();
    if text.trim_start_matches('\u{feff}').lines().all(is_comment) {
        return Err(Mistake {
            place: Place::START,
            what: "the file is empty".to_owned(),
            expected: expected.to_owned(),
        });
    }
    let options = serde_saphyr::options! {
        with_snippet: false,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::PassThrough, // whoever wants a number says which
        budget: serde_saphyr::budget! { max_depth: DEEPEST, max_nodes: MOST, max_events: 2 * MOST },
    };
    serde_saphyr::from_str_with_options::<Spanned<Value>>(text, options).map(Node::from).map_err(|error| {
        let place = error.location().map_or(Place::START, |location| place_of(&location));
        broken(text, place, &UserMessageFormatter.format_message(&error))
    })
}

/// A text that is no YAML. What libraries say of tabs is seldom that there is one.
fn broken(text: &str, place: Place, message: &str) -> Mistake {
    let indent = |line: &str| line.chars().take_while(|char| char.is_whitespace()).position(|char| char == '\t');
    let near = text.lines().enumerate().skip(place.line.saturating_sub(2)).take(3);
    let tab = near.filter_map(|(index, line)| Some((index + 1, indent(line)? + 1))).last();
    match tab {
        Some((line, column)) => Mistake {
            place: Place { line, column, width: 1 },
            what: "a tab at the beginning of a line".to_owned(),
            expected: "spaces: YAML takes no others there".to_owned(),
        },
        None => {
            let expected = if message.starts_with("duplicate") { "each key once" } else { "YAML" };
            Mistake { place, what: message.to_owned(), expected: expected.to_owned() }
        }
    }
}

fn place_of(location: &serde_saphyr::Location) -> Place {
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Place {
        line: number(location.line()).max(1),
        column: number(location.column()).max(1),
        width: number(location.span().len()),
    }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        let place = place_of(&spanned.referenced);
        // What is in brackets or on lines of its own is pointed at by its beginning.
        let width = if matches!(spanned.value, Value::List(_) | Value::Map(_)) { 0 } else { place.width };
        Self { place: Place { width, ..place }, value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, switch: bool) -> Result<Value, E> {
        Ok(Value::Switch(switch))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Whole(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Whole(number.into()))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Value, E> {
        Ok(Value::Whole(number))
    }

    fn visit_u128<E>(self, number: u128) -> Result<Value, E> {
        Ok(Value::Whole(i128::try_from(number).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element::<Spanned<Value>>()? {
            list.push(value.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = access.next_entry::<Spanned<Value>, Spanned<Value>>()? {
            map.push((key.into(), value.into()));
        }
        Ok(Value::Map(map))
    }
}
