//! Tables for people: columns as wide as what is in them.

use std::io::Write;

use crate::settings::Span;

/// Prints a table. Nothing after the last column, so that lines are no longer than they must be.
pub fn write<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let rows: Vec<_> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// The largest unit says enough: `23h`, not `23h59m41s`.
pub fn coarse(span: Span) -> String {
    let text = span.to_string();
    let end = text.find(|c: char| c.is_ascii_alphabetic()).map_or(text.len(), |at| at + 1);
    text[..end].to_owned()
}
