//! Puts the BPF object where `include_bytes_aligned!` finds it.

use std::{env, fs, path::PathBuf};

fn main() {
    if let Err(message) = embed() {
        println!("cargo::error={message}");
    }
}

fn embed() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MEMTRACE_BPF_OBJECT");

    let object = match env::var_os("MEMTRACE_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => variable("CARGO_MANIFEST_DIR")?.join("../target/bpf/memtrace-ebpf"),
    };
    println!("cargo::rerun-if-changed={}", object.display());

    let embedded = variable("OUT_DIR")?.join("memtrace.bpf.o");
    fs::copy(&object, &embedded).map(drop).map_err(|error| {
        format!(
            "no BPF object to embed: {}: {error}; run `cargo xtask build`, which compiles it first",
            object.display()
        )
    })
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("cargo did not set {name}"))
}
