//! One address space: its mappings, which of their pages are resident, and what the kernel says of both.
//!
//! The pages come from faults and calls. They cannot tell everything (what fault-around mapped, what
//! was swapped out), so two better sources correct them: /proc/PID/smaps ([`super::reconcile`]) and
//! the kernel's counters ([`super::totals`]).

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use crate::event::{Access, FileMapped, MemoryTotals};

use super::{
    growth::Growth,
    intervals::Intervals,
    pages::Pages,
    reconcile::Reading,
    region::{
        Huge, Kind, Mapped, OnFork, PAGE, Region, is_allocator, is_file, is_unnamed, page_up, span,
    },
};

/// Bytes around a faulting file page that the kernel maps with it, where the page cache has them.
pub(super) const FAULT_AROUND: u64 = 64 * 1024;

/// How far below its lowest known page a main stack may still grow.
const STACK_REACH: u64 = 16 << 30;

/// Above this address lies nothing on x86-64 but stacks, the vdso and a lucky mapping.
const STACK_FLOOR: u64 = 0x7ff0_0000_0000;

/// Bytes above the address that the kernel tells as the start of the stack: arguments and environment.
const STACK_HEAD: u64 = 2 << 20;

/// Where exec sets a stack up before it knows where the stack will be: `STACK_TOP_MAX` with four and with
/// five levels of page tables (arch/x86/include/asm/processor.h, page_64_types.h).
const STACK_TOPS: [u64; 2] = [(1 << 47) - PAGE, (1 << 56) - PAGE];

/// Which source the resident pages were last taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The kernel's counters.
    Counters,
    /// /proc/PID/smaps.
    Smaps,
    /// Faults and calls since the trace or the program began.
    #[default]
    Faults,
}

impl Source {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Counters => "kernel counters",
            Source::Smaps => "smaps",
            Source::Faults => "faults",
        }
    }
}

/// An address space.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    pub(super) regions: Intervals,
    pub(super) pages: Pages,
    pub(super) break_start: Option<u64>,
    pub(super) break_end: u64,
    pub(super) stack_hint: Option<u64>,
    pub(super) totals: Option<MemoryTotals>,
    pub(super) source: Source,
    /// Faults are not told, so that pages are known by the other sources alone.
    pub(super) sampled: bool,
    /// Anonymous memory gets huge pages unasked.
    pub(super) huge_unasked: bool,
    pub(super) swapped: Option<u64>,
    pub(super) peak_reserved: u64,
    pub(super) peak_committed: u64,
    pub(super) failed_calls: BTreeMap<&'static str, u64>,
    pub(super) reading: Option<Box<Reading>>,
    pub(super) growth: Growth,
    /// When it was last copied by a fork, or made by one, and the program break then.
    pub(super) forked: Option<(u64, u64)>,
}

impl AddressSpace {
    /// The copy that fork makes: all mappings, and the pages that belong to this space alone. Pages of
    /// files are left behind, as the kernel leaves them, unless some page of the mapping was copied on
    /// write.
    pub fn fork(&self) -> Self {
        let mut child = Self {
            regions: self.regions.clone(),
            pages: self.pages.clone(),
            break_start: self.break_start,
            break_end: self.break_end,
            stack_hint: self.stack_hint,
            ..Self::default()
        };
        for (start, region) in self.regions.iter() {
            let pages = start / PAGE..region.end / PAGE;
            let inherits = region.kind.is_anonymous()
                || (region.is_file_backed()
                    && !region.is_shared()
                    && self.pages.copied_in(pages.clone()) > 0);
            if !inherits || region.on_fork != OnFork::Keep {
                child.pages.remove_range(pages);
            }
            if region.on_fork == OnFork::Drop {
                child.regions.remove_if(start..region.end, |_| true);
            } else if let Some((_, copy)) = child.regions.at_mut(start) {
                copy.faults = 0;
            }
        }
        child.note_peaks();
        child
    }

    /// Bytes mapped, as tracked.
    pub fn tracked_reserved(&self) -> u64 {
        self.regions.bytes()
    }

    /// Size of the brk area in bytes, as far as it is known.
    pub fn program_break_bytes(&self) -> u64 {
        self.break_start
            .map_or(0, |start| self.break_end.saturating_sub(start))
    }

