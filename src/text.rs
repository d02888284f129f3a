//! Words of others in a terminal: nothing in them moves the cursor, and columns line up.

use std::borrow::Cow;
use std::io::IsTerminal as _;

/// Longest name in a column, in characters, on a terminal.
const LONGEST: usize = 40;
/// The same on one with fewer columns than [`WIDE`].
const SHORTER: usize = 24;
const WIDE: usize = 100;
/// Rows of a terminal that does not say, and of a lower one.
const ROWS: usize = 8;
/// Narrowest terminal for which lines are cut.
const NARROWEST: usize = 40;

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// As much as is needed: a program reads it.
    Any,
    /// A terminal of so many columns.
    Columns(usize),
}

impl Room {
    /// That of standard output.
    pub(crate) fn of_terminal() -> Self {
        let out = std::io::stdout();
        if !out.is_terminal() {
            return Self::Any;
        }
        let columns = rustix::termios::tcgetwinsize(out).map_or(0, |size| usize::from(size.ws_col));
        Self::Columns(if columns < NARROWEST { 80 } else { columns })
    }

    /// A name as it fits into a column.
    fn name(self, name: &str) -> Cow<'_, str> {
        match self {
            Self::Any => Cow::Borrowed(name),
            Self::Columns(columns) => cut(name, if columns < WIDE { SHORTER } else { LONGEST }),
        }
    }

    /// A line as it fits.
    pub(crate) fn line(self, line: &str) -> Cow<'_, str> {
        match self {
            Self::Any => Cow::Borrowed(line),
            Self::Columns(columns) => cut(line, columns),
        }
    }
}

/// Rows of the terminal.
pub(crate) fn rows() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| usize::from(size.ws_row)).max(ROWS)
}

fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most.saturating_sub(1)) {
        Some((at, last)) if at + last.len_utf8() < text.len() => Cow::Owned(format!("{}…", &text[..at])),
        _ => Cow::Borrowed(text),
    }
}

/// A text of others as it is shown: what would be a command to the terminal, or turn the order of letters around, is
/// spelled out.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let spelled = |letter: char| -> String {
        if is_hidden(letter) { letter.escape_default().to_string() } else { letter.to_string() }
    };
    Cow::Owned(text.chars().map(spelled).collect())
}

fn is_hidden(letter: char) -> bool {
    // Marks and overrides of direction, separators of lines, joiners, and the mark of a byte order.
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Lines, each behind two spaces.
pub(crate) fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}\n")).collect()
}

/// Rows with their columns two spaces apart; the last is as long as it likes, unless the line is too long.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]], room: Room) -> String {
    let cells: Vec<[String; N]> = rows
        .iter()
        .map(|row| {
            std::array::from_fn(|column| {
                let cell = shown(&row[column]);
                if column + 1 == N { cell.into_owned() } else { room.name(&cell).into_owned() }
            })
        })
        .collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let padded = row.iter().zip(widths).filter(|(_, width)| *width > 0);
        let padded: Vec<String> = padded.map(|(cell, width)| format!("{cell:width$}")).collect();
        room.line(padded.join("  ").trim_end()).into_owned()
    };
    cells.iter().map(|row| line(row) + "\n").collect()
}

/// `1 request`, `2 requests`.
pub(crate) fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A time in its two largest units: `2m 5s`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    let units = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let told = units.iter().skip(first).take(2).filter(|(count, unit)| *count > 0 || (*unit == "s" && first == 3));
    told.map(|(count, unit)| format!("{count}{unit}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_line_up_and_empty_ones_are_left_out() {
        let rows = [["a", "", "bb"], ["ccc", "", "d"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows, Room::Any), "a    bb\nccc  d\n");
    }

    #[test]
    fn a_long_name_is_cut_on_a_terminal_only() {
        let rows = [["n".repeat(60), "x".repeat(60)]];
        assert_eq!(aligned(&rows, Room::Any).trim_end().len(), 122);
        for (columns, name) in [(80, 24), (100, 40)] {
            let line = aligned(&rows, Room::Columns(columns));
            assert_eq!(line.trim_end().chars().count(), (name + 2 + 60).min(columns));
            assert!(line.starts_with(&format!("{}…  x", "n".repeat(name - 1))), "{line}");
        }
        assert_eq!(cut("abc", 3), "abc");
    }

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
        assert_eq!(shown("\u{1b}[2J\u{202e}\n<b>ä</b>"), "\\u{1b}[2J\\u{202e}\\n<b>ä</b>");
    }

    #[test]
    fn a_time_is_told_in_its_largest_units() {
        for (ms, text) in [(0, "0s"), (999, "0s"), (61_000, "1m 1s"), (3_600_000, "1h"), (90_061_000, "1d 1h")] {
            assert_eq!(span(ms), text);
        }
    }

    proptest! {
        #[test]
        fn no_name_moves_the_cursor_or_breaks_a_line(name in any::<String>(), columns in 40_usize..200) {
            let text = aligned(&[[name.clone(), name]], Room::Columns(columns));
            prop_assert!(!text.trim_end_matches('\n').contains(char::is_control));
            prop_assert!(text.trim_end_matches('\n').chars().count() <= columns);
        }
    }
}
