//! A `memtrace daemon` over a cgroup of the test's own.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use memtrace::daemon::protocol::{Listing, ProcessLine};
use memtrace::report::document::{Document, Process};
use nix::sys::signal::Signal;

use crate::binary::memtrace;
use crate::child::{Finished, Running, deadline, run};
use crate::scratch::Scratch;

/// Long enough for an answer on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A cgroup of the unified hierarchy, removed when dropped.
pub struct Cgroup {
    name: String,
    directory: PathBuf,
}

impl Cgroup {
    /// A new one, with nothing in it.
    pub fn new() -> Cgroup {
        static TURN: AtomicU32 = AtomicU32::new(0);
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let root = memtrace::probe::area::hierarchy().expect("a cgroup2 file system is mounted");
        let name = format!("memtrace-test-{}-{turn}", std::process::id());
        let directory = root.join(&name);
        fs::create_dir(&directory).expect("make a cgroup");
        Cgroup { name, directory }
    }

    /// One below it, with whatever lies between; it goes with this one.
    pub fn below(&self, path: &str) -> Cgroup {
        let directory = self.directory.join(path);
        fs::create_dir_all(&directory).expect("make a cgroup");
        let name = format!("{}/{path}", self.name);
        Cgroup { name, directory }
    }

    /// Its path as /proc/PID/cgroup has it.
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Moves a process in here.
    pub fn take(&self, pid: u32) {
        let procs = self.directory.join("cgroup.procs");
        fs::write(procs, pid.to_string()).expect("move a process into the cgroup");
    }

