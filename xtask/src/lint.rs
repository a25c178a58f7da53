//! What is checked without running anything.

use anyhow::{Result, bail};

use crate::{
    build::{Output, cargo_in},
    command::{answer, show},
    ebpf::{self, Warnings},
    setup, tidy,
    workspace::Workspace,
};

/// Formatting, tidy, and clippy on the user side; formatting and the compiler's warnings on the
/// kernel side, whose toolchain need not have a clippy. Cheapest first.
pub fn all(workspace: &Workspace) -> Result<()> {
    for component in ["fmt", "clippy"] {
        if answer(cargo_in(workspace).args([component, "--version"])).is_none() {
            bail!("there is no cargo {component}: run `rustup component add rustfmt clippy`");
        }
    }
    let mut format = cargo_in(workspace);
    show(
        format.args(["fmt", "--all", "--check"]),
        "cargo fmt --check",
    )?;
    let mut format = cargo_in(workspace);
    format.args(["fmt", "--check", "--manifest-path"]);
    show(
        format.arg(workspace.ebpf_crate().join("Cargo.toml")),
        "cargo fmt --check in memtrace-ebpf",
    )?;
    tidy::check(workspace)?;

    let tools = setup::for_ebpf(workspace)?;
    ebpf::build_with(workspace, &tools, Output::Shown, Warnings::Denied)?;
    let mut clippy = cargo_in(workspace);
    clippy.args(["clippy", "--workspace", "--all-targets", "--target-dir"]);
    clippy
        .arg(workspace.target())
        .args(["--", "-D", "warnings"]);
    show(&mut clippy, "cargo clippy")
}
