//! Faults timed in windows: the software events that tell starts and ends of faults are opened on all CPUs of an area
//! for a while, at random times, and are not there otherwise, so that a fault then costs what it costs untraced.
//!
//! Each moment lies in a window with the same probability, whatever the traced programs do: the times between windows
//! are exponentially distributed and drawn by a thread of its own. A fault belongs to the sample by its start. Events of
//! starts are closed first, and those of ends a little later; major faults, which may wait for long, have theirs open all
//! the time, which costs other faults nothing.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Error,
    area::{self, Area},
    fault::{Attached, End, Program, attach},
    object::Object,
    perf::Source,
};

/// Length of a window, for each CPU: opening and closing takes some 100 µs for each.
const WINDOW_OF_CPU: Duration = Duration::from_millis(5);

/// A minor fault that takes longer may be timed or not.
const LONGEST_MINOR: Duration = Duration::from_millis(5);

const START: End = End {
    program: "fault_window_start",
    name: "page-faults",
    source: Source::Faults,
};

/// The thread that opens and closes windows; it ends when this goes.
pub struct Windows {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Windows {
    /// Times one in so many faults of an area from now on. `minor` is what tells the end of a minor fault.
    pub fn begin(object: &Object, area: &Area, one_in: u32, minor: End) -> Result<Self, Error> {
        let programs = Programs {
            start: (START, owned(object.program(START.program)?)?),
            minor: (minor, owned(object.program(minor.program)?)?),
        };
        let area = area.try_clone().map_err(copying)?;
        // Once here, so that what cannot be opened is an error at the beginning.
        drop(programs.open_all(&area)?);
        let (stop, stopped) = channel();
        let thread = thread::Builder::new()
            .name("fault-windows".into())
            .spawn(move || run(&programs, &area, one_in, &stopped))
            .map_err(copying)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the fault windows failed");
        }
    }
}

/// What runs at the start of a fault and at the end of a minor one.
struct Programs {
    start: (End, OwnedFd),
    minor: (End, OwnedFd),
}

/// The events of a window.
struct Open {
    starts: Vec<Attached>,
    ends: Vec<Attached>,
}

impl Programs {
    /// Events on every CPU that is online; ends first, so that each start finds its end.
    fn open_all(&self, area: &Area) -> Result<Open, Error> {
        let online = area::online_cpus()?;
        let all = |(end, program): &(End, OwnedFd)| -> Result<Vec<Attached>, Error> {
            let mut attached = Vec::with_capacity(online.len());
            for &cpu in &online {
                let program = Program {
                    end: *end,
                    descriptor: program.as_fd(),
                };
                attached.extend(attach(program, area.on(cpu)).map(Some).or_else(gone)?);
            }
            Ok(attached)
        };
        let ends = all(&self.minor)?;
        let starts = all(&self.start)?;
        Ok(Open { starts, ends })
    }
}

/// A CPU may go offline between its listing and the opening of its events.
fn gone(error: Error) -> Result<Option<Attached>, Error> {
    match error {
        Error::Event { source, .. } if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        error => Err(error),
    }
}

fn run(programs: &Programs, area: &Area, one_in: u32, stopped: &Receiver<()>) {
    let mut rest = Rest::new(one_in);
    let mut said = false;
    let mut closed = Instant::now();
    let mut last = length();
    loop {
        let asked = rest.after(last);
        if ends_within(stopped, asked) {
            return;
        }
        let opened = programs.open_all(area);
        let opening = Instant::now();
        rest.took(opening - closed, asked);
        let ended = ends_within(stopped, length());
        closed = Instant::now();
        last = closed - opening;
        match opened {
            Ok(Open { starts, ends }) => {
                drop(starts);
                if ended || ends_within(stopped, LONGEST_MINOR) {
                    return;
                }
                drop(ends);
            }
            Err(error) if !said => {
                log::warn!("faults are not timed for a while: {error}");
                said = true;
            }
            Err(_) => {}
        }
    }
}

/// How long a window is to be.
fn length() -> Duration {
    let cpus = area::online_cpus().map_or(1, |online| online.len() as u32);
    WINDOW_OF_CPU * cpus.clamp(2, 200)
}

/// The time without a window: as long as that in windows asks for, however long a busy machine made these.
struct Rest {
    /// Time without a window for each time with one.
    share: f64,
    /// By how much the times so far were longer than drawn, not yet made up for.
    late: Duration,
}

impl Rest {
    fn new(one_in: u32) -> Self {
        Self {
            share: f64::from(one_in) - 1.0,
            late: Duration::ZERO,
        }
    }

    /// How long to wait after a window of this length, or before the first one of it.
    fn after(&mut self, window: Duration) -> Duration {
        // Above 0 and up to 1, so its logarithm is finite.
        let even = 1.0 - fastrand::f64();
        let drawn = window.mul_f64(self.share * -even.ln());
        let made_up = drawn.min(self.late);
        self.late -= made_up;
        drawn - made_up
    }

    /// It took so long in place of what was asked for.
    fn took(&mut self, taken: Duration, asked: Duration) {
        self.late += taken.saturating_sub(asked);
    }
}

/// Waits, and tells whether it is to end meanwhile.
fn ends_within(stopped: &Receiver<()>, time: Duration) -> bool {
    stopped.recv_timeout(time) != Err(RecvTimeoutError::Timeout)
}

fn owned(program: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    program.try_clone_to_owned().map_err(copying)
}

fn copying(source: io::Error) -> Error {
    Error::Attach {
        name: "page-faults in windows".to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_moments_lies_in_a_window() {
        let window = Duration::from_millis(10);
        for one_in in [2, 8, 100] {
            let mut rest = Rest::new(one_in);
            let turns = 100_000;
            let mut without = Duration::ZERO;
            for _ in 0..turns {
                let asked = rest.after(window);
                // Each takes longer than it was to.
                let taken = asked + Duration::from_millis(3);
                rest.took(taken, asked);
                without += taken;
            }
            let with = window * turns;
            let share = with.as_secs_f64() / (with + without).as_secs_f64();
            // The mean of so many has a standard error of 0.3 %.
            let wrong = share * f64::from(one_in) - 1.0;
            assert!(wrong.abs() < 0.03, "1 in {one_in}: {share} of the time");
        }
    }
}
