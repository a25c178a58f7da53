//! Processes that a test starts, with what they print and a deadline for everything they do.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

/// When what was begun now hangs if it is not done: long enough for anything on a loaded machine.
///
/// `MEMTRACE_TEST_PATIENCE` multiplies it, on machines whose processor is emulated.
pub fn deadline() -> Instant {
    let patience = std::env::var("MEMTRACE_TEST_PATIENCE").map_or(1, |factor| {
        factor
            .parse()
            .expect("MEMTRACE_TEST_PATIENCE is a whole number")
    });
    Instant::now() + Duration::from_secs(180) * patience
}

/// What one pipe brought so far.
#[derive(Default)]
struct Pipe {
    bytes: Vec<u8>,
    closed: bool,
}

/// A pipe drained by a thread of its own, so that a child never blocks on it.
#[derive(Clone, Default)]
struct Stream(Arc<(Mutex<Pipe>, Condvar)>);

impl Stream {
    fn drain(mut source: impl Read + Send + 'static) -> Stream {
        let stream = Stream::default();
        let sink = stream.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            loop {
                let length = source.read(&mut buffer).unwrap_or(0);
                let mut pipe = sink.0.0.lock().expect("a whole pipe");
                pipe.bytes.extend_from_slice(&buffer[..length]);
                pipe.closed = length == 0;
                sink.0.1.notify_all();
                if pipe.closed {
                    return;
                }
            }
        });
        stream
    }

    /// Waits until `done` holds; false when it cannot any more or the deadline is over.
    fn wait(&self, done: impl Fn(&Pipe) -> bool) -> bool {
        let longest = deadline() - Instant::now();
        let pipe = self.0.0.lock().expect("a whole pipe");
        let (pipe, _) = self
            .0
            .1
            .wait_timeout_while(pipe, longest, |pipe| !done(pipe) && !pipe.closed)
            .expect("a whole pipe");
        done(&pipe)
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().expect("a whole pipe").bytes.clone()
    }
}

/// The word behind `text`, once it has ended.
fn word_after(bytes: &[u8], text: &str) -> Option<String> {
    let said = String::from_utf8_lossy(bytes);
    let rest = said.split_once(text)?.1;
    let end = rest.find(|c: char| c.is_whitespace() || c == '"')?;
    Some(rest[..end].to_owned())
}

/// A process that a test started, the leader of a process group of its own; both are killed when it is dropped.
pub struct Running {
    child: Child,
    name: String,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
}

impl Running {
    /// Starts `command` with all three streams piped.
    pub fn start(command: &mut Command) -> Running {
        Running::start_with_stdout(command, Stdio::piped())
    }

