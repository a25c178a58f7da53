use std::{
    net::TcpListener,
    process::Command,
    thread,
    time::{Duration, SystemTime},
};

use super::*;
use crate::{
    event::SymbolFunction,
    stack::{
        blaze::{
            Blaze,
            tests::{BASE, address, exact, mapping, objcopy, program},
        },
        symbolize::{Process, Symbolizer as _},
    },
};

const OUTER: &str = "_Z5outeri";

/// A program that was stripped of everything, its debug file, and where a function lies in it.
struct Stripped {
    directory: tempfile::TempDir,
    program: PathBuf,
    outer: u64,
    build_id: String,
}

impl Stripped {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = program(directory.path(), &[]);
        let outer = address(&program, OUTER);
        let build_id = read_build_id(&File::open(&program).unwrap()).unwrap();
        objcopy(
            directory.path(),
            &["--only-keep-debug", "program", "program.debug"],
        );
        objcopy(directory.path(), &["--strip-all", "program"]);
        Self {
            directory,
            program,
            outer,
            build_id: build_id.into(),
        }
    }

    fn debug_file(&self) -> PathBuf {
        self.directory.path().join("program.debug")
    }

    /// A directory of debug files with `file` in the place of this program's.
    fn install(&self, file: &Path) -> PathBuf {
        let root = self.directory.path().join("debug");
        let (first, rest) = self.build_id.split_at(2);
        let place = root.join(".build-id").join(first);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::copy(file, place.join(format!("{rest}.debug"))).unwrap();
        root
    }

    /// What the function is called, with its line.
    fn outer(&self, files: DebugFiles) -> Option<(String, Option<u32>)> {
        let mappings = [mapping(&self.program)];
        let process = Process {
            pid: Some(std::process::id()),
            mappings: &mappings,
        };
        let mut blaze = Blaze::with(SystemTime::now(), files);
        let found = blaze.symbolize(&process, &[exact(BASE + self.outer)]);
        let named = |one: &SymbolFunction| (one.name.to_string(), one.line);
        found[0].functions.last().map(named)
    }
}

fn nowhere() -> DebugFiles {
    DebugFiles {
        directories: Vec::new(),
        debuginfod: None,
    }
}

fn in_directory(path: PathBuf) -> DebugFiles {
    DebugFiles {
        directories: vec![path],
        debuginfod: None,
    }
}

#[test]
fn without_any_debug_file_there_is_no_name() {
    assert_eq!(Stripped::new().outer(nowhere()), None);
}

#[test]
fn a_debug_file_is_found_by_build_id() {
    let stripped = Stripped::new();
    let files = in_directory(stripped.install(&stripped.debug_file()));
    let (name, line) = stripped.outer(files).unwrap();
    assert_eq!((&*name, line), ("outer(int)", Some(7)));
}

#[test]
fn a_debug_file_of_another_build_is_not_used() {
    let stripped = Stripped::new();
    let other = tempfile::tempdir().unwrap();
    let other = program(other.path(), &["-O0"]);
    let files = in_directory(stripped.install(&other));
    assert_eq!(stripped.outer(files), None);
}

#[test]
fn mini_debug_info_names_a_stripped_program() {
    let stripped = Stripped::new();
    let directory = stripped.directory.path();
    // As find-debuginfo of rpm makes it: symbols alone, packed with xz.
    objcopy(directory, &["--strip-debug", "program.debug", "mini"]);
    let status = Command::new("xz")
        .current_dir(directory)
        .arg("mini")
        .status()
        .unwrap();
    assert!(status.success(), "apt-get install xz-utils");
    objcopy(
        directory,
        &["--add-section=.gnu_debugdata=mini.xz", "program"],
    );
    let (name, line) = stripped.outer(nowhere()).unwrap();
    assert_eq!((&*name, line), ("outer(int)", None));
}

/// A debuginfod server on the loopback that knows one file.
fn serve(build_id: &str, file: &Path) -> Option<Debuginfod> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let wanted = format!("GET /buildid/{build_id}/debuginfo ");
    let content = std::fs::read(file).unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut request = [0; 4096];
            let length = connection.read(&mut request).unwrap();
            assert!(request[..length].starts_with(wanted.as_bytes()));
            let length = content.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = connection.write_all(&[head.as_bytes(), &content].concat());
        }
    });
    Debuginfod::new(&url, Duration::from_secs(20))
}

#[test]
fn a_debug_file_comes_from_debuginfod() {
    let stripped = Stripped::new();
    let files = DebugFiles {
        debuginfod: serve(&stripped.build_id, &stripped.debug_file()),
        ..nowhere()
    };
    let (name, line) = stripped.outer(files).unwrap();
    assert_eq!((&*name, line), ("outer(int)", Some(7)));
}

#[test]
fn debuginfod_is_not_believed_when_it_gives_another_file() {
    let stripped = Stripped::new();
    let other = tempfile::tempdir().unwrap();
    let other = program(other.path(), &["-O0"]);
    let files = DebugFiles {
        debuginfod: serve(&stripped.build_id, &other),
        ..nowhere()
    };
    assert_eq!(stripped.outer(files), None);
}
