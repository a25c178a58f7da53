//! Memory system calls by events of their own, for a trace that lasts.
//!
//! While they are there, a system call of any other kind costs 30 ns more than without, where the raw tracepoints of all
//! system calls cost 150 (getppid, on the machine of docs/ARCHITECTURE.md). The kernel takes 35 ms to remove each.

use std::os::fd::{AsFd as _, OwnedFd};

use super::{
    Error,
    object::Object,
    perf::{self, Scope, Source},
    points::Status,
    tracefs::Tracefs,
};

const CHANGES: &str = "memory_call_event";
const ENDS: &str = "address_space_event";

/// Program and event. A call that a kernel does not have (shmat without System V IPC) does nothing to an address space.
const EVENTS: [(&str, &str); 11] = [
    (CHANGES, "sys_exit_brk"),
    (CHANGES, "sys_exit_mmap"),
    (CHANGES, "sys_exit_munmap"),
    (CHANGES, "sys_exit_mremap"),
    (CHANGES, "sys_exit_mprotect"),
    (CHANGES, "sys_exit_madvise"),
    (CHANGES, "sys_exit_shmat"),
    (CHANGES, "sys_exit_shmdt"),
    (ENDS, "sys_enter_execve"),
    (ENDS, "sys_enter_execveat"),
    (ENDS, "sys_enter_exit_group"),
];

/// Links, and the events that they are on.
pub struct CallEvents(#[expect(dead_code, reason = "held open")] Vec<[OwnedFd; 2]>);

impl CallEvents {
    /// Attaches to all of them, for every CPU, whichever the event is opened on. An error where the kernel does not
    /// have these events (`CONFIG_FTRACE_SYSCALLS`).
    pub fn attach(object: &Object, tracefs: &Tracefs) -> Result<(Self, Vec<Status>), Error> {
        let mut attached = Vec::with_capacity(EVENTS.len());
        let mut statuses = Vec::with_capacity(EVENTS.len());
        for (program, name) in EVENTS {
            let one = attach(object, tracefs, program, name);
            statuses.push(Status {
                name: name.to_owned(),
                failure: one.as_ref().err().map(ToString::to_string),
            });
            match one {
                Ok(one) => attached.push(one),
                Err(error) if name == "sys_exit_mmap" => return Err(error),
                Err(_) => {}
            }
        }
        Ok((Self(attached), statuses))
    }
}

fn attach(
    object: &Object,
    tracefs: &Tracefs,
    program: &'static str,
    name: &str,
) -> Result<[OwnedFd; 2], Error> {
    let event = format!("syscalls/{name}");
    let id = tracefs.id(&event).map_err(|source| Error::Tracepoint {
        name: event.clone(),
        source,
    })?;
    let opened = perf::open(Source::Tracepoint(id), Scope::Cpu(0));
    let opened = opened.map_err(|source| Error::Event {
        name: event.clone(),
        source,
    })?;
    let link = perf::link(object.program(program)?, opened.as_fd(), 0);
    let link = link.map_err(|source| Error::Attach {
        name: event,
        source,
    })?;
    Ok([link, opened])
}