    /// Memory system calls that failed, by name.
    pub fn failed_calls(&self) -> &BTreeMap<&'static str, u64> {
        &self.failed_calls
    }

    /// Every mapping with its first address.
    pub fn regions(&self) -> impl Iterator<Item = (u64, &Region)> {
        self.regions.iter()
    }

    /// Resident bytes of a mapping.
    pub fn resident_bytes(&self, start: u64, region: &Region) -> u64 {
        self.pages.count_in(start / PAGE..region.end / PAGE) * PAGE
    }

    /// The kind of the mapping that holds `address`.
    pub fn kind_at(&self, address: u64) -> Option<Kind> {
        self.regions.at(address).map(|(_, region)| region.kind)
    }

    /// The pages of `range` are not resident any more.
    pub(super) fn discard(&mut self, range: &Range<u64>) {
        let pages = range.start / PAGE..range.end / PAGE;
        self.growth.remove(pages.clone());
        self.pages.remove_range(pages);
    }

    /// The site of a stack that touches pages first.
    pub fn growth_site(&mut self, stack: u32, frames: &[u64]) -> u32 {
        let regions = &self.regions;
        let is_plumbing = |address| {
            let path = regions.at(address).and_then(|(_, region)| region.path());
            path.is_some_and(is_allocator)
        };
        self.growth.site(stack, frames, is_plumbing)
    }

    /// A fork copies it now, or makes it.
    pub fn note_fork(&mut self, time_ns: u64) {
        self.forked = Some((time_ns, self.break_end));
    }

    /// Whether an address was mapped after the last fork: what was there before is copied when it is written, which is
    /// no growth.
    pub fn is_younger_than_fork(&self, address: u64) -> bool {
        let Some((forked_ns, break_end)) = self.forked else {
            return true;
        };
        let region = self.regions.at(address);
        region.is_none_or(|(_, region)| {
            region.created_ns > forked_ns || (region.kind == Kind::Heap && address >= break_end)
        })
    }

    /// A page was touched first, by one of `faults` faults.
    pub fn touch(&mut self, time_ns: u64, address: u64, site: Option<u32>, faults: u32) {
        let page = address / PAGE;
        let (kind, huge) = match self.regions.at(address) {
            Some((start, region)) => {
                let huge = region.may_be_huge(start, page, self.huge_unasked);
                (region.kind, huge)
            }
            // Told before the call that mapped it.
            None => (Kind::Anonymous, false),
        };
        if kind.is_anonymous() || kind == Kind::Shared {
            let faults = u64::from(faults.max(1));
            self.growth.touch(time_ns, page, site, faults, huge);
        }
    }

    /// The pages changed by other means than the kernel's counters or smaps.
    pub(super) fn changed(&mut self) {
        if !self.sampled {
            self.source = Source::Faults;
        }
        self.note_peaks();
    }

    pub(super) fn note_peaks(&mut self) {
        self.peak_reserved = self.peak_reserved.max(self.regions.bytes());
        self.peak_committed = self.peak_committed.max(self.pages.bytes());
    }

    /// The kernel announced a mapping by itself.
    ///
    /// It does so within mmap, mprotect, brk and the growth of a stack, and tells the whole mapping
    /// after merging with its neighbours. So what is known with the same contents keeps its pages; of a
    /// file the rest is new, and of anonymous memory what no other than a file was known to map. exec maps
    /// a program whole before it maps the segments over it, their bss included.
    pub fn announce(&mut self, time_ns: u64, event: &FileMapped) {
        let Some(range) = span(event.start, event.length) else {
            return;
        };
        let named = !is_unnamed(&event.path);
        // Kernels that track soft-dirty pages announce it there, as they change its protection, and
        // then move it (fs/exec.c, setup_arg_pages()). What a program maps there is a call of its own.
        if !named && STACK_TOPS.contains(&range.end) {
            return;
        }
        let shared = event.flags & 1 != 0;
        let mut region = Region::anonymous(range.end, event.protection, time_ns);
        region.set_shared(shared);
        region.kind = Kind::of(Some(&event.path), shared);
        if named {
            region.mapped = Some(self.mapped_as(&range, event));
            region.offset = if region.is_file_backed() {
                event.offset
            } else {
                0
            };
        }
        if region.kind == Kind::Heap {
            self.break_start.get_or_insert(range.start);
            self.break_end = self.break_end.max(range.end);
        }
        if is_file(&event.path) {
            let replaced: Vec<Range<u64>> = self
                .regions
                .overlapping(range.clone())
                .filter(|(start, old)| !same_contents(*start, old, range.start, &region, time_ns))
                .map(|(start, old)| start.max(range.start)..old.end.min(range.end))
                .collect();
            for piece in replaced {
                self.regions.remove_if(piece.clone(), |_| true);
                self.discard(&piece);
            }
            self.regions.update(range.clone(), |old| {
                old.mapped.clone_from(&region.mapped);
                if old.created_ns < time_ns {
                    old.set_protection(region.protection().into());
                }
            });
        } else if !named {
            let files = |old: &Region| old.created_ns < time_ns && old.path().is_some_and(is_file);
            for piece in self.regions.remove_if(range.clone(), files) {
                self.discard(&piece);
            }
        }
        self.fill(range, &region);
        self.changed();
    }

    /// Maps `region` wherever nothing is mapped in `range`.
    pub(super) fn fill(&mut self, range: Range<u64>, region: &Region) {
        for gap in self.regions.gaps(range.clone()) {
            let mut piece = region.clone();
            piece.end = gap.end;
            if piece.is_file_backed() {
                piece.offset = piece.offset.wrapping_add(gap.start - range.start);
            }
            self.regions.insert(gap.start, piece);
        }
    }

    /// One `Mapped` for all mappings of a file that follow one another.
    fn mapped_as(&self, range: &Range<u64>, event: &FileMapped) -> Arc<Mapped> {
        let near = [
            self.regions.at(range.start),
            self.regions.below(range.start),
            self.regions.above(range.start),
        ];
        near.into_iter()
            .flatten()
            .filter_map(|(_, region)| region.mapped.as_ref())
            .find(|mapped| mapped.path == event.path && mapped.build_id == event.build_id)
            .cloned()
            .unwrap_or_else(|| {
                Arc::new(Mapped {
                    path: event.path.clone(),
                    build_id: event.build_id.clone(),
                })
            })
    }

    /// A fault was handled: makes pages resident and says in which kind of mapping it was.
    pub fn fault(&mut self, time_ns: u64, address: u64, access: Access) -> Kind {
        if self.regions.at(address).is_none() {
            self.grow_stack(time_ns, address);
        }
        let Some((start, region)) = self.regions.at_mut(address) else {
            return Kind::Other;
        };
        region.faults = region.faults.saturating_add(1);
        let (kind, page) = (region.kind, address / PAGE);
        let extent = start..region.end;
        let huge = region.may_be_huge(start, page, self.huge_unasked);
        let write = access.write.unwrap_or(true);
        if region.huge == Huge::Reserved {
            return kind;
        }
        if kind.is_anonymous() {
            // A read of untouched memory maps the zero page, which is not counted; a read that
            // waited for I/O brought a page back from swap.
            if write || access.major {
                let fresh = !access.protection || !self.pages.contains(page);
                if huge && !access.major && fresh {
                    self.pages.insert_huge(page);
                } else {
                    self.pages.insert(page);
                }
            }
        } else if kind == Kind::File {
            if write && !region.is_shared() {
                self.pages.copy_on_write(page);
            } else if write || access.major {
                self.pages.insert(page);
            } else {
                let window = address & !(FAULT_AROUND - 1);
                let from = window.max(extent.start) / PAGE;
                let to = window.saturating_add(FAULT_AROUND).min(extent.end) / PAGE;
                self.pages.insert_range(from..to);
            }
        } else if !matches!(region.path(), Some("[vvar]" | "[vsyscall]")) {
            self.pages.insert(page);
        }
        self.changed();
        kind
    }

    /// Extends the main stack down to `address`, or assumes one there, if that is where stacks are.
    fn grow_stack(&mut self, time_ns: u64, address: u64) {
        let page = address & !(PAGE - 1);
        if page >= super::region::page_up(u64::MAX) || span(page, PAGE).is_none() {
            return;
        }
        let above = self
            .regions
            .above(address)
            .map(|(start, region)| (start, region.clone()));
        if let Some((start, mut stack)) = above
            && stack.path() == Some("[stack]")
            && start - page <= STACK_REACH
        {
            let end = stack.end;
            stack.end = start;
            stack.faults = 0;
            self.regions.insert(page, stack);
            self.regions.update(page..end, |_| ());
            return;
        }
        let (likely, top) = match self.stack_hint {
            Some(hint) => (
                page <= hint.saturating_add(STACK_HEAD) && hint.saturating_sub(page) <= STACK_REACH,
                page_up(hint.saturating_add(1)).max(page + PAGE),
            ),
            None => (address >= STACK_FLOOR, page + PAGE),
        };
        if likely {
            let mut stack = Region::anonymous(top, 3, time_ns);
            stack.kind = Kind::Stack;
            stack.mapped = Some(Mapped::pseudo("[stack]"));
            self.fill(page..top, &stack);
        }
    }
}

