//! Page-fault probes: start by raw tracepoint, end by the kernel's software events.
//!
//! The end events are opened for the traced threads, with inheritance: other processes do not pay for them.
//! The start is a raw tracepoint with the filter as its first step, which costs others about 0.08 µs a fault;
//! it alone tells reads from writes.

use std::os::fd::{AsFd as _, OwnedFd};

use super::{
    Error,
    object::Object,
    perf::{self, Scope, Source},
    points::{Status, event_error},
};

/// Attached fault probes of some processes.
pub struct FaultProbes {
    attached: Vec<[OwnedFd; 2]>,
    /// Of the starts and the ends.
    pub statuses: Vec<Status>,
}

const STARTS: [(&str, &str); 2] =
    [("fault_start_user", "page_fault_user"), ("fault_start_kernel", "page_fault_kernel")];

const ENDS: [(&str, &str, Source); 2] = [
    ("fault_end_minor", "page-faults-min", Source::MinorFaults),
    ("fault_end_major", "page-faults-maj", Source::MajorFaults),
];

impl FaultProbes {
    /// Attaches the starts. Without them (not x86) faults are counted, with neither latency nor access.
    pub fn attach(object: &mut Object) -> Self {
        let mut statuses = Vec::new();
        for (program, tracepoint) in STARTS {
            let failure = object.attach_raw(program, tracepoint).err().map(|error| error.to_string());
            statuses.push(Status { name: format!("exceptions/{tracepoint}"), failure });
        }
        Self { attached: Vec::new(), statuses }
    }

    /// Follows the faults of a thread and of all that it makes from now on.
    pub fn follow(&mut self, object: &Object, tid: u32, inherit: bool) -> Result<(), Error> {
        for (program, name, source) in ENDS {
            let event = perf::open(source, Scope::Thread { tid, inherit })
                .map_err(|source| event_error(format!("{name} of thread {tid}"), source))?;
            let link = perf::link(object.program(program)?, event.as_fd(), 0)
                .map_err(|source| Error::Attach { name: name.to_owned(), source })?;
            self.attached.push([link, event]);
            if !self.statuses.iter().any(|status| status.name == name) {
                self.statuses.push(Status { name: name.to_owned(), failure: None });
            }
        }
        Ok(())
    }
}
