//! Correcting an address space by what /proc/PID/smaps says of it.
//!
//! Reading takes a while, and the process goes on meanwhile. So what was mapped, unmapped or touched
//! since reading began is applied on top of what was read.

use std::ops::Range;

use crate::event::SmapsRegion;

use super::{
    address_space::{AddressSpace, Source},
    intervals::Intervals,
    pages::Pages,
    region::{ADDRESS_LIMIT, Huge, Kind, Mapped, OnFork, PAGE, Region, is_unnamed, page_up, span},
};

/// An smaps listing that is not complete yet.
#[derive(Clone, Debug)]
pub struct Reading {
    /// When reading began.
    begun_ns: u64,
    /// The mappings so far.
    regions: Vec<SmapsRegion>,
    /// What was unmapped since.
    pub(super) removed: Vec<Range<u64>>,
}

impl AddressSpace {
    /// A listing begins; an unfinished one before it is forgotten.
    pub fn smaps_begin(&mut self, time_ns: u64) {
        self.reading = Some(Box::new(Reading {
            begun_ns: time_ns,
            regions: Vec::new(),
            removed: Vec::new(),
        }));
        self.pages.begin_replacement();
    }

    /// One mapping of the listing; without a beginning it is ignored.
    pub fn smaps_region(&mut self, region: &SmapsRegion) {
        if let Some(reading) = &mut self.reading {
            reading.regions.push(region.clone());
        }
    }

    /// The listing is complete: it replaces mappings and pages.
    pub fn smaps_end(&mut self) {
        let Some(reading) = self.reading.take() else {
            return;
        };
        let before = std::mem::take(&mut self.regions);
        let mut pages = Pages::default();
        for line in &reading.regions {
            let length = line.end.saturating_sub(line.start);
            if let Some(range) = span(line.start, length) {
                let mut region = read_region(&before, &range, line, reading.begun_ns);
                if region.created_ns == reading.begun_ns {
                    region.created_ns = self.age_of_untold(&before, &range, reading.begun_ns);
                }
                note_pages(&mut pages, &range, &region, line);
                self.regions.insert(range.start, region);
            }
            if &*line.path == "[heap]" {
                self.break_start = Some(line.start);
                // smaps knows whole pages only.
                if page_up(self.break_end) != line.end {
                    self.break_end = line.end;
                    if let Some((_, forked_break)) = self.forked.as_mut().filter(|_| self.sampled) {
                        *forked_break = line.end.max(*forked_break);
                    }
                }
            }
        }
        for range in reading.removed {
            self.regions.remove_if(range.clone(), |_| true);
            pages.remove_range(range.start / PAGE..range.end / PAGE);
        }
        for (start, region) in before.iter() {
            if region.created_ns > reading.begun_ns {
                self.regions.insert(start, region.clone());
            }
        }
        self.pages.replace(pages);
        for line in reading.regions.iter().filter(|line| line.huge_bytes == 0) {
            let range = line.start / PAGE..line.end / PAGE;
            self.growth.none_is_huge(range, reading.begun_ns);
        }
        // A page touched meanwhile may lie in a mapping that is gone.
        for gap in self.regions.gaps(0..ADDRESS_LIMIT) {
            self.discard(&gap);
        }
        let swapped = |line: &SmapsRegion| line.swapped_bytes;
        self.swapped = Some(
            reading
                .regions
                .iter()
                .map(swapped)
                .fold(0, u64::saturating_add),
        );
        self.note_peaks();
        self.source = Source::Smaps;
    }

    /// When a mapping is taken to have been made that was read by `begun_ns` and not told as it is. Where mappings are
    /// not told it may be as old as what a fork copied, unless a part of it was told since.
    fn age_of_untold(&self, before: &Intervals, range: &Range<u64>, begun_ns: u64) -> u64 {
        match self.forked {
            Some((forked_ns, _)) if self.sampled => {
                let mut told = before.overlapping(range.clone());
                let is_young = told.any(|(_, old)| old.created_ns > forked_ns);
                if is_young {
                    begun_ns
                } else {
                    forked_ns.min(begun_ns)
                }
            }
            _ => begun_ns,
        }
    }
}

/// The mapping that a line tells, with what only events tell taken from what was there `before`.
fn read_region(
    before: &Intervals,
    range: &Range<u64>,
    line: &SmapsRegion,
    begun_ns: u64,
) -> Region {
    let mut region = Region::anonymous(range.end, line.protection, begun_ns);
    region.set_shared(line.shared);
    region.kind = Kind::of(Some(&line.path), line.shared);
    region.huge = match line.advised_huge {
        None => Huge::Unadvised,
        Some(false) => Huge::No,
        Some(true) => Huge::Advised,
    };
    if let Some((start, old)) = before.at(range.start) {
        if start == range.start && old.end == range.end {
            region.created_ns = old.created_ns.min(begun_ns);
        }
        if old.huge == Huge::Reserved {
            region.huge = Huge::Reserved;
        }
        region.on_fork = old.on_fork;
        // A thread's stack has no name in /proc.
        if old.kind == Kind::Stack && region.kind == Kind::Anonymous {
            region.kind = Kind::Stack;
        }
        if old.path() == Some(&*line.path) {
            region.mapped.clone_from(&old.mapped);
        }
    }
    if region.on_fork == OnFork::Drop && region.is_shared() {
        region.on_fork = OnFork::Keep;
    }
    if region.mapped.is_none() && !is_unnamed(&line.path) {
        region.mapped = Some(Mapped::pseudo(&line.path));
    }
    if region.is_file_backed() {
        region.offset = line.offset;
    }
    region.faults = before
        .overlapping(range.clone())
        .filter(|(start, _)| *start >= range.start)
        .map(|(_, old)| old.faults)
        .fold(0, u32::saturating_add);
    region
}

