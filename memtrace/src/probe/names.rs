//! What the functions of allocators are called.

use memtrace_common::heap::Function;

/// A family of allocators: its functions share a heap and an internal span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// The GNU C library's ptmalloc.
    Glibc,
    /// musl's mallocng (or oldmalloc).
    Musl,
    /// jemalloc, under any prefix.
    Jemalloc,
    /// gperftools' and Google's tcmalloc.
    Tcmalloc,
    /// mimalloc.
    Mimalloc,
    /// Something that defines malloc and free.
    Unknown,
}

impl Family {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::Jemalloc => "jemalloc",
            Self::Tcmalloc => "tcmalloc",
            Self::Mimalloc => "mimalloc",
            Self::Unknown => "unknown",
        }
    }

    /// Whether a symbol can only be the allocator's own; says where the allocator begins and ends
    /// in a statically linked program.
    pub fn owns(self, name: &str) -> bool {
        if let Some(known) = lookup(name)
            && !known.cpp
        {
            return true;
        }
        match self {
            Self::Glibc => {
                GLIBC.contains(&name)
                    || GLIBC_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            }
            Self::Musl => MUSL.contains(&name) || name.starts_with("__malloc"),
            Self::Jemalloc => ["je_", "_rjem_"]
                .iter()
                .any(|prefix| name.starts_with(prefix)),
            Self::Tcmalloc => {
                name.starts_with("tc_")
                    || ["tcmalloc", "TCMalloc", "Malloc"]
                        .iter()
                        .any(|part| name.contains(part))
            }
            Self::Mimalloc => ["mi_", "_mi_"]
                .iter()
                .any(|prefix| name.starts_with(prefix)),
            Self::Unknown => false,
        }
    }
}

/// malloc.o of glibc 2.36 (`nm malloc.o` of libc.a), as far as the names are telling.
const GLIBC: [&str; 12] = [
    "__free",
    "__calloc",
    "__realloc",
    "__memalign",
    "__valloc",
    "__pvalloc",
    "__posix_memalign",
    "mallopt",
    "mallinfo",
    "mallinfo2",
    "munmap_chunk",
    "int_mallinfo",
];
const GLIBC_PREFIXES: [&str; 14] = [
    "__malloc",
    "malloc_",
    "__mallinfo",
    "__mallopt",
    "__libc_mall",
    "__glibc_morecore",
    "_int_",
    "_mid_memalign",
    "sysmalloc",
    "systrim",
    "ptmalloc",
    "tcache_",
    "arena_get",
    "unlink_chunk",
];
/// src/malloc of musl 1.2.3.
const MUSL: [&str; 9] = [
    "__libc_malloc_impl",
    "__libc_malloc",
    "__libc_free",
    "__libc_realloc",
    "__simple_malloc",
    "default_malloc",
    "nontrivial_free",
    "alloc_slot",
    "malloc_usable_size",
];

/// What a name says about a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Where its arguments are.
    pub function: Function,
    /// The family, where the name has the family's prefix.
    pub family: Option<Family>,
    /// operator new or delete, or a C name for one.
    pub cpp: bool,
    /// An exception may leave it, so no return probe may be put on it.
    pub throws: bool,
    /// A `__libc_` alias: the plain name is better.
    pub alias: bool,
}

impl Known {
    fn c(function: Function, family: Option<Family>) -> Self {
        Self {
            function,
            family,
            cpp: false,
            throws: false,
            alias: false,
        }
    }
}

/// Looks a function up by the name of its symbol, without `@VERSION`.
pub fn lookup(name: &str) -> Option<Known> {
    if name.starts_with("_Z") {
        return operator(name);
    }
    if let Some(rest) = name
        .strip_prefix("__libc_")
        .or_else(|| name.strip_prefix("__posix_").map(|_| &name[2..]))
    {
        return standard(rest).map(|function| Known {
            alias: true,
            ..Known::c(function, None)
        });
    }
    if let Some(rest) = name
        .strip_prefix("_rjem_")
        .or_else(|| name.strip_prefix("je_"))
    {
        let function = standard(rest).or_else(|| extended(rest))?;
        return Some(Known::c(function, Some(Family::Jemalloc)));
    }
    if let Some(rest) = name.strip_prefix("tc_") {
        return tcmalloc(rest);
    }
    if let Some(rest) = name.strip_prefix("mi_") {
        return mimalloc(rest);
    }
    if let Some(function) = extended(name) {
        return Some(Known::c(function, Some(Family::Jemalloc)));
    }
    standard(name).map(|function| Known::c(function, None))
}