/// Whether what is mapped at `start` already is the part of `new`, mapped at `new_start`, that lies there.
/// A mapping younger than the announcement is what the same call made, told first by its return.
fn same_contents(start: u64, old: &Region, new_start: u64, new: &Region, time_ns: u64) -> bool {
    let younger = old.created_ns >= time_ns;
    let same_file = old.path() == new.path()
        && (!new.is_file_backed()
            || old.offset.wrapping_sub(start) == new.offset.wrapping_sub(new_start));
    younger || same_file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_that_exec_sets_up_at_the_top_is_no_mapping_of_the_program() {
        for top in [0x7fff_ffff_f000, 0xff_ffff_ffff_f000] {
            let mut space = AddressSpace::default();
            let announced = |path: &str| FileMapped {
                start: top - PAGE,
                length: PAGE,
                offset: 0,
                protection: 3,
                flags: 2,
                path: path.into(),
                build_id: Box::default(),
            };
            space.announce(10, &announced("//anon"));
            assert_eq!(space.regions.bytes(), 0, "moved before the program runs");
            space.announce(11, &announced("[stack]"));
            assert_eq!(
                space.regions.bytes(),
                PAGE,
                "without randomisation it stays"
            );
        }
    }

    const WRITE: Access = Access {
        major: false,
        kernel: false,
        write: Some(true),
        protection: false,
        instruction: false,
    };
    const READ: Access = Access {
        write: Some(false),
        ..WRITE
    };

    fn file(start: u64, length: u64, offset: u64, path: &str) -> FileMapped {
        FileMapped {
            start,
            length,
            offset,
            protection: 3,
            flags: 2,
            path: path.into(),
            build_id: Box::default(),
        }
    }

    fn with_file(length: u64) -> AddressSpace {
        let mut space = AddressSpace::default();
        space.announce(1, &file(0x10_0000, length, 0, "/lib/a"));
        space
    }

    #[test]
    fn anonymous_memory_is_committed_by_writes() {
        let mut space = AddressSpace::default();
        space.announce(1, &file(0x10_0000, 0x10000, 0, "//anon"));
        assert_eq!(space.fault(2, 0x10_0008, READ), Kind::Anonymous);
        assert_eq!(space.pages.count(), 0);
        space.fault(3, 0x10_0008, WRITE);
        let unknown = Access {
            write: None,
            ..WRITE
        };
        space.fault(3, 0x10_1008, unknown);
        assert_eq!(space.pages.count(), 2);
        let swapped_in = Access {
            major: true,
            ..READ
        };
        space.fault(4, 0x10_2000, swapped_in);
        assert_eq!(space.pages.count(), 3);
        assert_eq!(space.regions.at(0x10_0000).unwrap().1.faults, 4);
    }

    #[test]
    fn file_reads_map_around_and_writes_copy() {
        let mut space = with_file(0x2_2000);
        space.fault(2, 0x10_3000, READ);
        assert_eq!(space.pages.count(), 16);
        space.fault(2, 0x12_1000, READ);
        assert_eq!(space.pages.count(), 18, "the window ends with the mapping");
        space.fault(3, 0x11_0000, WRITE);
        assert_eq!(space.pages.count(), 19);
        assert_eq!(space.pages.copied_in(0..u64::MAX), 1);
    }

    #[test]
    fn an_announcement_by_mprotect_keeps_pages() {
        let mut space = with_file(0x4000);
        space.fault(2, 0x10_0000, WRITE);
        space.announce(3, &file(0x10_0000, 0x2000, 0, "/lib/a"));
        assert_eq!(space.pages.count(), 1);
        assert_eq!(space.regions.bytes(), 0x4000);
        space.announce(4, &file(0x10_0000, 0x1000, 0x5000, "/lib/b"));
        assert_eq!(space.pages.count(), 0, "another file: another mapping");
        let paths: Vec<_> = space.regions.iter().map(|(_, r)| r.path()).collect();
        assert_eq!(paths, [Some("/lib/b"), Some("/lib/a")]);
    }

    #[test]
    fn a_program_is_announced_whole_and_then_by_its_segments() {
        let mut space = AddressSpace::default();
        let segment = |first: u64, pages: u64, protection| FileMapped {
            protection,
            ..file(
                0x10_0000 + first * PAGE,
                pages * PAGE,
                first * PAGE,
                "/bin/a",
            )
        };
        space.announce(1, &segment(0, 8, 1));
        space.fault(2, 0x10_6000, WRITE);
        space.announce(3, &segment(1, 2, 5));
        space.announce(4, &segment(4, 1, 3));
        space.announce(5, &file(0x10_5000, 3 * PAGE, 0, "//anon"));
        let rows: Vec<_> = space
            .regions
            .iter()
            .map(|(start, region)| (start, region.permissions(), region.kind))
            .collect();
        let expected = [
            (0x10_0000, "r--p", Kind::File),
            (0x10_1000, "r-xp", Kind::File),
            (0x10_3000, "r--p", Kind::File),
            (0x10_4000, "rw-p", Kind::File),
            (0x10_5000, "rw-p", Kind::Anonymous),
        ];
        let expected = expected.map(|(start, text, kind)| (start, text.to_owned(), kind));
        assert_eq!(rows, expected);
        assert_eq!(space.pages.count(), 0, "the bss is fresh");
        let mut later = AddressSpace::default();
        later.announce(9, &segment(0, 8, 1));
        later.announce(8, &file(0x10_0000, 8 * PAGE, 0, "//anon"));
        assert_eq!(
            later.kind_at(0x10_0000),
            Some(Kind::File),
            "the younger stays"
        );
    }

    #[test]
    fn the_stack_grows_to_the_fault() {
        let mut space = AddressSpace::default();
        space.announce(1, &file(0x7ffc_0000_0000, 0x21000, 0, "[stack]"));
        assert_eq!(space.fault(2, 0x7ffb_fffe_0010, WRITE), Kind::Stack);
        assert_eq!(space.regions.bytes(), 0x41000);
        let mut unknown = AddressSpace::default();
        assert_eq!(unknown.fault(1, 0x7ffc_1234_5678, WRITE), Kind::Stack);
        assert_eq!(unknown.fault(1, 0x7ffc_1234_4678, WRITE), Kind::Stack);
        assert_eq!(unknown.regions.bytes(), 2 * PAGE);
        assert_eq!(unknown.fault(2, 0x1000, WRITE), Kind::Other);
        assert_eq!(unknown.fault(2, u64::MAX, WRITE), Kind::Other);
    }

    #[test]
    fn fork_leaves_clean_file_pages_behind() {
        let mut space = with_file(0x10000);
        space.announce(1, &file(0x20_0000, 0x10000, 0, "/lib/b"));
        space.announce(1, &file(0x30_0000, 0x10000, 0, "//anon"));
        space.fault(2, 0x10_0000, READ);
        space.fault(2, 0x20_0000, READ);
        space.fault(2, 0x20_1000, WRITE);
        space.fault(2, 0x30_1000, WRITE);
        let child = space.fork();
        assert_eq!(child.regions.bytes(), 0x30000);
        assert_eq!(
            child.pages.count(),
            17,
            "16 of the written file, 1 anonymous"
        );
        assert!(child.regions.iter().all(|(_, region)| region.faults == 0));
    }

    #[test]
    fn kernel_mappings_fill_gaps_only() {
        let mut space = AddressSpace::default();
        space.announce(1, &file(0x10_0000, 0x1000, 0, "//anon"));
        space.fault(2, 0x10_0000, WRITE);
        space.announce(3, &file(0x10_0000, 0x3000, 0, "//anon"));
        assert_eq!(space.pages.count(), 1);
        assert_eq!(space.regions.bytes(), 0x3000);
    }
}
