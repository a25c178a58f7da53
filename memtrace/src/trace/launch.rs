//! Starts a command held before its exec, so that tracing is in place at its first instruction.

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    unistd::{AccessFlags, ForkResult, Pid, access, fork, pipe2},
};

use super::watch;

/// Why a command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Nothing of that name in PATH, or no such file.
    #[error("{command}: command not found")]
    NotFound {
        /// As it was typed.
        command: String,
    },
    /// It is there and cannot be executed.
    #[error("{command}: cannot be executed: {source}")]
    NotExecutable {
        /// As it was typed.
        command: String,
        /// The system's error.
        source: io::Error,
    },
    /// The process could not be made.
    #[error("cannot start {command}: {source}")]
    Spawn {
        /// As it was typed.
        command: String,
        /// The system's error.
        source: io::Error,
    },
}

/// Runs scripts that do not say what runs them.
const SHELL: &CStr = c"/bin/sh";

/// Whether SIGPIPE was ignored when memtrace started. The Rust runtime ignores it before main.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

// SAFETY: the C library calls what is in this section once, before main and with one thread; it calls
// sigaction(2) and nothing that needs the Rust runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = note_pipe;

extern "C" fn note_pipe() {
    let ignored = watch::ignored(libc::SIGPIPE).unwrap_or(false);
    PIPE_IGNORED.store(ignored, Ordering::Relaxed);
}

/// A command that waits before its exec.
pub struct Held {
    /// Its process.
    pub pid: u32,
    command: String,
    go: File,
    failure: File,
}

/// The file that a command names: itself where it has a slash, else the first executable one in PATH.
pub fn resolve(command: &OsStr) -> Result<PathBuf, LaunchError> {
    let name = || command.to_string_lossy().into_owned();
    if command.is_empty() {
        let command = "''".to_owned();
        return Err(LaunchError::NotFound { command });
    }
    if command.as_bytes().contains(&b'/') {
        return executable(Path::new(command))
            .map(|()| command.into())
            .map_err(|error| match error {
                Errno::ENOENT | Errno::ENOTDIR => LaunchError::NotFound { command: name() },
                error => LaunchError::NotExecutable {
                    command: name(),
                    source: error.into(),
                },
            });
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut refused = None;
    for directory in std::env::split_paths(&path) {
        let candidate = directory.join(command);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => refused = Some(error),
        }
    }
    Err(match refused {
        Some(error) => LaunchError::NotExecutable {
            command: name(),
            source: error.into(),
        },
        None => LaunchError::NotFound { command: name() },
    })
}

/// What runs a file that the kernel does not know how to run, if it looks like a script.
pub fn shell(path: &Path) -> Option<PathBuf> {
    let mut start = Vec::new();
    let file = File::open(path).ok()?;
    file.take(512).read_to_end(&mut start).ok()?;
    let line = start.split(|&byte| byte == b'\n').next()?;
    let binary = line.starts_with(b"\x7fELF") || line.starts_with(b"#!") || line.contains(&0);
    (!binary).then(|| PathBuf::from(OsStr::from_bytes(SHELL.to_bytes())))
}

fn executable(path: &Path) -> Result<(), Errno> {
    access(path, AccessFlags::F_OK)?;
    if path.is_dir() {
        return Err(Errno::EISDIR);
    }
    access(path, AccessFlags::X_OK)
}

