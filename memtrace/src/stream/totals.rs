//! Fault totals of a process, from the kernel's map.

use memtrace_common::histogram::HistogramKey;

use crate::{
    event::{Event, EventKind, FaultTotals, Pid},
    probe::object::Object,
};

/// Reads the histogram of a process; with `last` it is removed from the map.
pub fn read(
    object: &mut Object,
    pid: Pid,
    start_ns: u64,
    time_ns: u64,
    last: bool,
) -> Option<Event> {
    let key = HistogramKey {
        pid,
        start_low: start_ns as u32,
    };
    let histogram = object.histogram(key, last)?;
    let totals = FaultTotals {
        user: histogram.user,
        kernel: histogram.kernel,
        minor_sum_ns: histogram.minor_sum_ns,
        major_sum_ns: histogram.major_sum_ns,
        minor_untimed: histogram.minor_untimed,
        major_untimed: histogram.major_untimed,
        minor: histogram.minor,
        major: histogram.major,
    };
    Some(Event {
        time_ns,
        pid,
        tid: 0,
        kind: EventKind::FaultTotals(Box::new(totals)),
    })
}
