//! What memory system calls do to an address space.
//!
//! Calls of several threads overlap, and the events come in the order of their returns: an munmap may
//! be told after another thread has mapped the same range anew. So an addition counts from its
//! return, and a removal spares whatever was added after it was entered.

use std::ops::Range;

use memtrace_common::record::Call;

use crate::event::Syscall;

use super::{
    address_space::AddressSpace,
    pages::HUGE_PAGES,
    region::{Huge, Kind, Mapped, OnFork, PAGE, Region, page_up, span},
};

const MADV_DONTNEED: u64 = 4;
const MADV_REMOVE: u64 = 9;
const MADV_DONTFORK: u64 = 10;
const MADV_DOFORK: u64 = 11;
const MADV_HUGEPAGE: u64 = 14;
const MADV_NOHUGEPAGE: u64 = 15;
const MADV_WIPEONFORK: u64 = 18;
const MADV_KEEPONFORK: u64 = 19;
const MADV_POPULATE_READ: u64 = 22;
const MADV_POPULATE_WRITE: u64 = 23;
const MADV_DONTNEED_LOCKED: u64 = 24;
const MADV_COLLAPSE: u64 = 25;

/// The name of a call in `failed_calls`.
const fn name(call: Call) -> &'static str {
    match call {
        Call::Brk => "brk",
        Call::Mmap => "mmap",
        Call::Munmap => "munmap",
        Call::Mremap => "mremap",
        Call::Mprotect => "mprotect",
        Call::Madvise => "madvise",
        Call::Shmat => "shmat",
        Call::Shmdt => "shmdt",
    }
}

impl AddressSpace {
    /// A memory system call returned at `time_ns`.
    pub fn call(&mut self, time_ns: u64, event: &Syscall) {
        let [first, second, third, fourth, _] = event.arguments;
        let failed = (-4095..0).contains(&event.result)
            || (event.call == Call::Brk && first != 0 && event.result as u64 != first);
        if failed {
            *self.failed_calls.entry(name(event.call)).or_default() += 1;
            if event.call != Call::Brk {
                return;
            }
        }
        let (entered_ns, result) = (event.entered_ns, event.result as u64);
        match event.call {
            Call::Brk => self.set_break(time_ns, entered_ns, event.result),
            Call::Mmap => self.map(time_ns, event),
            Call::Munmap => {
                if let Some(range) = span(first, second) {
                    self.unmap(range, entered_ns);
                }
            }
            Call::Mremap => {
                let old = span(first, second).unwrap_or(first..first);
                if let Some(new) = span(result, third) {
                    self.remap(time_ns, entered_ns, old, new, fourth);
                }
            }
            Call::Mprotect => {
                if let Some(range) = span(first, second) {
                    self.regions.update(range, |region| {
                        if region.created_ns <= entered_ns {
                            region.set_protection(third as u32);
                        }
                    });
                }
            }
            Call::Madvise => {
                if let Some(range) = span(first, second) {
                    self.advise(range, third);
                }
            }
            Call::Shmat => {
                if let Some((_, region)) = self.regions.at_mut(result) {
                    region.kind = Kind::Shared;
                    region.set_shared(true);
                    region.created_ns = time_ns;
                }
            }
            Call::Shmdt => self.detach(first, entered_ns),
        }
        self.changed();
    }

    pub(super) fn unmap(&mut self, range: Range<u64>, entered_ns: u64) {
        let gone = self
            .regions
            .remove_if(range, |region| region.created_ns <= entered_ns);
        for piece in &gone {
            self.discard(piece);
            if let Some(reading) = &mut self.reading {
                reading.removed.push(piece.clone());
            }
        }
    }

    /// brk returns the break as it is, whether it did what was asked or not.
    fn set_break(&mut self, time_ns: u64, entered_ns: u64, result: i64) {
        let Some(now) = u64::try_from(result).ok().filter(|now| *now != 0) else {
            return;
        };
        if span(now, 1).is_none() {
            return;
        }
        if self.break_start.is_none() {
            self.break_start = Some(now);
            self.break_end = now;
        }
        let (old, new) = (page_up(self.break_end), page_up(now));
        self.break_end = now;
        if new > old {
            let mut region = Region::anonymous(new, 3, time_ns);
            region.kind = Kind::Heap;
            if let Some((_, heap)) = self.regions.below(old)
                && heap.kind == Kind::Heap
                && heap.end == old
            {
                region.created_ns = heap.created_ns;
                region.set_protection(heap.protection().into());
                region.mapped.clone_from(&heap.mapped);
            }
            region
                .mapped
                .get_or_insert_with(|| Mapped::pseudo("[heap]"));
            self.fill(old..new, &region);
            // The kernel announces the area before the break is moved: it is not known as the heap yet.
            self.regions.update(old..new, |region| {
                if region.kind == Kind::Anonymous {
                    region.kind = Kind::Heap;
                }
            });
        } else if new < old {
            self.unmap(new..old, entered_ns);
        }
    }

