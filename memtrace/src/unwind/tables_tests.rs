use std::{cell::RefCell, fs, path::PathBuf, process::Command};

use tempfile::TempDir;

use super::*;

const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// What the kernel side has.
#[derive(Default)]
struct Kernel {
    rows: Vec<u64>,
    files: HashMap<FileKey, FileRules>,
}

struct InMemory(Rc<RefCell<Kernel>>);

impl RowStore for InMemory {
    fn capacity(&self) -> u32 {
        self.0.borrow().rows.len() as u32
    }

    fn write(&mut self, first: u32, rows: &[u64]) {
        let mut kernel = self.0.borrow_mut();
        let (start, end) = (first as usize, first as usize + rows.len());
        assert!(first >= FIRST_ROW);
        for known in kernel.files.values() {
            let (from, to) = (known.first_row, known.first_row + known.rows);
            let apart = to as usize <= start || from as usize >= end || from == to;
            assert!(apart, "rows of a file that is known are written over");
        }
        kernel.rows[start..end].copy_from_slice(rows);
    }

    fn row(&self, index: u32) -> Option<u64> {
        self.0.borrow().rows.get(index as usize).copied()
    }

    fn key(&self, _: &File) -> Option<FileKey> {
        None
    }

    fn know(&mut self, file: FileKey, rules: FileRules) {
        self.0.borrow_mut().files.insert(file, rules);
    }

    fn forget(&mut self, files: &[FileKey]) {
        let known = &mut self.0.borrow_mut().files;
        for file in files {
            assert!(known.remove(file).is_some());
        }
    }
}

/// Tables of so many rows.
fn tables(rows: u32) -> (Tables, Rc<RefCell<Kernel>>) {
    let kernel = Kernel {
        rows: vec![0; (FIRST_ROW + rows) as usize],
        files: HashMap::new(),
    };
    let kernel = Rc::new(RefCell::new(kernel));
    (Tables::new(Box::new(InMemory(kernel.clone()))), kernel)
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

/// A mapping that tells the build ID.
fn named(path: &Path) -> Mapping {
    let build_id = build_id(&File::open(path).unwrap()).unwrap();
    Mapping {
        build_id,
        ..mapping(path.to_str().unwrap())
    }
}

#[test]
fn a_file_is_known_by_what_stat_says() {
    let (mut tables, kernel) = tables(1 << 20);
    tables.prepare(Path::new(LIBC));
    let span = tables.of_mapping(std::process::id(), &mapping(LIBC));
    let format = ["-Lc", "%i %Hd %Ld %s %Y", LIBC];
    let stat = Command::new("stat").args(format).output().unwrap();
    let text = String::from_utf8(stat.stdout).unwrap();
    let numbers: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
    let [inode, major, minor, bytes, modified_s] = numbers[..] else {
        panic!("{text}");
    };
    let rules = kernel.borrow().files[&FileKey::new(inode, major, minor)];
    assert_eq!((rules.bytes, rules.modified_s), (bytes, modified_s));
    assert_eq!((rules.first_row, rules.rows), (span.first, span.rows));
}

#[test]
fn what_every_process_maps_takes_rows_once() {
    let pid = std::process::id();
    for path in ["[vdso]", LIBC] {
        let (mut tables, _) = tables(1 << 20);
        let first = tables.of_mapping(pid, &mapping(path));
        let bytes = tables.bytes();
        assert!(first.rows > 0, "{path}");
        assert_eq!(bytes, 8 * u64::from(first.rows));
        assert_eq!(tables.of_mapping(pid, &mapping(path)), first, "{path}");
        assert_eq!(tables.bytes(), bytes, "{path}");
    }
}

/// The loader's rules, and copies of its file.
fn copies(directory: &TempDir, count: usize) -> (Vec<u64>, Vec<PathBuf>) {
    let rules = compile(&*fs::read(LOADER).unwrap()).unwrap();
    let copy = |index| {
        let path = directory.path().join(format!("library{index}"));
        fs::copy(LOADER, &path).unwrap();
        path
    };
    (rules, (0..count).map(copy).collect())
}

#[test]
fn rows_of_unmapped_files_make_room_and_those_in_use_stay() {
    let directory = TempDir::new().unwrap();
    let (rules, files) = copies(&directory, 12);
    let pid = std::process::id();
    let (mut tables, kernel) = tables(3 * rules.len() as u32 + 7);
    let held = tables.of_mapping(pid, &named(&files[0]));
    for file in files.iter().cycle().take(40) {
        let span = tables.of_mapping(pid, &named(file));
        assert_eq!(span.rows as usize, rules.len(), "{}", file.display());
        for span in [&span, &held] {
            let rows = span.first as usize..(span.first + span.rows) as usize;
            assert_eq!(kernel.borrow().rows[rows], rules);
        }
    }
    assert_eq!(tables.take_full(), 0);
    assert_eq!(kernel.borrow().files.len(), 3);
}

#[test]
fn a_file_goes_that_was_not_asked_for_longest() {
    let directory = TempDir::new().unwrap();
    let (rules, files) = copies(&directory, 3);
    let pid = std::process::id();
    let (mut tables, _) = tables(2 * rules.len() as u32);
    let places = [0, 1, 0, 2, 0].map(|index| tables.of_mapping(pid, &named(&files[index])).first);
    let second = FIRST_ROW + rules.len() as u32;
    assert_eq!(places, [FIRST_ROW, second, FIRST_ROW, second, FIRST_ROW]);
}

#[test]
fn where_all_is_in_use_a_file_has_no_rules_and_is_counted() {
    let directory = TempDir::new().unwrap();
    let (rules, files) = copies(&directory, 3);
    let pid = std::process::id();
    let (mut tables, _) = tables(2 * rules.len() as u32);
    let held = [0, 1].map(|index| tables.of_mapping(pid, &named(&files[index])));
    assert_eq!(tables.of_mapping(pid, &named(&files[2])).rows, 0);
    assert_eq!(tables.take_full(), 1);
    drop(held);
    let other = tables.of_mapping(pid, &mapping(files[2].to_str().unwrap()));
    assert_eq!(other.rows as usize, rules.len());
}

/// The kernel side knows a file by its inode: when the rows of its latest state go, those of the one before do not
/// keep it known.
#[test]
fn a_file_that_was_changed_in_place_is_forgotten_with_its_latest_state() {
    let directory = TempDir::new().unwrap();
    let (rules, files) = copies(&directory, 2);
    let pid = std::process::id();
    let (mut tables, kernel) = tables(2 * rules.len() as u32);
    let path = mapping(files[0].to_str().unwrap());
    let before = tables.of_mapping(pid, &path);
    let file = File::options().append(true).open(&files[0]).unwrap();
    file.set_len(file.metadata().unwrap().len() + 1).unwrap();
    let after = tables.of_mapping(pid, &path).first;
    assert_ne!(before.first, after);
    let other = tables.of_mapping(pid, &named(&files[1]));
    assert_eq!(other.first, after);
    let known = kernel.borrow();
    let places: Vec<u32> = known.files.values().map(|file| file.first_row).collect();
    assert_eq!(places, [other.first]);
}
