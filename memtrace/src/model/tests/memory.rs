//! Mappings as the kernel and /proc tell them.

use super::*;

#[test]
fn a_mapping_announced_last_is_in_the_report() {
    let mut trace = Trace::new();
    trace.mapped(8, 10, BASE, "/lib/a");
    assert_eq!(trace.row(10).regions.len(), 1);
    assert_eq!(trace.row(10).address_space.reserved_bytes, 16 * PAGE);
}

#[test]
fn smaps_seeds_a_running_process() {
    let mut trace = Trace::bare();
    trace.start(10, true);
    trace.event(6, 10, EventKind::SmapsBegin);
    let region = SmapsRegion {
        start: BASE,
        end: BASE + 8 * PAGE,
        protection: 3,
        resident_bytes: 2 * PAGE,
        anonymous_bytes: 2 * PAGE,
        ..SmapsRegion::default()
    };
    trace.event(6, 10, EventKind::Smaps(Box::new(region)));
    trace.event(6, 10, EventKind::SmapsEnd);
    let space = trace.row(10).address_space;
    assert_eq!(
        (space.reserved_bytes, space.committed_bytes),
        (8 * PAGE, 2 * PAGE)
    );
    assert_eq!((space.lazy_bytes, space.swapped_bytes), (6 * PAGE, Some(0)));
    assert_eq!(space.committed_source, "smaps");
    trace.fault(7, 10, BASE + 5 * PAGE, WRITE);
    let space = trace.row(10).address_space;
    assert_eq!(space.committed_bytes, 3 * PAGE);
    assert_eq!(space.committed_source, "faults");
}
