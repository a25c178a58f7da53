//! Which files a command will map: what is known before it runs is probed before it runs.
//!
//! The command itself, its interpreters, and the libraries it needs, found as the loader finds them; and the
//! C libraries and allocators of this machine, since what a command starts will mostly use them.

use std::{
    collections::HashSet,
    env,
    ffi::OsStr,
    fs::{self, File},
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::{contents, image::Image};

/// Scripts name interpreters that may be scripts: as deep as the kernel follows (BINPRM_MAX_RECURSION).
const MAX_INTERPRETERS: usize = 5;

/// Bytes of a script that the kernel looks at: BINPRM_BUF_SIZE, include/uapi/linux/binfmts.h.
const FIRST_LINE: u64 = 256;

/// Where loaders look without being told: glibc's and musl's defaults, Debian's and others' multiarch.
const DEFAULT_DIRECTORIES: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// C libraries by file name.
const C_LIBRARIES: [&str; 2] = ["libc.so.6", "ld-musl-x86_64.so.1"];

/// Allocators that are preloaded or linked to, by file name.
const ALLOCATORS: [&str; 5] = [
    "libjemalloc.so.2",
    "libtcmalloc.so.4",
    "libtcmalloc_minimal.so.4",
    "libmimalloc.so.2",
    "libmimalloc.so.3",
];

/// Files to probe before these programs run, their own first.
pub fn files(programs: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut search = Search {
        directories: directories(),
        seen: HashSet::new(),
        found: Vec::new(),
    };
    for mut program in programs {
        for _ in 0..MAX_INTERPRETERS {
            search.add(&program);
            match interpreter(&program) {
                Some(next) => program = next,
                None => break,
            }
        }
    }
    for name in preloaded() {
        search.add_library(OsStr::from_bytes(&name), &[]);
    }
    search.add_usual();
    search.found
}

/// The C libraries and allocators of this machine, which most programs use.
pub fn usual() -> Vec<PathBuf> {
    let mut search = Search {
        directories: directories(),
        seen: HashSet::new(),
        found: Vec::new(),
    };
    search.add_usual();
    search.found
}

/// The C libraries of this machine.
pub fn c_libraries() -> Vec<PathBuf> {
    let mut search = Search {
        directories: directories(),
        seen: HashSet::new(),
        found: Vec::new(),
    };
    for name in C_LIBRARIES {
        search.add_library(OsStr::new(name), &[]);
    }
    search.found.retain(|path| {
        // A C library needs a loader beside it, which is another file.
        path.file_name()
            .is_some_and(|name| name.as_bytes().starts_with(b"libc"))
    });
    search.found
}

struct Search {
    directories: Vec<PathBuf>,
    seen: HashSet<PathBuf>,
    found: Vec<PathBuf>,
}

impl Search {
    fn add_usual(&mut self) {
        for name in C_LIBRARIES.iter().chain(&ALLOCATORS) {
            self.add_library(OsStr::new(name), &[]);
        }
    }

    /// Adds a file and the libraries it needs.
    fn add(&mut self, path: &Path) {
        let Ok(path) = path.canonicalize() else {
            return;
        };
        if !self.seen.insert(path.clone()) {
            return;
        }
        let Ok(data) = contents::without_code(&path) else {
            return;
        };
        let Ok(image) = Image::parse(&data) else {
            return;
        };
        self.found.push(path.clone());
        let own = run_paths(&image, &path);
        if let Some(loader) = image.interpreter() {
            self.add(Path::new(loader));
        }
        for name in image.needed() {
            self.add_library(OsStr::new(name), &own);
        }
    }

    fn add_library(&mut self, name: &OsStr, own: &[PathBuf]) {
        if name.as_bytes().contains(&b'/') {
            self.add(Path::new(name));
            return;
        }
        let candidate = own
            .iter()
            .chain(&self.directories)
            .map(|directory| directory.join(name))
            .find(|path| path.is_file());
        if let Some(path) = candidate {
            self.add(&path);
        }
    }
}

/// DT_RPATH and DT_RUNPATH with `$ORIGIN` filled in.
fn run_paths(image: &Image<'_>, path: &Path) -> Vec<PathBuf> {
    let origin = path.parent().unwrap_or(Path::new("/")).to_string_lossy();
    image
        .run_paths()
        .iter()
        .flat_map(|list| list.split(':'))
        .filter(|entry| !entry.is_empty())
        .map(|entry| {
            PathBuf::from(
                entry
                    .replace("${ORIGIN}", &origin)
                    .replace("$ORIGIN", &origin),
            )
        })
        .collect()
}

/// LD_LIBRARY_PATH, the loader's configuration, and its defaults.
fn directories() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = Vec::new();
    if let Some(path) = env::var_os("LD_LIBRARY_PATH") {
        directories.extend(env::split_paths(&path));
    }
    let fragments = fs::read_dir("/etc/ld.so.conf.d")
        .into_iter()
        .flatten()
        .flatten();
    for file in fragments
        .map(|entry| entry.path())
        .chain(["/etc/ld-musl-x86_64.path".into()])
    {
        let text = fs::read_to_string(file).unwrap_or_default();
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with('/'));
        directories.extend(lines.map(PathBuf::from));
    }
    directories.extend(DEFAULT_DIRECTORIES.map(PathBuf::from));
    directories
}

/// LD_PRELOAD, split as ld.so splits it: at colons and spaces.
fn preloaded() -> Vec<Vec<u8>> {
    let Some(list) = env::var_os("LD_PRELOAD") else {
        return Vec::new();
    };
    let names = list.as_bytes().split(|byte| matches!(byte, b':' | b' '));
    names
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

/// The interpreter that a script names in its first line.
fn interpreter(script: &Path) -> Option<PathBuf> {
    let mut start = Vec::new();
    let file = File::open(script).ok()?;
    file.take(FIRST_LINE).read_to_end(&mut start).ok()?;
    let line = start
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let line = line.trim_ascii();
    let end = line
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(line.len());
    Some(PathBuf::from(OsStr::from_bytes(&line[..end])))
}
