//! Compiles the kernel side.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{build::Output, setup::EbpfTools, workspace::Workspace};

const TARGET: &str = "bpfel-unknown-none";

/// Compiles memtrace-ebpf and puts it where memtrace's build script finds it.
pub fn build(workspace: &Workspace, tools: &EbpfTools) -> Result<()> {
    build_with(workspace, tools, Output::Shown, Warnings::Allowed)
}

/// What a warning means.
#[derive(Clone, Copy, PartialEq)]
pub enum Warnings {
    /// It is shown.
    Allowed,
    /// It fails the build.
    Denied,
}

/// [`build`], with a choice of what is shown and what fails.
pub fn build_with(
    workspace: &Workspace,
    tools: &EbpfTools,
    output: Output,
    warnings: Warnings,
) -> Result<()> {
    let manifest = workspace.ebpf_crate().join("Cargo.toml");
    if !manifest.exists() {
        bail!(
            "there is no {}: this is not a whole clone",
            manifest.display()
        );
    }
    let mut cargo = compile_command(workspace, tools, &manifest);
    if warnings == Warnings::Denied {
        // Not a flag of rustc: that would compile core anew.
        cargo.args(["-Z", "warnings", "--config", "build.warnings='deny'"]);
    }
    output.run(&mut cargo, "compiling the BPF programs")?;

    let built = workspace
        .ebpf_target()
        .join(TARGET)
        .join("release/memtrace-ebpf");
    copy_if_changed(&built, &workspace.ebpf_object())
}

fn compile_command(workspace: &Workspace, tools: &EbpfTools, manifest: &Path) -> Command {
    let mut cargo = tools.toolchain.cargo();
    cargo.args([
        "build",
        "--release",
        "--locked",
        "-Z",
        "build-std=core",
        "--target",
        TARGET,
    ]);
    cargo.arg("--manifest-path").arg(manifest);
    cargo.arg("--target-dir").arg(workspace.ebpf_target());
    cargo.current_dir(workspace.root());
    let flags = [
        format!("-Clinker={}", tools.linker.display()),
        // Atomics whose result is used, and 32-bit jumps: Linux 5.12.
        "-Ctarget-cpu=v3".to_owned(),
        // Line information for the verifier's log, and BTF for the maps.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo
}

/// A new time stamp alone would make cargo build memtrace again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let built = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|present| present == built) {
        return Ok(());
    }
    let directory = to.parent().unwrap_or(to);
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(to, built))
        .with_context(|| format!("cannot write {}", to.display()))
}
