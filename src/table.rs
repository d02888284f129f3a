//! Columns of text, and foreign names in them.

/// Columns two spaces apart, each line behind `margin`; the last is as long as it likes.
pub(crate) fn aligned<const N: usize>(margin: &str, rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{margin}{}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    rows.iter().map(|row| line(row) + "\n").collect()
}

/// A name that others gave, without anything that would steer a terminal.
pub(crate) fn plain(name: &str) -> String {
    name.chars().flat_map(|char| if char.is_control() { char.escape_unicode().collect() } else { vec![char] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_behind_the_margin() {
        let rows = [["a", "bb"], ["ccc", "d"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned("  ", &rows), "  a    bb\n  ccc  d\n");
    }

    #[test]
    fn a_name_steers_no_terminal() {
        assert_eq!(plain("w\u{1b}[2J\nü"), "w\\u{1b}[2J\\u{a}ü");
    }
}
