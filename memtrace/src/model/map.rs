//! What mmap and mremap make of an address space.

use std::ops::Range;

use crate::event::Syscall;

use super::{
    address_space::AddressSpace,
    region::{Huge, Kind, PAGE, Region, span},
};

const MAP_TYPE: u64 = 0xf;
pub(super) const MAP_PRIVATE: u64 = 0x2;
pub(super) const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_LOCKED: u64 = 0x2000;
pub(super) const MAP_POPULATE: u64 = 0x8000;
const MAP_STACK: u64 = 0x2_0000;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_HUGE_SHIFT: u32 = 26;
const MREMAP_DONTUNMAP: u64 = 4;
const PROT_WRITE: u8 = 2;

impl AddressSpace {
    pub(super) fn map(&mut self, time_ns: u64, event: &Syscall) {
        let [_, length, protection, flags, _] = event.arguments;
        let length = if flags & MAP_HUGETLB != 0 {
            let shift = match (flags >> MAP_HUGE_SHIFT) & 0x3f {
                0 => 21,
                shift => shift,
            };
            let huge = 1u64.checked_shl(shift as u32).unwrap_or(PAGE).max(PAGE);
            length.checked_next_multiple_of(huge).unwrap_or(length)
        } else {
            length
        };
        let Some(range) = span(event.result as u64, length) else {
            return;
        };
        let region = self.described(&range, time_ns, event);
        // What was announced within the call is this very mapping: its pages are its own.
        let announced = self.regions.gaps(range.clone()).is_empty()
            && self
                .regions
                .overlapping(range.clone())
                .all(|(_, old)| old.created_ns >= event.entered_ns);
        self.regions.insert(range.start, region.clone());
        if !announced {
            self.discard(&range);
        }
        if flags & (MAP_POPULATE | MAP_LOCKED) != 0 && protection != 0 {
            self.populate(&range, region.protection() & PROT_WRITE != 0);
        }
    }

    /// The region that an mmap made, with the path that was announced for it.
    fn described(&self, range: &Range<u64>, time_ns: u64, event: &Syscall) -> Region {
        let [_, _, protection, flags, _] = event.arguments;
        let anonymous = flags & MAP_ANONYMOUS != 0;
        let mut region = Region::anonymous(range.end, protection as u32, time_ns);
        region.set_shared(flags & MAP_TYPE != MAP_PRIVATE);
        if flags & MAP_HUGETLB != 0 {
            region.huge = Huge::Reserved;
        }
        let known = self.regions.at(range.start).filter(|(start, old)| {
            let same_place = old.offset.wrapping_add(range.start - start) == event.offset
                || !old.is_file_backed();
            let same_sort = if anonymous {
                region.is_shared() && old.kind == Kind::Shared && old.created_ns >= event.entered_ns
            } else {
                true
            };
            old.mapped.is_some() && same_place && same_sort
        });
        if let Some((_, old)) = known {
            region.mapped.clone_from(&old.mapped);
            region.kind = old.kind;
            region.faults = old.faults;
        } else if !anonymous {
            region.kind = Kind::File;
        } else if region.is_shared() {
            region.kind = Kind::Shared;
        } else if flags & (MAP_STACK | MAP_GROWSDOWN) != 0 {
            region.kind = Kind::Stack;
            // VM_NOHUGEPAGE, calc_vm_flag_bits() of include/linux/mman.h, since 6.7.
            region.huge = Huge::No;
        }
        if region.is_file_backed() {
            region.offset = event.offset;
        }
        region
    }

    /// All of `range` was made resident at once. Reading private anonymous memory maps the zero page,
    /// which is not counted.
    pub(super) fn populate(&mut self, range: &Range<u64>, write: bool) {
        let pieces: Vec<(Range<u64>, bool)> = self
            .regions
            .overlapping(range.clone())
            .filter(|(_, region)| {
                region.huge != Huge::Reserved && (write || !region.kind.is_anonymous())
            })
            .map(|(start, region)| {
                let piece = start.max(range.start)..region.end.min(range.end);
                (
                    piece,
                    region.is_file_backed() && !region.is_shared() && write,
                )
            })
            .collect();
        for (piece, copied) in pieces {
            let pages = piece.start / PAGE..piece.end / PAGE;
            if copied {
                self.pages.copy_range(pages);
            } else {
                self.pages.insert_range(pages);
            }
        }
    }

    /// mremap: `old` shrank, grew in place or moved to `new`.
    pub(super) fn remap(
        &mut self,
        time_ns: u64,
        entered_ns: u64,
        old: Range<u64>,
        new: Range<u64>,
        flags: u64,
    ) {
        let found = self
            .regions
            .at(old.start)
            .filter(|(_, region)| region.created_ns <= entered_ns)
            .map(|(start, region)| (start, region.clone()));
        let mut region = match found {
            Some((start, mut region)) => {
                if region.is_file_backed() {
                    region.offset = region.offset.wrapping_add(old.start - start);
                }
                region
            }
            None => Region::anonymous(new.end, 3, time_ns),
        };
        region.end = new.end;
        let moved = new.start != old.start;
        if !moved {
            if new.end < old.end {
                self.unmap(new.end..old.end, entered_ns);
            } else if new.end > old.end {
                self.discard(&(old.end..new.end));
                if region.is_file_backed() {
                    region.offset = region.offset.wrapping_add(old.end - old.start);
                }
                region.faults = 0;
                self.regions.insert(old.end, region);
                self.regions.update(old.end..new.end, |_| ());
            }
            return;
        }
        let kept = (old.end - old.start).min(new.end - new.start);
        region.created_ns = time_ns;
        if old.is_empty() {
            region.faults = 0;
        }
        self.regions.insert(new.start, region);
        self.discard(&new);
        let pages = old.start / PAGE..(old.start + kept) / PAGE;
        self.growth.move_range(pages.clone(), new.start / PAGE);
        self.pages.move_range(pages, new.start / PAGE);
        if flags & MREMAP_DONTUNMAP == 0 {
            self.unmap(old, entered_ns);
        }
    }
}
