//! Files with the symbols and debug information that a module was stripped of.
//!
//! Looked for, in this order: by build ID under /usr/lib/debug, in the traced process's view of the file
//! system and in ours; from debuginfod, where `DEBUGINFOD_URLS` is set; in the module itself, as
//! MiniDebugInfo. A file with another build ID is never used. `.gnu_debuglink` and `.gnu_debugaltlink`
//! are followed by blazesym, which checks the sum of the one and the build ID of the other.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use lzma_rust2::XzReader;
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ReadCache};

use super::{debuginfod::Debuginfod, module::read_build_id};

/// Where debug files by build ID lie, below a root.
const DIRECTORIES: &[&str] = &["/usr/lib/debug", "/lib/debug"];

/// MiniDebugInfo that unpacks to more is not believed; that of libraries with 100,000 functions takes 10 MiB.
const MINI_LIMIT: u64 = 256 << 20;

/// Finds debug files.
#[derive(Debug)]
pub(super) struct DebugFiles {
    directories: Vec<PathBuf>,
    debuginfod: Option<Debuginfod>,
}

impl DebugFiles {
    /// Those of this machine, and of debuginfod where the environment names servers.
    pub(super) fn of_machine() -> Self {
        Self {
            directories: DIRECTORIES.iter().map(PathBuf::from).collect(),
            debuginfod: Debuginfod::from_environment(),
        }
    }

    /// The debug file of the module at `path`, if it has none within and one is found.
    pub(super) fn find(
        &mut self,
        pid: Option<u32>,
        path: &Path,
        build_id: Option<&str>,
    ) -> Option<DebugFile> {
        let cache = ReadCache::new(File::open(path).ok()?);
        let module = object::File::parse(&cache).ok()?;
        if module.section_by_name(".debug_info").is_some() {
            return None;
        }
        let segments: Vec<Segment> = module
            .segments()
            .map(|segment| {
                let (offset, size) = segment.file_range();
                let address = segment.address();
                Segment {
                    offset,
                    size,
                    address,
                }
            })
            .collect();
        let file = build_id
            .and_then(|id| self.installed(pid, id).or_else(|| self.download(id)))
            .or_else(|| mini_debug_info(&module))?;
        Some(DebugFile { file, segments })
    }

    /// The file that a distribution's debug package installs: `.build-id/ab/cdef….debug`.
    fn installed(&self, pid: Option<u32>, build_id: &str) -> Option<File> {
        let (first, rest) = build_id.split_at_checked(2)?;
        let place = format!(".build-id/{first}/{rest}.debug");
        let theirs = pid.map(|pid| PathBuf::from(format!("/proc/{pid}/root")));
        for root in theirs.into_iter().chain([PathBuf::from("/")]) {
            for directory in &self.directories {
                let below = directory.strip_prefix("/").unwrap_or(directory);
                let Ok(file) = File::open(root.join(below).join(&place)) else {
                    continue;
                };
                if read_build_id(&file).as_deref() == Some(build_id) {
                    return Some(file);
                }
            }
        }
        None
    }

    fn download(&mut self, build_id: &str) -> Option<File> {
        let file = self.debuginfod.as_mut()?.fetch(build_id)?;
        (read_build_id(&file).as_deref() == Some(build_id)).then_some(file)
    }
}

/// A debug file, and where the addresses in it lie in its module.
#[derive(Debug)]
pub(super) struct DebugFile {
    file: File,
    segments: Vec<Segment>,
}

/// Bytes of the module that are loaded together.
#[derive(Debug)]
struct Segment {
    offset: u64,
    size: u64,
    address: u64,
}

impl DebugFile {
    /// Names the file for as long as `self` is kept.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// The address, as the debug file counts, of an offset in the module.
    pub(super) fn address(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let within = offset.checked_sub(segment.offset)?;
            (within < segment.size).then(|| segment.address.wrapping_add(within))
        })
    }
}

/// The symbol table that Fedora and others leave in stripped modules, an ELF file packed with xz in
/// `.gnu_debugdata` (GDB manual, "Debugging information in a special section").
fn mini_debug_info<'data, R: object::ReadRef<'data>>(
    module: &object::File<'data, R>,
) -> Option<File> {
    let packed = module.section_by_name(".gnu_debugdata")?.data().ok()?;
    let mut unpacked = Vec::new();
    let mut reader = XzReader::new(packed, true).take(MINI_LIMIT + 1);
    reader.read_to_end(&mut unpacked).ok()?;
    if unpacked.len() as u64 > MINI_LIMIT {
        return None;
    }
    let mut file = tempfile::tempfile().ok()?;
    file.write_all(&unpacked).ok()?;
    Some(file)
}

#[cfg(test)]
#[path = "debug_file_tests.rs"]
mod tests;
