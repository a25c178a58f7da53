//! What the kernel's own counters say of an address space, and how that is shared out among the kinds.

use crate::event::MemoryTotals;

use super::{
    address_space::{AddressSpace, FAULT_AROUND, Source},
    pages::HUGE_PAGES,
    region::{Kind, PAGE},
};

/// Mapped and resident bytes by [`Kind::index`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByKind {
    /// Mapped bytes.
    pub reserved: [u64; 6],
    /// Resident bytes.
    pub committed: [u64; 6],
}

impl AddressSpace {
    /// The kernel's counters as of now.
    ///
    /// The last ones before the address space is torn down stay what the report says; empty ones told
    /// after them belong to a space that is gone.
    pub fn counters(&mut self, totals: &MemoryTotals) {
        if totals.stack != 0 {
            self.stack_hint = Some(totals.stack);
        }
        if totals.break_start != 0 && totals.break_end >= totals.break_start {
            self.break_start = Some(totals.break_start);
            self.break_end = totals.break_end;
        }
        let empty = resident(totals) == 0 && totals.mapped_bytes == 0;
        let frozen = self.totals.is_some_and(|old| old.last);
        if empty || (frozen && !totals.last) {
            return;
        }
        if totals.last {
            self.fill_huge_files(totals.file_bytes);
        }
        self.totals = Some(*totals);
        self.swapped = Some(totals.swapped_bytes);
        self.source = Source::Counters;
        self.note_peaks();
        if !totals.last {
            self.peak_committed = self.peak_committed.max(resident(totals));
        }
    }

    /// Finds the huge pages among those of files.
    ///
    /// A fault in a file maps the window around it, or 2 MiB at once where the page cache holds a huge page;
    /// the event is the same. So where the kernel counts more file pages than were seen, the aligned
    /// ranges in which there was one fault only are taken to be whole, as far as the count has room for.
    fn fill_huge_files(&mut self, file_bytes: u64) {
        let mut seen = 0;
        let mut candidates = Vec::new();
        for (start, region) in self.regions.iter() {
            if !region.is_file_backed() {
                continue;
            }
            let pages = start / PAGE..region.end / PAGE;
            seen += self.pages.count_in(pages.clone()) - self.pages.copied_in(pages.clone());
            // A huge page of the file is one of the mapping only where both are aligned alike.
            if region.offset.wrapping_sub(start) % (HUGE_PAGES * PAGE) == 0 {
                let window = FAULT_AROUND / PAGE;
                candidates.extend(self.pages.sparse_huge_ranges(pages, window));
            }
        }
        let mut room = (file_bytes / PAGE).saturating_sub(seen);
        for range in candidates {
            let more = HUGE_PAGES - self.pages.count_in(range.clone());
            // The windows seen are an upper estimate, so the room is a lower one: the nearest count is meant.
            if room < more / 2 {
                break;
            }
            room = room.saturating_sub(more);
            self.pages.insert_range(range);
        }
    }

    /// The last totals before teardown, if they were told.
    fn last(&self) -> Option<&MemoryTotals> {
        self.totals.as_ref().filter(|totals| totals.last)
    }

    /// Bytes mapped: the kernel's number at teardown, and where not each mapping is told (a trace of an area), that of
    /// the last reading; else as tracked.
    pub fn reserved(&self) -> u64 {
        let read = |totals: &&MemoryTotals| {
            let told = totals.last || (self.sampled && self.source == Source::Counters);
            told && totals.mapped_bytes > 0
        };
        match self.totals.as_ref().filter(read) {
            Some(totals) => totals.mapped_bytes,
            _ => self.tracked_reserved(),
        }
    }

    /// Bytes resident, and where the number comes from.
    pub fn committed(&self) -> (u64, Source) {
        match (&self.totals, self.source) {
            (Some(totals), source) if totals.last || source == Source::Counters => {
                (resident(totals), Source::Counters)
            }
            (_, Source::Counters) => (self.pages.bytes(), Source::Faults),
            (_, source) => (self.pages.bytes(), source),
        }
    }

    /// Most bytes mapped at a time: where not each mapping is told, by the kernel's own high-water mark.
    pub fn peak_reserved(&self) -> u64 {
        let known = |totals: &&MemoryTotals| self.sampled && totals.peak_mapped_bytes > 0;
        let peak = match self.totals.as_ref().filter(known) {
            Some(totals) => totals.peak_mapped_bytes,
            None => self.peak_reserved,
        };
        peak.max(self.reserved())
    }

    /// Most bytes resident at a time. At teardown the kernel's own high-water mark, which knows of
    /// pages that no event told and is not misled by estimates; it is updated lazily, so the final
    /// number may exceed it.
    pub fn peak_committed(&self) -> u64 {
        let committed = self.committed().0;
        match (self.last(), &self.totals) {
            (Some(last), _) if last.peak_resident_bytes > 0 => {
                last.peak_resident_bytes.max(committed)
            }
            (_, Some(totals)) => totals
                .peak_resident_bytes
                .max(self.peak_committed)
                .max(committed),
            _ => self.peak_committed.max(committed),
        }
    }

