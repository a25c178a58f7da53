//! What the machine starts from: the initial file system, a disk and swap.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{Job, kernel::Kernel, workplace::Workplace};
use crate::{command::quiet, packages, workspace::Workspace};

/// Takes what is written to files; sparse.
const DISK_BYTES: u64 = 8 << 30;
/// As much as a test pushes out, and more.
const SWAP_BYTES: u64 = 1 << 30;

/// Writes `initrd`, `disk` and `swap` into the workplace.
pub fn write(workspace: &Workspace, kernel: &Kernel, job: &Job, place: &Workplace) -> Result<()> {
    let tree = place.join("initrd.d");
    fill(workspace, kernel, job, &tree)
        .with_context(|| format!("cannot fill {}", tree.display()))?;
    pack(&tree, &place.join("initrd"))?;
    let disk = sparse(place, "disk", DISK_BYTES)?;
    let mut make = Command::new("mkfs.ext4");
    quiet(
        make.args(["-q", "-F"]).arg(disk),
        "making the virtual machine's disk",
    )?;
    let swap = sparse(place, "swap", SWAP_BYTES)?;
    quiet(
        Command::new("mkswap").arg(swap),
        "making the virtual machine's swap",
    )
}

fn fill(workspace: &Workspace, kernel: &Kernel, job: &Job, tree: &Path) -> Result<()> {
    for directory in [
        "bin", "modules", "dev", "proc", "sys", "lower", "disk", "root",
    ] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::copy(busybox(workspace)?, tree.join("bin/busybox"))?;
    let mut order = String::new();
    for module in kernel.modules() {
        let name = module.file_name().unwrap_or_default();
        fs::copy(&module, tree.join("modules").join(name))?;
        order.push_str(&name.to_string_lossy());
        order.push('\n');
    }
    fs::write(tree.join("modules/order"), order)?;
    fs::write(tree.join("job"), script(job))?;
    if job.systemd {
        fs::write(tree.join("systemd"), "")?;
    }
    let init = tree.join("init");
    fs::write(&init, include_str!("init.sh"))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A shell that needs no library, from its package.
fn busybox(workspace: &Workspace) -> Result<PathBuf> {
    let kept = workspace.vm().join("busybox");
    if !kept.exists() {
        let unpacked = packages::unpack("busybox-static", &workspace.vm())?;
        fs::rename(unpacked.path().join("bin/busybox"), &kept)
            .context("no bin/busybox in busybox-static")?;
    }
    Ok(kept)
}

/// The archive that the kernel unpacks into memory (Documentation/driver-api/early-userspace).
fn pack(tree: &Path, archive: &Path) -> Result<()> {
    let names = names_under(tree)?;
    let output =
        File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "--null", "--create", "--format=newc"]);
    cpio.current_dir(tree).stdin(Stdio::piped()).stdout(output);
    let mut child = cpio.spawn().context("cannot run cpio")?;
    let listed = child.stdin.take().map(|mut stdin| stdin.write_all(&names));
    let status = child.wait().context("waiting for cpio")?;
    if !status.success() || !matches!(listed, Some(Ok(()))) {
        bail!("cpio failed ({status}) on {}", tree.display());
    }
    Ok(())
}

/// All paths under a directory, relative to it, each ended by a zero; a directory before what is
/// in it.
fn names_under(tree: &Path) -> Result<Vec<u8>> {
    let mut names = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(tree.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            names.extend_from_slice(path.as_os_str().as_bytes());
            names.push(0);
            if entry.file_type()?.is_dir() {
                directories.push(path);
            }
        }
    }
    Ok(names)
}

fn sparse(place: &Workplace, name: &str, bytes: u64) -> Result<PathBuf> {
    let path = place.join(name);
    File::create(&path)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// What the guest's shell runs.
fn script(job: &Job) -> Vec<u8> {
    let mut script = b"cd ".to_vec();
    script.extend(quoted(job.directory.as_os_str()));
    script.extend(b" || exit 125\nexec env -i");
    for (name, value) in &job.environment {
        script.extend(format!(" {name}=").bytes());
        script.extend(quoted(value));
    }
    for word in &job.words {
        script.push(b' ');
        script.extend(quoted(word));
    }
    script.push(b'\n');
    script
}

/// As one word of a shell.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(br"'\''"),
            other => quoted.push(*other),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_guest_as_they_were_typed() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", ""];
        let job = Job {
            words: words.map(Into::into).to_vec(),
            directory: "/".into(),
            environment: vec![("PATH", "/usr/bin:/bin".into()), ("ODD", "x 'y'".into())],
            limit: super::super::COMMAND_LIMIT,
            systemd: false,
        };
        let script = String::from_utf8(script(&job)).unwrap_or_default();
        let output = Command::new("/bin/sh").args(["-c", &script]).output();
        let printed = output.map(|output| output.stdout).unwrap_or_default();
        assert_eq!(String::from_utf8_lossy(&printed), "a b|it's|$HOME||");
    }
}
