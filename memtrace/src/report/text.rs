//! Text for terminals: escaping, shortening, colours, aligned tables.

use std::io::{self, Write};

use super::Style;

/// What stands for a quantity that is null.
pub const NOT_MEASURED: &str = "not measured";

/// A last column is never squeezed below this, however narrow the terminal.
const NARROWEST: usize = 12;

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tint {
    /// A heading.
    Strong,
    /// Secondary.
    Faint,
    /// Something is wrong.
    Bad,
}

impl Style {
    /// The text in colour, if colours are wanted.
    pub fn paint(&self, tint: Tint, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let code = match tint {
            Tint::Strong => "1",
            Tint::Faint => "2",
            Tint::Bad => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Names come from traced programs: whatever could steer a terminal or reorder a line is escaped.
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || steers_direction(c) {
            cleaned.extend(c.escape_default());
        } else {
            cleaned.push(c);
        }
    }
    cleaned
}

fn steers_direction(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Cuts the end off what is longer than `width`.
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// Cuts the beginning off: the end of a path says most.
pub fn shorten_path(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    ['…']
        .into_iter()
        .chain(text.chars().skip(length + 1 - width.max(1)))
        .collect()
}

/// With a capital at the beginning.
pub fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

/// The last component of a path.
pub fn base_name(path: &str) -> &str {
    path.rsplit('/')
        .find(|part| !part.is_empty())
        .unwrap_or(path)
}

/// How a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Words.
    Left(&'static str),
    /// Figures.
    Right(&'static str),
    /// Words; as the last column, cut at the end to fit.
    Name(&'static str),
    /// As [`Column::Name`], cut at the beginning.
    Path(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Column::Left(title)
            | Column::Right(title)
            | Column::Name(title)
            | Column::Path(title) => title,
        }
    }

    fn pad(self, text: &str, width: usize) -> String {
        match self {
            Column::Right(_) => format!("{text:>width$}"),
            _ => format!("{text:<width$}"),
        }
    }

    fn fit(self, text: &str, width: usize) -> String {
        match self {
            Column::Name(_) => shorten(text, width),
            Column::Path(_) => shorten_path(text, width),
            _ => text.to_owned(),
        }
    }
}

/// Aligned columns, two spaces apart. Cells must be [`clean`] already.
pub struct Table<'a> {
    columns: &'a [Column],
    rows: Vec<(Vec<String>, String)>,
}

impl<'a> Table<'a> {
    /// No rows yet. Where no column has a title there is no line of titles.
    pub fn new(columns: &'a [Column]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row, a cell per column.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push((cells.into(), String::new()));
    }

    /// Adds lines that follow the last row as they are.
    pub fn below(&mut self, lines: &str) {
        if let Some((_, below)) = self.rows.last_mut() {
            below.push_str(lines);
        }
    }

    /// Writes it, every line moved right by `indent`.
    pub fn render(&self, indent: usize, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|index| self.width(index))
            .collect();
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|column| column.title().to_owned())
            .collect();
        if titles.iter().any(|title| !title.is_empty()) {
            let line = self.line(indent, &titles, &widths, style.width);
            writeln!(out, "{}", style.paint(Tint::Faint, &line))?;
        }
        for (cells, below) in &self.rows {
            writeln!(out, "{}", self.line(indent, cells, &widths, style.width))?;
            out.write_all(below.as_bytes())?;
        }
        Ok(())
    }

    fn width(&self, column: usize) -> usize {
        let title = self.columns[column].title().chars().count();
        let cells = self.rows.iter().filter_map(|(cells, _)| cells.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .max(title)
    }

    fn line(&self, indent: usize, cells: &[String], widths: &[usize], limit: usize) -> String {
        let mut line = " ".repeat(indent);
        let last = self.columns.len().saturating_sub(1);
        let taken = indent
            + widths
                .iter()
                .take(last)
                .map(|width| width + 2)
                .sum::<usize>();
        for (index, (column, cell)) in self.columns.iter().zip(cells).enumerate() {
            if index == last {
                let cell = column.fit(cell, limit.saturating_sub(taken).max(NARROWEST));
                line.push_str(&column.pad(
                    &cell,
                    if matches!(column, Column::Right(_)) {
                        widths[index]
                    } else {
                        0
                    },
                ));
            } else {
                line.push_str(&column.pad(cell, widths[index]));
                line.push_str("  ");
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_steers_is_escaped() {
        assert_eq!(clean("naïve 日本 \u{1b}[0m\t"), "naïve 日本 \\u{1b}[0m\\t");
        assert_eq!(clean("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn shortened_at_the_right_end() {
        assert_eq!(shorten("function", 8), "function");
        assert_eq!(shorten("functions", 8), "functio…");
        assert_eq!(shorten_path("/usr/lib/libc.so", 9), "…/libc.so");
        assert_eq!(shorten_path("/usr", 0), "…");
        assert_eq!(base_name("/usr/lib/"), "lib");
        assert_eq!(base_name("/"), "/");
    }

    #[test]
    fn columns_line_up() {
        let columns = [
            Column::Right("Bytes"),
            Column::Left("Kind"),
            Column::Path("Path"),
        ];
        let mut table = Table::new(&columns);
        table.row(["1".into(), "ü".into(), "/a/very/long/path/to/a/file".into()]);
        table.below("    more\n");
        table.row(["1,000,000".into(), "anonymous".into(), String::new()]);
        let mut out = Vec::new();
        table
            .render(
                2,
                &Style {
                    width: 40,
                    ..Style::default()
                },
                &mut out,
            )
            .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            concat!(
                "      Bytes  Kind       Path\n",
                "          1  ü          …/path/to/a/file\n",
                "    more\n",
                "  1,000,000  anonymous\n",
            )
        );
    }

    #[test]
    fn colour_only_when_wanted() {
        let style = Style {
            color: true,
            ..Style::default()
        };
        assert_eq!(style.paint(Tint::Strong, "x"), "\x1b[1mx\x1b[0m");
        assert_eq!(Style::default().paint(Tint::Strong, "x"), "x");
    }
}
