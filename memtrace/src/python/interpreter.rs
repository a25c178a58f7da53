//! Which mapped file is a CPython, of which version, and where its state is.

use std::{collections::HashMap, fs::File};

use memtrace_common::python::{RUNTIME_THREAD, SERIES};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, ReadCache};

use crate::{
    event::Pid,
    stack::{module::places, symbolize::Mapping},
};

/// What was found in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// A CPython that frames are read of: address of `_PyRuntime` in the file, less that of the mapping's first byte.
    Runtime(u64),
    /// Another CPython, its `Py_Version`; 0 before 3.11, which has none.
    Other(u64),
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
    /// Where the CPython that a process has mapped keeps the thread that holds its lock; 0 where that is none, or one
    /// that frames are not read of.
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
                if let Some(Found::Other(version)) = found {
                    self.unsupported.push(unsupported(&mapping.path, version));
                }
                self.known.insert(key, found);
                found
            }
        };
        match found {
            Some(Found::Runtime(distance)) => mapping
                .start
                .wrapping_add(distance)
                .wrapping_add(RUNTIME_THREAD),
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

fn unsupported(path: &str, version: u64) -> (String, String) {
    let (major, minor) = (version >> 24, version >> 16 & 0xff);
    let which = if version == 0 {
        "a CPython before 3.11".to_owned()
    } else {
        format!("CPython {major}.{minor}")
    };
    let reason = format!("{path} is {which}: frames are read of CPython 3.11 alone");
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
    let version = address("Py_Version").map_or(0, |at| {
        let mut data = file
            .segments()
            .filter_map(|segment| segment.data_range(at, 8).ok()?);
        let bytes = data.next().and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    });
    if version >> 16 != SERIES {
        return Some(Found::Other(version));
    }
    let holds = |segment: &object::Segment<'_, '_, _>| {
        let (start, length) = segment.file_range();
        offset.wrapping_sub(start) < length
    };
    let segment = file.segments().find(holds)?;
    let mapped = segment
        .address()
        .wrapping_add(offset - segment.file_range().0);
    Some(Found::Runtime(runtime.wrapping_sub(mapped)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_are_named() {
        let (name, reason) = unsupported("/usr/bin/python3.13", 0x030d_00f0);
        assert_eq!(name, "Python frames of python3.13");
        assert_eq!(
            reason,
            "/usr/bin/python3.13 is CPython 3.13: frames are read of CPython 3.11 alone"
        );
        let (_, reason) = unsupported("/usr/bin/python3.9", 0);
        assert!(reason.contains("a CPython before 3.11"), "{reason}");
    }

    #[test]
    fn a_file_that_is_no_interpreter_has_no_state() {
        let own = File::open("/proc/self/exe").unwrap();
        assert_eq!(look_at(&own, 0), None);
        let text = File::open(file!().trim_start_matches("memtrace/")).unwrap();
        assert_eq!(look_at(&text, 0), None);
    }
}
