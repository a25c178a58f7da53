//! Page-fault ends: the kernel's software events.
//!
//! They are opened for the traced threads, with inheritance: other processes do not pay for them. The starts
//! are raw tracepoints ([`super::points`]) with the filter as their first step, which costs others about
//! 0.08 µs a fault; they alone tell reads from writes.

use std::os::fd::{AsFd as _, OwnedFd};

use super::{
    Error,
    object::Object,
    perf::{self, Scope, Source},
    points::{Status, event_error},
};

/// Attached fault probes of some processes.
#[derive(Default)]
pub struct FaultProbes {
    attached: Vec<[OwnedFd; 2]>,
}

const ENDS: [(&str, &str, Source); 2] = [
    ("fault_end_minor", "page-faults-min", Source::MinorFaults),
    ("fault_end_major", "page-faults-maj", Source::MajorFaults),
];

impl FaultProbes {
    /// Follows the faults of a thread and of all that it makes from now on. A thread that is gone has none.
    pub fn follow(&mut self, object: &Object, tid: u32, inherit: bool) -> Result<(), Error> {
        for (program, name, source) in ENDS {
            let event = match perf::open(source, Scope::Thread { tid, inherit }) {
                Ok(event) => event,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                Err(error) => return Err(event_error(format!("{name} of thread {tid}"), error)),
            };
            let link =
                perf::link(object.program(program)?, event.as_fd(), 0).map_err(|source| {
                    Error::Attach {
                        name: name.to_owned(),
                        source,
                    }
                })?;
            self.attached.push([link, event]);
        }
        Ok(())
    }

    /// One per kind of event, for the report.
    pub fn statuses(&self) -> Vec<Status> {
        let failure = self
            .attached
            .is_empty()
            .then(|| "no thread was followed".to_owned());
        ENDS.iter()
            .map(|end| Status {
                name: end.1.to_owned(),
                failure: failure.clone(),
            })
            .collect()
    }
}
