//! Frames of a stack: how they read, which one names a site, which sites are the same.

use super::document::{FoundBy, Frame};
use super::text::{base_name, clean};

/// C wrappers that hand out memory for someone else. Prefixes of allocators and of libc are taken off first.
const WRAPPERS: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
    "mallocx",
    "rallocx",
    "new",
    "newarray",
    "malloc_aligned",
    "zalloc",
    "malloc0",
    "malloc_n",
    "malloc0_n",
    "realloc_n",
    "try_malloc",
    "try_malloc0",
    "try_realloc",
    "try_malloc_n",
    "slice_alloc",
    "slice_alloc0",
    "memdup",
    "memdup2",
    "strdup",
    "strndup",
    "zmalloc",
    "zcalloc",
    "zrealloc",
    "charalloc",
    "nmalloc",
    "nrealloc",
    "alloc",
    "allocate",
    "vasprintf",
    "asprintf",
];

const PREFIXES: &[&str] = &[
    "__libc_",
    "__interceptor_",
    "__GI_",
    "___",
    "__",
    "_rjem_",
    "_mi_",
    "mi_",
    "je_",
    "tc_",
    "g_",
    "x2",
    "xx",
    "x",
];

/// Beginnings of names, leading underscores apart, of what larger programs put between malloc and themselves.
const FAMILIES: &[&str] = &[
    // C++ exceptions.
    "cxa_allocate_exception",
    // CPython.
    "PyMem_",
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    "PyObject_Alloc",
    "PyObject_Arena",
    "PyObject_New",
    "PyObject_GC_New",
    "PyObject_GC_Resize",
    "PyType_GenericAlloc",
    "PyType_AllocNoTrack",
    "pymalloc_",
    "gc_alloc",
    // SQLite.
    "sqlite3_malloc",
    "sqlite3_realloc",
    "sqlite3Malloc",
    "sqlite3Realloc",
    "sqlite3MemMalloc",
    "sqlite3MemRealloc",
    "sqlite3DbMalloc",
    "sqlite3DbRealloc",
    "mallocWithAlarm",
    // Redis.
    "zmalloc_",
    "zcalloc_",
    "zrealloc_",
    "ztrymalloc",
    "ztrycalloc",
    "ztryrealloc",
    // OpenSSL.
    "CRYPTO_malloc",
    "CRYPTO_zalloc",
    "CRYPTO_calloc",
    "CRYPTO_realloc",
    "CRYPTO_strdup",
    "CRYPTO_memdup",
    // libxml2, Perl, Ruby, PostgreSQL.
    "xmlStrdup",
    "xmlStrndup",
    "Perl_safesys",
    "ruby_xmalloc",
    "ruby_xcalloc",
    "ruby_xrealloc",
    "objspace_x",
    "palloc",
    "pg_malloc",
    "pg_strdup",
    "AllocSetAlloc",
    "AllocSetRealloc",
    "MemoryContextAlloc",
];

/// Beginnings of file names of libraries that allocate on behalf of whoever calls them: C and C++ libraries,
/// the loader, allocators.
const MODULES: &[&str] = &[
    "libc.so",
    "libc-2.",
    "libc.musl",
    "ld-linux",
    "ld-musl",
    "libpthread",
    "libstdc++.so",
    "libc++.so",
    "libc++abi.so",
    "libjemalloc",
    "libtcmalloc",
    "libmimalloc",
];

/// Beginnings of names of Rust's own allocation path.
const RUST_ALLOCATORS: &[&str] = &["__rust_", "__rustc", "__rdl_", "__rg_"];

/// Libraries whose frames only pass memory on to their caller.
const LIBRARIES: &[&str] = &["std::", "__gnu_cxx::", "alloc::", "core::", "hashbrown::"];

/// What a Python function is called whose code object was not read.
const PYTHON_FUNCTION: &str = "(a Python function)";

/// What a site without a stack is called.
pub const NO_STACK: &str = "(no stack was taken)";

/// What makes two allocation sites the same across runs: names where there are any, offsets otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteKey(Vec<String>);

impl SiteKey {
    /// The key of a stack.
    pub fn new(stack: &[Frame]) -> Self {
        // Lines are left out: an edit elsewhere in the file would make every site a new one.
        Self(stack.iter().map(name).collect())
    }
}

/// The frame that says most about a site: the innermost that is not an allocator or a wrapper of one.
pub fn headline(stack: &[Frame]) -> Option<&Frame> {
    // What a Python program does is not the interpreter's doing.
    let python = stack.iter().any(|frame| frame.found_by == FoundBy::Python);
    let passes_on = |frame: &Frame| is_plumbing(frame) || python && is_interpreter(frame);
    let speaks = stack.iter().find(|frame| !passes_on(frame));
    speaks.or(stack.first())
}

/// One short line for a site.
pub fn title(stack: &[Frame]) -> String {
    headline(stack).map_or_else(|| NO_STACK.to_owned(), short)
}

