//! A code object: what a function is called, and which line an instruction is of.

use memtrace_common::python::{character_bytes, is_ascii};

use crate::event::SymbolFunction;

/// A code object, as it was when it was first met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// What words name it by.
    pub id: u64,
    name: Box<str>,
    file: Box<str>,
    first_line: u32,
    /// `co_linetable`, as far as it was told.
    lines: Box<[u8]>,
}

impl Code {
    /// From the parts that were told.
    pub fn new(id: u64, name: String, file: String, first_line: u32, lines: &[u8]) -> Self {
        Self {
            id,
            name: name.into(),
            file: file.into(),
            first_line,
            lines: lines.into(),
        }
    }

    /// The function, at an instruction as [`memtrace_common::frame::PythonFrame`] has it.
    pub fn function(&self, instruction: Option<u64>) -> SymbolFunction {
        let line = match instruction {
            None => None,
            Some(0) => Some(self.first_line),
            Some(at) => line(&self.lines, self.first_line, at - 1),
        };
        SymbolFunction {
            name: self.name.clone(),
            file: (!self.file.is_empty()).then(|| self.file.clone()),
            line,
        }
    }
}

/// The line of a code unit, by a table of locations (Objects/locations.md of CPython 3.11): each entry covers so many
/// units, and tells how far its line is from that of the one before. Some are of no line.
fn line(table: &[u8], first_line: u32, unit: u64) -> Option<u32> {
    const NONE: u8 = 15;
    const LONG: u8 = 14;
    const NO_COLUMNS: u8 = 13;
    const ONE_LINE: u8 = 10;
    let (mut line, mut covered) = (i64::from(first_line), 0);
    let mut entries = table.split(|byte| byte & 0x80 != 0);
    // What lies before the first entry's first byte is nothing.
    entries.next();
    let heads = table.iter().filter(|&&byte| byte & 0x80 != 0);
    for (head, rest) in heads.zip(entries) {
        let kind = head >> 3 & 15;
        line += match kind {
            LONG | NO_COLUMNS => signed(rest)?,
            ONE_LINE..NO_COLUMNS => i64::from(kind - ONE_LINE),
            _ => 0,
        };
        covered += u64::from(head & 7) + 1;
        if unit < covered {
            return (kind != NONE).then_some(u32::try_from(line).ok()).flatten();
        }
    }
    None
}

/// A number of six bits a byte, the lowest first; bit 6 says that more follow. Its lowest bit is the sign.
fn signed(bytes: &[u8]) -> Option<i64> {
    let mut number = 0u64;
    for (byte, shift) in bytes.iter().zip((0..60).step_by(6)) {
        number |= u64::from(byte & 63) << shift;
        if byte & 64 == 0 {
            let magnitude = (number >> 1) as i64;
            return Some(if number & 1 == 0 {
                magnitude
            } else {
                -magnitude
            });
        }
    }
    None
}

/// A string's characters, by its `state`.
pub fn text(state: u32, bytes: &[u8]) -> String {
    if is_ascii(state) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let size = character_bytes(state) as usize;
    if ![1, 2, 4].contains(&size) {
        return String::new();
    }
    let characters = bytes.chunks_exact(size).map(|character| {
        let number = character
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u32::from(byte));
        char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)
    });
    characters.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `def f(a):` on line 3, `b = [a]`, `return (b,` and `a)` below it: `co_linetable` and what `co_lines()` says, by
    /// CPython 3.11.2.
    #[test]
    fn lines_are_those_that_python_says() {
        let table = [
            128, 0, 216, 9, 10, 136, 3, 128, 65, 216, 12, 13, 216, 12, 13, 240, 3, 1, 12, 15, 240,
            0, 1, 5, 15,
        ];
        for (unit, expected) in (0..).zip([3, 4, 4, 4, 5, 6, 5, 5]) {
            assert_eq!(line(&table, 3, unit), Some(expected), "{unit}");
        }
        assert_eq!(line(&table, 3, 8), None);
        let code = Code::new(1, "f".into(), "/t.py".into(), 3, &table);
        let line_at = |instruction| code.function(instruction).line;
        assert_eq!(
            (line_at(Some(0)), line_at(Some(6)), line_at(None)),
            (Some(3), Some(6), None)
        );
    }

    #[test]
    fn damaged_tables_have_no_line() {
        assert_eq!(line(&[], 1, 0), None);
        assert_eq!(line(&[0xf0], 1, 0), None);
        assert_eq!(line(&[0xf0, 0x7f, 0x7f], 1, 0), None);
        assert_eq!(line(&[1, 2, 3], 1, 0), None);
        // A line below 0.
        assert_eq!(line(&[0xe8, 0x09], 1, 0), None);
    }

    #[test]
    fn strings_are_of_three_widths() {
        assert_eq!(text(1 << 6 | 1 << 2, b"main"), "main");
        assert_eq!(text(1 << 2, &[0x66, 0xfc, 0x72]), "für");
        assert_eq!(text(2 << 2, &[0xac, 0x20]), "€");
        assert_eq!(text(4 << 2, &[0x00, 0xf6, 0x01, 0x00]), "\u{1f600}");
        assert_eq!(text(3 << 2, b"abc"), "");
    }
}
