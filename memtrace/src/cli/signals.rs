//! Signals to memtrace itself.

use std::io;

use nix::sys::signal::Signal;
use tokio::signal::unix::{self, SignalKind};

use crate::trace::watch;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM or SIGHUP, by number.
    End(i32),
}

/// The signals that end a trace. One that was ignored when memtrace started stays ignored, as SIGHUP under
/// nohup and SIGINT in a script's background.
pub struct Signals {
    interrupt: Option<unix::Signal>,
    terminate: Option<unix::Signal>,
    hangup: Option<unix::Signal>,
}

impl Signals {
    /// Takes the signals over from their default actions.
    pub fn new() -> io::Result<Self> {
        let take = |number: i32| {
            if watch::ignored(number)? {
                return Ok::<_, io::Error>(None);
            }
            unix::signal(SignalKind::from_raw(number)).map(Some)
        };
        Ok(Self {
            interrupt: take(libc::SIGINT)?,
            terminate: take(libc::SIGTERM)?,
            hangup: take(libc::SIGHUP)?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            () = received(&mut self.interrupt) => Asked::Interrupt,
            () = received(&mut self.terminate) => Asked::End(libc::SIGTERM),
            () = received(&mut self.hangup) => Asked::End(libc::SIGHUP),
        }
    }
}

async fn received(signal: &mut Option<unix::Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// The trace is over: from here on each of the signals ends memtrace as it ends any program.
impl Drop for Signals {
    fn drop(&mut self) {
        for (taken, number) in [
            (&self.interrupt, Signal::SIGINT),
            (&self.terminate, Signal::SIGTERM),
            (&self.hangup, Signal::SIGHUP),
        ] {
            if taken.is_none() {
                continue;
            }
            if let Err(error) = watch::restore(number) {
                log::debug!("{number} keeps its handler: {error}");
            }
        }
    }
}
