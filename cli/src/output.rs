//! Standard output: tables and fields for people, JSON for scripts.
//!
//! A reader that goes away (`lunette volume list | head -1`) ends the program quietly, as it ends
//! every other tool; nothing here panics on a closed pipe.

use std::io::{self, ErrorKind, Write};
use std::process;

use serde_json::Value;

use crate::failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    pub(crate) fn new(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }

    /// Prints one result: `text` as it is, or `json`.
    pub(crate) fn print(self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        match self {
            Self::Text => print(&text()),
            Self::Json => print(&format!("{:#}\n", json())),
        }
    }

    /// Prints a result of a command whose success says enough without `--json`.
    pub(crate) fn print_json_only(self, json: impl FnOnce() -> Value) {
        self.print(String::new, json);
    }
}

/// Writes to standard output; ends the program if nobody reads it any more.
pub(crate) fn print(text: &str) {
    if let Err(error) = try_print(text) {
        if error.kind() == ErrorKind::BrokenPipe {
            process::exit(0);
        }
        failure::complain(&format!("standard output cannot be written: {error}"));
        process::exit(1);
    }
}

/// Writes to standard output, for a server that goes on also if nobody reads it.
pub(crate) fn try_print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Rows under headings, in aligned columns.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// Headings; one that begins with `>` is of a column of numbers, which is aligned to the right.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let right = headings.iter().map(|heading| heading.starts_with('>')).collect();
        let first = headings.iter().map(|heading| heading.trim_start_matches('>').to_owned()).collect();
        Self { rows: vec![first], right }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.right.len(), "as many cells as headings");
        // An empty cell would shift the columns for `awk`.
        let cell = |text: String| if text.is_empty() { "-".to_owned() } else { printable(&text) };
        self.rows.push(cells.into_iter().map(cell).collect());
    }

    pub(crate) fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                if *right {
                    line.push_str(&pad);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&pad);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `name: value` lines with aligned values.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (name, value) in fields {
        let value = if value.is_empty() { "-" } else { value };
        text.push_str(&format!("{:width$} {}\n", format!("{name}:"), printable(value)));
    }
    text
}

/// Control characters would let an initiator's name rewrite the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `yes` or `no`.
pub(crate) fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_cell_is_empty() {
        // Guards against listings that `awk '{print $3}'` reads wrongly.
        let mut table = Table::new(&["NAME", ">SIZE", "OWNER"]);
        table.row(["a".into(), "10GiB".into(), "gateway1".into()]);
        table.row(["longer".into(), "1KiB".into(), String::new()]);
        assert_eq!(table.text(), "NAME     SIZE  OWNER\na       10GiB  gateway1\nlonger   1KiB  -\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        // Guards against an initiator whose name contains escape sequences.
        let mut table = Table::new(&["A"]);
        table.row(["x\u{1b}[2J\ny".into()]);
        assert_eq!(table.text(), "A\nx\u{fffd}[2J\u{fffd}y\n");
        assert_eq!(fields(&[("ab", "c\u{7}".into()), ("a", String::new())]), "ab: c\u{fffd}\na:  -\n");
    }
}
