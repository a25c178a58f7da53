//! Programs to trace: compiled once for each source and flags, into `target/workloads`.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::child::run;
use crate::scratch::{target_directory, workspace};

/// Frame pointers and line numbers for stacks; no calls merged or left out.
const C_FLAGS: &[&str] = &[
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fno-builtin",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
];

/// A workload compiled by the system's compiler, C or C++ by its name.
pub fn workload(source: &str) -> PathBuf {
    let (compiler, package) = if source.ends_with(".cpp") {
        ("g++", "g++")
    } else {
        ("gcc", "gcc")
    };
    build(source, compiler, &[], package)
}

/// A workload compiled with `compiler` and further flags, which need `package`.
pub fn build(source: &str, compiler: &str, flags: &[&str], package: &str) -> PathBuf {
    let compiler = tool(compiler, package);
    let directory = workspace().join("tests/workloads");
    let output = place(
        &directory,
        source,
        &[compiler.to_str().expect("a path in UTF-8")],
        flags,
    );
    produce(&output, package, |temporary| {
        let mut command = Command::new(&compiler);
        command
            .args(C_FLAGS)
            .arg("-o")
            .arg(temporary)
            .arg(directory.join(source))
            .args(flags);
        command
    });
    output
}

/// A workload compiled by rustc, optimised and without frame pointers.
pub fn build_rust(source: &str, flags: &[&str]) -> PathBuf {
    let rustc = tool("rustc", "rustc");
    let directory = workspace().join("tests/workloads");
    let output = place(&directory, source, &["rustc"], flags);
    produce(&output, "rustc", |temporary| {
        let mut command = Command::new(&rustc);
        command
            .args(["--edition", "2024", "-O", "-C", "force-frame-pointers=no"])
            .args(flags)
            .arg("-o")
            .arg(temporary)
            .arg(directory.join(source));
        command
    });
    output
}

/// A workload compiled by Go with cgo, with no network and no module.
pub fn build_go(source: &str) -> PathBuf {
    let go = tool("go", "golang-go");
    tool("gcc", "gcc");
    let directory = workspace().join("tests/workloads");
    let output = place(&directory, source, &["go"], &[]);
    let cache = target_directory().join("workloads/go-cache");
    produce(&output, "golang-go", |temporary| {
        let mut command = Command::new(&go);
        command
            .args(["build", "-o"])
            .arg(temporary)
            .arg(directory.join(source));
        command
            .env("GO111MODULE", "off")
            .env("CGO_ENABLED", "1")
            .env("GOCACHE", &cache)
            .env("GOFLAGS", "");
        command
    });
    output
}

/// The path of a program that the tests need.
pub fn tool(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: install the package {package}"))
}

/// The path of a library that the tests need, where Debian or the compiler has it.
pub fn library(name: &str, package: &str) -> String {
    let output =
        run(Command::new(tool("gcc", "gcc")).arg(format!("-print-file-name={name}"))).output();
    let path = output.trim().to_owned();
    assert!(
        Path::new(&path).is_absolute(),
        "{name} is missing: install the package {package}"
    );
    fs::canonicalize(&path)
        .expect("a library")
        .to_str()
        .expect("a path in UTF-8")
        .to_owned()
}

/// Where the program goes: a changed source, header or flag has a place of its own.
fn place(directory: &Path, source: &str, compiler: &[&str], flags: &[&str]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    for file in [source, "workload.h", "smaps.h"] {
        let path = directory.join(file);
        fs::read(&path)
            .unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
            .hash(&mut hasher);
    }
    (compiler, flags, C_FLAGS).hash(&mut hasher);
    let stem = Path::new(source)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .expect("a name");
    target_directory()
        .join("workloads")
        .join(format!("{stem}-{:016x}", hasher.finish()))
}

/// Runs the compiler unless the program is there; two tests may both, the later rename wins.
fn produce(output: &Path, package: &str, command: impl FnOnce(&Path) -> Command) {
    if output.exists() {
        return;
    }
    fs::create_dir_all(output.parent().expect("a directory")).expect("make target/workloads");
    let id = format!("{}-{:?}", std::process::id(), std::thread::current().id());
    let temporary = output.with_extension(id.replace(['(', ')'], ""));
    let finished = run(&mut command(&temporary));
    let messages = finished.messages();
    assert_eq!(
        finished.code,
        Some(0),
        "{} (is the package {package} installed?): {messages}",
        finished.name
    );
    fs::rename(&temporary, output).expect("put the program in its place");
}
