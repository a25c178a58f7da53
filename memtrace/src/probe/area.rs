//! A part of the machine that is traced as a whole: everything, or what runs in a cgroup.
//!
//! A cgroup is told from its place in the unified hierarchy, which is there on hybrid systems too. The kernel keeps
//! the trace within it: programs compare ids, perf events are the cgroup's own.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use memtrace_common::target;

use super::{Error, perf::Scope};

/// Deepest hierarchy below a cgroup that is walked.
const DEEPEST: usize = 64;

/// What is traced as a whole.
#[derive(Debug)]
pub enum Area {
    /// Every process.
    Machine,
    /// The processes of a cgroup and of those below it.
    Cgroup(Cgroup),
}

/// A cgroup of the unified hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
    id: u64,
    level: u32,
}

/// Why a cgroup cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum AreaError {
    /// No cgroup2 file system is mounted.
    #[error(
        "no cgroup2 file system is mounted, so no cgroup can be told: mount one, or trace the whole machine"
    )]
    NoHierarchy,
    /// There is no such cgroup.
    #[error("cannot open the cgroup {path}: {source}; cgroups are named from the root, as in /proc/PID/cgroup", path = path.display())]
    Open {
        /// Its directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Area {
    /// The cgroup with a path as /proc/PID/cgroup tells it (`/system.slice/nginx.service`).
    pub fn cgroup(path: &str) -> Result<Self, AreaError> {
        let root = hierarchy().ok_or(AreaError::NoHierarchy)?;
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let path = parts.iter().fold(root, |path, part| path.join(part));
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(&path)
            .and_then(|directory| {
                let id = directory.metadata()?.ino();
                Ok((directory, id))
            });
        match opened {
            Ok((directory, id)) => Ok(Self::Cgroup(Cgroup {
                path,
                directory,
                // The inode's number is the id: cgroup_id(), include/linux/cgroup.h, on 64 bits.
                id,
                level: parts.len() as u32,
            })),
            Err(source) => Err(AreaError::Open { path, source }),
        }
    }

    /// The same once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Machine => Self::Machine,
            Self::Cgroup(cgroup) => Self::Cgroup(Cgroup {
                path: cgroup.path.clone(),
                directory: cgroup.directory.try_clone()?,
                id: cgroup.id,
                level: cgroup.level,
            }),
        })
    }

    /// As the programs are told.
    pub fn wire(&self) -> target::Area {
        match self {
            Self::Machine => target::Area {
                kind: target::AREA_MACHINE,
                ..target::Area::NONE
            },
            Self::Cgroup(cgroup) => target::Area {
                cgroup: cgroup.id,
                level: cgroup.level,
                kind: target::AREA_CGROUP,
            },
        }
    }

    /// The scope of an event on one CPU.
    pub fn on(&self, cpu: u32) -> Scope {
        match self {
            Self::Machine => Scope::Cpu(cpu),
            Self::Cgroup(cgroup) => Scope::Cgroup {
                directory: cgroup.directory.as_raw_fd(),
                cpu,
            },
        }
    }

    /// Processes that run in it now.
    pub fn processes(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        match self {
            Self::Machine => {
                let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
                pids.extend(
                    entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()),
                );
            }
            Self::Cgroup(cgroup) => members(&cgroup.path, 0, &mut pids),
        }
        pids
    }
}

/// The processes of a cgroup and of those below it.
fn members(directory: &Path, depth: usize, pids: &mut Vec<u32>) {
    let listed = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process that this pid namespace does not show.
    pids.extend(
        listed
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|&pid: &u32| pid != 0),
    );
    if depth == DEEPEST {
        return;
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            members(&entry.path(), depth + 1, pids);
        }
    }
}

/// Where the unified hierarchy is mounted: at /sys/fs/cgroup, or beside version 1 on a hybrid system.
pub fn hierarchy() -> Option<PathBuf> {
    let mounts = procfs::process::Process::myself().ok()?.mountinfo().ok()?;
    let unified = mounts.into_iter().find(|mount| mount.fs_type == "cgroup2");
    unified.map(|mount| mount.mount_point)
}

/// CPUs that are online now.
pub fn online_cpus() -> Result<Vec<u32>, Error> {
    aya::util::online_cpus().map_err(|(name, source)| Error::Event {
        name: format!("events of all CPUs: {name}"),
        source,
    })
}