    fn advise(&mut self, range: Range<u64>, advice: u64) {
        match advice {
            MADV_DONTNEED | MADV_REMOVE | MADV_DONTNEED_LOCKED => self.discard(&range),
            MADV_POPULATE_READ => self.populate(&range, false),
            MADV_POPULATE_WRITE => self.populate(&range, true),
            MADV_COLLAPSE => {
                let huge = HUGE_PAGES * PAGE;
                let first = range.start.next_multiple_of(huge);
                let last = range.end / huge * huge;
                if first < last {
                    self.populate(&(first..last), true);
                }
            }
            MADV_HUGEPAGE => self
                .regions
                .update(range, |region| region.advise(Huge::Advised)),
            MADV_NOHUGEPAGE => self.regions.update(range, |region| region.advise(Huge::No)),
            MADV_DONTFORK => self.on_fork(range, OnFork::Drop),
            MADV_WIPEONFORK => self.on_fork(range, OnFork::Wipe),
            MADV_DOFORK | MADV_KEEPONFORK => self.on_fork(range, OnFork::Keep),
            _ => {}
        }
    }

    fn on_fork(&mut self, range: Range<u64>, what: OnFork) {
        self.regions.update(range, |region| region.on_fork = what);
    }

    /// shmdt names only the first address: the segment is what follows it under the same name.
    fn detach(&mut self, address: u64, entered_ns: u64) {
        let Some((start, first)) = self.regions.at(address) else {
            return;
        };
        if start != address {
            return;
        }
        let (mapped, mut end) = (first.mapped.clone(), first.end);
        while let Some((_, next)) = self.regions.at(end)
            && mapped.is_some()
            && next.mapped == mapped
            && next.created_ns == first.created_ns
        {
            end = next.end;
        }
        self.unmap(address..end, entered_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::super::map::{MAP_ANONYMOUS, MAP_POPULATE, MAP_PRIVATE};
    use super::*;
    use crate::event::{Access, FileMapped};

    const BASE: u64 = 0x7000_0000_0000;
    const WRITE: Access = Access {
        major: false,
        kernel: false,
        write: Some(true),
        protection: false,
        instruction: false,
    };

    fn call(call: Call, entered_ns: u64, result: u64, arguments: [u64; 5]) -> Syscall {
        Syscall {
            call,
            entered_ns,
            result: result as i64,
            arguments,
            offset: 0,
        }
    }

    fn map(space: &mut AddressSpace, time: u64, address: u64, pages: u64, flags: u64) {
        let arguments = [0, pages * PAGE - 1, 3, flags, u64::MAX];
        space.call(time, &call(Call::Mmap, time - 1, address, arguments));
    }

    fn anonymous(pages: u64) -> AddressSpace {
        let mut space = AddressSpace::default();
        map(&mut space, 10, BASE, pages, MAP_PRIVATE | MAP_ANONYMOUS);
        space
    }

    fn touch(space: &mut AddressSpace, pages: Range<u64>) {
        for page in pages {
            space.fault(20, BASE + page * PAGE, WRITE);
        }
    }

    fn shape(space: &AddressSpace) -> Vec<(u64, u64)> {
        space
            .regions
            .iter()
            .map(|(start, region)| ((start - BASE) / PAGE, (region.end - BASE) / PAGE))
            .collect()
    }

    #[test]
    fn unmapping_takes_pages_and_splits() {
        let mut space = anonymous(8);
        touch(&mut space, 0..8);
        space.call(
            30,
            &call(Call::Munmap, 29, 0, [BASE + 2 * PAGE, 3 * PAGE, 0, 0, 0]),
        );
        assert_eq!(shape(&space), [(0, 2), (5, 8)]);
        assert_eq!(space.pages.count(), 5);
        assert_eq!(space.peak_reserved, 8 * PAGE);
        assert_eq!(space.peak_committed, 8 * PAGE);
    }

    #[test]
    fn a_removal_told_late_spares_what_was_mapped_since() {
        let mut space = anonymous(8);
        touch(&mut space, 0..8);
        map(
            &mut space,
            40,
            BASE + 2 * PAGE,
            2,
            MAP_PRIVATE | MAP_ANONYMOUS,
        );
        space.fault(41, BASE + 2 * PAGE, WRITE);
        space.call(50, &call(Call::Munmap, 30, 0, [BASE, 8 * PAGE, 0, 0, 0]));
        assert_eq!(shape(&space), [(2, 4)]);
        assert_eq!(space.pages.count(), 1);
    }

    #[test]
    fn failures_change_nothing_but_their_count() {
        let mut space = anonymous(2);
        let failed = |kind| Syscall {
            result: -12,
            ..call(kind, 30, 0, [BASE, 8 * PAGE, 3, 0, 0])
        };
        for kind in [Call::Mmap, Call::Munmap, Call::Munmap, Call::Mremap] {
            space.call(31, &failed(kind));
        }
        assert_eq!(space.regions.bytes(), 2 * PAGE);
        let counts: Vec<_> = space.failed_calls().iter().map(|(n, c)| (*n, *c)).collect();
        assert_eq!(counts, [("mmap", 1), ("mremap", 1), ("munmap", 2)]);
    }

    #[test]
    fn the_break_moves_both_ways() {
        let mut space = AddressSpace::default();
        let brk = |requested, result| call(Call::Brk, 5, result, [requested, 0, 0, 0, 0]);
        space.call(6, &brk(0, BASE));
        assert_eq!((space.regions.bytes(), space.program_break_bytes()), (0, 0));
        space.call(7, &brk(BASE + 0x21000, BASE + 0x21000));
        space.call(8, &brk(BASE + 0x42010, BASE + 0x42010));
        assert_eq!(shape(&space), [(0, 0x43)]);
        assert_eq!(space.program_break_bytes(), 0x42010);
        space.call(9, &brk(BASE + 0x9_0000_0000, BASE + 0x42010));
        assert_eq!(space.failed_calls()["brk"], 1);
        space.call(
            10,
            &call(Call::Brk, 9, BASE + 0x1000, [BASE + 0x1000, 0, 0, 0, 0]),
        );
        assert_eq!(shape(&space), [(0, 1)]);
        let kinds: Vec<Kind> = space.regions.iter().map(|(_, r)| r.kind).collect();
        assert_eq!(kinds, [Kind::Heap]);
    }

    #[test]
    fn a_moved_mapping_takes_its_pages() {
        let mut space = anonymous(4);
        touch(&mut space, 1..3);
        let to = BASE + 0x100 * PAGE;
        let mut remap = call(Call::Mremap, 30, to, [BASE, 4 * PAGE, 16 * PAGE, 1, 0]);
        space.call(31, &remap);
        assert_eq!(shape(&space), [(0x100, 0x110)]);
        assert_eq!(space.pages.count_in(to / PAGE + 1..to / PAGE + 3), 2);
        remap.arguments = [to, 16 * PAGE, 2 * PAGE, 0, 0];
        remap.entered_ns = 40;
        space.call(41, &remap);
        assert_eq!(
            (shape(&space), space.pages.count()),
            (vec![(0x100, 0x102)], 1)
        );
        remap.arguments = [to, 2 * PAGE, 3 * PAGE, 0, 0];
        space.call(51, &remap);
        assert_eq!(shape(&space), [(0x100, 0x103)]);
        let mut keep = call(Call::Mremap, 60, BASE, [to, 3 * PAGE, 3 * PAGE, 5, 0]);
        keep.entered_ns = 60;
        space.call(61, &keep);
        assert_eq!(shape(&space), [(0, 3), (0x100, 0x103)]);
        assert_eq!(space.pages.count_in(to / PAGE..to / PAGE + 3), 0);
        assert_eq!(space.pages.count(), 1);
    }

    /// mremap(2): with an old size of 0 a shared mapping is mapped once more, and the old one stays.
    #[test]
    fn a_mapping_that_is_mapped_once_more_stays() {
        let mut space = anonymous(4);
        touch(&mut space, 0..4);
        let (middle, to) = (BASE + 2 * PAGE, BASE + 0x100 * PAGE);
        space.call(31, &call(Call::Mremap, 30, to, [middle, 0, 2 * PAGE, 1, 0]));
        assert_eq!(shape(&space), [(0, 4), (0x100, 0x102)]);
        assert_eq!((space.regions.bytes(), space.pages.count()), (6 * PAGE, 4));
    }

    #[test]
    fn advice_empties_and_fills() {
        let mut space = anonymous(8);
        touch(&mut space, 0..8);
        let advise = |advice| call(Call::Madvise, 30, 0, [BASE, 4 * PAGE, advice, 0, 0]);
        space.call(31, &advise(8));
        assert_eq!(space.pages.count(), 8, "MADV_FREE alone takes nothing");
        space.call(31, &advise(MADV_DONTNEED));
        assert_eq!(space.pages.count(), 4);
        space.call(32, &advise(MADV_POPULATE_READ));
        assert_eq!(space.pages.count(), 4, "the zero page is not counted");
        space.call(33, &advise(MADV_POPULATE_WRITE));
        assert_eq!(space.pages.count(), 8);
    }

    #[test]
    fn huge_advice_makes_one_fault_count_for_512_pages() {
        let mut space = anonymous(1536);
        let advise = [BASE, 1024 * PAGE, MADV_HUGEPAGE, 0, 0];
        space.call(30, &call(Call::Madvise, 29, 0, advise));
        touch(&mut space, 5..6);
        assert_eq!(space.pages.count(), 512);
        touch(&mut space, 1100..1101);
        assert_eq!(space.pages.count(), 513, "not advised there");
        touch(&mut space, 6..7);
        assert_eq!(space.pages.count(), 3, "a second fault: it was not huge");
    }

    #[test]
    fn unasked_huge_pages_come_where_they_were_not_refused() {
        let mut space = anonymous(1536);
        space.huge_unasked = true;
        let refuse = [BASE, 512 * PAGE, MADV_NOHUGEPAGE, 0, 0];
        space.call(30, &call(Call::Madvise, 29, 0, refuse));
        touch(&mut space, 5..6);
        assert_eq!(space.pages.count(), 1);
        touch(&mut space, 600..601);
        assert_eq!(space.pages.count(), 513);
    }

    #[test]
    fn populate_commits_at_once() {
        let mut space = AddressSpace::default();
        map(
            &mut space,
            10,
            BASE,
            4,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
        );
        assert_eq!(space.pages.count(), 4);
        map(&mut space, 20, BASE, 4, MAP_PRIVATE | MAP_ANONYMOUS);
        assert_eq!(space.pages.count(), 0, "mapped anew");
    }

    #[test]
    fn an_announced_file_keeps_its_path() {
        let mut space = AddressSpace::default();
        let announced = FileMapped {
            start: BASE,
            length: 4 * PAGE,
            offset: 0x2000,
            protection: 1,
            flags: 2,
            path: "/lib/a".into(),
            build_id: Box::default(),
        };
        space.announce(11, &announced);
        space.fault(12, BASE, WRITE);
        let mut mmap = call(Call::Mmap, 10, BASE, [0, 4 * PAGE, 1, MAP_PRIVATE, 3]);
        mmap.offset = 0x2000;
        space.call(13, &mmap);
        let (_, region) = space.regions.at(BASE).unwrap();
        assert_eq!((region.path(), region.offset), (Some("/lib/a"), 0x2000));
        assert_eq!(space.pages.count(), 1);
        map(
            &mut space,
            20,
            BASE + PAGE,
            2,
            MAP_PRIVATE | MAP_ANONYMOUS | 0x10,
        );
        let kinds: Vec<Kind> = space.regions.iter().map(|(_, r)| r.kind).collect();
        assert_eq!(kinds, [Kind::File, Kind::Anonymous, Kind::File]);
        assert_eq!(space.regions.at(BASE + 3 * PAGE).unwrap().1.offset, 0x5000);
    }

    #[test]
    fn shared_segments_attach_and_detach() {
        let mut space = AddressSpace::default();
        let announced = FileMapped {
            start: BASE,
            length: 4 * PAGE,
            offset: 0,
            protection: 3,
            flags: 1,
            path: "/SYSV00000000 (deleted)".into(),
            build_id: Box::default(),
        };
        space.announce(11, &announced);
        space.call(12, &call(Call::Shmat, 10, BASE, [7, 0, 0, 0, 0]));
        assert_eq!(space.regions.at(BASE).unwrap().1.kind, Kind::Shared);
        space.call(14, &call(Call::Shmdt, 13, 0, [BASE, 0, 0, 0, 0]));
        assert_eq!(space.regions.bytes(), 0);
    }

    #[test]
    fn damaged_arguments_do_no_harm() {
        let mut space = anonymous(2);
        for kind in [1, 2, 3, 4, 5, 6, 7, 8].map(|raw| Call::from_raw(raw).unwrap()) {
            for value in [0, 1, u64::MAX, 1 << 63, i64::MAX as u64, 0xfff] {
                for advice in [0, 4, 14, 23, 25, u64::MAX] {
                    let arguments = [value, u64::MAX - value, advice, value, advice];
                    space.call(1, &call(kind, u64::MAX, value, arguments));
                    space.call(1, &call(kind, 0, 0, arguments));
                }
            }
        }
        assert!(space.regions.bytes() <= 1 << 57);
    }
}
