//! Runs memtrace as built from this clone.

use std::{env, ffi::OsString, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

use crate::{
    build::{self, Output},
    command::{forget_outer_cargo, say},
    workspace::Workspace,
};

/// Builds memtrace and becomes it: its input, output, signals and exit status are its own.
pub fn memtrace(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    let binary = workspace.memtrace();
    if !binary.exists() {
        say("building memtrace (some minutes the first time)");
    }
    build::memtrace(workspace, Output::Quiet)?;
    let mut memtrace = Command::new(&binary);
    forget_outer_cargo(&mut memtrace);
    forget_toolchain(&mut memtrace);
    let error = memtrace.args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", binary.display()))
}

/// A traced cargo is to choose its toolchain as it would untraced. rustup's proxy pins the one
/// that compiled xtask, and says where it took it from.
fn forget_toolchain(command: &mut Command) {
    if env::var_os("RUSTUP_TOOLCHAIN_SOURCE").is_some_and(|source| source != "env") {
        command
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTUP_TOOLCHAIN_SOURCE");
    }
}
