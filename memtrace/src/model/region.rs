//! One mapping, and what its path and flags say about it.

use std::{ops::Range, sync::Arc};

use super::pages::HUGE_PAGES;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Largest address the model accepts: beyond it an event is damaged, not news.
pub const ADDRESS_LIMIT: u64 = 1 << 57;

/// What a mapping is for, as reports group them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The brk area.
    Heap,
    /// Private anonymous memory.
    Anonymous,
    /// A thread's stack.
    Stack,
    /// A file, private or shared.
    File,
    /// Memory shared between processes: shared anonymous, System V, memfd, /dev/shm.
    Shared,
    /// What the kernel maps (`[vdso]`), and what is not known.
    Other,
}

impl Kind {
    /// Every kind, in the order of [`Kind::index`].
    pub const ALL: [Kind; 6] = [
        Kind::Heap,
        Kind::Anonymous,
        Kind::Stack,
        Kind::File,
        Kind::Shared,
        Kind::Other,
    ];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Heap => "heap",
            Kind::Anonymous => "anonymous",
            Kind::Stack => "stack",
            Kind::File => "file",
            Kind::Shared => "shared",
            Kind::Other => "other",
        }
    }

    /// Position in [`Kind::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether the kernel counts its pages as anonymous and fills them only when written.
    pub const fn is_anonymous(self) -> bool {
        matches!(self, Kind::Heap | Kind::Anonymous | Kind::Stack)
    }

    /// The kind of a mapping with this path; `None` and `//anon` have none.
    pub fn of(path: Option<&str>, shared: bool) -> Kind {
        let anonymous = if shared {
            Kind::Shared
        } else {
            Kind::Anonymous
        };
        let Some(path) = path.filter(|path| !is_unnamed(path)) else {
            return anonymous;
        };
        if path.starts_with("[heap") {
            Kind::Heap
        } else if path.starts_with("[stack") {
            Kind::Stack
        } else if path.starts_with("[anon_shmem") {
            Kind::Shared
        } else if path.starts_with("[anon") || path.starts_with("/dev/zero") {
            anonymous
        } else if ["/dev/shm/", "/memfd:", "/SYSV"]
            .iter()
            .any(|prefix| path.starts_with(prefix))
        {
            Kind::Shared
        } else if path.starts_with('/') {
            Kind::File
        } else {
            Kind::Other
        }
    }
}

/// Whether a path stands for "no path".
pub fn is_unnamed(path: &str) -> bool {
    path.is_empty() || path.starts_with("//anon")
}

/// Whether a path names a file rather than something the kernel made up.
pub fn is_file(path: &str) -> bool {
    path.starts_with('/') && !is_unnamed(path)
}

/// Whether a file is a C library or an allocator by its name: what touches memory on behalf of its callers.
pub fn is_allocator(path: &str) -> bool {
    const NAMES: [&str; 9] = [
        "libc.so",
        "libc-2",
        "libc.musl",
        "ld-musl",
        "libstdc++.so",
        "libc++",
        "libjemalloc",
        "libtcmalloc",
        "libmimalloc",
    ];
    let name = path.rsplit('/').next().unwrap_or(path);
    NAMES.iter().any(|known| name.starts_with(known))
}

/// What is mapped: a file, or a pseudo-path such as `[vdso]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Path as the kernel names it.
    pub path: Box<str>,
    /// GNU build ID; empty where unknown.
    pub build_id: Box<[u8]>,
}

impl Mapped {
    /// What the kernel maps under a name of its own.
    pub fn pseudo(path: &str) -> Arc<Self> {
        Arc::new(Self {
            path: path.into(),
            build_id: Box::default(),
        })
    }
}

/// What fork does with a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFork {
    /// The child gets it with its private pages.
    #[default]
    Keep,
    /// The child does not get it (MADV_DONTFORK).
    Drop,
    /// The child gets it empty (MADV_WIPEONFORK).
    Wipe,
}

/// Whether the pages of a mapping are huge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Huge {
    /// As the machine has it: where it gives them unasked.
    #[default]
    Unadvised,
    /// MADV_NOHUGEPAGE: none.
    No,
    /// MADV_HUGEPAGE: where the kernel finds one.
    Advised,
    /// MAP_HUGETLB: all of them, and none is in the kernel's resident counters.
    Reserved,
}

/// PROT_READ, PROT_WRITE and PROT_EXEC.
const PROTECTION: u8 = 7;

/// MAP_SHARED rather than MAP_PRIVATE.
const SHARED: u8 = 8;

/// One mapping; its first address is its key in [`super::intervals::Intervals`].
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// End, exclusive.
    pub end: u64,
    /// PROT_ bits that every architecture has, and [`SHARED`].
    access: u8,
    /// What it is for.
    pub kind: Kind,
    /// Offset into the file, in bytes; 0 without one.
    pub offset: u64,
    /// What is mapped; `None` for anonymous memory.
    pub mapped: Option<Arc<Mapped>>,
    /// When it was known to be there: the return of its call, in nanoseconds.
    pub created_ns: u64,
    /// Whether its pages are, or may be, huge.
    pub huge: Huge,
    /// What fork does with it.
    pub on_fork: OnFork,
    /// Faults taken in it, as many as can be counted.
    pub faults: u32,
}

