//! What a live trace waits for: the buffer, a process's end, Ctrl-C.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use nix::sys::signal::{SigHandler, Signal, signal};
use tokio::io::{Interest, unix::AsyncFd};

use super::Session;

/// Readable when one of the stream's buffers fills; the descriptor is a copy, the buffers stay the session's.
pub fn buffer(session: &Session) -> io::Result<AsyncFd<OwnedFd>> {
    readable(session.wake().try_clone_to_owned()?)
}

/// Readable when the process ends (pidfd_open(2), since 5.3).
pub fn exit(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: two integers; the descriptor returned is ours.
    let descriptor = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd as i32)
    };
    readable(descriptor)
}

/// Whether the signal is ignored now.
pub fn ignored(signal: i32) -> io::Result<bool> {
    // SAFETY: sigaction is plain data; without a new action the call only fills the old one in.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, std::ptr::null(), &raw mut action) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(action.sa_sigaction == libc::SIG_IGN)
    }
}

/// Gives a signal its default action back.
pub fn restore(number: Signal) -> nix::Result<()> {
    // SAFETY: a default action runs no code of ours.
    unsafe { signal(number, SigHandler::SigDfl) }.map(drop)
}

fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the AsyncFd, which deregisters it before it is closed; nothing else
    // closes or replaces it.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    registered.map_err(io::Error::from)
}
