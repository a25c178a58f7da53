//! The maps that stacks are walked by.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData},
};
use memtrace_common::{
    code_file::{FileKey, FileRules},
    unwind::CodeSpace,
};

use super::{Error, mapped_file::MappedFile};
use crate::unwind::tables::RowStore;

const ROWS: &str = "UNWIND_ROWS";

const FILES: &str = "CODE_FILES";

/// Name of the map of processes.
pub(super) const SPACES: &str = "CODE_SPACES";

/// Executable mappings by process.
pub(super) type Spaces = HashMap<MapData, u32, CodeSpace>;

/// The table of rows, shared with the kernel side.
pub struct MappedRows {
    rows: &'static [AtomicU64],
    files: HashMap<MapData, FileKey, FileRules>,
    /// `None` where the kernel cannot be asked: then stat(2) is.
    mapped: Option<MappedFile>,
    /// Keeps the map.
    _map: MapData,
}

impl MappedRows {
    /// Maps the table of a loaded object; once.
    pub(super) fn take(ebpf: &mut Ebpf, capacity: u32) -> Result<Self, Error> {
        let Some(Map::Array(map)) = ebpf.take_map(ROWS) else {
            return Err(Error::Object { name: ROWS });
        };
        let files = ebpf.take_map(FILES).and_then(|map| map.try_into().ok());
        let files = files.ok_or(Error::Object { name: FILES })?;
        let mapped = MappedFile::take(ebpf)
            .inspect_err(|error| log::debug!("files are told apart by stat: {error}"))
            .ok();
        let length = capacity as usize * size_of::<u64>();
        // SAFETY: a fresh shared mapping of the whole of the map's values.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Error::Map {
                name: ROWS,
                reason: io::Error::last_os_error().to_string(),
            });
        }
        // SAFETY: mapped for `length` bytes until `drop`, page-aligned, and shared as atomics are meant to be.
        let rows =
            unsafe { std::slice::from_raw_parts(address.cast::<AtomicU64>(), capacity as usize) };
        Ok(Self {
            rows,
            files,
            mapped,
            _map: map,
        })
    }
}

impl RowStore for MappedRows {
    fn capacity(&self) -> u32 {
        self.rows.len() as u32
    }

    fn write(&mut self, first: u32, rows: &[u64]) {
        for (place, &row) in self.rows.iter().skip(first as usize).zip(rows) {
            place.store(row, Ordering::Relaxed);
        }
    }

    fn row(&self, index: u32) -> Option<u64> {
        let place = self.rows.get(index as usize)?;
        Some(place.load(Ordering::Relaxed))
    }

    fn key(&self, file: &File) -> Option<FileKey> {
        self.mapped.as_ref()?.key(file)
    }

    fn know(&mut self, file: FileKey, rules: FileRules) {
        // Without it the stacks that lead through the file are copied for a moment after it is mapped.
        if let Err(error) = self.files.insert(file, rules, 0) {
            log::debug!("{FILES}: {error}");
        }
    }

    fn forget(&mut self, files: &[FileKey]) {
        for file in files {
            // It is not there where the map was full; that is no loss.
            let _ = self.files.remove(file);
        }
        // Before any row is written over: who sees a new row sees the new count, too.
        if let Some(count) = self.rows.first() {
            count.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for MappedRows {
    fn drop(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        // SAFETY: the mapping made in `take`; the slice is gone.
        unsafe { libc::munmap(rows.as_ptr().cast_mut().cast(), size_of_val(rows)) };
    }
}