impl Region {
    /// A private anonymous mapping.
    pub fn anonymous(end: u64, protection: u32, created_ns: u64) -> Self {
        Self {
            end,
            access: protection as u8 & PROTECTION,
            kind: Kind::Anonymous,
            offset: 0,
            mapped: None,
            created_ns,
            huge: Huge::Unadvised,
            on_fork: OnFork::Keep,
            faults: 0,
        }
    }

    /// The path, where there is one.
    pub fn path(&self) -> Option<&str> {
        self.mapped.as_deref().map(|mapped| &*mapped.path)
    }

    /// Whether pages are accounted like those of a file: present as soon as they are read.
    pub fn is_file_backed(&self) -> bool {
        self.kind == Kind::File
    }

    /// Whether `next`, which begins where this one ends, continues it in all that users see.
    pub fn continues_into(&self, start: u64, next: &Region) -> bool {
        self.access == next.access
            && self.kind == next.kind
            && self.huge == next.huge
            && self.on_fork == next.on_fork
            && self.path() == next.path()
            && (!self.is_file_backed()
                || self.offset.wrapping_add(self.end.wrapping_sub(start)) == next.offset)
    }

    /// Whether the first fault at a page may map the huge page around it, which lies in the mapping then. `unasked`:
    /// the machine gives huge pages to anonymous memory without advice.
    pub fn may_be_huge(&self, start: u64, page: u64, unasked: bool) -> bool {
        let wanted = match self.huge {
            Huge::Unadvised => unasked && self.kind.is_anonymous(),
            Huge::Advised => true,
            Huge::No | Huge::Reserved => false,
        };
        let first = page / HUGE_PAGES * HUGE_PAGES;
        wanted && start <= first * PAGE && (first + HUGE_PAGES) * PAGE <= self.end
    }

    /// MAP_SHARED rather than MAP_PRIVATE.
    pub fn is_shared(&self) -> bool {
        self.access & SHARED != 0
    }

    /// Sets what [`Region::is_shared`] tells.
    pub fn set_shared(&mut self, shared: bool) {
        self.access = self.protection() | if shared { SHARED } else { 0 };
    }

    /// PROT_READ, PROT_WRITE and PROT_EXEC.
    pub fn protection(&self) -> u8 {
        self.access & PROTECTION
    }

    /// Sets the protection; other bits than [`Region::protection`] has are of no interest.
    pub fn set_protection(&mut self, protection: u32) {
        self.access = self.access & SHARED | protection as u8 & PROTECTION;
    }

    /// madvise with what leads to [`Huge::Advised`] or [`Huge::No`]; it means nothing to what is reserved.
    pub fn advise(&mut self, huge: Huge) {
        if self.huge != Huge::Reserved {
            self.huge = huge;
        }
    }

    /// As in /proc/PID/maps: `rw-p`.
    pub fn permissions(&self) -> String {
        let bit = |mask, letter| {
            if self.access & mask != 0 { letter } else { '-' }
        };
        let sharing = if self.is_shared() { 's' } else { 'p' };
        [bit(1, 'r'), bit(2, 'w'), bit(4, 'x'), sharing]
            .iter()
            .collect()
    }
}

/// The next page boundary at or above `address`.
pub fn page_up(address: u64) -> u64 {
    address.saturating_add(PAGE - 1) & !(PAGE - 1)
}

/// The pages that `length` bytes at `start` touch, as addresses; `None` where the range is empty or absurd.
pub fn span(start: u64, length: u64) -> Option<Range<u64>> {
    let end = page_up(start.checked_add(length)?);
    let start = start & !(PAGE - 1);
    (start < end && end <= ADDRESS_LIMIT).then_some(start..end)
}

// Ten thousand processes have a million mappings.
const _: () = assert!(size_of::<Region>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_path() {
        let of = |path| Kind::of(Some(path), false);
        assert_eq!(of("/usr/lib/libc.so.6"), Kind::File);
        assert_eq!(of("//anon"), Kind::Anonymous);
        assert_eq!(of(""), Kind::Anonymous);
        assert_eq!(of("[anon:arena]"), Kind::Anonymous);
        assert_eq!(of("/dev/zero"), Kind::Anonymous);
        assert_eq!(
            Kind::of(Some("/dev/zero (deleted)"), true),
            Kind::Shared,
            "shared anonymous memory has this path"
        );
        assert_eq!(of("/memfd:x (deleted)"), Kind::Shared);
        assert_eq!(of("/SYSV00000000 (deleted)"), Kind::Shared);
        assert_eq!(of("[stack]"), Kind::Stack);
        assert_eq!(of("[heap]"), Kind::Heap);
        assert_eq!(of("[vdso]"), Kind::Other);
        assert_eq!(of("anon_inode:[io_uring]"), Kind::Other);
        assert_eq!(Kind::of(None, true), Kind::Shared);
        for (index, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(kind.index(), index);
        }
    }

    #[test]
    fn spans_are_whole_pages_and_never_absurd() {
        assert_eq!(span(0x1000, 1), Some(0x1000..0x2000));
        assert_eq!(span(0x1fff, 2), Some(0x1000..0x3000));
        assert_eq!(span(0x1000, 0), None);
        assert_eq!(span(u64::MAX, 1), None);
        assert_eq!(span(0, u64::MAX), None);
        assert_eq!(span(1 << 60, PAGE), None);
    }

    #[test]
    fn permissions_read_like_proc() {
        let mut region = Region::anonymous(PAGE, 5, 0);
        assert_eq!(region.permissions(), "r-xp");
        region.set_shared(true);
        region.set_protection(3);
        assert_eq!(region.permissions(), "rw-s");
    }
}
