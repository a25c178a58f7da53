//! Which pages of an address space are resident, as far as faults and calls tell.

use std::{collections::BTreeMap, ops::Range};

use roaring::RoaringTreemap;

use super::region::PAGE;

/// Pages of a transparent huge page.
pub const HUGE_PAGES: u64 = 512;

/// Pages that one event may make resident: a damaged length must not fill the model's own memory.
const RANGE_LIMIT: u64 = 1 << 28;

/// What is believed of one aligned 2 MiB range that was advised to be huge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Huge {
    /// One fault, at this page, is taken to have filled the range.
    Assumed(u64),
    /// A second fault showed that the first had not.
    Refused,
}

/// Resident pages by page number (address / 4096).
#[derive(Clone, Debug, Default)]
pub struct Pages {
    resident: RoaringTreemap,
    copied: RoaringTreemap,
    huge: BTreeMap<u64, Huge>,
    count: u64,
    /// Pages that became resident while /proc was being read: it may have missed them.
    since: Option<RoaringTreemap>,
}

impl Pages {
    /// Resident pages.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether the page is resident.
    pub fn contains(&self, page: u64) -> bool {
        self.resident.contains(page)
    }

    /// Resident pages within a range of page numbers.
    pub fn count_in(&self, pages: Range<u64>) -> u64 {
        self.resident.range_cardinality(pages)
    }

    /// Pages of private file mappings that were copied on write: the kernel counts them as anonymous.
    pub fn copied_in(&self, pages: Range<u64>) -> u64 {
        self.copied.range_cardinality(pages)
    }

    /// A page became resident.
    pub fn insert(&mut self, page: u64) {
        self.count += u64::from(self.resident.insert(page));
        if let Some(since) = &mut self.since {
            since.insert(page);
        }
    }

    /// A range of pages became resident.
    pub fn insert_range(&mut self, pages: Range<u64>) {
        let pages = pages.start..pages.end.min(pages.start.saturating_add(RANGE_LIMIT));
        if let Some(since) = &mut self.since {
            since.insert_range(pages.clone());
        }
        self.count += self.resident.insert_range(pages);
    }

    /// A page of a private file mapping was written to.
    pub fn copy_on_write(&mut self, page: u64) {
        self.insert(page);
        self.copied.insert(page);
    }

    /// As [`Pages::copy_on_write`] for a range.
    pub fn copy_range(&mut self, pages: Range<u64>) {
        let pages = pages.start..pages.end.min(pages.start.saturating_add(RANGE_LIMIT));
        self.insert_range(pages.clone());
        self.copied.insert_range(pages);
    }

    /// A range is not resident any more.
    pub fn remove_range(&mut self, pages: Range<u64>) {
        if pages.is_empty() {
            return;
        }
        self.count -= self.resident.remove_range(pages.clone());
        self.copied.remove_range(pages.clone());
        if let Some(since) = &mut self.since {
            since.remove_range(pages.clone());
        }
        if self.huge.is_empty() {
            return;
        }
        let (first, last) = (pages.start / HUGE_PAGES, (pages.end - 1) / HUGE_PAGES);
        let touched: Vec<u64> = self.huge.range(first..=last).map(|(&at, _)| at).collect();
        for at in touched {
            self.huge.remove(&at);
        }
    }

    /// The pages of `from` are found at `to` instead (mremap).
    pub fn move_range(&mut self, from: Range<u64>, to: u64) {
        let shift = |set: &RoaringTreemap| -> Vec<u64> {
            let mut pages = set.iter();
            pages.advance_to(from.start);
            pages
                .take_while(|page| *page < from.end)
                .map(|page| to.saturating_add(page - from.start))
                .collect()
        };
        let (resident, copied) = (shift(&self.resident), shift(&self.copied));
        let length = from.end.saturating_sub(from.start);
        self.remove_range(from);
        self.remove_range(to..to.saturating_add(length));
        for page in resident {
            self.insert(page);
        }
        self.copied.extend(copied);
    }

