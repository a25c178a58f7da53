//! The rules of all modules in one table, each file once.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use memtrace_common::code_file::{FileKey, FileRules};

use object::ReadCache;

use super::compile::{CompileError, compile};
use crate::stack::{
    module::{build_id, places},
    symbolize::Mapping,
    vdso,
};

/// Where rows are kept for the kernel side.
pub trait RowStore {
    /// Rows that fit.
    fn capacity(&self) -> u32;
    /// Writes rows from an index on.
    fn write(&mut self, first: u32, rows: &[u64]);
    /// A row that was written.
    fn row(&self, index: u32) -> Option<u64>;
    /// Notes which rows a file's are.
    fn know(&mut self, file: FileKey, rules: FileRules);
}

/// The rows of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// Device, inode, size and time of the last change.
type Identity = (u64, u64, u64, i64, i64);

/// Rules of files.
pub struct Tables {
    store: Box<dyn RowStore>,
    used: u32,
    by_identity: HashMap<Identity, Span>,
    /// By path and build ID, where a file was mapped that has one: it need not be opened again.
    by_name: HashMap<(Box<str>, Box<[u8]>), Span>,
    vdso: Option<Span>,
    /// Files whose rules found no room.
    full: u64,
}

impl Tables {
    /// Tables that are kept in `store`.
    pub fn new(store: Box<dyn RowStore>) -> Self {
        Self {
            store,
            used: 0,
            by_identity: HashMap::new(),
            by_name: HashMap::new(),
            vdso: None,
            full: 0,
        }
    }

    /// Bytes of the rows in use.
    pub fn bytes(&self) -> u64 {
        u64::from(self.used) * size_of::<u64>() as u64
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
    pub fn of_mapping(&mut self, pid: u32, mapping: &Mapping) -> Span {
        let name = (mapping.path.clone(), mapping.build_id.clone());
        let named = !mapping.build_id.is_empty();
        if named && let Some(&span) = self.by_name.get(&name) {
            return span;
        }
        let span = if &*mapping.path == "[vdso]" {
            self.of_vdso()
        } else {
            self.open(pid, mapping)
        };
        if named {
            self.by_name.insert(name, span);
        }
        span
    }

    fn open(&mut self, pid: u32, mapping: &Mapping) -> Span {
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
                Ok(span) => return span,
                Err(error) => log::debug!("unwind rules of {}: {error}", mapping.path),
            }
        }
        Span::default()
    }

    fn of_file(&mut self, file: &File) -> Result<Span, TableError> {
        let metadata = file.metadata()?;
        let identity = (
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        if let Some(&span) = self.by_identity.get(&identity) {
            return Ok(span);
        }
        let rows = compile(&ReadCache::new(file.try_clone()?));
        let (span, result) = match rows {
            Ok(rows) => {
                let span = self.add(&rows)?;
                (span, Ok(span))
            }
            Err(error) => (Span::default(), Err(error.into())),
        };
        self.by_identity.insert(identity, span);
        self.know(&metadata, span);
        result
    }

    /// Tells the kernel side, which sees the file by its inode wherever it is mapped.
    fn know(&mut self, metadata: &Metadata, span: Span) {
        let device = metadata.dev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let rules = FileRules {
            bytes: metadata.size(),
            modified_s: metadata.mtime() as u64,
            modified_ns: metadata.mtime_nsec() as u32,
            first_row: span.first,
            rows: span.rows,
            reserved: 0,
        };
        let key = FileKey::new(metadata.ino(), major.into(), minor.into());
        self.store.know(key, rules);
    }

    /// The one image that the kernel maps into every process. Its mappings tell no build ID.
    fn of_vdso(&mut self) -> Span {
        if let Some(span) = self.vdso {
            return span;
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
        *self.vdso.insert(span)
    }

    fn add(&mut self, rows: &[u64]) -> Result<Span, TableError> {
        let count = rows.len() as u32;
        if count > self.store.capacity() - self.used {
            self.full += 1;
            return Err(TableError::Full);
        }
        self.store.write(self.used, rows);
        let span = Span {
            first: self.used,
            rows: count,
        };
        self.used += count;
        Ok(span)
    }
}

/// Whether a file is the one that was mapped, as far as build IDs tell.
fn is_build(file: &File, of_mapped: &[u8]) -> bool {
    of_mapped.is_empty() || build_id(file).as_deref() == Some(of_mapped)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, process::Command, rc::Rc};

    use super::*;

    #[derive(Default)]
    struct InMemory(Vec<u64>, Rc<RefCell<HashMap<FileKey, FileRules>>>);

    impl RowStore for InMemory {
        fn capacity(&self) -> u32 {
            1 << 20
        }

        fn write(&mut self, first: u32, rows: &[u64]) {
            self.0.resize(first as usize + rows.len(), 0);
            self.0[first as usize..].copy_from_slice(rows);
        }

        fn row(&self, index: u32) -> Option<u64> {
            self.0.get(index as usize).copied()
        }

        fn know(&mut self, file: FileKey, rules: FileRules) {
            self.1.borrow_mut().insert(file, rules);
        }
    }

    #[test]
    fn a_file_is_known_by_what_stat_says() {
        let store = InMemory::default();
        let known = store.1.clone();
        let mut tables = Tables::new(Box::new(store));
        let path = "/lib/x86_64-linux-gnu/libc.so.6";
        tables.prepare(Path::new(path));
        let span = tables.of_mapping(std::process::id(), &mapping(path));
        let format = ["-Lc", "%i %Hd %Ld %s %Y", path];
        let stat = Command::new("stat").args(format).output().unwrap();
        let text = String::from_utf8(stat.stdout).unwrap();
        let numbers: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
        let [inode, major, minor, bytes, modified_s] = numbers[..] else {
            panic!("{text}");
        };
        let known = known.borrow();
        let rules = known[&FileKey::new(inode, major, minor)];
        assert_eq!((rules.bytes, rules.modified_s), (bytes, modified_s));
        assert_eq!((rules.first_row, rules.rows), (span.first, span.rows));
    }

    fn mapping(path: &str) -> Mapping {
        Mapping {
            start: 0x1000,
            end: 0x3000,
            offset: 0,
            path: path.into(),
            build_id: Box::default(),
        }
    }

    #[test]
    fn what_every_process_maps_takes_rows_once() {
        let pid = std::process::id();
        for path in ["[vdso]", "/lib/x86_64-linux-gnu/libc.so.6"] {
            let mut tables = Tables::new(Box::new(InMemory::default()));
            let first = tables.of_mapping(pid, &mapping(path));
            let bytes = tables.bytes();
            assert!(first.rows > 0, "{path}");
            assert_eq!(tables.of_mapping(pid, &mapping(path)), first, "{path}");
            assert_eq!(tables.bytes(), bytes, "{path}");
        }
    }
}
