//! Debian packages: which are missing, and installing them without a question and without
//! starting a service.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::command::{answer, capture, find, is_root, quiet, say};

/// Whether this machine's packages are managed with apt.
pub fn available() -> bool {
    find("apt-get").is_some() && find("dpkg-query").is_some()
}

/// Those of `wanted` that are not installed.
pub fn missing<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    let mut query = Command::new("dpkg-query");
    query
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(wanted);
    // It exits 1 when it does not know one of them, and still lists the others.
    let listing = query
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    not_listed(wanted, &String::from_utf8_lossy(&listing))
}

fn not_listed<'a>(wanted: &[&'a str], listing: &str) -> Vec<&'a str> {
    let installed: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    wanted
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect()
}

/// Installs packages, in whatever version the lists here name; `why` ends the sentence "these are needed …".
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    install_from(Lists::AsTheyAre, packages, why)
}

/// Installs packages in the newest version there is: lists of months ago name one that is installed without a
/// complaint and is too old.
pub fn install_newest(packages: &[&str], why: &str) -> Result<()> {
    install_from(Lists::Updated, packages, why)
}

/// What apt-get is to know of packages before it installs.
#[derive(Clone, Copy, PartialEq)]
enum Lists {
    /// What it knows, as long as that will do.
    AsTheyAre,
    /// What there is today.
    Updated,
}

fn install_from(lists: Lists, packages: &[&str], why: &str) -> Result<()> {
    let by_hand = format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    );
    if !available() {
        bail!(
            "{} needed {why}, and there is no apt-get here to install them",
            listed(packages)
        );
    }
    let Some(root) = Root::reach() else {
        bail!(
            "{} needed {why}: run this as root: {by_hand}",
            listed(packages)
        );
    };

    say(&format!(
        "installing with apt-get, {why}: {}",
        packages.join(" ")
    ));
    let updated = lists == Lists::Updated || lists_are_empty();
    if updated {
        update(&root)?;
    }
    let mut result = install_once(&root, packages);
    if result.is_err() && !updated {
        // An old list names packages, and versions of them, that are gone.
        update(&root)?;
        result = install_once(&root, packages);
    }
    result
}

fn install_once(root: &Root, packages: &[&str]) -> Result<()> {
    let mut apt = root.apt_get();
    apt.args(["install", "--yes", "--no-install-recommends"])
        .args(packages);
    run(&mut apt, &format!("install {}", packages.join(" ")))
}

fn update(root: &Root) -> Result<()> {
    say("updating apt-get's package lists");
    run(root.apt_get().arg("update"), "update")
}

fn run(apt: &mut Command, what: &str) -> Result<()> {
    let output = capture(apt, "apt-get")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("apt-get {what} failed: {}", complaint(&said));
}

/// What apt-get says went wrong, in one line.
fn complaint(stderr: &str) -> String {
    let errors: Vec<&str> = stderr
        .lines()
        .filter_map(|line| line.strip_prefix("E: "))
        .map(str::trim)
        .collect();
    if errors.is_empty() {
        stderr
            .lines()
            .last()
            .unwrap_or("it said nothing")
            .trim()
            .to_owned()
    } else {
        errors.join("; ")
    }
}

/// docker images ship without lists.
fn lists_are_empty() -> bool {
    let Ok(entries) = fs::read_dir("/var/lib/apt/lists") else {
        return true;
    };
    !entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn listed(packages: &[&str]) -> String {
    match packages {
        [package] => format!("the package {package} is"),
        _ => format!("the packages {} are", packages.join(", ")),
    }
}

/// The names of the packages that match a regular expression, as far as the lists here know.
pub fn known(pattern: &str) -> Result<Vec<String>> {
    if lists_are_empty()
        && let Some(root) = Root::reach()
    {
        update(&root)?;
    }
    let mut search = Command::new("apt-cache");
    search.args(["search", "--names-only", pattern]);
    let listing = capture(&mut search, "searching for packages")?;
    let listing = String::from_utf8_lossy(&listing.stdout);
    Ok(listing
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// Fetches a package and unpacks its files into a new directory under `parent`, without installing
/// it. The directory goes when the handle is dropped.
pub fn unpack(package: &str, parent: &Path) -> Result<TempDir> {
    let unwritable = || format!("cannot make a directory in {}", parent.display());
    fs::create_dir_all(parent).with_context(unwritable)?;
    let directory = tempfile::Builder::new()
        .prefix("package-")
        .tempdir_in(parent)
        .with_context(unwritable)?;
    let path = directory.path();
    if let Err(error) = download(package, path) {
        // An old list names versions that are gone.
        let root = Root::reach().ok_or(error)?;
        update(&root)?;
        download(package, path)?;
    }
    let file = fs::read_dir(path)
        .with_context(unwritable)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get downloaded no file of {package}"))?;
    let mut extract = Command::new("dpkg-deb");
    extract.arg("--extract").arg(file).arg(path);
    quiet(&mut extract, &format!("unpacking {package}"))?;
    Ok(directory)
}

fn download(package: &str, directory: &Path) -> Result<()> {
    let mut apt = Command::new("apt-get");
    // Without it root's apt-get warns that another user cannot write here.
    apt.args(["-o", "APT::Sandbox::User=root", "download", package]);
    run(apt.current_dir(directory), &format!("download {package}"))
}

/// How to become root.
enum Root {
    Already,
    Sudo { may_ask: bool },
}

impl Root {
    fn reach() -> Option<Self> {
        if is_root() {
            return Some(Self::Already);
        }
        find("sudo")?;
        let may_ask = std::io::IsTerminal::is_terminal(&std::io::stdin());
        let can = may_ask || answer(Command::new("sudo").args(["-n", "true"])).is_some();
        can.then_some(Self::Sudo { may_ask })
    }

    /// `apt-get` with an environment in which it asks nothing. sudo drops the caller's
    /// environment, so it is set by `env`, behind it.
    fn apt_get(&self) -> Command {
        let mut command = match self {
            Self::Already => Command::new("env"),
            Self::Sudo { may_ask } => {
                let mut sudo = Command::new("sudo");
                if !may_ask {
                    sudo.arg("-n");
                }
                sudo.arg("env");
                sudo
            }
        };
        command.args([
            "DEBIAN_FRONTEND=noninteractive",
            "NEEDRESTART_SUSPEND=1",
            "apt-get",
        ]);
        // Another install may be going on.
        command.args(["-o", "DPkg::Lock::Timeout=300"]);
        command
    }
}

/// Whether a file of a library package is there, whatever the distribution calls the package.
pub fn has_library(name: &str) -> bool {
    let architecture = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    [
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        architecture.as_str(),
    ]
    .iter()
    .any(|directory| Path::new(directory).join(name).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_and_unknown_packages_are_missing() {
        let listing = "gcc installed\ngdb config-files\nzlib1g-dev installed\n";
        assert_eq!(
            not_listed(&["gcc", "gdb", "zlib1g-dev", "valgrind"], listing),
            ["gdb", "valgrind"]
        );
    }

    #[test]
    fn apt_complaints_become_one_line() {
        let said = "W: old\nE: Unable to locate package a\nE: Unable to locate package b\n";
        assert_eq!(
            complaint(said),
            "Unable to locate package a; Unable to locate package b"
        );
        assert_eq!(
            complaint("sudo: a password is required\n"),
            "sudo: a password is required"
        );
        assert_eq!(complaint(""), "it said nothing");
    }
}
