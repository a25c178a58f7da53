//! What the daemon may still do once everything is loaded and opened: it stays root, without most of root's powers.

use caps::{CapSet, Capability, CapsHashSet};

use super::DaemonError;

/// What is needed while it runs.
const KEPT: [Capability; 5] = [
    // Maps and links.
    Capability::CAP_BPF,
    // Events of CPUs that come, and of processes that are chosen.
    Capability::CAP_PERFMON,
    // /proc/PID/{smaps,root,exe} of others.
    Capability::CAP_SYS_PTRACE,
    // /proc/PID/map_files: proc(5), since 5.9.
    Capability::CAP_CHECKPOINT_RESTORE,
    // Programs and debug files in directories that are not root's.
    Capability::CAP_DAC_READ_SEARCH,
];

/// Gives everything else up, for this thread and those that it starts from now on.
pub fn reduce() -> Result<(), DaemonError> {
    let failed = |source| DaemonError::Privileges { source };
    let has = caps::read(None, CapSet::Permitted).map_err(failed)?;
    let events = must_administer().then_some(Capability::CAP_SYS_ADMIN);
    let kept = KEPT.into_iter().chain(events);
    let kept: CapsHashSet = kept.filter(|one| has.contains(one)).collect();
    // Without CAP_SETPCAP it stays as whoever starts the daemon has bounded it, which what is permitted does not pass.
    let bounding = match has.contains(&Capability::CAP_SETPCAP) {
        true => caps::read(None, CapSet::Bounding).map_err(failed)?,
        false => CapsHashSet::new(),
    };
    for capability in bounding {
        if !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
        }
    }
    // What is effective must be permitted.
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)
}

/// Whether events take CAP_SYS_ADMIN. Debian's kernels and those after them know a level of `perf_event_paranoid` above
/// the 2 of others, at which CAP_PERFMON does not do.
fn must_administer() -> bool {
    let level = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    level.is_ok_and(|level| level.trim().parse().is_ok_and(|level: i32| level > 2))
}
