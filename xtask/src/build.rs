//! Builds memtrace: the kernel side first, because the user side embeds it.

use std::process::Command;

use anyhow::Result;

use crate::{
    command::{cargo, quiet, show},
    ebpf::{self, Warnings},
    setup,
    workspace::Workspace,
};

/// What the user sees of a build that succeeds.
#[derive(Clone, Copy, PartialEq)]
pub enum Output {
    /// All that cargo prints.
    Shown,
    /// Nothing.
    Quiet,
}

impl Output {
    /// Runs a command; fails with `what` when it fails.
    pub fn run(self, command: &mut Command, what: &str) -> Result<()> {
        match self {
            Self::Shown => show(command, what),
            Self::Quiet => quiet(command, what),
        }
    }
}

/// Leaves target/release/memtrace.
pub fn memtrace(workspace: &Workspace, output: Output) -> Result<()> {
    let tools = setup::for_ebpf(workspace)?;
    ebpf::build_with(workspace, &tools, output, Warnings::Allowed)?;
    let mut build = cargo_in(workspace);
    build.args([
        "build",
        "--release",
        "--package",
        "memtrace",
        "--bin",
        "memtrace",
    ]);
    build.arg("--target-dir").arg(workspace.target());
    output.run(&mut build, "building memtrace")
}

/// A `cargo` for the workspace. The object it embeds is the one just built, wherever the caller's
/// environment points.
pub fn cargo_in(workspace: &Workspace) -> Command {
    let mut cargo = cargo();
    cargo.current_dir(workspace.root());
    cargo
        .env_remove("MEMTRACE_BPF_OBJECT")
        .env_remove("CARGO_BUILD_TARGET");
    cargo
}
