//! What goes to standard output: tables, JSON, lines. Owns making foreign text harmless and
//! writing without panicking on a broken pipe.

use crate::Failure;
use comfy_table::{ContentArrangement, Table, TableStyle};
use serde::Serialize;
use std::io::Write;

/// Writes text to standard output.
///
/// # Errors
/// Standard output takes no more.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::io("cannot write to standard output", &e))
}

/// Writes one JSON document and a newline to standard output.
///
/// # Errors
/// Standard output takes no more.
pub fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new("internal", crate::ExitCode::Failed, format!("cannot write JSON: {e}")))?;
    print(&format!("{text}\n"))
}

/// Writes one JSON document on one line.
pub(crate) fn print_json_line<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|e| Failure::new("internal", crate::ExitCode::Failed, format!("cannot write JSON: {e}")))?;
    print(&format!("{text}\n"))
}

/// A table without lines, so that `awk` and people can both read it.
pub(crate) fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| visible(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Replaces what a terminal would act on, or what would hide text, by a visible mark.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c }).collect()
}

/// The same for text of several lines.
pub(crate) fn visible_lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", visible(line))).collect()
}

/// Control characters, and the marks that reverse or hide text (UAX #9, UTS #55).
pub(crate) fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_hold_no_control_characters() {
        let rows =
            vec![vec!["agents-1".into(), "x".into()], vec!["a\x1b[2J".into(), "long one\u{202e}".into()]];
        let text = render(&["NAME", "STATE"], &rows);
        assert_eq!(text, "NAME      STATE\nagents-1  x\na\u{fffd}[2J     long one\u{fffd}\n");
    }
}