/// The resident pages of a line: only their number is known, and the first ones stand for them.
fn note_pages(pages: &mut Pages, range: &Range<u64>, region: &Region, line: &SmapsRegion) {
    let all = range.start / PAGE..range.end / PAGE;
    let first = |bytes: u64| all.start..all.start.saturating_add(bytes / PAGE).min(all.end);
    pages.insert_range(first(line.resident_bytes));
    if region.is_file_backed() && !region.is_shared() {
        pages.copy_range(first(line.anonymous_bytes.min(line.resident_bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Access, FileMapped, Syscall};
    use crate::model::trend::Thresholds;
    use memtrace_common::record::Call;

    const BASE: u64 = 0x7000_0000_0000;

    fn line(start: u64, pages: u64, resident: u64, path: &str) -> SmapsRegion {
        SmapsRegion {
            start,
            end: start + pages * PAGE,
            protection: 3,
            path: path.into(),
            resident_bytes: resident * PAGE,
            swapped_bytes: PAGE,
            ..SmapsRegion::default()
        }
    }

    fn read(space: &mut AddressSpace, time: u64, lines: &[SmapsRegion]) {
        space.smaps_begin(time);
        for line in lines {
            space.smaps_region(line);
        }
        space.smaps_end();
    }

    fn anonymous(start: u64, pages: u64) -> FileMapped {
        FileMapped {
            start,
            length: pages * PAGE,
            offset: 0,
            protection: 3,
            flags: 2,
            path: "//anon".into(),
            build_id: Box::default(),
        }
    }

    #[test]
    fn a_listing_replaces_everything() {
        let mut space = AddressSpace::default();
        space.announce(1, &anonymous(BASE, 4));
        let heap = line(0x1000, 8, 3, "[heap]");
        let mut file = line(0x10_0000, 4, 3, "/lib/a");
        file.anonymous_bytes = PAGE;
        read(&mut space, 10, &[heap, file]);
        assert_eq!(space.regions.bytes(), 12 * PAGE);
        assert_eq!(space.pages.count(), 6);
        assert_eq!(space.pages.copied_in(0..u64::MAX), 1);
        assert_eq!(space.swapped, Some(2 * PAGE));
        assert_eq!(space.program_break_bytes(), 8 * PAGE);
        assert_eq!(space.source, Source::Smaps);
    }

    #[test]
    fn huge_pages_are_those_that_were_asked_for_and_that_are_there() {
        let mut space = AddressSpace::default();
        let of_touches = |space: &AddressSpace| {
            let uses = space.growth.uses(&Thresholds::default());
            let sites = uses.expect("a sample").sites;
            sites.iter().map(|one| one.bytes / PAGE).sum::<u64>()
        };
        let (mut huge, mut other) = (line(BASE, 512, 512, ""), line(BASE << 1, 512, 512, ""));
        (huge.huge_bytes, huge.advised_huge) = (512 * PAGE, Some(true));
        read(&mut space, 10, &[huge.clone(), other.clone()]);
        space.touch(11, BASE, Some(1), 1);
        space.touch(11, BASE << 1, Some(1), 1);
        assert_eq!(of_touches(&space), 513, "one of both is advised");
        other.advised_huge = Some(true);
        read(&mut space, 12, &[huge.clone(), other.clone()]);
        space.touch(13, BASE << 1, Some(1), 1);
        assert_eq!(of_touches(&space), 1024);
        read(&mut space, 14, &[huge, other]);
        assert_eq!(of_touches(&space), 513, "the other has none");
    }

    #[test]
    fn what_happened_meanwhile_survives() {
        let write = Access {
            write: Some(true),
            ..Access::default()
        };
        let mut space = AddressSpace::default();
        space.announce(1, &anonymous(BASE, 4));
        space.announce(1, &anonymous(BASE + 0x10_0000, 4));
        space.smaps_begin(10);
        space.smaps_region(&line(BASE, 4, 0, ""));
        space.smaps_region(&line(BASE + 0x10_0000, 4, 4, ""));
        space.fault(11, BASE + PAGE, write);
        space.announce(12, &anonymous(BASE + 0x20_0000, 2));
        space.fault(13, BASE + 0x20_0000, write);
        let unmap = Syscall {
            call: Call::Munmap,
            entered_ns: 14,
            result: 0,
            arguments: [BASE + 0x10_0000, 4 * PAGE, 0, 0, 0],
            offset: 0,
        };
        space.call(15, &unmap);
        space.smaps_end();
        let starts: Vec<u64> = space
            .regions
            .iter()
            .map(|(start, _)| start - BASE)
            .collect();
        assert_eq!(starts, [0, 0x20_0000]);
        assert_eq!(space.pages.count(), 2);
        assert_eq!(space.regions.at(BASE).unwrap().1.created_ns, 1);
    }

    #[test]
    fn parts_without_a_beginning_are_ignored() {
        let mut space = AddressSpace::default();
        space.smaps_region(&line(BASE, 4, 4, ""));
        space.smaps_end();
        assert_eq!(space.regions.bytes(), 0);
    }
}
