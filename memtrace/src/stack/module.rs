//! The files that addresses lie in, opened where they can be found and kept open.

use std::{
    fs::File,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
};

use object::{Object as _, ReadCache};
use rustc_hash::FxHashMap;

use super::symbolize::Mapping;

/// Open files kept; the usual limit on descriptors is 1,024.
const KEPT: usize = 384;

/// Files asked for before the memory of them is dropped.
const REMEMBERED: usize = 1 << 16;

/// Index of a module.
pub(super) type ModuleId = usize;

/// A file that code is mapped from.
#[derive(Debug, Default)]
pub(super) struct Module {
    /// Where to read it; `None` when it could not be opened, or turned out to be damaged.
    pub(super) path: Option<PathBuf>,
    /// Hexadecimal build ID: of the file, else as recorded.
    pub(super) build_id: Option<Box<str>>,
    /// It is the kernel's page of code, which is in no file.
    pub(super) is_vdso: bool,
    /// Keeps `path` valid, which names the descriptor, when the file is deleted or replaced.
    _file: Option<File>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Asked {
    pid: Option<u32>,
    path: Box<str>,
    build_id: Box<[u8]>,
}

/// Device, inode, size and time of the last change: which file it is, whatever its path.
type Identity = (u64, u64, u64, i64, i64);

/// All files seen so far.
#[derive(Debug, Default)]
pub(super) struct Modules {
    modules: Vec<Module>,
    asked: FxHashMap<Asked, ModuleId>,
    by_identity: FxHashMap<Identity, ModuleId>,
    kept: usize,
}

impl Modules {
    /// The module of a mapping, opened if it is new.
    pub(super) fn find(&mut self, pid: Option<u32>, mapping: &Mapping) -> ModuleId {
        let asked = Asked {
            pid,
            path: mapping.path.clone(),
            build_id: mapping.build_id.clone(),
        };
        if let Some(&id) = self.asked.get(&asked) {
            return id;
        }
        let id = self.open(pid, mapping);
        if self.asked.len() >= REMEMBERED {
            self.asked.clear();
        }
        self.asked.insert(asked, id);
        id
    }

    /// A module by its id.
    pub(super) fn get(&self, id: ModuleId) -> Option<&Module> {
        self.modules.get(id)
    }

    /// Never read this file again.
    pub(super) fn give_up(&mut self, id: ModuleId) {
        if let Some(module) = self.modules.get_mut(id) {
            module.path = None;
        }
    }

    fn open(&mut self, pid: Option<u32>, mapping: &Mapping) -> ModuleId {
        for path in places(pid, mapping) {
            // A device or a pipe could block or have effects.
            let Ok(file) = File::open(&path) else {
                continue;
            };
            let Ok(metadata) = file.metadata() else {
                continue;
            };
            if !metadata.is_file() {
                continue;
            }
            let identity = (
                metadata.dev(),
                metadata.ino(),
                metadata.size(),
                metadata.mtime(),
                metadata.mtime_nsec(),
            );
            let known = self.by_identity.get(&identity).copied();
            let build_id = match known.and_then(|id| self.get(id)) {
                Some(module) => module.build_id.clone(),
                None => read_build_id(&file),
            };
            if !mapping.build_id.is_empty() && build_id != hexadecimal(&mapping.build_id) {
                continue;
            }
            if let Some(id) = known {
                return id;
            }
            let id = self.add(path, file, build_id);
            self.by_identity.insert(identity, id);
            return id;
        }
        self.modules.push(Module {
            build_id: hexadecimal(&mapping.build_id),
            is_vdso: &*mapping.path == "[vdso]",
            ..Module::default()
        });
        self.modules.len() - 1
    }

    fn add(&mut self, path: PathBuf, file: File, build_id: Option<Box<str>>) -> ModuleId {
        let module = if self.kept < KEPT {
            self.kept += 1;
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            Module {
                path: Some(path),
                build_id,
                is_vdso: false,
                _file: Some(file),
            }
        } else {
            Module {
                path: Some(path),
                build_id,
                is_vdso: false,
                _file: None,
            }
        };
        self.modules.push(module);
        self.modules.len() - 1
    }
}

/// Where a mapped file may be found, the surest place first.
pub(crate) fn places(pid: Option<u32>, mapping: &Mapping) -> Vec<PathBuf> {
    let path = mapping
        .path
        .strip_suffix(" (deleted)")
        .unwrap_or(&mapping.path);
    if !path.starts_with('/') || path.starts_with("//") {
        return Vec::new();
    }
    let mut places = Vec::new();
    if let Some(pid) = pid {
        // Opens the very file, deleted or not; wants CAP_CHECKPOINT_RESTORE (proc_pid_map_files(5)).
        places.push(format!(
            "/proc/{pid}/map_files/{:x}-{:x}",
            mapping.start, mapping.end
        ));
        places.push(format!("/proc/{pid}/root{path}"));
    }
    places.push(path.to_owned());
    places.into_iter().map(PathBuf::from).collect()
}

/// The build ID that an ELF file of either class says. Only the headers and the note are read.
pub(crate) fn build_id(file: &File) -> Option<Box<[u8]>> {
    let cache = ReadCache::new(file);
    let parsed = object::File::parse(&cache).ok()?;
    Some(parsed.build_id().ok()??.into())
}

/// [`build_id`] in hexadecimal.
pub(super) fn read_build_id(file: &File) -> Option<Box<str>> {
    hexadecimal(&build_id(file)?)
}

/// Lower-case hexadecimal; `None` for nothing.
pub(super) fn hexadecimal(bytes: &[u8]) -> Option<Box<str>> {
    (!bytes.is_empty()).then(|| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
            .into()
    })
}
