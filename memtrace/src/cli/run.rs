//! `memtrace run`: launch, trace from the first instruction, report at exit.

use std::{ffi::OsString, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    attach::{Places, TraceOptions},
    complain,
    output::{Output, Place},
    signals::{Asked, Signals},
    status,
};
use crate::{
    probe::libraries,
    trace::{
        Session, foreseen,
        launch::{self, LaunchError},
        watch,
    },
};

/// How often what the ring buffers hold is taken when none fills up.
pub(super) const DRAIN: Duration = Duration::from_millis(20);
/// How often counts are reported and the recording goes out to the disk.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// Arguments of `run`.
#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    trace: TraceOptions,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How the command ended, or that it goes on without us.
enum Ended {
    Status(u8),
    Left,
}

impl Run {
    /// Runs the command under trace. The result is its exit status.
    pub fn execute(self, verbose: u8) -> Result<u8> {
        let Some(word) = self.command.first() else {
            return Ok(status::RUN_FAILED);
        };
        let path = match launch::resolve(word) {
            Ok(path) => path,
            Err(error) => return Ok(refuse(&error)),
        };
        let Places {
            mut output,
            writer,
            recording,
        } = self.trace.open(Place::Stderr)?;
        let mut session = Session::new(self.trace.options(verbose), writer)?;
        let files = if self.trace.no_heap {
            Vec::new()
        } else {
            let foreseen = foreseen::programs(&self.command);
            let shell = launch::shell(&path);
            libraries::files([path.clone()].into_iter().chain(shell).chain(foreseen))
        };
        let held = launch::hold(&path, &self.command)?;
        if let Err(error) = session.trace_held(held.pid, &files) {
            held.cancel();
            return Err(error.into());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let signals = Signals::new().context("cannot take signals over")?;
            if verbose > 0 {
                complain(&format!("tracing pid {}", held.pid));
            }
            let pid = match held.release() {
                Ok(pid) => pid,
                Err(error) => return Ok(refuse(&error)),
            };
            if let Some(recording) = recording {
                recording.keep();
            }
            let ended = follow(&mut session, pid, signals).await?;
            report(session, &mut output, ended)
        })
    }
}

/// Tells why a command does not start; the exit status is what a shell gives.
fn refuse(error: &LaunchError) -> u8 {
    complain(&error.to_string());
    match error {
        LaunchError::NotFound { .. } => status::NOT_FOUND,
        LaunchError::NotExecutable { .. } => status::NOT_EXECUTABLE,
        LaunchError::Spawn { .. } => status::RUN_FAILED,
    }
}

fn report(session: Session, output: &mut Output, ended: Ended) -> Result<u8> {
    let finished = session.finish();
    let ended_with = match ended {
        Ended::Status(status) => format!("the command ended with status {status}"),
        Ended::Left => "the command goes on".to_owned(),
    };
    let gate = output
        .write(finished.document)
        .with_context(|| ended_with.clone())?;
    if let Some(failure) = finished.recording_failure {
        return Err(failure).context(ended_with);
    }
    Ok(match ended {
        _ if gate != status::DONE => gate,
        Ended::Status(status) => status,
        Ended::Left => 128 + libc::SIGINT as u8,
    })
}

/// Takes events until the command ends. Ctrl-C reaches the command through its terminal and ends it or not;
/// the second one ends the trace.
async fn follow(session: &mut Session, pid: u32, mut signals: Signals) -> Result<Ended> {
    let wake = watch::buffer(session).context("cannot watch the ring buffers")?;
    let exit = watch::exit(pid).context("cannot watch the command")?;
    let mut drain = interval(DRAIN);
    drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tick = interval(TICK);
    let mut interrupts = 0;
    loop {
        tokio::select! {
            ready = wake.readable() => ready?.clear_ready(),
            _ = drain.tick() => {}
            _ = tick.tick() => session.tick(),
            _ = exit.readable() => {
                if let Some(status) = reap(pid)? {
                    return Ok(Ended::Status(status));
                }
            }
            asked = signals.next() => match asked {
                Asked::Interrupt => {
                    interrupts += 1;
                    if interrupts > 1 {
                        complain("tracing ends here; the command goes on");
                        return Ok(Ended::Left);
                    }
                }
                Asked::End(signal) => forward(pid, signal),
            },
        }
        session.drain();
        for failure in session.take_failures() {
            complain(&failure);
        }
    }
}

fn forward(pid: u32, signal: i32) {
    let Ok(signal) = Signal::try_from(signal) else {
        return;
    };
    if let Err(error) = kill(Pid::from_raw(pid as i32), signal) {
        log::debug!("{signal} to pid {pid}: {error}");
    }
}

/// The command's status as a shell gives it, once it has ended.
fn reap(pid: u32) -> Result<Option<u8>> {
    match waitpid(Pid::from_raw(pid as i32), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Ok(Some(code as u8)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(128 + signal as u8)),
        Ok(_) | Err(Errno::EINTR) => Ok(None),
        Err(error) => Err(error).context("cannot wait for the command"),
    }
}