/// An allocating function that cannot be probed, and why not: its blocks are not seen.
pub fn left_out(name: &str) -> Option<&'static str> {
    let bare = ["_rjem_", "je_", "mi_"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    match bare.unwrap_or(name) {
        "xallocx" => Some("resizes in place and returns a size, not a block"),
        "reallocarr" => Some("returns the block through its first argument"),
        "expand" if bare.is_some() => Some("resizes in place"),
        "strdup" | "strndup" | "realpath" if bare.is_some() => Some("takes no size"),
        name if name.starts_with("smallocx_") => Some("returns the block in a structure"),
        name if bare.is_some()
            && name.starts_with("heap_")
            && ["alloc", "dup", "realpath"]
                .iter()
                .any(|part| name.contains(part)) =>
        {
            Some("takes a heap before the size")
        }
        name if name.contains("size_returning") => Some("returns the block in a structure"),
        _ => None,
    }
}

/// The C library's names, C23's, and the BSD and Windows ones that mimalloc adds.
fn standard(name: &str) -> Option<Function> {
    Some(match name {
        "malloc" | "valloc" => Function::Malloc,
        "pvalloc" => Function::Pvalloc,
        "calloc" => Function::Calloc,
        "realloc" | "reallocf" => Function::Realloc,
        "reallocarray" => Function::Reallocarray,
        "posix_memalign" => Function::PosixMemalign,
        "aligned_alloc" | "memalign" => Function::AlignedAlloc,
        "free" | "cfree" | "vfree" | "free_sized" | "free_aligned_sized" => Function::Free,
        _ => return None,
    })
}

/// jemalloc's own interface (jemalloc(3), "Non-standard API").
fn extended(name: &str) -> Option<Function> {
    Some(match name {
        "mallocx" => Function::Malloc,
        "rallocx" => Function::Realloc,
        "dallocx" | "sdallocx" => Function::Free,
        _ => return None,
    })
}

/// gperftools/tcmalloc.h.
fn tcmalloc(rest: &str) -> Option<Known> {
    let family = Some(Family::Tcmalloc);
    if let Some(function) = standard(rest) {
        return Some(Known::c(function, family));
    }
    let cpp = |function, throws| {
        Some(Known {
            cpp: true,
            throws,
            ..Known::c(function, family)
        })
    };
    match rest {
        "malloc_skip_new_handler" => Some(Known::c(Function::Malloc, family)),
        "new" | "newarray" => cpp(Function::Malloc, true),
        "new_nothrow" | "newarray_nothrow" => cpp(Function::Malloc, true),
        "new_aligned" | "newarray_aligned" | "new_aligned_nothrow" | "newarray_aligned_nothrow" => {
            cpp(Function::AlignedNew, true)
        }
        _ if rest.starts_with("delete") => cpp(Function::Free, false),
        _ => None,
    }
}

/// mimalloc.h, version 2.
fn mimalloc(rest: &str) -> Option<Known> {
    let family = Some(Family::Mimalloc);
    if let Some(function) = standard(rest) {
        return Some(Known::c(function, family));
    }
    let cpp = |function| {
        Some(Known {
            cpp: true,
            throws: true,
            ..Known::c(function, family)
        })
    };
    let function = match rest {
        "malloc_small" | "zalloc" | "zalloc_small" => Function::Malloc,
        "mallocn" | "calloc_aligned" | "calloc_aligned_at" => Function::Calloc,
        "realloc_aligned"
        | "realloc_aligned_at"
        | "rezalloc"
        | "rezalloc_aligned"
        | "rezalloc_aligned_at" => Function::Realloc,
        "reallocn" | "recalloc" | "recalloc_aligned" | "recalloc_aligned_at" => {
            Function::Reallocarray
        }
        "malloc_aligned" | "malloc_aligned_at" | "zalloc_aligned" | "zalloc_aligned_at" => {
            Function::AlignedNew
        }
        "free_size" | "free_size_aligned" | "free_aligned" => Function::Free,
        "new" | "new_nothrow" => return cpp(Function::Malloc),
        "new_aligned" | "new_aligned_nothrow" => return cpp(Function::AlignedNew),
        "new_n" => return cpp(Function::Calloc),
        "new_realloc" => return cpp(Function::Realloc),
        "new_reallocn" => return cpp(Function::Reallocarray),
        _ => return None,
    };
    Some(Known::c(function, family))
}