/// Forks the command and holds it before its exec. To be called while this process has one thread.
pub fn hold(path: &Path, command: &[OsString]) -> Result<Held, LaunchError> {
    let name = command
        .first()
        .map(|word| word.to_string_lossy().into_owned())
        .unwrap_or_default();
    let failed = |source: io::Error| LaunchError::Spawn {
        command: name.clone(),
        source,
    };
    let strings = |words: Vec<OsString>| {
        words
            .into_iter()
            .map(|word| CString::new(word.into_vec()))
            .collect::<Result<Vec<_>, _>>()
    };
    let invalid = |_| failed(io::Error::from(io::ErrorKind::InvalidInput));
    let program = CString::new(path.as_os_str().as_bytes()).map_err(invalid)?;
    let arguments = strings(command.to_vec()).map_err(invalid)?;
    let environment = strings(environment()).map_err(invalid)?;
    let (go_read, go) = pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(error.into()))?;
    let (failure, failure_write) = pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(error.into()))?;
    let argv = pointers(&arguments);
    let envp = pointers(&environment);
    // What execvp(3) makes of it: sh, the file, the arguments.
    let mut script = Vec::new();
    if shell(path).is_some() {
        script.extend([SHELL.as_ptr(), program.as_ptr()]);
        script.extend_from_slice(argv.get(1..).unwrap_or_default());
    }
    // SAFETY: one thread; the child calls nothing but async-signal-safe functions and takes no lock.
    match unsafe { fork() }.map_err(|error| failed(error.into()))? {
        ForkResult::Parent { child } => Ok(Held {
            pid: child.as_raw() as u32,
            command: name,
            go: File::from(go),
            failure: File::from(failure),
        }),
        ForkResult::Child => {
            drop(go);
            execute(&go_read, &failure_write, &program, &argv, &envp, &script)
        }
    }
}

fn environment() -> Vec<OsString> {
    std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        })
        .collect()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// The child's side: waits for the word, restores what memtrace changed, executes.
fn execute(
    go: &OwnedFd,
    failure: &OwnedFd,
    program: &CString,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
    script: &[*const libc::c_char],
) -> ! {
    // SAFETY: system calls only; the vectors end with null and outlive the calls.
    unsafe {
        let mut byte = 0u8;
        loop {
            match libc::read(go.as_raw_fd(), (&raw mut byte).cast(), 1) {
                1 => break,
                -1 if *libc::__errno_location() == libc::EINTR => {}
                // memtrace gave up or died: the command never starts.
                _ => libc::_exit(0),
            }
        }
        if !PIPE_IGNORED.load(Ordering::Relaxed) {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
        libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
        let mut error = *libc::__errno_location();
        if error == libc::ENOEXEC && !script.is_empty() {
            libc::execve(SHELL.as_ptr(), script.as_ptr(), envp.as_ptr());
            error = *libc::__errno_location();
        }
        libc::write(
            failure.as_raw_fd(),
            (&raw const error).cast(),
            size_of::<i32>(),
        );
        libc::_exit(127)
    }
}

impl Held {
    /// Lets the command go on to its exec, and tells whether that succeeded.
    pub fn release(mut self) -> Result<u32, LaunchError> {
        let command = self.command;
        if let Err(source) = self.go.write_all(&[1]) {
            return Err(LaunchError::Spawn { command, source });
        }
        let mut error = [0u8; size_of::<i32>()];
        match self.failure.read(&mut error) {
            Ok(0) => Ok(self.pid),
            Ok(_) => {
                let source = io::Error::from_raw_os_error(i32::from_ne_bytes(error));
                reap(self.pid);
                Err(LaunchError::NotExecutable { command, source })
            }
            Err(source) => Err(LaunchError::Spawn { command, source }),
        }
    }

    /// Ends the held process: the command never ran.
    pub fn cancel(self) {
        let pid = self.pid;
        drop(self.go);
        reap(pid);
    }
}

fn reap(pid: u32) {
    if let Err(error) = nix::sys::wait::waitpid(Pid::from_raw(pid as i32), None) {
        log::debug!("wait for pid {pid}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_word_names_no_command() {
        let error = resolve(OsStr::new("")).unwrap_err();
        assert_eq!(error.to_string(), "'': command not found");
    }

    #[test]
    fn only_text_without_an_interpreter_is_run_by_the_shell() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for (text, by_shell) in [
            (&b"exit 7\n"[..], true),
            (b"", true),
            (b"#!/bin/false\n", false),
            (b"\x7fELF and so on", false),
            (b"\x00\x01\x02", false),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(shell(&path).is_some(), by_shell, "{text:?}");
        }
    }
}
