//! Which mapped file is a CPython, of which version, and where its state is.

use std::{collections::HashMap, fs::File};

use memtrace_common::python::{
    BYTES_DATA, CODE, CODE_FILE, CODE_LINES, CODE_NAME, FRAME, FRAME_FLAGS, FRAME_INSTRUCTION,
    INTERPRETER_LOCK_3_13, OBJECT_SIZE, Series, THREAD_FRAME, instructions,
};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, ReadCache};

use crate::{
    event::Pid,
    stack::{module::places, symbolize::Mapping},
};

/// What was found in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// A CPython that frames are read of: address of `_PyRuntime` in the file, less that of the mapping's first byte.
    Runtime(Series, u64),
    /// Another CPython, its `Py_Version`; 0 before 3.11, which has none.
    Other(u64),
    /// One of a known version, built so that its frames are elsewhere.
    Differs(u64),
}

/// A file and where it is mapped from: path, build ID and offset.
type Key = (Box<str>, Box<[u8]>, u64);

/// What is known of the files that may be an interpreter.
#[derive(Default)]
pub struct Interpreters {
    known: HashMap<Key, Option<Found>>,
    /// Not told yet.
    unsupported: Vec<(String, String)>,
}

impl Interpreters {
    /// What the frames of the CPython that a process has mapped are found by, [`Series::place`]; 0 where that is none,
    /// or one that frames are not read of.
    pub fn thread_state(&mut self, pid: Pid, mapping: &Mapping) -> u64 {
        let name = base_name(&mapping.path);
        if !name.starts_with("python3") && !name.starts_with("libpython3") {
            return 0;
        }
        let key = (
            mapping.path.clone(),
            mapping.build_id.clone(),
            mapping.offset,
        );
        let found = match self.known.get(&key) {
            Some(found) => *found,
            None => {
                let found = places(Some(pid), mapping)
                    .iter()
                    .filter_map(|path| File::open(path).ok())
                    .find_map(|file| look_at(&file, mapping.offset));
                if let Some(Found::Other(version) | Found::Differs(version)) = found {
                    let differs = matches!(found, Some(Found::Differs(_)));
                    let told = unsupported(&mapping.path, version, differs);
                    self.unsupported.push(told);
                }
                self.known.insert(key, found);
                found
            }
        };
        match found {
            Some(Found::Runtime(series, distance)) => {
                series.place(mapping.start.wrapping_add(distance))
            }
            _ => 0,
        }
    }

    /// What frames are not read of, and why, since the last call.
    pub fn take_unsupported(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.unsupported)
    }
}

/// The last component of a path.
fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn unsupported(path: &str, version: u64, differs: bool) -> (String, String) {
    let (major, minor) = (version >> 24, version >> 16 & 0xff);
    let which = if version == 0 {
        "a CPython before 3.11".to_owned()
    } else {
        format!("CPython {major}.{minor}")
    };
    let reason = if differs {
        format!("{path} is {which} built otherwise (free-threaded, or for debugging)")
    } else {
        format!("{path} is {which}: frames are read of CPython 3.11, 3.12 and 3.13 alone")
    };
    (format!("Python frames of {}", base_name(path)), reason)
}

fn look_at(file: &File, offset: u64) -> Option<Found> {
    let cache = ReadCache::new(file.try_clone().ok()?);
    let file = object::File::parse(&cache).ok()?;
    let address = |name: &str| {
        let symbols = file.dynamic_symbols().chain(file.symbols());
        let named = symbols.filter(|symbol| symbol.name() == Ok(name) && !symbol.is_undefined());
        named.map(|symbol| symbol.address()).next()
    };
    // A program that is linked to the library has neither.
    let runtime = address("_PyRuntime")?;
    let word = |at: u64| {
        let mut data = file
            .segments()
            .filter_map(|segment| segment.data_range(at, 8).ok()?);
        let bytes = data.next().and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes)
    };
    let version = address("Py_Version").and_then(word).unwrap_or(0);
    let Some(series) = Series::of(version) else {
        return Some(Found::Other(version));
    };
    if series == Series::V3_13 && !is_as_usual(|at| word(runtime.wrapping_add(at))) {
        return Some(Found::Differs(version));
    }
    let holds = |segment: &object::Segment<'_, '_, _>| {
        let (start, length) = segment.file_range();
        offset.wrapping_sub(start) < length
    };
    let segment = file.segments().find(holds)?;
    let mapped = segment
        .address()
        .wrapping_add(offset - segment.file_range().0);
    Some(Found::Runtime(series, runtime.wrapping_sub(mapped)))
}

/// Whether a CPython 3.13 has everything where it is expected, by what it tells of itself at the beginning of
/// `_PyRuntime` (`_Py_DebugOffsets`, Include/internal/pycore_runtime.h).
fn is_as_usual(word: impl Fn(u64) -> Option<u64>) -> bool {
    const COOKIE: u64 = u64::from_le_bytes(*b"xdebugpy");
    let expected = [
        (0, COOKIE),
        // free_threaded
        (16, 0),
        // interpreter_state.ceval_gil, thread_state.current_frame
        (112, INTERPRETER_LOCK_3_13),
        (184, THREAD_FRAME),
        // interpreter_frame.previous, .executable, .instr_ptr and .owner
        (232, 8 * FRAME.1 as u64),
        (240, 8 * FRAME.0 as u64),
        (248, 8 * FRAME_INSTRUCTION as u64),
        (264, 8 * FRAME_FLAGS as u64 + 6),
        // code_object.filename, .qualname, .linetable, .firstlineno and .co_code_adaptive
        (280, CODE + 8 * CODE_FILE as u64),
        (296, CODE + 8 * CODE_NAME as u64),
        (304, CODE + 8 * CODE_LINES as u64),
        (312, CODE + 4),
        (344, instructions(Series::V3_13 as u64)),
        // bytes_object.ob_sval; unicode_object.state, .length and .asciiobject_size
        (528, BYTES_DATA),
        (544, OBJECT_SIZE + 16),
        (552, OBJECT_SIZE),
        (560, 40),
    ];
    expected
        .iter()
        .all(|&(at, expected)| word(at) == Some(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_are_named() {
        let (name, reason) = unsupported("/usr/bin/python3.14", 0x030e_00f0, false);
        assert_eq!(name, "Python frames of python3.14");
        assert_eq!(
            reason,
            "/usr/bin/python3.14 is CPython 3.14: frames are read of CPython 3.11, 3.12 and 3.13 alone"
        );
        let (_, reason) = unsupported("/usr/bin/python3.9", 0, false);
        assert!(reason.contains("a CPython before 3.11"), "{reason}");
        let (_, reason) = unsupported("/usr/bin/python3.13t", 0x030d_00f0, true);
        assert!(reason.contains("CPython 3.13 built otherwise"), "{reason}");
    }

    #[test]
    fn a_file_that_is_no_interpreter_has_no_state() {
        let own = File::open("/proc/self/exe").unwrap();
        assert_eq!(look_at(&own, 0), None);
        let text = File::open(file!().trim_start_matches("memtrace/")).unwrap();
        assert_eq!(look_at(&text, 0), None);
    }
}
