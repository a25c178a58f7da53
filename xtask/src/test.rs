//! Runs every test.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, Output},
    command::{is_root, say, show},
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
    show(&mut test, "cargo test")?;
    if arguments.is_empty() {
        of_pyenv(workspace)?;
    }
    Ok(())
}

/// Series of CPython that Debian does not have, and no package registry else.
const SERIES: [&str; 2] = ["3.12.", "3.13."];

/// The tests of these, where pyenv(1) has installed them.
fn of_pyenv(workspace: &Workspace) -> Result<()> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv"));
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from).or_else(home);
    let versions: Vec<OsString> = root
        .and_then(|root| root.join("versions").read_dir().ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    let has = |series: &&str| {
        let mut names = versions.iter().map(|name| name.to_string_lossy());
        names.any(|name| name.starts_with(*series))
    };
    if !SERIES.iter().all(has) {
        say(
            "not tested: functions of CPython 3.12 and 3.13, which are not here (pyenv install 3.12 3.13)",
        );
        return Ok(());
    }
    let mut test = build::cargo_in(workspace);
    test.args(["test", "--package", "memtrace-tests", "--test", "suite"]);
    test.arg("--target-dir").arg(workspace.target());
    test.args(["--", "--ignored", "python::pyenvs_"]);
    test.env("MEMTRACE_BIN", workspace.memtrace());
    show(&mut test, "cargo test of other interpreters")
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
