//! A process of the bench. Every wait for it has a deadline, and nothing of it is left behind.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::fd::AsFd as _,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// For what a process is waited for. Ten million allocations under a tracer take half a minute.
const DEADLINE: Duration = Duration::from_secs(180);

/// Killed where it did not end before this goes.
pub struct Running {
    child: Child,
    output: Option<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts a command that is told to end should the bench end before it.
    pub fn start(command: &Command) -> Result<Self> {
        let name = command.get_program().to_owned();
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "TERM", "--"]).arg(&name);
        bound.args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => bound.env(key, value),
                None => bound.env_remove(key),
            };
        }
        let mut child = bound
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", name.display()))?;
        let output = child.stdout.take().map(BufReader::new);
        Ok(Self { child, output })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of the output that passes.
    pub fn line(&mut self, is_it: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + DEADLINE;
        let output = self.output.as_mut().context("no output")?;
        let mut line = Vec::new();
        loop {
            if output.buffer().is_empty() {
                readable(output.get_ref(), deadline)?;
            }
            let bytes = output.fill_buf().context("cannot read")?;
            if bytes.is_empty() {
                bail!("it ended without a result");
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(bytes.len(), |at| at + 1);
            line.extend_from_slice(&bytes[..taken]);
            output.consume(taken);
            if end.is_some() {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                if is_it(&text) {
                    return Ok(text);
                }
                line.clear();
            }
        }
    }

    /// Lets a workload that said that it is ready work, and takes what it tells.
    pub fn work(&mut self) -> Result<Value> {
        let mut input = self.child.stdin.take().context("no input")?;
        input.write_all(b"\n").context("the workload is gone")?;
        let line = self.line(|line| line.starts_with("{\"operations\""))?;
        serde_json::from_str(&line).context("the workload's result")
    }

    /// Waits for its end, which has to be a good one.
    pub fn end(mut self) -> Result<()> {
        let status = self.wait()?;
        if !status.success() {
            bail!("{status}");
        }
        Ok(())
    }

    /// A signal that ends it, and its end.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid() as i32), signal)?;
        self.wait().map(drop)
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + DEADLINE;
        // What it still prints must not stop it.
        let rest = self.output.take().map(|mut output| {
            thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()).map(drop))
        });
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("it does not end after {} s", DEADLINE.as_secs());
            }
            thread::sleep(Duration::from_millis(5));
        };
        drop(rest);
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Ok(None) = self.child.try_wait() else {
            return;
        };
        // It is ours and has not been waited for: the pid is its own. A tracer that is asked to end ends what it
        // started, too.
        _ = kill(Pid::from_raw(self.pid() as i32), Signal::SIGTERM);
        let patience = Instant::now() + Duration::from_secs(5);
        while Instant::now() < patience {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn readable(output: &ChildStdout, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, timeout)? == 0 {
        bail!("no answer after {} s", DEADLINE.as_secs());
    }
    Ok(())
}
