//! Processes that are traced one by one: the launched command, and what is attached to. Their threads carry events
//! that what they make inherits.

use std::{collections::HashSet, path::PathBuf};

use super::{Session, descriptors};
use crate::{
    event::{Event, EventKind, Pid},
    probe::{Error, heap::Watch, perf::Scope},
    seed,
};

/// A thread count past which only the faults of each thread are followed. Heap probes are hit by the whole
/// address space whichever thread they were opened for; following what each thread forks and maps would take
/// descriptors by the thousand, so children of such a process are not traced, and it is said.
pub(super) const MAX_FOLLOWED_THREADS: usize = 64;

/// Drains for the sake of a process that was just attached to.
const MAX_EARLY_DRAINS: usize = 8;

impl Session {
    /// Traces a process that is held before its exec. `files` is what it will map.
    pub fn trace_held(&mut self, pid: Pid, files: &[PathBuf]) -> Result<(), Error> {
        // The command was forked before: it keeps its own limit.
        descriptors::allow();
        let start_ns = seed::now_ns();
        self.object.trace(pid, start_ns, self.options.follow)?;
        self.stream.begin(pid, start_ns);
        self.traced.insert(pid);
        self.follow(pid, pid)?;
        self.heap.prepare(&mut self.object, files)?;
        self.stream.prepare(files);
        self.identify(pid, start_ns, false);
        Ok(())
    }

    /// Traces a process that runs: its mappings and their residency come from /proc.
    pub fn trace_running(&mut self, pid: Pid) -> Result<(), Error> {
        match seed::process_of(pid) {
            None => return Err(Error::NoProcess { pid }),
            Some(process) if process != pid => {
                return Err(Error::Thread {
                    tid: pid,
                    pid: process,
                });
            }
            Some(_) if self.traced.contains(&pid) => return Ok(()),
            Some(_) => {}
        }
        let smaps = seed::smaps(pid);
        if smaps.is_empty() {
            return Err(Error::NoMemory { pid });
        }
        let start_ns = seed::now_ns();
        let threads = seed::threads(pid);
        descriptors::allow();
        let many = threads.len() > MAX_FOLLOWED_THREADS;
        let follow = self.options.follow && !many;
        if many && self.options.follow {
            let count = threads.len();
            let said = format!("pid {pid} has {count} threads: its children are not traced");
            self.heap.failures.push(said);
        }
        self.object.trace(pid, start_ns, follow)?;
        self.stream.begin(pid, start_ns);
        self.traced.insert(pid);
        self.identify(pid, start_ns, true);
        self.follow_threads(pid, many)?;
        let smaps = seed::smaps(pid);
        self.seed_heap(pid, &smaps, false)?;
        for event in smaps {
            self.stream.push(event);
        }
        // Its stacks are to be walked in the kernel from the first one on. A busy process fills the buffer as
        // fast as it is drained, so not for ever.
        for _ in 0..MAX_EARLY_DRAINS {
            if !self.drain() {
                break;
            }
        }
        Ok(())
    }

    /// Probes the allocators that a running process has mapped already. `late`: it was traced before its heap was.
    pub(super) fn seed_heap(&mut self, pid: Pid, smaps: &[Event], late: bool) -> Result<(), Error> {
        let mut seen = Vec::new();
        for event in smaps {
            let EventKind::Smaps(region) = &event.kind else {
                continue;
            };
            let executable = region.protection & libc::PROT_EXEC as u32 != 0;
            if executable && region.path.starts_with('/') && !seen.contains(&region.path) {
                seen.push(region.path.clone());
            }
        }
        let mut probed = false;
        for path in seen {
            if let Some(event) = self.heap.running(&mut self.object, pid, &path, late)? {
                probed |= matches!(
                    &event.kind,
                    EventKind::HeapProbes {
                        unavailable: None,
                        ..
                    }
                );
                self.stream.push(event);
            }
        }
        if !probed {
            // As of then: an allocator that was mapped meanwhile is told by its mapping.
            let read_ns = smaps
                .first()
                .map_or_else(seed::now_ns, |event| event.time_ns);
            self.stream.push(self.unavailable(pid, read_ns));
        }
        Ok(())
    }

    /// Follows every thread of a running process.
    fn follow_threads(&mut self, pid: Pid, many: bool) -> Result<(), Error> {
        if many {
            self.sideband.follow(pid, false)?;
            if let Some(probes) = self.heap.probes() {
                let scope = Scope::Thread {
                    tid: pid,
                    inherit: false,
                };
                probes.follow(pid, scope, Watch::default())?;
            }
        }
        each_thread(pid, |thread| {
            if many {
                self.faults.follow(&self.object, thread, true)
            } else {
                self.follow(pid, thread)
            }
        })
    }

    fn follow(&mut self, process: Pid, thread: u32) -> Result<(), Error> {
        let inherit = true;
        self.faults.follow(&self.object, thread, inherit)?;
        self.sideband.follow(thread, inherit)?;
        if let Some(probes) = self.heap.probes() {
            let scope = Scope::Thread {
                tid: thread,
                inherit: self.options.follow,
            };
            probes.follow(process, scope, Watch::default())?;
        }
        Ok(())
    }
}

/// Does something for every thread of a running process; those born meanwhile of one that it was not done for yet are
/// found by looking again.
pub(super) fn each_thread(
    pid: Pid,
    mut follow: impl FnMut(u32) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut followed = HashSet::new();
    loop {
        let threads = seed::threads(pid);
        let new: Vec<u32> = threads
            .into_iter()
            .filter(|thread| followed.insert(*thread))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        new.into_iter().try_for_each(&mut follow)?;
    }
}
