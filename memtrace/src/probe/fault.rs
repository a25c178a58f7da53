//! Page-fault ends: the kernel's software events.
//!
//! They are opened for the traced threads, with inheritance: other processes do not pay for them. Where a
//! traced process lost its own, they are opened for all CPUs as long as it lives, and every fault of the machine
//! passes the filter. An area that is traced as a whole has them on each CPU for good. The starts are raw tracepoints ([`super::points`]) with the filter as their first step,
//! which costs others about 0.08 µs a fault; they alone tell reads from writes.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::{
    Error,
    area::{self, Area},
    fault_window::Windows,
    object::Object,
    perf::{self, Scope, Source},
    points::{Status, event_error},
};

/// Attached fault probes of some processes.
#[derive(Default)]
pub struct FaultProbes {
    attached: Vec<Attached>,
    /// Those of all CPUs, while a process needs them.
    wide: Vec<Attached>,
    wide_failure: Option<String>,
    /// Those of an area, by CPU.
    area: BTreeMap<u32, Vec<Attached>>,
    /// Faults of an area are timed in windows.
    in_windows: bool,
    /// What opens these.
    windows: Option<Windows>,
}

/// A link, and the event that it is on.
pub(super) type Attached = [OwnedFd; 2];

/// A software event and what runs at it.
#[derive(Clone, Copy)]
pub(super) struct End {
    pub(super) program: &'static str,
    pub(super) name: &'static str,
    pub(super) source: Source,
}

const MINOR: End = End {
    program: "fault_end_minor",
    name: "page-faults-min",
    source: Source::MinorFaults,
};
const MAJOR: End = End {
    program: "fault_end_major",
    name: "page-faults-maj",
    source: Source::MajorFaults,
};
const ENDS: [End; 2] = [MINOR, MAJOR];

impl FaultProbes {
    /// Follows the faults of a thread and of all that it makes from now on. A thread that is gone has none.
    pub fn follow(&mut self, object: &Object, tid: u32, inherit: bool) -> Result<(), Error> {
        for end in ENDS {
            match attach(of(object, end)?, Scope::Thread { tid, inherit }) {
                Ok(attached) => self.attached.push(attached),
                Err(Error::Event { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// None yet. `in_windows`: the programs were loaded to time faults in windows alone.
    pub fn new(in_windows: bool) -> Self {
        Self {
            in_windows,
            ..Self::default()
        }
    }

    /// Times one in so many faults of an area from now on, in windows.
    pub fn open_windows(&mut self, object: &Object, area: &Area, one_in: u32) -> Result<(), Error> {
        self.windows = Some(Windows::begin(object, area, one_in, MINOR)?);
        Ok(())
    }

    /// Follows the faults of an area on these CPUs and on no others: called again as CPUs come and go. An event of a
    /// CPU that went is dead, also when the CPU comes back. The result is how many CPUs are new.
    pub fn follow_area(
        &mut self,
        object: &Object,
        area: &Area,
        online: &[u32],
    ) -> Result<u64, Error> {
        self.area.retain(|cpu, _| online.contains(cpu));
        let ends = if self.in_windows { &[MAJOR][..] } else { &ENDS };
        let mut came = 0;
        for &cpu in online {
            let attached = self.area.entry(cpu).or_default();
            if attached.is_empty() {
                *attached = attach_on(object, ends, area, cpu)?;
                came += 1;
            }
        }
        Ok(came)
    }

    /// Tells the ends of faults of every traced process from now on, whatever happened to its own events.
    /// Where that fails, the reason is in the report and faults of such processes stay without an end.
    pub fn widen(&mut self, object: &mut Object) {
        if let Err(error) = self.try_widen(object) {
            self.wide_failure = Some(error.to_string());
        }
    }

    fn try_widen(&mut self, object: &mut Object) -> Result<(), Error> {
        if self.wide.is_empty() {
            self.wide = open_wide(object)?;
        }
        // Only now: a fault that is stored to be ended must find its end.
        object.set_ends_everywhere(true)
    }

    /// Lets no more faults wait for an end that only the events of all CPUs would tell. Those that wait already
    /// need these events for a while: [`FaultProbes::close_wide`].
    pub fn retire_wide(&mut self, object: &mut Object) {
        if let Err(error) = object.set_ends_everywhere(false) {
            log::debug!("the events of all CPUs stay open: {error}");
        }
    }

    /// Closes the events of all CPUs.
    pub fn close_wide(&mut self) {
        self.wide.clear();
    }

    /// One per kind of event, for the report.
    pub fn statuses(&self) -> Vec<Status> {
        let failure = (self.attached.is_empty() && self.area.is_empty())
            .then(|| "no thread was followed".to_owned());
        let own = ENDS.iter().map(|end| Status {
            name: end.name.to_owned(),
            failure: failure.clone(),
        });
        let wide = self.wide_failure.iter().map(|failure| Status {
            name: "page-faults on all CPUs".to_owned(),
            failure: Some(failure.clone()),
        });
        own.chain(wide).collect()
    }
}

fn open_wide(object: &Object) -> Result<Vec<Attached>, Error> {
    let mut wide = Vec::new();
    for cpu in area::online_cpus()? {
        wide.extend(attach_on(object, &ENDS, &Area::Machine, cpu)?);
    }
    Ok(wide)
}

/// These ends on one CPU; none where it went offline meanwhile.
fn attach_on(object: &Object, ends: &[End], area: &Area, cpu: u32) -> Result<Vec<Attached>, Error> {
    let mut attached = Vec::with_capacity(ends.len());
    for &end in ends {
        match attach(of(object, end)?, area.on(cpu)) {
            Ok(one) => attached.push(one),
            Err(Error::Event { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(attached)
}

/// A loaded program, with the event that it is for.
#[derive(Clone, Copy)]
pub(super) struct Program<'a> {
    pub(super) end: End,
    pub(super) descriptor: BorrowedFd<'a>,
}

pub(super) fn of(object: &Object, end: End) -> Result<Program<'_>, Error> {
    let descriptor = object.program(end.program)?;
    Ok(Program { end, descriptor })
}

pub(super) fn attach(program: Program<'_>, scope: Scope) -> Result<Attached, Error> {
    let End { name, source, .. } = program.end;
    let event =
        perf::open(source, scope).map_err(|source| event_error(scoped(name, scope), source))?;
    let link = perf::link(program.descriptor, event.as_fd(), 0);
    let link = link.map_err(|source: io::Error| Error::Attach {
        name: name.to_owned(),
        source,
    })?;
    Ok([link, event])
}

fn scoped(name: &str, scope: Scope) -> String {
    match scope {
        Scope::Thread { tid, .. } | Scope::Program { tid } => format!("{name} of thread {tid}"),
        Scope::Cpu(cpu) | Scope::Cgroup { cpu, .. } => format!("{name} of CPU {cpu}"),
    }
}
