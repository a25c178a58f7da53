//! The faults of threads whose process grows: an event of their own, beside those by which faults are counted and
//! timed, so that nobody else pays for the sample.

use super::{
    Error,
    fault::{Attached, End, attach, of},
    object::Object,
    perf::{Scope, Source},
};

/// The event of one thread, and of those that it makes.
pub type Touches = Attached;

/// Follows what a thread, and each that it makes, touches first: one of `period` faults. `None` where it is gone. A child
/// that it forks has the event too, up to its exec, and the programs take no notice of it.
pub fn follow(object: &Object, tid: u32, period: u64) -> Result<Option<Touches>, Error> {
    let touch = End {
        program: "fault_touch",
        name: "page-faults-min (growth)",
        source: Source::SomeMinorFaults(period),
    };
    match attach(of(object, touch)?, Scope::Program { tid }) {
        Ok(attached) => Ok(Some(attached)),
        Err(Error::Event { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}
