//! The fields of a message, each taken by whoever knows it; what nobody takes is unknown.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::{Field, Message, TensorConfig, Value, triton_name};

/// Fields of Triton's that say how a server shall work, and not what a model is: to leave them out harms nobody.
const WITHOUT_EFFECT: [&str; 7] = [
    "optimization",
    "reshape",
    "model_warmup",
    "response_cache",
    "model_transaction_policy",
    "default_priority_level",
    "priority_levels",
];

/// The fields of a message.
pub(super) struct Fields<'a> {
    message: &'a Message,
    known: BTreeSet<&'a str>,
    /// Where this message is: `input.`, say.
    path: String,
    /// Unknown fields of messages within, and those without effect, with their lines.
    unknown: Vec<String>,
    ignored: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a Message) -> Self {
        Self { message, known: BTreeSet::new(), path: String::new(), unknown: Vec::new(), ignored: Vec::new() }
    }

    fn within(&self, name: &str, message: &'a Message) -> Self {
        Self { path: format!("{}{name}.", self.path), ..Self::new(message) }
    }

    fn of(&mut self, name: &str) -> impl Iterator<Item = &'a Field> + use<'a> {
        let message = self.message;
        let fields: Vec<&Field> = message.0.iter().filter(|field| field.name == name).collect();
        self.known.extend(fields.first().map(|field| field.name.as_str()));
        fields.into_iter()
    }

    fn wrong(&self, field: &Field, expected: &str) -> String {
        format!("line {}: {}{} is not {expected}", field.line, self.path, field.name)
    }

    /// A text; the last one counts, as protobuf wants it.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(field) = self.of(name).last() else { return Ok(None) };
        match &field.value {
            Value::Text(text) => {
                let text = String::from_utf8(text.clone()).map_err(|_| self.wrong(field, "UTF-8"))?;
                Ok(Some(text))
            }
            _ => Err(self.wrong(field, "a text in quotes")),
        }
    }

    /// A word without quotes.
    pub(super) fn word(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(field) = self.of(name).last() else { return Ok(None) };
        match &field.value {
            Value::Word(word) => Ok(Some(word.clone())),
            _ => Err(self.wrong(field, "a word without quotes")),
        }
    }

    /// A number.
    pub(super) fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, String> {
        Ok(self.numbers(name)?.pop())
    }

    /// Numbers.
    pub(super) fn numbers<T: FromStr>(&mut self, name: &str) -> Result<Vec<T>, String> {
        let fields: Vec<&Field> = self.of(name).collect();
        let number = |field: &&Field| match &field.value {
            Value::Word(word) => word.parse().map_err(|_| self.wrong(field, "a whole number of its range")),
            _ => Err(self.wrong(field, "a number")),
        };
        fields.iter().map(number).collect()
    }

    /// A message; the last one counts.
    pub(super) fn message(&mut self, name: &str) -> Result<Option<Self>, String> {
        let Some(field) = self.of(name).last() else { return Ok(None) };
        match &field.value {
            Value::Message(message) => Ok(Some(self.within(name, message))),
            _ => Err(self.wrong(field, "a message in braces")),
        }
    }

    /// Every message of that name.
    pub(super) fn each<T>(
        &mut self,
        name: &str,
        read: impl Fn(&mut Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let mut all = Vec::new();
        for field in self.of(name) {
            let Value::Message(message) = &field.value else { return Err(self.wrong(field, "a message in braces")) };
            let mut fields = self.within(name, message);
            let value = read(&mut fields).map_err(|reason| located(field.line, reason))?;
            all.push(self.nested(value, fields));
        }
        Ok(all)
    }

    /// Inputs or outputs.
    pub(super) fn tensors(&mut self, name: &str) -> Result<Vec<TensorConfig>, String> {
        self.each(name, |fields| {
            let name = fields.text("name")?.unwrap_or_default();
            let kind = fields.word("data_type")?.unwrap_or_default();
            let data_type = triton_name::parse(&kind)
                .ok_or_else(|| format!("data_type of `{name}` is `{kind}`; expected one like TYPE_FP32"))?;
            let dims: Vec<i64> = fields.numbers("dims")?;
            if let Some(size) = dims.iter().find(|&&size| size < -1) {
                return Err(format!("dims of `{name}` hold {size}; expected sizes, and -1 for what a run decides"));
            }
            let label_filename = fields.text("label_filename")?.unwrap_or_default();
            let _ = fields.of("format"); // says how pictures lie in a tensor, which only a client needs to know
            Ok(TensorConfig { name, data_type, dims, label_filename })
        })
    }

    /// Remembers what nobody knew in a message that was read; gives what it became.
    pub(super) fn nested<T>(&mut self, value: T, mut fields: Self) -> T {
        let unknown = fields.unknown_fields();
        self.unknown.extend(unknown);
        self.ignored.append(&mut fields.ignored);
        value
    }

    fn unknown_fields(&mut self) -> Vec<String> {
        let mut unknown = std::mem::take(&mut self.unknown);
        for field in self.message.0.iter().filter(|field| !self.known.contains(field.name.as_str())) {
            let place = format!("{}{} (line {})", self.path, field.name, field.line);
            let list = if WITHOUT_EFFECT.contains(&field.name.as_str()) { &mut self.ignored } else { &mut unknown };
            list.push(place);
        }
        unknown
    }

    /// The warning about what nobody knew, if anything was unknown.
    pub(super) fn done(&mut self) -> Vec<String> {
        let unknown = self.unknown_fields();
        if unknown.is_empty() { Vec::new() } else { vec![format!("unknown fields: {}", unknown.join(", "))] }
    }

    /// Fields that are known and have no effect, with their lines.
    pub(super) fn ignored(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ignored)
    }
}

fn located(line: usize, reason: String) -> String {
    if reason.starts_with("line ") { reason } else { format!("line {line}: {reason}") }
}
