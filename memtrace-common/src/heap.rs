//! Probe points on allocator functions.

/// What an allocator function does, and where its arguments are. The names are the C library's.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// `void *malloc(size)`: also `valloc`, `pvalloc`, `operator new(size)`, `mallocx(size, flags)`.
    Malloc = 1,
    /// `void *calloc(count, size)`
    Calloc = 2,
    /// `void *realloc(pointer, size)`: also `rallocx`.
    Realloc = 3,
    /// `void *reallocarray(pointer, count, size)`
    Reallocarray = 4,
    /// `int posix_memalign(void **out, alignment, size)`
    PosixMemalign = 5,
    /// `void *aligned_alloc(alignment, size)`: also `memalign`.
    AlignedAlloc = 6,
    /// `void free(pointer)`: also `cfree`, `free_sized`, `operator delete`, `dallocx`.
    Free = 7,
    /// `void *pvalloc(size)`: the size is rounded up to whole pages.
    Pvalloc = 8,
    /// `void *operator new(size, alignment)` and its forms: the size comes first.
    AlignedNew = 9,
}

/// Probe points are found by where they stand within a page: load addresses differ, offsets within a page do
/// not. Points of one group differ in it; the attach cookie is the group.
pub const GROUP_SIZE: u32 = 4096;

/// Groups of entry points at most.
pub const MAX_GROUPS: u32 = 64;

/// One entry point, in the `POINTS` array at `group * GROUP_SIZE + address % GROUP_SIZE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// [`Function`] as a number; 0 where no point stands.
    pub function: u16,
    /// 1 where a return probe tells the function's return, which knows the return address.
    pub has_return_probe: u16,
    /// Bytes pushed since the function's entry: the return address is at `[rsp + pushed]`.
    pub pushed: u32,
    /// A caller whose address lies in `ip + internal_start .. ip + internal_end` is the allocator itself.
    pub internal_start: i64,
    /// End of the span, exclusive.
    pub internal_end: i64,
}
