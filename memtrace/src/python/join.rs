//! Python functions in the place of the interpreter's loop.

use memtrace_common::frame::{Found, Frame, INTERPRETER_LOOP, PythonFrame};

/// The frames as they are to be shown; `None` where nothing is Python's. Each call of the loop gives way to the
/// functions that ran in it, innermost first; one whose functions could not be read stays.
pub fn join(words: &[u64]) -> Option<Box<[u64]>> {
    let is_loop = |word: u64| {
        word & INTERPRETER_LOOP != 0
            && !matches!(Frame::of(word).found, Found::Kernel | Found::Python)
    };
    let first = words
        .iter()
        .position(|&word| PythonFrame::of(word).is_some());
    let (native, functions) = words.split_at(first.unwrap_or(words.len()));
    if functions.is_empty() && !native.iter().any(|&word| is_loop(word)) {
        return None;
    }
    let mut calls = functions
        .split_inclusive(|&word| PythonFrame::of(word).is_some_and(|function| function.entry));
    let mut joined = Vec::with_capacity(words.len());
    for &word in native {
        if !is_loop(word) {
            joined.push(word);
            continue;
        }
        match calls.next() {
            Some(call) => joined.extend(
                call.iter()
                    .map(|&word| memtrace_common::frame::named_by(word)),
            ),
            None => joined.push(word & !INTERPRETER_LOOP),
        }
    }
    Some(joined.into())
}

#[cfg(test)]
mod tests {
    use memtrace_common::frame::{interrupted, python};

    use super::*;

    #[test]
    fn functions_take_the_place_of_the_calls_they_ran_in() {
        let (a, b, c) = (
            python(1, 1, false),
            python(2, 1, false),
            python(3, 1, false),
        );
        let entry = |word: u64| word | memtrace_common::frame::PYTHON_ENTRY;
        let of_loop = |word: u64| word | INTERPRETER_LOOP;
        let words = [
            0x10,
            of_loop(0x20),
            0x30,
            of_loop(0x40),
            0x50,
            a,
            entry(b),
            entry(c),
        ];
        assert_eq!(
            join(&words).as_deref(),
            Some(&[0x10, a, b, 0x30, c, 0x50][..])
        );
        // What could not be read leaves the loop's own frame.
        assert_eq!(
            join(&words[..7]).as_deref(),
            Some(&[0x10, a, b, 0x30, 0x40, 0x50][..])
        );
        assert_eq!(
            join(&words[..5]).as_deref(),
            Some(&[0x10, 0x20, 0x30, 0x40, 0x50][..])
        );
        let kernel = 0xffff_ffff_8123_4567;
        assert_eq!(join(&[interrupted(kernel), kernel, 0x10]), None);
        assert_eq!(join(&[]), None);
    }
}
