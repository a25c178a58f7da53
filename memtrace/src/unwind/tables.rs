//! The rules of all modules in one table, each file once.
//!
//! A file's rows stay when it is unmapped: mostly it will be mapped again. Where others find no room, those go that no
//! process maps, the longest not asked for first.

use std::{collections::HashMap, fs::File, io, os::unix::fs::MetadataExt as _, path::Path, rc::Rc};

use memtrace_common::{
    code_file::{FileKey, FileRules},
    unwind::FIRST_ROW,
};
use object::ReadCache;

use super::{
    compile::{CompileError, compile},
    room::Room,
};
use crate::stack::{
    module::{build_id, places},
    symbolize::Mapping,
    vdso,
};

/// Where rows are kept for the kernel side.
pub trait RowStore {
    /// Rows that there are, with those below [`FIRST_ROW`].
    fn capacity(&self) -> u32;
    /// Writes rows from an index on.
    fn write(&mut self, first: u32, rows: &[u64]);
    /// A row that was written.
    fn row(&self, index: u32) -> Option<u64>;
    /// By what the kernel side knows an open file; `None` where that cannot be told.
    fn key(&self, file: &File) -> Option<FileKey>;
    /// Notes which rows a file's are.
    fn know(&mut self, file: FileKey, rules: FileRules);
    /// Forgets files, so that their rows may be written over: nothing that was looked up in them is believed any more.
    fn forget(&mut self, files: &[FileKey]);
}

/// The rows of a file. They stay where they are for as long as somebody has this.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Index of the first.
    pub first: u32,
    /// How many; 0 where the file has no rules.
    pub rows: u32,
}

/// Why a file's rules are not in the table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It has no rules that can be read.
    #[error("{0}")]
    Compile(#[from] CompileError),
    /// The table is full.
    #[error("the table of unwind rules is full")]
    Full,
}

/// Files that are known at most: what the kernel side's map of them has room for.
const MAX_FILES: usize = 16_384;

/// How the kernel side knows the file, its size and the time of its last change.
type Identity = (FileKey, u64, i64, i64);

/// Path and build ID.
type Name = (Box<str>, Box<[u8]>);

/// A file that was compiled.
struct Compiled {
    rows: Rc<Span>,
    /// [`Tables::clock`] when it was last asked for.
    asked: u64,
}

/// Rules of files.
pub struct Tables {
    store: Box<dyn RowStore>,
    room: Room,
    files: HashMap<Identity, Compiled>,
    /// Where a file was mapped that has a build ID: it need not be opened again. `None` where it could not be read.
    by_name: HashMap<Name, Option<Identity>>,
    /// What the kernel side knows each file by: the latest state of one that was changed in place.
    told: HashMap<FileKey, Identity>,
    vdso: Option<Rc<Span>>,
    /// Counts what is asked for.
    clock: u64,
    /// Files whose rules found no room.
    full: u64,
}

impl Tables {
    /// Tables that are kept in `store`.
    pub fn new(store: Box<dyn RowStore>) -> Self {
        Self {
            room: Room::new(FIRST_ROW..store.capacity()),
            store,
            files: HashMap::new(),
            by_name: HashMap::new(),
            told: HashMap::new(),
            vdso: None,
            clock: 0,
            full: 0,
        }
    }

    /// Bytes of the rows in use.
    pub fn bytes(&self) -> u64 {
        let used = self.store.capacity() - FIRST_ROW - self.room.free();
        u64::from(used) * size_of::<u64>() as u64
    }

    /// Files whose rules found no room since the last call.
    pub fn take_full(&mut self) -> u64 {
        std::mem::take(&mut self.full)
    }

    /// A row.
    pub fn row(&self, index: u32) -> Option<u64> {
        self.store.row(index)
    }

    /// Compiles a file's rules before it is mapped.
    pub fn prepare(&mut self, path: &Path) {
        let file = File::open(path).map_err(TableError::from);
        if let Err(error) = file.and_then(|file| self.of_file(&file)) {
            log::debug!("unwind rules of {}: {error}", path.display());
        }
    }

    /// The rules of a file that a process has mapped.
    pub fn of_mapping(&mut self, pid: u32, mapping: &Mapping) -> Rc<Span> {
        if &*mapping.path == "[vdso]" {
            return self.of_vdso();
        }
        let name = (mapping.path.clone(), mapping.build_id.clone());
        let named = !mapping.build_id.is_empty();
        if named && let Some(&identity) = self.by_name.get(&name) {
            return identity
                .and_then(|identity| self.known(identity))
                .unwrap_or_default();
        }
        let found = self.open(pid, mapping);
        if named {
            if self.by_name.len() >= MAX_FILES {
                self.by_name.clear();
            }
            self.by_name.insert(name, found);
        }
        found
            .and_then(|identity| self.known(identity))
            .unwrap_or_default()
    }

