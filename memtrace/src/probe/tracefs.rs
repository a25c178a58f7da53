//! tracefs: ids of tracepoints, and uprobes defined for one process with inheritance.
//!
//! Where it is not mounted, it is opened without mounting it anywhere: a detached mount
//! (fsopen(2), fsmount(2), since 5.2) that goes with its descriptor.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    rc::Rc,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use super::Error;

/// Definitions are made in a group of this name and the pid of the memtrace that made them.
const GROUP: &str = "memtrace_";

/// An open tracefs.
pub struct Tracefs {
    root: OwnedFd,
}

/// Uprobes that share one trace event (several since 5.4); dropped, they are removed.
pub struct UprobeEvent {
    tracefs: Rc<Tracefs>,
    name: String,
}

impl Tracefs {
    /// Opens tracefs where it is mounted, or without mounting it.
    pub fn open() -> Result<Self, Error> {
        let mounted = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
        for path in mounted {
            if let Ok(directory) = File::open(path)
                && openat(
                    &directory,
                    "uprobe_events",
                    OFlag::O_RDONLY | OFlag::O_CLOEXEC,
                    Mode::empty(),
                )
                .is_ok()
            {
                return Ok(Self {
                    root: directory.into(),
                });
            }
        }
        detached_mount()
            .map(|root| Self { root })
            .map_err(|source| Error::Tracefs { source })
    }

    /// The id of a tracepoint for perf_event_open(2), as `category/name`.
    pub fn id(&self, event: &str) -> io::Result<u64> {
        let text = self.read(&format!("events/{event}/id"))?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::other(format!("{event}/id is not a number: {text}")))
    }

    /// An event that uprobes can be added to.
    pub fn event(self: &Rc<Self>, name: &str) -> UprobeEvent {
        UprobeEvent {
            tracefs: Rc::clone(self),
            name: format!("{GROUP}{}/{name}", std::process::id()),
        }
    }

    /// Removes definitions that a memtrace left when it was killed.
    pub fn purge(&self) -> io::Result<()> {
        for name in self.definitions()? {
            let owner = name
                .strip_prefix(GROUP)
                .and_then(|rest| rest.split_once('/'));
            let Some(Ok(pid)) = owner.map(|(pid, _)| pid.parse::<u32>()) else {
                continue;
            };
            if !std::path::Path::new(&format!("/proc/{pid}")).exists()
                && let Err(error) = self.append(&format!("-:{name}"))
            {
                // It may be busy for a moment yet, or another memtrace removes it at the same time.
                log::debug!("{name} stays defined: {error}");
            }
        }
        Ok(())
    }

    /// Names of the uprobe events defined now, by whomever.
    pub fn definitions(&self) -> io::Result<Vec<String>> {
        let text = self.read("uprobe_events")?;
        let name = |line: &str| {
            Some(
                line.split_whitespace()
                    .next()?
                    .split_once(':')?
                    .1
                    .to_owned(),
            )
        };
        Ok(text.lines().filter_map(name).collect())
    }

    fn append(&self, line: &str) -> io::Result<()> {
        self.file("uprobe_events", OFlag::O_WRONLY | OFlag::O_APPEND)?
            .write_all(line.as_bytes())
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        self.file(path, OFlag::O_RDONLY)?
            .read_to_string(&mut text)?;
        Ok(text)
    }

    fn file(&self, path: &str, flags: OFlag) -> io::Result<File> {
        Ok(File::from(openat(
            self.root.as_fd(),
            path,
            flags | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?))
    }
}

impl UprobeEvent {
    /// Adds a uprobe at a file offset; `returns`: a return probe, which all of one event are or none. To be done
    /// before the event is opened. `file` is an open descriptor of this process: naming it by /proc/self/fd
    /// serves any path, deleted files and other mount namespaces.
    pub fn add(&self, returns: bool, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let kind = if returns { 'r' } else { 'p' };
        let Self { tracefs, name } = self;
        tracefs.append(&format!(
            "{kind}:{name} /proc/self/fd/{}:{offset:#x}",
            file.as_raw_fd()
        ))
    }

    /// Leaves whatever stands under the name.
    pub fn forget(self) {
        std::mem::forget(self);
    }

    /// The id for perf_event_open(2).
    pub fn id(&self) -> io::Result<u64> {
        self.tracefs.id(&self.name)
    }
}

impl Drop for UprobeEvent {
    fn drop(&mut self) {
        if let Err(error) = self.tracefs.append(&format!("-:{}", self.name)) {
            log::debug!("{} stays defined: {error}", self.name);
        }
    }
}

/// A mount of tracefs that is in no directory.
fn detached_mount() -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: libc::c_long = 6;
    const FSOPEN_CLOEXEC: libc::c_long = 1;
    const FSMOUNT_CLOEXEC: libc::c_long = 1;
    let checked = |value: libc::c_long| {
        if value < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(value as RawFd)
        }
    };
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: the string is NUL-terminated; the descriptors returned are ours.
    unsafe {
        let context = checked(libc::syscall(
            libc::SYS_fsopen,
            c"tracefs".as_ptr(),
            FSOPEN_CLOEXEC,
        ))?;
        let context = OwnedFd::from_raw_fd(context);
        let fd = libc::c_long::from(context.as_raw_fd());
        checked(libc::syscall(
            libc::SYS_fsconfig,
            fd,
            FSCONFIG_CMD_CREATE,
            null,
            null,
            0,
        ))?;
        let mount = checked(libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(mount))
    }
}
