//! Looks at values, and notes what is wrong with them.

use super::mistake::{Mistake, Place};
use super::tree::{Node, Value, shortened};

/// How many letters a key may be away from a legal one to be taken for it.
const NEAR: usize = 2;

/// What was found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) mistakes: Vec<Mistake>,
}

/// The values of a map, by their keys.
#[derive(Debug)]
pub(super) struct Fields<'a>(Vec<(&'a str, &'a Node)>);

impl<'a> Fields<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, node)| *node)
    }
}

impl Reader {
    pub(super) fn complain(&mut self, place: Place, what: impl Into<String>, expected: impl Into<String>) {
        self.mistakes.push(Mistake { place, what: what.into(), expected: expected.into() });
    }

    /// A map with no other keys than the legal ones.
    pub(super) fn map<'a>(&mut self, node: &'a Node, what: &str, legal: &[&str]) -> Option<Fields<'a>> {
        let Value::Map(entries) = &node.value else {
            let expected = format!("a map with the keys {}", legal.join(", "));
            self.complain(node.place, format!("{what} is {}", node.value.words()), expected);
            return None;
        };
        let mut fields = Vec::new();
        for (key, value) in entries {
            match &key.value {
                Value::Text(name) if legal.contains(&name.as_str()) => fields.push((name.as_str(), value)),
                Value::Text(name) => {
                    let hint = nearest(name, legal).map(|near| format!("; is it `{near}`?")).unwrap_or_default();
                    let name = shortened(name);
                    self.complain(key.place, format!("unknown key {name:?}"), format!("{}{hint}", one_of(legal)));
                }
                other => self.complain(key.place, format!("a key is {}", other.words()), one_of(legal)),
            }
        }
        Some(Fields(fields))
    }

    /// A text, quoted or not. What YAML takes for a number must be quoted.
    pub(super) fn text<'a>(&mut self, node: &'a Node, what: &str, expected: &str) -> Option<&'a str> {
        if let Value::Text(text) = &node.value {
            return Some(text);
        }
        let hint = match node.value {
            Value::Whole(_) | Value::Number(_) | Value::Switch(_) => "; put quotes around it to make it a text",
            _ => "",
        };
        self.complain(node.place, format!("{what} is {}", node.value.words()), format!("{expected}{hint}"));
        None
    }

    /// A number above 0, up to `most`.
    pub(super) fn amount(&mut self, node: &Node, what: &str, most: f64) -> Option<f64> {
        let number = match node.value {
            Value::Whole(number) => Some(number as f64),
            Value::Number(number) => Some(number),
            _ => None,
        };
        if let Some(number) = number.filter(|&number| number > 0.0 && number <= most) {
            return Some(number);
        }
        self.complain(
            node.place,
            format!("{what} is {}", node.value.words()),
            format!("a number above 0, up to {most}"),
        );
        None
    }

    /// A whole number of a range.
    pub(super) fn whole(&mut self, node: &Node, what: &str, least: u32, most: u32) -> Option<u32> {
        let number = match node.value {
            Value::Whole(number) => u32::try_from(number).ok(),
            _ => None,
        };
        if let Some(number) = number.filter(|number| (least..=most).contains(number)) {
            return Some(number);
        }
        let expected = format!("a whole number from {least} to {most}");
        self.complain(node.place, format!("{what} is {}", node.value.words()), expected);
        None
    }
}

/// Names in a sentence.
pub(super) fn one_of(names: &[&str]) -> String {
    match names {
        [only] => format!("`{only}`"),
        _ => format!("one of {}", names.join(", ")),
    }
}

/// The legal name that was probably meant.
fn nearest<'a>(name: &str, legal: &[&'a str]) -> Option<&'a str> {
    if name.len() > 64 {
        return None; // no slip of a finger, and dear to compare
    }
    let distance = |other: &str| strsim::damerau_levenshtein(&name.to_lowercase(), other);
    let near = legal.iter().map(|&other| (distance(other), other)).min()?;
    (near.0 <= NEAR && near.0 < near.1.len()).then_some(near.1)
}
