//! Runs every test.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, Output},
    command::{is_root, show},
    programs,
    workspace::Workspace,
};

/// `cargo test` on the workspace, with the release binary for the tests that run memtrace.
pub fn all(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    if !is_root() {
        bail!("the tests trace programs, which takes root: run this as root");
    }
    programs::ensure(workspace)?;
    build::memtrace(workspace, Output::Shown)?;
    let mut test = build::cargo_in(workspace);
    test.arg("test");
    if !chooses_packages(arguments) {
        test.arg("--workspace");
    }
    test.arg("--target-dir")
        .arg(workspace.target())
        .args(arguments);
    test.env("MEMTRACE_BIN", workspace.memtrace());
    test.env("PATH", path_with_tools(workspace)?);
    show(&mut test, "cargo test")
}

/// `--workspace` beside `--package` would test everything all the same.
fn chooses_packages(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .take_while(|argument| *argument != OsStr::new("--"))
        .filter_map(|argument| argument.to_str())
        .any(|argument| {
            argument == "--package"
                || argument.starts_with("--package=")
                || (argument.starts_with("-p") && !argument.starts_with("--"))
        })
}

/// What is installed comes first: set-up adds only what is not.
pub fn path_with_tools(workspace: &Workspace) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    directories.push(workspace.tools().join("bin"));
    env::join_paths(directories)
        .context("the clone's path has a colon in it, which PATH cannot hold")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chosen_package_is_seen_before_the_double_dash() {
        let chooses = |line: &str| {
            chooses_packages(
                &line
                    .split_whitespace()
                    .map(OsString::from)
                    .collect::<Vec<_>>(),
            )
        };
        assert!(chooses("-p memtrace") && chooses("-pmemtrace") && chooses("--package=memtrace"));
        assert!(!chooses("--release heap") && !chooses("-- -p x") && !chooses(""));
    }
}
