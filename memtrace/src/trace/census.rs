//! Whose memory is worth reading: a process that did not fault since it was read has the same pages, but for what it gave
//! back and what the kernel reclaimed.

use rustc_hash::FxHashMap;

use crate::event::{Event, EventKind, Pid};

/// Turns after which a process is read though nothing was seen of it.
const IDLE_TURNS: u64 = 10;

/// Turns for which a process is read after the last that was seen of it: where faults are seen in windows alone, much of
/// what it does is not.
const LINGERS: u8 = 3;

/// The processes that run, and what was seen of them since they were read.
#[derive(Default)]
pub struct Census {
    processes: FxHashMap<Pid, Entry>,
    turn: u64,
}

#[derive(Default)]
struct Entry {
    faults: u64,
    /// Turns for which it is read yet.
    active: u8,
}

impl Census {
    /// Notes what an event says of activity.
    pub fn note(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Started(_) | EventKind::Syscall(_) | EventKind::Exec { .. } => {
                self.touch(event.pid);
            }
            EventKind::Fork { child, .. } => self.touch(*child),
            EventKind::FaultTotals(totals) => {
                let faults = totals.user.saturating_add(totals.kernel);
                if let Some(entry) = self.processes.get_mut(&event.pid)
                    && entry.faults != faults
                {
                    entry.faults = faults;
                    entry.active = LINGERS;
                }
            }
            EventKind::Exit { .. } => {
                self.processes.remove(&event.pid);
            }
            _ => {}
        }
    }

    /// A process is to be read at the next turn.
    pub fn touch(&mut self, pid: Pid) {
        self.processes.entry(pid).or_default().active = LINGERS;
    }

    /// Whether this is one of those turns at which all was looked at since the last of them.
    pub fn is_idle_turn(&self) -> bool {
        self.turn.is_multiple_of(IDLE_TURNS)
    }

    /// The processes to read now, a turn later than the last call.
    pub fn due(&mut self) -> Vec<Pid> {
        self.turn += 1;
        let turn = self.turn;
        let due = self.processes.iter_mut().filter_map(|(&pid, entry)| {
            // Idle ones are spread over the turns by their pid.
            let idle_turn = (turn + u64::from(pid)).is_multiple_of(IDLE_TURNS);
            let due = entry.active > 0 || idle_turn;
            entry.active = entry.active.saturating_sub(1);
            due.then_some(pid)
        });
        due.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{FaultTotals, Started};

    fn event(pid: Pid, kind: EventKind) -> Event {
        Event {
            time_ns: 0,
            pid,
            tid: 0,
            kind,
        }
    }

    fn faults(user: u64) -> EventKind {
        EventKind::FaultTotals(Box::new(FaultTotals {
            user,
            kernel: 0,
            minor_sum_ns: 0,
            major_sum_ns: 0,
            minor_untimed: 0,
            major_untimed: 0,
            minor: [0; _],
            major: [0; _],
        }))
    }

    #[test]
    fn who_did_nothing_is_read_in_every_tenth_turn() {
        let started = EventKind::Started(Box::new(Started {
            parent: 0,
            start_ns: 0,
            comm: "".into(),
            exe: "".into(),
            already_running: true,
        }));
        let mut census = Census::default();
        census.note(&event(7, started));
        let mut read = Vec::new();
        for turn in 1..=30 {
            census.note(&event(7, faults(if turn < 5 { 1 } else { 2 })));
            if !census.due().is_empty() {
                read.push(turn);
            }
        }
        assert_eq!(read, [1, 2, 3, 5, 6, 7, 13, 23]);
        let end = EventKind::Exit {
            code: None,
            signal: None,
        };
        census.note(&event(7, end));
        assert!((0..20).all(|_| census.due().is_empty()));
    }
}