    /// A write fault at `page` in memory advised to be huge, whose aligned 2 MiB range is mapped as a whole.
    ///
    /// The event does not tell how much was mapped. A fault in an empty range is taken to have filled
    /// it, since nothing else will fault there if it did; a second fault in the same range proves the
    /// contrary, and from then on the range is counted by single pages.
    pub fn insert_huge(&mut self, page: u64) {
        let at = page / HUGE_PAGES;
        let range = at * HUGE_PAGES..(at + 1) * HUGE_PAGES;
        match self.huge.get(&at) {
            None if self.count_in(range.clone()) == 0 => {
                self.insert_range(range);
                self.huge.insert(at, Huge::Assumed(page));
            }
            Some(&Huge::Assumed(first)) if first != page => {
                self.remove_range(range);
                self.insert(first);
                self.insert(page);
                self.huge.insert(at, Huge::Refused);
            }
            _ => self.insert(page),
        }
    }

    /// The aligned 2 MiB ranges that lie within `pages` and have at least one and at most `most` resident pages,
    /// none of them copied: as page numbers.
    pub fn sparse_huge_ranges(&self, pages: Range<u64>, most: u64) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        let mut resident = self.resident.iter();
        resident.advance_to(pages.start.next_multiple_of(HUGE_PAGES));
        while let Some(page) = resident.next() {
            let first = page / HUGE_PAGES * HUGE_PAGES;
            let range = first..first + HUGE_PAGES;
            if range.end > pages.end {
                break;
            }
            if self.count_in(range.clone()) <= most && self.copied_in(range.clone()) == 0 {
                found.push(range.clone());
            }
            resident.advance_to(range.end);
        }
        found
    }

    /// From now on remember what becomes resident, until [`Pages::replace`].
    pub fn begin_replacement(&mut self) {
        self.since = Some(RoaringTreemap::new());
    }

    /// Takes the state that was read, and what became resident while it was being read.
    pub fn replace(&mut self, mut read: Pages) {
        if let Some(since) = self.since.take() {
            read.resident |= &since;
            let copied = &self.copied & &since;
            read.copied |= copied;
        }
        read.count = read.resident.len();
        *self = read;
    }

    /// Resident bytes.
    pub fn bytes(&self) -> u64 {
        self.count * PAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_fault_refutes_a_huge_page() {
        let mut pages = Pages::default();
        pages.insert_huge(1024 + 7);
        assert_eq!(pages.count(), 512);
        pages.insert_huge(1024 + 7);
        assert_eq!(pages.count(), 512);
        pages.insert_huge(1024 + 9);
        assert_eq!(pages.count(), 2);
        pages.insert_huge(1024 + 11);
        assert_eq!(pages.count(), 3);
        pages.remove_range(1024..1536);
        pages.insert_huge(1024);
        assert_eq!(
            pages.count(),
            512,
            "after MADV_DONTNEED it may be huge again"
        );
    }

    #[test]
    fn a_range_with_pages_cannot_become_huge() {
        let mut pages = Pages::default();
        pages.insert(3);
        pages.insert_huge(4);
        assert_eq!(pages.count(), 2);
    }

    #[test]
    fn moving_takes_pages_along() {
        let mut pages = Pages::default();
        pages.insert_range(10..12);
        pages.copy_on_write(13);
        pages.insert(101);
        pages.move_range(10..20, 100);
        assert_eq!(pages.count(), 3);
        assert_eq!(pages.count_in(100..102), 2);
        assert!(pages.contains(103) && !pages.contains(10));
        assert_eq!(pages.copied_in(100..110), 1);
    }

    #[test]
    fn what_came_while_reading_is_kept() {
        let mut pages = Pages::default();
        pages.insert(1);
        pages.begin_replacement();
        pages.insert(2);
        pages.copy_on_write(3);
        pages.insert(4);
        pages.remove_range(4..5);
        let mut read = Pages::default();
        read.insert(9);
        pages.replace(read);
        assert_eq!(pages.count(), 3);
        assert!(pages.contains(2) && pages.contains(3) && pages.contains(9));
        assert_eq!(pages.copied_in(0..10), 1);
    }

    #[test]
    fn absurd_ranges_are_cut() {
        let mut pages = Pages::default();
        pages.insert_range(0..1 << 45);
        assert_eq!(pages.count(), RANGE_LIMIT);
        pages.remove_range(0..1 << 45);
        assert_eq!(pages.count(), 0);
    }
}
