//! A mistake in a text, with its line.

use std::fmt;

/// Mistakes that are shown of one file; who has made more will find them when these are mended.
const SHOWN: usize = 20;
/// Characters of a line that are shown.
const WIDEST: usize = 160;

/// Where something is in a text, counted from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
    /// Characters it takes; 0: it is not known, or nothing.
    pub(super) width: usize,
}

impl Place {
    pub(super) const START: Self = Self { line: 1, column: 1, width: 0 };
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) place: Place,
    pub(super) what: String,
    pub(super) expected: String,
}

/// Everything that is wrong with a file, as people read it: `file:line:column: what, expected what`, and the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Mistakes(String);

impl Mistakes {
    pub(super) fn new(name: &str, text: &str, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| mistake.place);
        let lines: Vec<&str> = text.lines().collect();
        let shown = mistakes.iter().take(SHOWN).map(|mistake| Shown { name, lines: &lines, mistake }.to_string());
        let mut shown: Vec<String> = shown.collect();
        if mistakes.len() > SHOWN {
            shown.push(format!("{name}: and {} more mistakes", mistakes.len() - SHOWN));
        }
        Self(shown.join("\n"))
    }
}

struct Shown<'a> {
    name: &'a str,
    lines: &'a [&'a str],
    mistake: &'a Mistake,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mistake { place: Place { line, column, width }, what, expected } = self.mistake;
        write!(f, "{}:{line}:{column}: {what}, expected {expected}", self.name)?;
        let Some(text) = line.checked_sub(1).and_then(|index| self.lines.get(index)) else { return Ok(()) };
        // Whatever would move the cursor would part the caret from what it points at.
        let plain = |char: char| if char.is_control() { ' ' } else { char };
        let shown: String = text.chars().take(WIDEST).map(plain).collect();
        let number = line.to_string();
        let before = column.saturating_sub(1);
        write!(f, "\n  {number} | {}", shown.trim_end())?;
        let left = shown.trim_end().chars().count().saturating_sub(before);
        if before <= WIDEST {
            let carets = (*width).clamp(1, left.max(1));
            write!(f, "\n  {:pad$} | {:before$}{}", "", "", "^".repeat(carets), pad = number.len())?;
        }
        Ok(())
    }
}
