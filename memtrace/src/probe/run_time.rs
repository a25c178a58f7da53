//! What the programs cost, by the kernel's own measure.

use std::os::fd::OwnedFd;

use aya::{
    Ebpf,
    programs::Program,
    sys::{Stats, enable_stats},
};

use super::Error;

/// What a uprobe's trap costs beside its program, in nanoseconds: 680 for one that the kernel emulates were measured,
/// of which an empty program's run is some 20. The kernel does not measure it.
const TRAP_NS: u64 = 660;

/// Lets the kernel measure programs, all that there are, while the descriptor is open (`BPF_ENABLE_STATS`, since 5.8;
/// some 20 ns a run). To be called with CAP_SYS_ADMIN.
pub fn measure() -> Result<OwnedFd, Error> {
    enable_stats(Stats::RunTime).map_err(|error| Error::Attach {
        name: "run-time statistics".to_owned(),
        source: error.io_error,
    })
}

/// Nanoseconds that the programs ran since they are measured, with the traps that led to them.
pub(super) fn spent_ns(ebpf: &Ebpf) -> u64 {
    let spent = ebpf.programs().filter_map(|(_, program)| {
        let info = program.info().ok()?;
        let traps = match program {
            Program::UProbe(_) => info.run_count().saturating_mul(TRAP_NS),
            _ => 0,
        };
        let ran = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
        Some(ran.saturating_add(traps))
    });
    spent.fold(0, u64::saturating_add)
}
