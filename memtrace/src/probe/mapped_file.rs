//! By which key the kernel side knows a file, asked of the kernel.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd as _,
    ptr::{self, NonNull},
    thread,
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{Program, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use memtrace_common::code_file::{Answer, FileKey, ToldFile};

use super::Error;

const PROGRAM: &str = "mapped_file";
const TOLD: &str = "MAPPED_FILE";

const FOUND: u64 = Answer::Found as u64;
const BUSY: u64 = Answer::Busy as u64;

/// A thread that changes this process's mappings is done within microseconds, unless it waits for its turn.
const TRIES: u32 = 1000;

/// The question that the kernel side answers, about a file that this process has mapped.
pub struct MappedFile {
    program: RawTracePoint,
    told: Array<MapData, ToldFile>,
}

impl MappedFile {
    /// Of an object whose programs are loaded; once.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let missing = || Error::Object { name: PROGRAM };
        let told = ebpf.take_map(TOLD).and_then(|map| map.try_into().ok());
        let Some(Program::RawTracePoint(program)) = ebpf.program(PROGRAM) else {
            return Err(missing());
        };
        // A handle of its own: the object keeps its programs.
        let own = program
            .info()
            .and_then(|info| RawTracePoint::from_program_info(info, PROGRAM.into()));
        Ok(Self {
            program: own.map_err(|error| Error::Map {
                name: PROGRAM,
                reason: error.to_string(),
            })?,
            told: told.ok_or_else(missing)?,
        })
    }

    /// The key of an open file; `None` where the kernel cannot be asked.
    pub fn key(&self, file: &File) -> Option<FileKey> {
        let page = Page::of(file)
            .inspect_err(|error| log::debug!("a file cannot be mapped: {error}"))
            .ok()?;
        self.ask(page.address.as_ptr() as u64)
            .inspect_err(|error| log::debug!("{PROGRAM}: {error}"))
            .ok()?
    }

    fn ask(&self, address: u64) -> Result<Option<FileKey>, ProgramError> {
        for _ in 0..TRIES {
            let mut options = RawTracePointRunOptions::new();
            options.args[0] = address;
            self.program.test_run(options)?;
            let told = self.told.get(&0, 0)?;
            match told.answer {
                BUSY => thread::yield_now(),
                FOUND => return Ok(Some(told.key)),
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// The first page of a file, mapped until it is dropped and never looked at.
struct Page {
    address: NonNull<libc::c_void>,
}

impl Page {
    const LENGTH: usize = 4096;

    fn of(file: &File) -> io::Result<Self> {
        // SAFETY: a fresh mapping, which nobody reads.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::LENGTH,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address) {
            Some(address) if address.as_ptr() != libc::MAP_FAILED => Ok(Self { address }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `of`.
        unsafe { libc::munmap(self.address.as_ptr(), Self::LENGTH) };
    }
}