    /// Starts `command` with its output going to `stdout`.
    pub fn start_with_stdout(command: &mut Command, stdout: Stdio) -> Running {
        let name = format!("{command:?}");
        command
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .process_group(0);
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
        unsafe {
            // An interrupted test run drops nothing; the kernel then ends the child.
            command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
        }
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(Stream::drain).unwrap_or_default();
        let stderr = child.stderr.take().map(Stream::drain).unwrap_or_default();
        Running {
            child,
            name,
            stdin,
            stdout,
            stderr,
        }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its stdin.
    pub fn send(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin
            .write_all(bytes)
            .unwrap_or_else(|error| panic!("write to {}: {error}", self.name));
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        kill(self.raw_pid(), signal)
            .unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Sends a signal to its process group, as a terminal does.
    pub fn signal_group(&self, signal: Signal) {
        killpg(self.raw_pid(), signal)
            .unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Waits until `count` lines of its stdout are complete, and returns them all.
    pub fn stdout_lines(&self, count: usize) -> String {
        let enough =
            |pipe: &Pipe| pipe.bytes.iter().filter(|&&byte| byte == b'\n').count() >= count;
        assert!(
            self.stdout.wait(enough),
            "{} did not print {count} lines: {}",
            self.name,
            self.so_far()
        );
        String::from_utf8_lossy(&self.stdout.bytes()).into_owned()
    }

    /// Waits until its stdout has `text` in it.
    pub fn stdout_has(&self, text: &str) {
        assert!(
            self.stdout.wait(has(text)),
            "{} did not print {text:?}: {}",
            self.name,
            self.so_far()
        );
    }

    /// Whether its stdout has `text` in it by now.
    pub fn stdout_has_now(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.stdout.bytes()).contains(text)
    }

    /// Waits until its stderr has `text` in it.
    pub fn stderr_has(&self, text: &str) {
        assert!(
            self.stderr.wait(has(text)),
            "{} did not say {text:?}: {}",
            self.name,
            self.so_far()
        );
    }

    /// Waits until its stderr has `text` in it, and returns the word that follows.
    pub fn stderr_word(&self, text: &str) -> String {
        let whole = |pipe: &Pipe| word_after(&pipe.bytes, text).is_some();
        assert!(
            self.stderr.wait(whole),
            "{} did not say {text:?}: {}",
            self.name,
            self.so_far()
        );
        word_after(&self.stderr.bytes(), text).expect("it is there")
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Closes its stdin, waits for its end, and returns what it printed.
    pub fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        let status = self.wait();
        for stream in [&self.stdout, &self.stderr] {
            let whole = Arc::strong_count(&stream.0) == 1 || stream.wait(|pipe| pipe.closed);
            assert!(
                whole,
                "{} ended, and something it started holds its output open",
                self.name
            );
        }
        Finished {
            name: self.name.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.bytes(),
            stderr: self.stderr.bytes(),
        }
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = deadline();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} hangs in {}: {}",
                self.name,
                self.place(),
                self.so_far()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Where in the kernel its threads are, and which signals wait.
    fn place(&self) -> String {
        let of = |file: &str| {
            let path = format!("/proc/{}/{file}", self.child.id());
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let status = of("status");
        let wanted = ["State", "SigPnd", "ShdPnd", "SigBlk", "SigCgt"];
        let lines = status
            .lines()
            .filter(|line| wanted.iter().any(|name| line.starts_with(name)));
        format!("{:?} {:?}", of("stack"), lines.collect::<Vec<_>>())
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn so_far(&self) -> String {
        let text = |stream: &Stream| String::from_utf8_lossy(&stream.bytes()).into_owned();
        format!(
            "stdout {:?}, stderr {:?}",
            text(&self.stdout),
            text(&self.stderr)
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // While the leader is not reaped its number names nothing else; afterwards the group must be left alone.
        if self.alive() {
            let _ = killpg(self.raw_pid(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

fn has(text: &str) -> impl Fn(&Pipe) -> bool + '_ {
    move |pipe| String::from_utf8_lossy(&pipe.bytes).contains(text)
}

/// Runs `command` to its end.
pub fn run(command: &mut Command) -> Finished {
    Running::start(command).finish()
}

/// How a process ended and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// The command line.
    pub name: String,
    /// Its exit status.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it said on stderr.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Asserts that it exited with `code`.
    #[track_caller]
    pub fn exited(&self, code: i32) -> &Finished {
        assert_eq!(
            self.code,
            Some(code),
            "{}: {:?} {}{}",
            self.name,
            self.signal,
            self.output(),
            self.messages()
        );
        self
    }

    /// Its stdout as text.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its stderr as text.
    pub fn messages(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Asserts that it said one clear line on stderr, and returns it.
    #[track_caller]
    pub fn one_line(&self) -> String {
        let text = self.messages();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        assert_eq!(
            lines.len(),
            1,
            "{} was to say one line: {text:?}",
            self.name
        );
        assert!(!text.contains("panicked"), "{}: {text}", self.name);
        lines[0].to_owned()
    }

    /// The JSON objects that a workload printed, a line each.
    #[track_caller]
    pub fn objects(&self) -> Vec<Value> {
        let output = self.output();
        let lines = output.lines().filter(|line| line.starts_with('{'));
        lines
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
            })
            .collect()
    }

    /// The last object that a workload printed.
    #[track_caller]
    pub fn object(&self) -> Value {
        let last = self.objects().pop();
        last.unwrap_or_else(|| {
            panic!(
                "{} printed no object: {}{}",
                self.name,
                self.output(),
                self.messages()
            )
        })
    }
}
