//! Prints measurements as they come: a table for people, or one JSON object a line.

use serde::Serialize;

use crate::services::say;

/// Narrowest column.
const WIDTH: usize = 9;

/// A measurement that can be printed.
pub(super) trait Record: Serialize {
    /// What it is, in JSON and above its table.
    const KIND: &str;
    /// Heads of the columns.
    const COLUMNS: &[&str];
    /// One cell for each column.
    fn cells(&self) -> Vec<String>;
}

/// Where measurements go.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
    /// The table that has been begun.
    table: Option<&'static str>,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self { json, table: None }
    }

    /// Prints one measurement.
    pub(super) fn add<R: Record>(&mut self, record: &R) -> anyhow::Result<()> {
        if self.json {
            say(&serde_json::to_string(&Tagged { kind: R::KIND, record })?);
            return Ok(());
        }
        if self.table != Some(R::KIND) {
            let gap = if self.table.is_some() { "\n" } else { "" };
            self.table = Some(R::KIND);
            say(&format!("{gap}{}", line(R::COLUMNS, R::COLUMNS.iter().map(ToString::to_string))));
        }
        say(&line(R::COLUMNS, record.cells()));
        Ok(())
    }
}

#[derive(Serialize)]
struct Tagged<'a, R> {
    kind: &'static str,
    #[serde(flatten)]
    record: &'a R,
}

/// Cells under their heads, to the right.
fn line(heads: &[&str], cells: impl IntoIterator<Item = String>) -> String {
    let width = |head: &&str| head.chars().count().max(WIDTH);
    let cells = heads.iter().zip(cells).map(|(head, cell)| format!("{cell:>width$}", width = width(head)));
    cells.collect::<Vec<_>>().join("  ")
}

/// A number, or a dash where there is none.
pub(super) fn cell(number: Option<f64>) -> String {
    number.map_or("-".to_owned(), |number| format!("{number:.1}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_under_their_heads() {
        let heads = ["A", "A LONGER HEAD"];
        let rows = [line(&heads, heads.map(str::to_owned)), line(&heads, [cell(Some(1.25)), cell(None)])];
        assert_eq!(rows[0], "        A  A LONGER HEAD");
        assert_eq!(rows[1], "      1.2              -");
    }
}