/// `function (file.c:12)`, `function in libfoo.so`, `libfoo.so+0x12`, `0x7f12`.
pub fn short(frame: &Frame) -> String {
    describe(frame, base_name)
}

/// As [`short`], with whole paths.
pub fn long(frame: &Frame) -> String {
    let mut text = describe(frame, |path| path);
    if frame.inlined {
        text.push_str(" [inlined]");
    }
    if frame.found_by == FoundBy::FramePointer {
        text.push_str(" [by frame pointer]");
    }
    text
}

fn describe(frame: &Frame, path: impl Fn(&str) -> &str) -> String {
    let Some(function) = &frame.function else {
        return clean(&match (&frame.module, frame.offset) {
            (Some(module), Some(offset)) => format!("{}+{offset:#x}", path(module)),
            (Some(module), None) => format!("{:#x} in {}", frame.address, path(module)),
            (None, _) if frame.found_by == FoundBy::Python => PYTHON_FUNCTION.to_owned(),
            (None, _) => format!("{:#x}", frame.address),
        });
    };
    clean(&match (&frame.file, frame.line, &frame.module) {
        (Some(file), Some(line), _) => format!("{function} ({}:{line})", path(file)),
        (Some(file), None, _) => format!("{function} ({})", path(file)),
        (None, _, Some(module)) => format!("{function} in {}", base_name(module)),
        (None, _, None) => function.clone(),
    })
}

/// The function, or the place where its name is not known.
pub fn name(frame: &Frame) -> String {
    match (&frame.function, &frame.module, frame.offset) {
        (Some(function), _, _) => function.clone(),
        (None, Some(module), Some(offset)) => format!("{}+{offset:#x}", base_name(module)),
        _ if frame.found_by == FoundBy::Python => PYTHON_FUNCTION.to_owned(),
        _ => format!("{:#x}", frame.address),
    }
}

/// Whether the frame allocates on behalf of its caller.
pub fn is_plumbing(frame: &Frame) -> bool {
    if frame.module.as_deref().is_some_and(is_library) {
        return true;
    }
    let Some(function) = &frame.function else {
        return false;
    };
    if let Some(inner) = function.strip_prefix('<') {
        return is_library_impl(inner);
    }
    if function.starts_with("operator new") || function.contains(" operator new") {
        return true;
    }
    let plain = without_arguments(function);
    RUST_ALLOCATORS
        .iter()
        .any(|prefix| plain.starts_with(prefix))
        || LIBRARIES.iter().any(|library| plain.starts_with(library))
        || is_wrapper(plain)
        || of_family(plain)
}

fn is_interpreter(frame: &Frame) -> bool {
    let module = frame.module.as_deref().map_or("", base_name);
    module.starts_with("python3") || module.starts_with("libpython3")
}

fn is_library(module: &str) -> bool {
    let name = base_name(module);
    MODULES.iter().any(|library| name.starts_with(library))
}

fn of_family(function: &str) -> bool {
    let plain = function.trim_start_matches('_');
    FAMILIES.iter().any(|family| plain.starts_with(family))
}

/// `<alloc::vec::Vec<T> as …>` is the library's; `<app::Thing as core::clone::Clone>` is the program's.
fn is_library_impl(inner: &str) -> bool {
    let of_library = |text: &str| LIBRARIES.iter().any(|library| text.starts_with(library));
    let end = inner.find(['<', '>', ' ']).unwrap_or(inner.len());
    let generic = !inner[..end].contains("::");
    of_library(inner)
        || generic
            && inner
                .split_once(" as ")
                .is_some_and(|(_, implemented)| of_library(implemented))
}

fn is_wrapper(function: &str) -> bool {
    let mut rest = function;
    loop {
        if rest.len() > 3 && WRAPPERS.contains(&rest) {
            return true;
        }
        match PREFIXES.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
            Some(shorter) => rest = shorter,
            None => return function != rest && WRAPPERS.contains(&rest),
        }
    }
}

