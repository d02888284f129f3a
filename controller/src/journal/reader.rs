//! Reads a journal line by line, and believes nothing that does not fit.

use std::io::{BufRead, ErrorKind, Read as _};

use muster_shared::journal::{FORM, Header, Line};

/// Longest line, in bytes: ten thousand workers take two million.
const LONGEST: u64 = 64 << 20;

/// What is wrong with a journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct JournalError {
    /// Where, from 1.
    pub line: u64,
    /// What, what was expected, and what to do.
    pub message: String,
}

/// The lines of a journal after its first.
#[derive(Debug)]
pub(super) struct Reader<R> {
    input: R,
    /// The first line.
    pub(super) header: Header,
    /// Number of the last line that was read.
    pub(super) line: u64,
    pools: u64,
    steps: u64,
}

impl<R: BufRead> Reader<R> {
    /// Reads the first line.
    ///
    /// # Errors
    /// When it is not that of a journal that is understood.
    pub(super) fn new(mut input: R) -> Result<Self, JournalError> {
        let first = |message: String| JournalError { line: 1, message };
        let Some(text) = text(&mut input).map_err(first)? else {
            return Err(first("the journal is empty; `muster journal --output FILE` saves one".to_owned()));
        };
        let foreign = |detail: &dyn std::fmt::Display| {
            let message = format!("this is no journal of muster, which begins with {{\"journal\":…}}: {detail}");
            first(message)
        };
        // The form comes first: of another one, nothing else need be understood.
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| foreign(&described(&error)))?;
        let form = value.get("journal").and_then(|header| header.get("form")).and_then(serde_json::Value::as_u64);
        match form {
            None => return Err(foreign(&"`journal.form` is missing or no number")),
            Some(form) if form != u64::from(FORM) => {
                let message = format!("the journal is of form {form}, and this muster reads form {FORM} only");
                return Err(first(format!("{message}; take the muster that saved it")));
            }
            Some(_) => {}
        }
        match serde_json::from_str(&text) {
            Ok(Line::Journal(header)) => Ok(Self { input, header, line: 1, pools: 0, steps: 0 }),
            Ok(_) => Err(foreign(&"the first line is another one")),
            Err(error) => Err(foreign(&described(&error))),
        }
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// When it is not a line of a journal, is not expected there, or is missing.
    pub(super) fn next(&mut self) -> Result<Option<Line>, JournalError> {
        let (pools, steps) = (self.header.pools, self.header.kept.decisions);
        self.line += 1;
        let text = text(&mut self.input).map_err(|message| self.error(message))?;
        let Some(text) = text else {
            if self.pools == pools && self.steps == steps {
                return Ok(None);
            }
            self.line -= 1;
            let message = format!(
                "the journal ends here, with {} of {pools} models and {} of {steps} decisions: it was cut off; save it \
                 again with `muster journal --output FILE`",
                self.pools, self.steps
            );
            return Err(self.error(message));
        };
        let line = serde_json::from_str(&text).map_err(|error| self.error(described(&error)))?;
        match line {
            Line::Journal(_) => return Err(self.error("a second journal begins here; give one at a time".to_owned())),
            Line::Pool(_) => self.pools += 1,
            Line::Step(_) => self.steps += 1,
        }
        if self.pools > pools || self.steps > steps {
            return Err(
                self.error(format!("there is more than the {pools} models and {steps} decisions told of at first"))
            );
        }
        Ok(Some(line))
    }

    /// An error at the last line that was read.
    pub(super) fn error(&self, message: String) -> JournalError {
        JournalError { line: self.line, message }
    }
}

/// The text of a line without its end; `None` where there is none.
fn text(input: &mut impl BufRead) -> Result<Option<String>, String> {
    let mut text = String::new();
    match input.take(LONGEST).read_line(&mut text) {
        Ok(0) => Ok(None),
        Ok(bytes) if bytes as u64 == LONGEST => Err(format!("the line is longer than {LONGEST} bytes")),
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::InvalidData => Err("the line is no text in UTF-8".to_owned()),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// What is wrong with JSON, without the line number, which is always that of its own text.
fn described(error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "the line is cut off".to_owned();
    }
    let text = error.to_string();
    let (message, column) = (text.rsplit_once(" at line ").map_or(&*text, |(message, _)| message), error.column());
    format!("column {column}: {message}")
}