    /// Bytes swapped out; `None` where neither counters nor smaps were read.
    pub fn swapped(&self) -> Option<u64> {
        self.swapped
    }

    /// Bytes by kind; they sum to [`AddressSpace::reserved`] and [`AddressSpace::committed`].
    pub fn by_kind(&self) -> ByKind {
        let mut sums = ByKind::default();
        let mut copied = 0;
        for (start, region) in self.regions.iter() {
            let pages = start / PAGE..region.end / PAGE;
            let index = region.kind.index();
            sums.reserved[index] += region.end - start;
            sums.committed[index] += self.pages.count_in(pages.clone()) * PAGE;
            if region.kind == Kind::File {
                copied += self.pages.copied_in(pages) * PAGE;
            }
        }
        self.settle_reserved(&mut sums.reserved);
        if let Some(totals) = &self.totals
            && self.committed().1 == Source::Counters
        {
            settle_committed(&mut sums.committed, copied, totals);
        }
        sums
    }

    fn settle_reserved(&self, reserved: &mut [u64; 6]) {
        let (target, tracked) = (self.reserved(), reserved.iter().sum::<u64>());
        if target >= tracked {
            reserved[Kind::Other.index()] += target - tracked;
        } else {
            let mut order: Vec<usize> = (0..6).collect();
            order.sort_by_key(|&index| {
                (
                    index != Kind::Other.index(),
                    std::cmp::Reverse(reserved[index]),
                )
            });
            take(reserved, &order, tracked - target);
        }
    }
}

/// Resident bytes by the kernel's counters.
fn resident(totals: &MemoryTotals) -> u64 {
    totals
        .file_bytes
        .saturating_add(totals.anonymous_bytes)
        .saturating_add(totals.shared_bytes)
}

/// Subtracts `bytes` from the entries in this order, none below zero.
fn take(entries: &mut [u64; 6], order: &[usize], mut bytes: u64) {
    for &index in order {
        let part = entries[index].min(bytes);
        entries[index] -= part;
        bytes -= part;
    }
}