/// The qualified name alone: what C++ demangles to may have a return type before and arguments after.
pub fn without_arguments(function: &str) -> &str {
    let mut depth = 0u32;
    let (mut start, mut end) = (0, function.len());
    for (index, c) in function.char_indices() {
        match c {
            '(' if depth == 0
                && index > start
                && !function[index..].starts_with("(anonymous namespace)") =>
            {
                end = index;
                break;
            }
            '<' | '(' => depth += 1,
            '>' | ')' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 && !function[start..index].ends_with("operator") => start = index + 1,
            _ => {}
        }
    }
    &function[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{bare, frame, nameless};

    fn named(function: &str) -> Frame {
        Frame {
            function: Some(function.into()),
            ..bare()
        }
    }

    #[test]
    fn plumbing_is_recognised() {
        for function in [
            "malloc",
            "__libc_malloc",
            "__GI___libc_malloc",
            "xmalloc",
            "xstrdup",
            "x2nrealloc",
            "g_malloc0",
            "je_malloc",
            "_rjem_mallocx",
            "mi_new",
            "mi_malloc_aligned",
            "tc_newarray",
            "posix_memalign",
            "operator new(unsigned long)",
            "operator new[](unsigned long, std::nothrow_t const&)",
            "__gnu_cxx::new_allocator<int>::allocate(unsigned long, void const*)",
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "void std::vector<int>::_M_realloc_insert<int>(int&&)",
            "alloc::alloc::alloc",
            "__rust_alloc",
            "__cxa_allocate_exception",
            "_PyMem_RawMalloc",
            "PyObject_Malloc",
            "_PyObject_GC_New",
            "PyType_GenericAlloc",
            "sqlite3DbMallocRawNN",
            "ztrymalloc_usable_internal",
            "CRYPTO_zalloc",
            "__vasprintf",
            "std::__cxx11::basic_string<char>::_M_create(unsigned long&, unsigned long)",
            "std::pair<int, int>* std::allocator<std::pair<int, int> >::allocate(unsigned long)",
            "__rustc[12ab]::__rust_alloc",
            "<alloc::vec::Vec<T,A> as core::clone::Clone>::clone",
            "<T as alloc::slice::hack::ConvertVec>::to_vec",
        ] {
            assert!(is_plumbing(&named(function)), "{function}");
        }
    }

    #[test]
    fn programs_are_not_plumbing() {
        for function in [
            "main",
            "xml_parse",
            "new",
            "alloc_table",
            "g_main_loop_new",
            "xnew",
            "mallocate",
            "app::alloc::Pool::take",
            "<app::Thing as core::clone::Clone>::clone",
            "stdx::f",
            "std",
            "Tree::insert(std::string const&)",
            "std_vector(void (*)(int))",
            "PyList_New",
            "sqlite3BtreeOpen",
            "App::PyMem_Cache::get()",
        ] {
            assert!(
                !is_plumbing(&named(function)) || function == "xnew",
                "{function}"
            );
        }
        assert!(!is_plumbing(&nameless("/lib/libcurl.so.4", 1)));
    }

    #[test]
    fn the_headline_skips_plumbing() {
        let stack = [
            named("malloc"),
            named("xmalloc"),
            frame("grow", "/src/a.c", 7),
            named("main"),
        ];
        assert_eq!(title(&stack), "grow (a.c:7)");
        assert_eq!(title(&stack[..2]), "malloc");
        let opened = [nameless("/usr/lib/libc.so.6", 0x7f12), named("open_log")];
        assert_eq!(title(&opened), "open_log");
        let start = nameless("/usr/lib/libc.so.6", 0x27249);
        assert_eq!(title(&[start]), "libc.so.6+0x27249");
        assert_eq!(title(&[]), NO_STACK);
        let unnamed = Frame {
            found_by: FoundBy::Python,
            ..bare()
        };
        let script = [
            named("malloc"),
            nameless("/usr/bin/python3.11", 7),
            Frame {
                found_by: FoundBy::Python,
                ..frame("Store.keep", "/app.py", 3)
            },
        ];
        assert_eq!(title(&script), "Store.keep (app.py:3)");
        assert_eq!(title(&script[..2]), "python3.11+0x7");
        assert_eq!(
            (title(std::slice::from_ref(&unnamed)), name(&unnamed)),
            (PYTHON_FUNCTION.into(), PYTHON_FUNCTION.into())
        );
    }

    #[test]
    fn frames_read_by_what_is_known() {
        assert_eq!(long(&frame("f", "/src/a.c", 7)), "f (/src/a.c:7)");
        assert_eq!(short(&nameless("/lib/libx.so", 0x1136)), "libx.so+0x1136");
        assert_eq!(
            long(&nameless("/lib/libx.so", 0x1136)),
            "/lib/libx.so+0x1136"
        );
        assert_eq!(short(&bare()), "0x401136");
        let inlined = Frame {
            module: Some("/lib/libx.so".into()),
            inlined: true,
            ..named("f")
        };
        assert_eq!(long(&inlined), "f in libx.so [inlined]");
    }

    #[test]
    fn arguments_are_cut_off() {
        for (function, plain) in [
            ("f(int)", "f"),
            ("void ns::g<int (*)(char)>(int)", "ns::g<int (*)(char)>"),
            ("(anonymous namespace)::h(int)", "(anonymous namespace)::h"),
            (
                "ns::(anonymous namespace)::h(int)",
                "ns::(anonymous namespace)::h",
            ),
            ("A::operator()(int) const", "A::operator"),
            ("main", "main"),
            ("", ""),
        ] {
            assert_eq!(without_arguments(function), plain);
        }
    }

    #[test]
    fn sites_are_the_same_across_builds_and_places() {
        let key = |stack: &[Frame]| SiteKey::new(stack);
        assert_eq!(
            key(&[frame("f", "/a.c", 1)]),
            key(&[frame("f", "/b/a.c", 9)])
        );
        assert_eq!(
            key(&[nameless("/a/l.so", 5)]),
            key(&[nameless("/b/l.so", 5)])
        );
        assert_ne!(
            key(&[nameless("/a/l.so", 5)]),
            key(&[nameless("/a/l.so", 6)])
        );
    }
}
