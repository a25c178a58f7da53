//! The executable mappings of every traced process, as they are now.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use memtrace_common::{
    record::Call,
    unwind::{CodeMapping, CodeSpace, MAX_CODE_MAPPINGS},
};

use super::tables::Span;
use crate::{
    event::{Event, EventKind, FileMapped, Pid, SmapsRegion, Syscall},
    stack::symbolize::Mapping,
};

/// Mappings by process.
#[derive(Default)]
pub(super) struct Spaces {
    by_pid: HashMap<Pid, Space>,
    /// Processes whose mappings are not what was published.
    pub changed: HashSet<Pid>,
    /// Processes whose tables are to be removed.
    left: Vec<(Pid, Space)>,
}

/// One process.
#[derive(Clone, Default)]
struct Space {
    /// By address, without overlap.
    mappings: Vec<Known>,
    /// When its last execve began: what was mapped since is the new program's.
    execve_ns: u64,
}

#[derive(Clone)]
struct Known {
    code: CodeMapping,
    /// The file, until its rules are asked for: what is mapped is told to those who place probes first.
    file: Option<Rc<Mapping>>,
    /// Keeps the rows that `code` names where they are.
    rows: Option<Rc<Span>>,
    /// See [`CodeSpace::python`].
    python: u64,
    /// When it was mapped, in nanoseconds.
    time_ns: u64,
}

impl Known {
    fn end(&self) -> u64 {
        self.code.start.saturating_add(u64::from(self.code.length))
    }
}

impl Spaces {
    /// Notes what an event says of executable mappings.
    pub fn note(&mut self, event: &Event) {
        let pid = event.pid;
        match &event.kind {
            EventKind::FileMapped(map) => self.mapped(event, map),
            EventKind::Smaps(region) => self.seeded(event, region),
            EventKind::Syscall(call) => self.called(pid, call),
            EventKind::Fork { child, .. } => {
                let space = self.by_pid.get(&pid).cloned().unwrap_or_default();
                self.by_pid.insert(*child, space);
                self.changed.insert(*child);
            }
            // Told when an execve begins, among other moments.
            EventKind::Memory(_) => {
                self.by_pid.entry(pid).or_default().execve_ns = event.time_ns;
            }
            EventKind::Exec { .. } => {
                let space = self.by_pid.entry(pid).or_default();
                let began = space.execve_ns;
                space.mappings.retain(|one| one.time_ns >= began);
                self.changed.insert(pid);
            }
            EventKind::Exit { .. } => self.forget(pid),
            _ => {}
        }
    }

    /// Begins with mappings that were noted elsewhere.
    pub fn seed(&mut self, pid: Pid, mappings: &[Mapping]) {
        for mapping in mappings {
            self.add(pid, 0, mapping.clone());
        }
    }

    /// Drops what is known of a process that the kernel side has no table of any more.
    pub fn forget(&mut self, pid: Pid) {
        self.by_pid.remove(&pid);
        self.changed.remove(&pid);
    }

    /// Drops what is known of a process whose table is to be removed. Its rows stay until that is done.
    pub fn leave(&mut self, pid: Pid) {
        if let Some(space) = self.by_pid.remove(&pid) {
            self.left.push((pid, space));
        }
        self.changed.remove(&pid);
    }

    /// A process forked one that nothing is kept of. The kernel side gave that one its parent's table.
    pub fn leave_child(&mut self, parent: Pid, child: Pid) {
        if let Some(space) = self.by_pid.get(&parent) {
            self.left.push((child, space.clone()));
        }
    }

    /// Has the tables of processes removed that were left.
    pub fn remove_left(&mut self, mut remove: impl FnMut(Pid)) {
        for (pid, _rows) in self.left.drain(..) {
            remove(pid);
        }
    }

    /// Finds the rules of what a process has mapped since the last time, and whether it is an interpreter.
    pub fn resolve(&mut self, pid: Pid, mut look_at: impl FnMut(&Mapping) -> (Rc<Span>, u64)) {
        let known = self.by_pid.get_mut(&pid);
        for one in known.into_iter().flat_map(|space| &mut space.mappings) {
            if let Some(file) = one.file.take() {
                let (span, python) = look_at(&file);
                one.python = python;
                one.code.first_row = span.first;
                one.code.rows = span.rows;
                one.rows = Some(span);
            }
        }
    }

    /// The mapping that holds an address.
    pub fn find(&self, pid: Pid, address: u64) -> Option<CodeMapping> {
        let mappings = &self.by_pid.get(&pid)?.mappings;
        let below = mappings.partition_point(|one| one.code.start <= address);
        let found = mappings.get(below.checked_sub(1)?)?.code;
        found.holds(address).then_some(found)
    }

    /// A process's mappings for the kernel side, and how many did not fit.
    pub fn table(&self, pid: Pid, as_of: u64, generation: u64) -> (CodeSpace, u64) {
        let known = self
            .by_pid
            .get(&pid)
            .map_or(&[][..], |space| &space.mappings);
        let mut mappings = [CodeMapping::NONE; MAX_CODE_MAPPINGS];
        let count = known.len().min(MAX_CODE_MAPPINGS - 1);
        for (place, one) in mappings.iter_mut().zip(&known[..count]) {
            *place = one.code;
        }
        let space = CodeSpace {
            as_of,
            generation,
            python: known
                .iter()
                .map(|one| one.python)
                .find(|&python| python != 0)
                .unwrap_or(0),
            mappings,
        };
        (space, (known.len() - count) as u64)
    }