    fn known(&mut self, identity: Identity) -> Option<Rc<Span>> {
        self.clock += 1;
        let file = self.files.get_mut(&identity)?;
        file.asked = self.clock;
        Some(file.rows.clone())
    }

    fn open(&mut self, pid: u32, mapping: &Mapping) -> Option<Identity> {
        for path in places(Some(pid), mapping) {
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if !file.metadata().is_ok_and(|metadata| metadata.is_file())
                || !is_build(&file, &mapping.build_id)
            {
                continue;
            }
            match self.of_file(&file) {
                Ok(identity) => return Some(identity),
                Err(error) => {
                    log::debug!("unwind rules of {}: {error}", mapping.path);
                    if let TableError::Full = error {
                        break;
                    }
                }
            }
        }
        None
    }

    fn of_file(&mut self, file: &File) -> Result<Identity, TableError> {
        let metadata = file.metadata()?;
        let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
        let by_stat = || FileKey::new(metadata.ino(), major.into(), minor.into());
        let identity = (
            self.store.key(file).unwrap_or_else(by_stat),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        if self.known(identity).is_some() {
            return Ok(identity);
        }
        let compiled = compile(&ReadCache::new(file.try_clone()?));
        let (rows, result) = match compiled {
            Ok(rows) => (self.add(&rows)?, Ok(identity)),
            Err(error) => (Span::default(), Err(error.into())),
        };
        if self.files.len() >= MAX_FILES {
            self.make_room(0);
        }
        self.know(&identity, &rows);
        let rows = Rc::new(rows);
        let asked = self.clock;
        self.files.insert(identity, Compiled { rows, asked });
        result
    }

    /// Tells the kernel side, which sees the file by its inode wherever it is mapped.
    fn know(&mut self, identity: &Identity, span: &Span) {
        let &(key, bytes, modified_s, modified_ns) = identity;
        let rules = FileRules {
            bytes,
            modified_s: modified_s as u64,
            modified_ns: modified_ns as u32,
            first_row: span.first,
            rows: span.rows,
            reserved: 0,
        };
        self.told.insert(key, *identity);
        self.store.know(key, rules);
    }

    /// The one image that the kernel maps into every process. Its mappings tell no build ID.
    fn of_vdso(&mut self) -> Rc<Span> {
        if let Some(span) = &self.vdso {
            return span.clone();
        }
        let rows = vdso::image().map(|image| compile(&*image));
        let span = match rows.map(|rows| self.add(&rows?)) {
            Some(Ok(span)) => span,
            Some(Err(error)) => {
                log::debug!("unwind rules of the vDSO: {error}");
                Span::default()
            }
            None => Span::default(),
        };
        self.vdso.insert(Rc::new(span)).clone()
    }

    fn add(&mut self, rows: &[u64]) -> Result<Span, TableError> {
        let count = rows.len() as u32;
        let mut first = self.room.take(count);
        if first.is_none() {
            self.make_room(count);
            first = self.room.take(count);
        }
        let Some(first) = first else {
            self.full += 1;
            return Err(TableError::Full);
        };
        self.store.write(first, rows);
        Ok(Span { first, rows: count })
    }

    /// Forgets files that no process maps, one at least, until so many rows fit.
    fn make_room(&mut self, rows: u32) {
        let files = self.files.iter();
        let unused = files.filter(|(_, file)| Rc::strong_count(&file.rows) == 1);
        let mut unused: Vec<_> = unused
            .map(|(&identity, file)| (file.asked, identity))
            .collect();
        unused.sort_unstable_by_key(|&(asked, _)| asked);
        let mut forgotten = Vec::new();
        for (_, identity) in unused {
            let Some(file) = self.files.remove(&identity) else {
                continue;
            };
            self.room.give(file.rows.first, file.rows.rows);
            forgotten.push(identity);
            if self.room.fits(rows) {
                break;
            }
        }
        if forgotten.is_empty() {
            return;
        }
        self.by_name
            .retain(|_, identity| identity.is_some_and(|one| self.files.contains_key(&one)));
        let mut keys = Vec::new();
        for identity in forgotten {
            let (key, ..) = identity;
            if self.told.get(&key) == Some(&identity) {
                self.told.remove(&key);
                keys.push(key);
            }
        }
        self.store.forget(&keys);
    }
}

/// Whether a file is the one that was mapped, as far as build IDs tell.
fn is_build(file: &File, of_mapped: &[u8]) -> bool {
    of_mapped.is_empty() || build_id(file).as_deref() == Some(of_mapped)
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
