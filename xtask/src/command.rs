//! Running other programs: which environment they get, and what is shown of what they say.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// Says what set-up or a build is about to do.
pub fn say(message: &str) {
    eprintln!("xtask: {message}");
}

/// The cargo that runs this xtask, not another one that PATH may name.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_outer_cargo(&mut cargo);
    cargo
}

/// Takes out of a command's environment what `cargo run` put there for xtask: build scripts would
/// see it change with the way they are called, and a traced program is to see none of it.
pub fn forget_outer_cargo(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if is_of_outer_cargo(&name) {
            command.env_remove(name);
        }
    }
    if let Some(paths) = env::var_os("LD_LIBRARY_PATH") {
        match without_rust_directories(&paths) {
            Some(rest) => command.env("LD_LIBRARY_PATH", rest),
            None => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
}

fn is_of_outer_cargo(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    matches!(
        name,
        "CARGO" | "CARGO_CRATE_NAME" | "CARGO_BIN_NAME" | "CARGO_PRIMARY_PACKAGE"
    ) || name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
        || name.starts_with("CARGO_BIN_EXE_")
        || matches!(name, "OUT_DIR" | "RUST_RECURSION_COUNT")
}

/// `cargo run` prepends its target directories and the toolchain's libraries.
fn without_rust_directories(paths: &OsStr) -> Option<OsString> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let rest: Vec<PathBuf> = env::split_paths(paths)
        .filter(|path| {
            let of_clone = own.is_some_and(|own| path.starts_with(own.join("target")));
            let of_toolchain = path.ends_with("lib")
                && (path.join("rustlib").is_dir() || path.to_string_lossy().contains("rustlib"));
            let of_build = path.ends_with("debug") || path.ends_with("debug/deps");
            !(of_clone || of_toolchain || of_build)
        })
        .collect();
    if rest.is_empty() {
        None
    } else {
        env::join_paths(rest).ok()
    }
}

/// Runs a command whose output the user sees; fails with `what` when it fails.
pub fn show(command: &mut Command, what: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| unstartable(command, what))?;
    if !status.success() {
        bail!("{what} failed ({status}): its output is above");
    }
    Ok(())
}

/// Runs a command and keeps what it prints to itself unless it fails.
pub fn quiet(command: &mut Command, what: &str) -> Result<()> {
    let output = capture(command, what)?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        bail!("{what} failed ({}): its output is above", output.status);
    }
    Ok(())
}

/// Runs a command without input and returns how it ended and what it printed.
pub fn capture(command: &mut Command, what: &str) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| unstartable(command, what))
}

/// What a program prints, when it can be run and succeeds.
pub fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn unstartable(command: &Command, what: &str) -> String {
    format!(
        "{what}: cannot run {}",
        command.get_program().to_string_lossy()
    )
}

/// The executable of this name that a shell would run.
pub fn find(program: &str) -> Option<PathBuf> {
    find_in(program, &env::var_os("PATH")?)
}

fn find_in(program: &str, path: &OsStr) -> Option<PathBuf> {
    env::split_paths(path)
        .map(|directory| directory.join(program))
        .find(|path| is_executable(path))
}

/// Whether this is a file that may be run.
pub fn is_executable(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // The owner of /proc/self is the effective user.
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_cargo_is_told_from_the_users_settings() {
        for name in [
            "CARGO",
            "CARGO_PKG_NAME",
            "CARGO_MANIFEST_DIR",
            "CARGO_MANIFEST_PATH",
        ] {
            assert!(is_of_outer_cargo(OsStr::new(name)), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_BUILD_JOBS",
            "RUSTUP_HOME",
            "PATH",
        ] {
            assert!(!is_of_outer_cargo(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn a_users_library_path_survives() {
        let target = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug/deps");
        let given = format!("{target}:/opt/copy/lib:/home/u/target/debug");
        assert_eq!(
            without_rust_directories(OsStr::new(&given)),
            Some(OsString::from("/opt/copy/lib"))
        );
        assert_eq!(without_rust_directories(OsStr::new(target)), None);
    }

    #[test]
    fn find_wants_a_file_that_may_be_run() {
        assert!(find_in("sh", OsStr::new("/nowhere:/bin")).is_some());
        assert!(find_in("passwd", OsStr::new("/etc")).is_none());
        assert!(find_in("lib", OsStr::new("/usr")).is_none());
    }
}