    fn mapped(&mut self, event: &Event, map: &FileMapped) {
        let end = map.start.saturating_add(map.length);
        if !executable(map.protection) {
            self.remove(event.pid, map.start, end, event.time_ns);
            return;
        }
        let mapping = Mapping {
            start: map.start,
            end,
            offset: map.offset,
            path: map.path.clone(),
            build_id: map.build_id.clone(),
        };
        self.add(event.pid, event.time_ns, mapping);
    }

    fn seeded(&mut self, event: &Event, region: &SmapsRegion) {
        let known = self.find(event.pid, region.start);
        if !executable(region.protection) || known.is_some_and(|known| known.start == region.start)
        {
            return;
        }
        let mapping = Mapping {
            start: region.start,
            end: region.end,
            offset: region.offset,
            path: region.path.clone(),
            build_id: Box::default(),
        };
        self.add(event.pid, event.time_ns, mapping);
    }

    /// What was mapped since a removal was entered stays: it is another's.
    fn called(&mut self, pid: Pid, syscall: &Syscall) {
        if syscall.result < 0 && syscall.result > -4096 {
            return;
        }
        if matches!(syscall.call, Call::Munmap | Call::Mremap) {
            let [start, length, ..] = syscall.arguments;
            let end = start.saturating_add(length);
            self.remove(pid, start, end, syscall.entered_ns);
        }
    }

    fn add(&mut self, pid: Pid, time_ns: u64, mapping: Mapping) {
        self.remove(pid, mapping.start, mapping.end, time_ns);
        let length = mapping.end.saturating_sub(mapping.start);
        let code = CodeMapping {
            start: mapping.start,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            offset: mapping.offset as u32,
            ..CodeMapping::default()
        };
        // Rows say where in a file by 32 bits.
        let addressable = u32::try_from(mapping.offset.saturating_add(length)).is_ok();
        let space = self.by_pid.entry(pid).or_default();
        let at = space
            .mappings
            .partition_point(|one| one.code.start < mapping.start);
        let known = Known {
            code,
            file: addressable.then(|| Rc::new(mapping)),
            rows: None,
            python: 0,
            time_ns,
        };
        space.mappings.insert(at, known);
        self.changed.insert(pid);
    }

    /// Cuts a range out of what was mapped before a time.
    fn remove(&mut self, pid: Pid, start: u64, end: u64, before_ns: u64) {
        let Some(space) = self.by_pid.get_mut(&pid) else {
            return;
        };
        let hit =
            |one: &Known| one.code.start < end && one.end() > start && one.time_ns <= before_ns;
        if !space.mappings.iter().any(hit) {
            return;
        }
        let mut kept = Vec::with_capacity(space.mappings.len() + 1);
        for one in &space.mappings {
            if !hit(one) {
                kept.push(one.clone());
                continue;
            }
            let (first, last) = (one.code.start, one.end());
            if first < start {
                let mut head = one.clone();
                head.code.length = (start - first) as u32;
                kept.push(head);
            }
            if last > end {
                let mut tail = one.clone();
                let cut = (end - first) as u32;
                tail.code.start = end;
                tail.code.length -= cut;
                tail.code.offset = tail.code.offset.wrapping_add(cut);
                kept.push(tail);
            }
        }
        space.mappings = kept;
        self.changed.insert(pid);
    }
}

fn executable(protection: u32) -> bool {
    protection & libc::PROT_EXEC as u32 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(start: u64) -> Event {
        let map = FileMapped {
            start,
            length: 0x1000,
            offset: 0,
            protection: libc::PROT_EXEC as u32,
            flags: 2,
            path: "/a".into(),
            build_id: Box::default(),
        };
        Event {
            time_ns: 1,
            pid: 1,
            tid: 1,
            kind: EventKind::FileMapped(Box::new(map)),
        }
    }

    #[test]
    fn rows_stay_until_no_table_of_the_kernel_side_names_them() {
        let rows = Rc::new(Span { first: 1, rows: 2 });
        let mut spaces = Spaces::default();
        spaces.note(&mapped(0x10_000));
        spaces.resolve(1, |_| (rows.clone(), 0));
        spaces.leave_child(1, 2);
        spaces.leave(1);
        assert_eq!(Rc::strong_count(&rows), 3);
        let mut removed = Vec::new();
        spaces.remove_left(|pid| removed.push((pid, Rc::strong_count(&rows))));
        assert_eq!(removed, [(2, 3), (1, 2)]);
        assert_eq!(Rc::strong_count(&rows), 1);
    }

    #[test]
    fn a_table_ends_with_a_mark_and_what_has_no_room_is_counted() {
        let room = MAX_CODE_MAPPINGS as u64 - 1;
        for count in [0, 1, room, room + 3] {
            let mut spaces = Spaces::default();
            for index in (0..count).rev() {
                spaces.note(&mapped((index + 1) * 0x10_000));
            }
            let (space, beyond) = spaces.table(1, 0, 1);
            let starts = space.mappings.map(|mapping| mapping.start);
            assert!(starts.is_sorted(), "{count}");
            let known = starts.iter().filter(|&&start| start != u64::MAX).count() as u64;
            assert_eq!(
                (known, beyond),
                (count.min(room), count.saturating_sub(room))
            );
        }
    }
}
