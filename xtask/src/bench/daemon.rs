//! memtrace's daemon over a cgroup of the bench's own: what may be on always.

use std::{
    ffi::OsString,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::workload::Place;

/// What it logs when it traces.
pub const READY: &str = "msg=\"ready\"";

/// The cgroup's name: that of one bench at a time.
const CGROUP: &str = "memtrace-bench";

/// How long the kernel may take to let go of a cgroup that is empty.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the cgroup is in the file system.
fn directory() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let mounted = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (path, kind) = (words.nth(1)?, words.next()?);
        (kind == "cgroup2").then_some(path)
    });
    let root = mounted.context("no cgroup2 file system is mounted")?;
    Ok(Path::new(root).join(CGROUP))
}

/// Makes the cgroup, with nothing in it.
pub fn prepare() -> Result<()> {
    let directory = directory()?;
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))
}

/// Removes it when all that was in it has ended.
pub fn clean() -> Result<()> {
    let directory = directory()?;
    let until = Instant::now() + PATIENCE;
    while let Err(error) = fs::remove_dir(&directory) {
        if error.kind() == ErrorKind::NotFound {
            break;
        }
        if Instant::now() > until {
            return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A command line that runs in the cgroup.
pub fn within(words: &[OsString]) -> Vec<OsString> {
    let procs = directory().unwrap_or_default().join("cgroup.procs");
    let script = "echo $$ > \"$0\" && exec \"$@\"";
    let mut within: Vec<OsString> = ["sh", "-c", script].map(OsString::from).to_vec();
    within.push(procs.into());
    within.extend_from_slice(words);
    within
}

/// The daemon's command line; `lines` are of its configuration.
pub fn command(place: &Place, lines: &str, options: &[&str]) -> Result<Vec<OsString>> {
    let home = place.directory.join("daemon");
    let text = format!(
        "cgroup = \"/{CGROUP}\"\nruntime_directory = {:?}\nstate_directory = {:?}\n{lines}\n",
        home.join("run"),
        home.join("state"),
    );
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let config = home.join("memtrace.toml");
    fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    let memtrace = place.memtrace.clone().into_os_string();
    let mut words = vec![memtrace, "daemon".into(), "--config".into(), config.into()];
    words.extend(options.iter().map(OsString::from));
    Ok(words)
}
