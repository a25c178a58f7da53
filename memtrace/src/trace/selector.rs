//! What processes are chosen by.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    event::Pid,
    seed::{self, container},
};

/// Bytes of a command's name that the kernel keeps: TASK_COMM_LEN without its NUL, include/linux/sched.h.
const COMM_BYTES: usize = 15;

/// One way to name processes; typed, configured and sent in the same words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    /// One process, until it ends, with what it forks.
    Pid(Pid),
    /// By the name of the main thread, as `ps` shows it.
    Command(String),
    /// By the path of the program.
    Exe(String),
    /// By the user's name or number.
    User(String),
    /// By a cgroup, as /proc/PID/cgroup has it, and those below it.
    Cgroup(String),
    /// By container, pod or unit, as `ps` shows it, or by the first digits of the container's id.
    Container(String),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "-p {pid}"),
            Self::Command(name) => write!(f, "--command {name}"),
            Self::Exe(path) => write!(f, "--exe {path}"),
            Self::User(name) => write!(f, "--user {name}"),
            Self::Cgroup(path) => write!(f, "--cgroup {path}"),
            Self::Container(name) => write!(f, "--container {name}"),
        }
    }
}

impl Selector {
    /// The same with the links in a path resolved, as the kernel tells the paths of programs.
    pub(super) fn resolved(self) -> Self {
        match self {
            Self::Exe(path) => match std::fs::canonicalize(&path) {
                Ok(resolved) => Self::Exe(resolved.to_string_lossy().into_owned()),
                Err(_) => Self::Exe(path),
            },
            other => other,
        }
    }

    /// What is told of a process decides; `uid` is that of [`Selector::User`].
    pub(super) fn matches(&self, uid: Option<u32>, process: &seed::Facts) -> bool {
        match self {
            Self::Pid(pid) => *pid == process.pid,
            Self::Command(name) => {
                let kept = name.len().min(COMM_BYTES);
                process.comm.as_bytes() == &name.as_bytes()[..kept]
            }
            Self::Exe(path) => process.exe == *path,
            Self::User(_) => uid == Some(process.uid),
            Self::Cgroup(path) => {
                let mut own = process.cgroups.iter();
                own.any(|own| container::is_below(own, path))
            }
            Self::Container(name) => {
                let mut own = process.cgroups.iter();
                own.any(|own| container::is_in(own, name))
            }
        }
    }

    /// Whether what a chosen process executes is chosen too.
    pub(super) fn outlives_exec(&self) -> bool {
        matches!(self, Self::User(_) | Self::Cgroup(_) | Self::Container(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_name_a_process() {
        let process = seed::Facts {
            pid: 7,
            comm: "a-name-of-sixte".into(),
            exe: "/usr/bin/a".into(),
            uid: 33,
            cgroups: vec!["/".into(), "/system.slice/a.service".into()],
        };
        let text = |text: &str| text.to_owned();
        let cases = [
            (Selector::Pid(7), true),
            (Selector::Pid(8), false),
            (Selector::Command(text("a-name-of-sixteen")), true),
            (Selector::Command(text("a-name")), false),
            (Selector::Exe(text("/usr/bin/a")), true),
            (Selector::Exe(text("/usr/bin")), false),
            (Selector::User(text("www-data")), true),
            (Selector::Cgroup(text("/system.slice")), true),
            (Selector::Cgroup(text("/system.slice/a.service/")), true),
            (Selector::Cgroup(text("/system.slice/a")), false),
            (Selector::Cgroup(text("/")), true),
            (Selector::Container(text("a.service")), true),
            (Selector::Container(text("b.service")), false),
        ];
        for (selector, expected) in cases {
            assert_eq!(selector.matches(Some(33), &process), expected, "{selector}");
        }
        assert!(!Selector::User(text("root")).matches(Some(0), &process));
    }
}