/// Makes the kinds sum to the kernel's counters.
///
/// The kernel counts by what a page is, reports by what its mapping is: a page of a private file
/// mapping that was written to is anonymous for the one and of a file for the other. So the counters
/// are compared class by class with `copied` moved over, and each difference goes where it can have
/// arisen: fault-around to files, unseen faults to the largest anonymous kind.
fn settle_committed(committed: &mut [u64; 6], copied: u64, totals: &MemoryTotals) {
    const FILE: usize = Kind::File.index();
    const SHARED: usize = Kind::Shared.index();
    const OTHER: usize = Kind::Other.index();
    let mut copied = copied.min(committed[FILE]);
    let mut anonymous: Vec<usize> = vec![
        Kind::Heap.index(),
        Kind::Anonymous.index(),
        Kind::Stack.index(),
    ];
    anonymous.sort_by_key(|&index| std::cmp::Reverse(committed[index]));
    let tracked: u64 = anonymous.iter().map(|&index| committed[index]).sum();

    let target = totals.anonymous_bytes;
    if target >= tracked + copied {
        let largest = if tracked == 0 {
            Kind::Anonymous.index()
        } else {
            anonymous[0]
        };
        committed[largest] += target - tracked - copied;
    } else {
        let excess = tracked + copied - target;
        take(committed, &anonymous, excess);
        copied -= excess.saturating_sub(tracked);
    }
    // The vdso's page is in no counter of its own.
    let target = totals.file_bytes;
    let other = committed[OTHER].min(target);
    committed[OTHER] = other;
    committed[FILE] = (target - other).saturating_add(copied);
    committed[SHARED] = totals.shared_bytes;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Access, FileMapped};

    const BASE: u64 = 0x7000_0000_0000;

    fn totals(file: u64, anonymous: u64, shared: u64, mapped: u64) -> MemoryTotals {
        MemoryTotals {
            file_bytes: file * PAGE,
            anonymous_bytes: anonymous * PAGE,
            shared_bytes: shared * PAGE,
            swapped_bytes: 0,
            peak_resident_bytes: 0,
            peak_mapped_bytes: 0,
            mapped_bytes: mapped * PAGE,
            break_start: 0,
            break_end: 0,
            stack: 0,
            approximate: false,
            last: true,
        }
    }

    fn space() -> AddressSpace {
        let mut space = AddressSpace::default();
        for (start, path) in [(BASE, "//anon"), (BASE + 0x10_0000, "/lib/a")] {
            let mapped = FileMapped {
                start,
                length: 32 * PAGE,
                offset: 0,
                protection: 3,
                flags: 2,
                path: path.into(),
                build_id: Box::default(),
            };
            space.announce(1, &mapped);
        }
        let access = |write| Access {
            write: Some(write),
            ..Access::default()
        };
        space.fault(2, BASE, access(true));
        space.fault(2, BASE + PAGE, access(true));
        space.fault(2, BASE + 0x10_0000, access(false));
        space.fault(2, BASE + 0x10_0000, access(true));
        space
    }

    fn pages(sums: [u64; 6]) -> [u64; 6] {
        sums.map(|bytes| bytes / PAGE)
    }

    #[test]
    fn where_mappings_are_not_told_the_kernels_peak_is_the_peak() {
        let mut space = AddressSpace {
            sampled: true,
            peak_reserved: 90 * PAGE,
            ..AddressSpace::default()
        };
        let mut now = totals(1, 2, 3, 20);
        now.peak_mapped_bytes = 50 * PAGE;
        space.counters(&now);
        assert_eq!(space.peak_reserved(), 50 * PAGE);
        space.sampled = false;
        assert_eq!(space.peak_reserved(), 90 * PAGE);
    }

    #[test]
    fn without_counters_the_kinds_are_what_was_tracked() {
        let space = space();
        assert_eq!(pages(space.by_kind().committed), [0, 2, 0, 16, 0, 0]);
        assert_eq!(space.committed(), (18 * PAGE, Source::Faults));
        assert_eq!(space.swapped(), None);
    }

    #[test]
    fn the_last_counters_win_and_the_kinds_sum_to_them() {
        let mut space = space();
        space.counters(&totals(20, 3, 1, 70));
        let sums = space.by_kind();
        assert_eq!(pages(sums.reserved), [0, 32, 0, 32, 0, 6]);
        assert_eq!(pages(sums.committed), [0, 2, 0, 21, 1, 0]);
        assert_eq!(space.committed(), (24 * PAGE, Source::Counters));
        assert_eq!(space.reserved(), 70 * PAGE);
        space.counters(&totals(0, 0, 0, 0));
        assert_eq!(
            space.reserved(),
            70 * PAGE,
            "a space that is gone says nothing"
        );
    }

    #[test]
    fn every_difference_is_settled() {
        for anonymous in 0..6 {
            for file in [0, 1, 15, 40] {
                for mapped in [1, 40, 64, 90] {
                    let mut space = space();
                    space.counters(&totals(file, anonymous, 2, mapped));
                    let sums = space.by_kind();
                    let committed: u64 = sums.committed.iter().sum();
                    assert_eq!(committed, space.committed().0);
                    assert_eq!(sums.reserved.iter().sum::<u64>(), mapped * PAGE);
                }
            }
        }
    }

    #[test]
    fn counters_age_with_the_next_fault() {
        let mut space = space();
        let mut now = totals(10, 2, 0, 64);
        now.last = false;
        now.peak_resident_bytes = 100 * PAGE;
        space.counters(&now);
        assert_eq!(space.committed(), (12 * PAGE, Source::Counters));
        let write = Access {
            write: Some(true),
            ..Access::default()
        };
        space.fault(3, BASE + 5 * PAGE, write);
        assert_eq!(space.committed(), (19 * PAGE, Source::Faults));
        assert_eq!(space.peak_committed(), 100 * PAGE);
    }

    #[test]
    fn the_kernels_peak_replaces_an_estimate() {
        let mut space = space();
        let mut last = totals(5, 2, 0, 64);
        last.peak_resident_bytes = 9 * PAGE;
        space.counters(&last);
        assert_eq!(space.peak_committed(), 9 * PAGE);
        last.peak_resident_bytes = 3 * PAGE;
        space.counters(&last);
        assert_eq!(space.peak_committed(), 7 * PAGE);
    }

    #[test]
    fn huge_pages_of_a_file_are_found_by_the_count() {
        const HUGE: u64 = HUGE_PAGES * PAGE;
        let read = Access {
            major: false,
            kernel: false,
            write: Some(false),
            protection: false,
            instruction: false,
        };
        let with_faults = |offset| {
            let mut space = AddressSpace::default();
            let mapped = FileMapped {
                start: BASE,
                length: 8 * HUGE,
                offset,
                protection: 1,
                flags: 2,
                path: "/data".into(),
                build_id: Box::default(),
            };
            space.announce(1, &mapped);
            for at in [0, HUGE + 5 * PAGE, 3 * HUGE, 3 * HUGE + FAULT_AROUND] {
                space.fault(2, BASE + at, read);
            }
            assert_eq!(space.pages.count(), 64);
            space
        };
        let told = |offset, file_pages, last| {
            let mut space = with_faults(offset);
            space.counters(&MemoryTotals {
                last,
                ..totals(file_pages, 0, 0, 8 * HUGE_PAGES)
            });
            space.pages.count()
        };
        let both = 2 * HUGE_PAGES + 32;
        assert_eq!(told(0, both, true), both, "two faults refute the third");
        assert_eq!(told(0, both - 1, true), both, "the nearest count is meant");
        assert_eq!(told(0, both - 300, true), HUGE_PAGES + 48);
        assert_eq!(told(0, 8 * HUGE_PAGES, false), 64, "only at the end");
        assert_eq!(
            told(PAGE, 8 * HUGE_PAGES, true),
            64,
            "the file lies otherwise"
        );
    }
}