/// operator new and delete as the Itanium C++ ABI mangles them, `size_t` being unsigned long.
///
/// The nothrow forms count as throwing too: a new-handler may throw inside them, and what unwinds
/// through a return probe's trampoline ends the program.
fn operator(name: &str) -> Option<Known> {
    const NOTHROW: &str = "RKSt9nothrow_t";
    const ALIGNED: &str = "St11align_val_t";
    let new = name
        .strip_prefix("_Znwm")
        .or_else(|| name.strip_prefix("_Znam"));
    let (function, rest) = match (
        new,
        name.strip_prefix("_ZdlPv")
            .or_else(|| name.strip_prefix("_ZdaPv")),
    ) {
        (Some(rest), _) => match rest.strip_prefix(ALIGNED) {
            Some(rest) => (Function::AlignedNew, rest),
            None => (Function::Malloc, rest),
        },
        (_, Some(rest)) => {
            let rest = rest.strip_prefix('m').unwrap_or(rest);
            (Function::Free, rest.strip_prefix(ALIGNED).unwrap_or(rest))
        }
        _ => return None,
    };
    // Placement forms take other arguments and allocate nothing; clang's hot/cold hint comes last.
    let rest = rest.strip_prefix(NOTHROW).unwrap_or(rest);
    let rest = rest.strip_suffix("12__hot_cold_t").unwrap_or(rest);
    let throws = function != Function::Free;
    rest.is_empty().then_some(Known {
        cpp: true,
        throws,
        ..Known::c(function, None)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_prefixed_and_mangled_names_are_known() {
        let function = |name| lookup(name).map(|known| known.function);
        assert_eq!(function("malloc"), Some(Function::Malloc));
        assert_eq!(function("_rjem_sdallocx"), Some(Function::Free));
        assert_eq!(function("je_valloc"), Some(Function::Malloc));
        assert_eq!(function("tc_pvalloc"), Some(Function::Pvalloc));
        assert_eq!(function("mi_malloc_aligned"), Some(Function::AlignedNew));
        assert_eq!(function("__libc_memalign"), Some(Function::AlignedAlloc));
        assert_eq!(function("__posix_memalign"), Some(Function::PosixMemalign));
        assert_eq!(
            function("_ZnamSt11align_val_tRKSt9nothrow_t"),
            Some(Function::AlignedNew)
        );
        assert_eq!(function("_ZdaPvmSt11align_val_t"), Some(Function::Free));
        assert_eq!(function("_Znwm12__hot_cold_t"), Some(Function::Malloc));
        assert_eq!(function("_ZdlPv"), Some(Function::Free));
    }

    #[test]
    fn what_allocates_nothing_is_not_taken_for_an_allocator() {
        for name in [
            "_ZnwmPv",
            "_ZdlPvS_",
            "freelocale",
            "xallocx",
            "mi_malloc_size",
            "nallocx",
            "tc_nallocx",
            "mi_heap_malloc",
        ] {
            assert_eq!(lookup(name), None, "{name}");
        }
        assert!(left_out("mi_heap_malloc").is_some());
        assert!(left_out("_rjem_xallocx").is_some());
        assert!(left_out("malloc").is_none());
    }

    #[test]
    fn every_form_of_new_may_throw_and_none_of_delete() {
        for name in [
            "_Znwm",
            "_Znam",
            "_ZnwmRKSt9nothrow_t",
            "_ZnwmSt11align_val_t",
            "tc_new",
            "mi_new",
        ] {
            assert!(lookup(name).unwrap().throws, "{name}");
        }
        assert!(!lookup("_ZdlPvm").unwrap().throws);
        assert!(!lookup("malloc").unwrap().throws);
    }
}