    /// Lets what `command` starts begin its life in here.
    pub fn holds<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let procs = self.directory.join("cgroup.procs");
        let procs =
            std::ffi::CString::new(procs.to_str().expect("a path in UTF-8")).expect("no NUL");
        // SAFETY: open, write and close are async-signal-safe and touch nothing of the parent.
        unsafe {
            command.pre_exec(move || {
                let flags = nix::fcntl::OFlag::O_WRONLY;
                let file =
                    nix::fcntl::open(procs.as_c_str(), flags, nix::sys::stat::Mode::empty())?;
                nix::unistd::write(&file, b"0")?;
                Ok(())
            })
        }
    }

    /// Starts `command` in here.
    pub fn start(&self, command: &mut Command) -> Running {
        Running::start(self.holds(command))
    }

    /// Runs `command` in here to its end.
    pub fn run(&self, command: &mut Command) -> Finished {
        run(self.holds(command))
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever is in it still (a panic drops in any order) ends with it; cgroup.kill is since 5.14.
        let _ = fs::write(self.directory.join("cgroup.kill"), "1");
        // What was killed a moment ago is still on its way out.
        let until = Instant::now() + Duration::from_secs(10);
        while remove(&self.directory).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes a cgroup and those below it; the files in one are the kernel's.
fn remove(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

/// A running daemon with directories of its own.
pub struct Daemon {
    /// What it traces.
    pub cgroup: Arc<Cgroup>,
    /// Where its directories are.
    pub scratch: Scratch,
    process: Option<Running>,
    config: PathBuf,
}

impl Daemon {
    /// One that answers already.
    pub fn start() -> Daemon {
        Daemon::with("")
    }

    /// The same with further lines of configuration.
    pub fn with(lines: &str) -> Daemon {
        Daemon::over(Cgroup::new(), lines)
    }

    /// One over a cgroup that may have processes in it.
    pub fn over(cgroup: Cgroup, lines: &str) -> Daemon {
        Daemon::of(&Arc::new(cgroup), lines)
    }

    /// The same over a cgroup that others use too.
    pub fn of(cgroup: &Arc<Cgroup>, lines: &str) -> Daemon {
        let scratch = Scratch::new();
        let state = scratch.path("state");
        Daemon::within(Arc::clone(cgroup), scratch, &state, lines)
    }

    /// The same with its history in a place of the test's.
    pub fn keeping(cgroup: Cgroup, state: &Path) -> Daemon {
        Daemon::within(Arc::new(cgroup), Scratch::new(), state, "")
    }

    /// One over the whole machine, which must be the test's own.
    pub fn everywhere() -> Daemon {
        let (cgroup, scratch) = (Arc::new(Cgroup::new()), Scratch::new());
        let state = scratch.path("state");
        Daemon::begin(cgroup, scratch, &state, "")
    }

    fn within(cgroup: Arc<Cgroup>, scratch: Scratch, state: &Path, lines: &str) -> Daemon {
        let area = format!("cgroup = {:?}\n{lines}", cgroup.path());
        Daemon::begin(cgroup, scratch, state, &area)
    }

    fn begin(cgroup: Arc<Cgroup>, scratch: Scratch, state: &Path, lines: &str) -> Daemon {
        // A debug build on a busy machine costs more than a daemon may, which most tests are not about.
        let budget = match lines.contains("[budget]") {
            true => "",
            false => "budget = { cpu_percent = 100.0, memory = '1GiB' }\n",
        };
        let text = format!(
            "{budget}runtime_directory = {:?}\nstate_directory = {state:?}\n{lines}",
            scratch.path("run"),
        );
        let config = scratch.write("memtrace.toml", text);
        let mut daemon = Daemon {
            cgroup,
            scratch,
            process: None,
            config,
        };
        daemon.restart();
        daemon
    }

    /// Starts it again, after it ended in whatever way.
    pub fn restart(&mut self) {
        let process = Running::start(&mut self.command());
        process.stderr_has("msg=\"ready\"");
        self.process = Some(process);
    }

    /// What starts it.
    pub fn command(&self) -> Command {
        let mut command = memtrace(&["daemon", "--config"]);
        command.arg(&self.config);
        command
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Running {
        self.process.as_mut().expect("the daemon runs")
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.scratch.path("run/socket")
    }

    /// Where its history is.
    pub fn history(&self) -> PathBuf {
        self.scratch.path("state/history.sqlite")
    }

    /// Ends it as systemd does.
    #[track_caller]
    pub fn stop(&mut self) -> Finished {
        let process = self.process.take().expect("the daemon runs");
        process.signal(Signal::SIGTERM);
        process.finish()
    }

    /// Ends it as the out-of-memory killer does.
    pub fn kill(&mut self) {
        let process = self.process.take().expect("the daemon runs");
        process.signal(Signal::SIGKILL);
        process.finish();
    }

    /// Runs a subcommand that asks it.
    pub fn ask(&self, arguments: &[&str]) -> Finished {
        let mut command = memtrace(arguments);
        command.arg("--socket").arg(self.socket());
        run(&mut command)
    }

    /// What `memtrace ps` lists.
    #[track_caller]
    pub fn ps(&self) -> Listing {
        let told = self.ask(&["ps", "--format", "json"]);
        told.exited(0);
        serde_json::from_slice(&told.stdout).expect("a listing")
    }

    /// Waits for a line about `pid` that fits.
    #[track_caller]
    pub fn line(&self, pid: u32, fits: impl Fn(&ProcessLine) -> bool) -> ProcessLine {
        let until = deadline();
        loop {
            let listing = self.ps();
            let line = listing.processes.into_iter().find(|line| line.pid == pid);
            match line {
                Some(line) if fits(&line) => return line,
                line => assert!(Instant::now() < until, "not of {pid}: {line:?}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A report as `memtrace report` with these arguments gives it.
    #[track_caller]
    pub fn report(&self, arguments: &[&str]) -> Document {
        let arguments = [&["report", "--format", "json"], arguments].concat();
        let told = self.ask(&arguments);
        told.exited(0);
        serde_json::from_slice(&told.stdout).expect("a document")
    }

    /// What is known of a process that runs.
    #[track_caller]
    pub fn process_now(&self, pid: u32) -> Process {
        let mut document = self.report(&["-p", &pid.to_string()]);
        assert_eq!(document.processes.len(), 1);
        document.processes.remove(0)
    }

    /// Waits until the history knows that these many processes that fit have ended, and returns them.
    #[track_caller]
    pub fn ended(&self, count: usize, fits: impl Fn(&Process) -> bool) -> Vec<Process> {
        let until = deadline();
        loop {
            let document = self.report(&["--since", "1h"]);
            let all = document.processes.into_iter();
            let ended: Vec<Process> = all.filter(|one| one.exit.is_some() && fits(one)).collect();
            if ended.len() >= count {
                return ended;
            }
            assert!(Instant::now() < until, "{} of {count} ended", ended.len());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Sends bytes as they are and reads what comes back.
    pub fn send(&self, bytes: &[u8]) -> String {
        send(&self.socket(), bytes)
    }
}

/// Sends bytes to a socket and reads the answer; a daemon that closes early is no failure.
pub fn send(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).expect("the daemon listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    stream
        .set_write_timeout(Some(DEADLINE))
        .expect("a time-out");
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).expect("an answer in UTF-8")
}
