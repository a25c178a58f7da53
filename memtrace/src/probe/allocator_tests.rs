use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use super::*;

#[path = "ways_out_tests.rs"]
mod ways_out;

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

fn read(path: &str, package: &str) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}; apt-get install {package}"))
}

fn library(file: &str, package: &str) -> (String, Vec<u8>) {
    let path = if file.starts_with('/') {
        file.to_owned()
    } else {
        format!("{LIBRARIES}/{file}")
    };
    let data = read(&path, package);
    (path, data)
}

/// Functions as binutils sees them: name to (address, size).
fn readelf(path: &str) -> BTreeMap<String, (u64, u64)> {
    let output = Command::new("readelf")
        .args(["-W", "--symbols", "--dyn-syms", path])
        .output()
        .unwrap_or_else(|error| panic!("readelf: {error}; apt-get install binutils"));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, address, size, kind, _, _, section, name, ..] = fields[..] else {
                return None;
            };
            let defined = kind == "FUNC" && section != "UND";
            let name = name.split('@').next()?.to_owned();
            defined.then(|| {
                (
                    name,
                    (
                        u64::from_str_radix(address, 16).unwrap(),
                        size.parse().unwrap(),
                    ),
                )
            })
        })
        .collect()
}

/// The only allocator of a file, after checking each function against readelf.
fn only(path: &str, data: &[u8]) -> Allocator {
    let mut found = find(data).unwrap();
    assert_eq!(found.len(), 1, "{path}");
    let allocator = found.remove(0);
    let symbols = readelf(path);
    let mut addresses = BTreeSet::new();
    for function in &allocator.functions {
        assert_eq!(
            symbols[&function.name],
            (function.virtual_address, function.size),
            "{path}: {}",
            function.name
        );
        assert!(
            addresses.insert(function.virtual_address),
            "{path}: {} twice",
            function.name
        );
    }
    allocator
}

fn names(allocator: &Allocator) -> Vec<&str> {
    allocator
        .functions
        .iter()
        .map(|function| function.name.as_str())
        .collect()
}

fn function<'a>(allocator: &'a Allocator, name: &str) -> &'a FoundFunction {
    allocator
        .functions
        .iter()
        .find(|function| function.name == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

/// Distance of the entry probe from the first byte.
fn distance(allocator: &Allocator, name: &str) -> u64 {
    let function = function(allocator, name);
    function.entry.file_offset - function.file_offset
}

/// Every instruction that a probe is put on, checked against the file's bytes.
fn check_instructions(allocator: &Allocator, data: &[u8]) {
    for function in &allocator.functions {
        if let Exit::Instructions {
            file_offsets,
            incomplete,
        } = &function.exit
        {
            assert_eq!(*incomplete, None, "{}", function.name);
            assert!(!file_offsets.is_empty());
            for &offset in file_offsets {
                assert_eq!(
                    data[offset as usize], 0xc3,
                    "{} at {offset:#x}",
                    function.name
                );
            }
        }
    }
}

#[test]
fn glibc() {
    let (path, data) = library("libc.so.6", "libc6");
    let allocator = only(&path, &data);
    assert_eq!(allocator.name, "glibc");
    let expected = [
        "malloc",
        "free",
        "realloc",
        "aligned_alloc",
        "valloc",
        "pvalloc",
        "calloc",
        "posix_memalign",
        "reallocarray",
    ];
    assert_eq!(names(&allocator), expected);
    let symbols = readelf(&path);
    let (last, size) = symbols["malloc_info"];
    assert_eq!(allocator.internal, symbols["malloc"].0..last + size);
    assert_eq!(distance(&allocator, "malloc"), 0);
    assert_eq!(
        distance(&allocator, "free"),
        9,
        "after the null check, at push rbp"
    );
    let free = function(&allocator, "free");
    assert!(free.entry.emulated);
    assert_eq!(data[free.entry.file_offset as usize], 0x55);
    assert_eq!(free.exit, Exit::None);
    assert_eq!(function(&allocator, "realloc").exit, Exit::ReturnProbe);
}

#[test]
fn jemalloc() {
    let (path, data) = library("libjemalloc.so.2", "libjemalloc2");
    let allocator = only(&path, &data);
    assert_eq!(allocator.name, "jemalloc");
    assert_eq!(function(&allocator, "mallocx").function, Function::Malloc);
    assert_eq!(function(&allocator, "sdallocx").function, Function::Free);
    assert_eq!(
        function(&allocator, "_ZnwmSt11align_val_t").function,
        Function::AlignedNew
    );
    let found = names(&allocator);
    assert!(!found.contains(&"_Znam"), "jumps to _Znwm");
    assert!(!found.contains(&"_ZdlPv"), "jumps to free");
    assert!(found.contains(&"_ZdlPvm"));
    assert!(found.iter().all(|name| {
        allocator
            .internal
            .contains(&function(&allocator, name).virtual_address)
    }));
    assert_eq!(allocator.unseen[0].name, "xallocx");
    assert_eq!(
        distance(&allocator, "malloc"),
        7,
        "at the branch after the comparison"
    );
    check_instructions(&allocator, &data);
}

#[test]
fn tcmalloc() {
    for file in ["libtcmalloc.so.4", "libtcmalloc_minimal.so.4"] {
        let (path, data) = library(file, "libtcmalloc-minimal4 libgoogle-perftools4");
        let allocator = only(&path, &data);
        assert_eq!(allocator.name, "tcmalloc");
        for name in [
            "malloc",
            "free",
            "calloc",
            "realloc",
            "aligned_alloc",
            "posix_memalign",
            "_Znwm",
        ] {
            assert!(function(&allocator, name).entry.emulated, "{name}");
        }
        assert!(
            allocator
                .internal
                .contains(&function(&allocator, "malloc").virtual_address)
        );
        check_instructions(&allocator, &data);
    }
}

#[test]
fn mimalloc() {
    let (path, data) = library("libmimalloc.so.2", "libmimalloc2.0");
    let allocator = only(&path, &data);
    assert_eq!(allocator.name, "mimalloc");
    let found = names(&allocator);
    assert!(!found.contains(&"valloc"), "jumps to mi_valloc");
    assert!(
        found.contains(&"mi_valloc")
            && found.contains(&"mi_zalloc_aligned")
            && found.contains(&"_Znwm")
    );
    let malloc = function(&allocator, "malloc");
    assert_eq!(
        malloc.entry,
        Placement {
            file_offset: malloc.file_offset,
            pushed: 0,
            emulated: false
        }
    );
    assert!(
        allocator
            .unseen
            .iter()
            .any(|unseen| unseen.name == "mi_heap_malloc")
    );
    check_instructions(&allocator, &data);
}

#[test]
fn musl() {
    let (path, data) = library("/usr/lib/x86_64-linux-musl/libc.so", "musl");
    let allocator = only(&path, &data);
    assert_eq!(allocator.name, "musl");
    let expected = [
        "calloc",
        "free",
        "malloc",
        "aligned_alloc",
        "posix_memalign",
        "realloc",
        "reallocarray",
    ];
    assert_eq!(
        names(&allocator),
        expected,
        "valloc and memalign jump to aligned_alloc"
    );
    let symbols = readelf(&path);
    let (last, size) = symbols["reallocarray"];
    assert_eq!(allocator.internal, symbols["calloc"].0..last + size);
}

#[test]
fn what_only_calls_an_allocator_has_none() {
    let (_, data) = library("libstdc++.so.6", "libstdc++6");
    assert_eq!(find(&data), Err(NoAllocator::NotDefined { stripped: true }));
    assert_eq!(
        find(&read("/bin/ls", "coreutils")),
        Err(NoAllocator::NotDefined { stripped: true })
    );
    assert_eq!(find(b"#!/bin/sh\n"), Err(ImageError::NotElf.into()));
    assert_eq!(find(b"\x7fELF\x01"), Err(ImageError::ThirtyTwoBit.into()));
    assert!(matches!(
        find(b"\x7fELF\x02\x01\x01"),
        Err(NoAllocator::Image { .. })
    ));
}

#[test]
fn no_damage_makes_it_panic() {
    let (_, whole) = library("libmimalloc.so.2", "libmimalloc2.0");
    for length in (0..whole.len()).step_by(1_531) {
        let _ = find(&whole[..length]);
    }
    // Headers, symbol tables and relocations all lie in the first pages.
    let mut damaged = whole.clone();
    for at in (0..0x5228).step_by(61) {
        for value in [0, 0xff, 0x80] {
            let before = std::mem::replace(&mut damaged[at], value);
            let _ = find(&damaged);
            damaged[at] = before;
        }
    }
}

/// Compiles a program; `arguments` come after the source file.
fn compile(
    compiler: &str,
    package: &str,
    source: &str,
    arguments: &[&str],
) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(if compiler == "g++" {
        "program.cc"
    } else {
        "program.c"
    });
    std::fs::write(&file, source).unwrap();
    let program = directory.path().join("program");
    let output = Command::new(compiler)
        .arg("-o")
        .args([program.as_path(), Path::new("-O1"), &file])
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}; apt-get install {package}"));
    assert!(
        output.status.success(),
        "{}; apt-get install {package}",
        String::from_utf8_lossy(&output.stderr)
    );
    (directory, program.to_str().unwrap().to_owned())
}

const C: &str = "#include <stdlib.h>\n#include <stdio.h>\n\
    int main(int c, char **v) { void *p = realloc(malloc(c), 100), *q = calloc(c, 8), *r;\n\
    if (posix_memalign(&r, 64, c)) return 1; FILE *f = fopen(v[0], \"r\"); if (f) fclose(f);\n\
    printf(\"%p%p%p\", p, q, r); free(p); free(q); free(r); return 0; }";

const CPP: &str = "#include <new>\n#include <cstdio>\n#include <cstdlib>\n\
    int main(int c, char **) { int *p = new int[c]; auto *q = ::operator new(64, std::align_val_t(64));\n\
    void *m = std::malloc(c); std::printf(\"%p%p%p\", (void *)p, q, m); std::free(m);\n\
    ::operator delete(q, std::align_val_t(64)); delete[] p; return 0; }";

#[test]
fn static_programs() {
    let (_kept, glibc) = compile("gcc", "gcc libc6-dev", C, &["-static"]);
    let allocator = only(&glibc, &std::fs::read(&glibc).unwrap());
    assert_eq!(allocator.name, "glibc");
    let symbols = readelf(&glibc);
    for inside in [
        "_int_malloc",
        "_int_free",
        "sysmalloc",
        "__malloc_arena_thread_freeres",
        "free",
        "__malloc_info",
    ] {
        assert!(allocator.internal.contains(&symbols[inside].0), "{inside}");
    }
    for outside in [
        "main",
        "fopen",
        "fclose",
        "memcpy",
        "_IO_file_doallocate",
        "_dl_relocate_object",
    ] {
        if let Some((address, _)) = symbols.get(outside) {
            assert!(!allocator.internal.contains(address), "{outside}");
        }
    }

    let (_kept, musl) = compile("musl-gcc", "musl-tools", C, &["-static"]);
    let allocator = only(&musl, &std::fs::read(&musl).unwrap());
    assert_eq!(allocator.name, "musl");
    let symbols = readelf(&musl);
    assert!(allocator.internal.contains(&symbols["calloc"].0));
    assert!(!allocator.internal.contains(&symbols["fopen"].0));
    assert!(!names(&allocator).contains(&"__libc_malloc"));

    let status = Command::new("strip").arg(&glibc).status().unwrap();
    assert!(status.success());
    assert_eq!(
        find(&std::fs::read(&glibc).unwrap()),
        Err(NoAllocator::Stripped)
    );
}

#[test]
fn an_operator_that_calls_malloc_is_not_probed() {
    let (_kept, program) = compile("g++", "g++", CPP, &["-static"]);
    assert!(readelf(&program).contains_key("_Znwm"));
    let allocator = only(&program, &std::fs::read(&program).unwrap());
    assert_eq!(allocator.name, "glibc");
    assert!(
        names(&allocator).iter().all(|name| !name.starts_with("_Z")),
        "{:?}",
        names(&allocator)
    );
}

#[test]
fn allocators_linked_into_a_program() {
    let archive = format!("{LIBRARIES}/libjemalloc.a");
    let (_kept, program) = compile(
        "g++",
        "g++ libjemalloc-dev",
        CPP,
        &[&archive, "-lpthread", "-ldl"],
    );
    let data = std::fs::read(&program).unwrap();
    let allocator = only(&program, &data);
    assert_eq!(allocator.name, "jemalloc");
    assert!(names(&allocator).contains(&"_Znwm") && names(&allocator).contains(&"mallocx"));
    assert!(!allocator.internal.contains(&readelf(&program)["main"].0));
    check_instructions(&allocator, &data);

    let archive = format!("{LIBRARIES}/libtcmalloc_minimal.a");
    let (_kept, program) = compile(
        "g++",
        "g++ libgoogle-perftools-dev",
        CPP,
        &[&archive, "-lpthread"],
    );
    let data = std::fs::read(&program).unwrap();
    let allocator = only(&program, &data);
    assert_eq!(allocator.name, "tcmalloc");
    assert!(names(&allocator).contains(&"_Znwm") && names(&allocator).contains(&"malloc"));
    assert!(!allocator.internal.contains(&readelf(&program)["main"].0));
    check_instructions(&allocator, &data);
}

#[test]
fn a_prefixed_allocator_beside_the_libc_is_one_of_its_own() {
    let source = format!(
        "#include <stddef.h>\n{}\n{C}",
        "char a[64]; __attribute__((noinline)) void *_rjem_malloc(size_t s) { return a + s; }\n\
         __attribute__((noinline)) void _rjem_sdallocx(void *p, size_t s, int f) { a[0] = s + f; }"
    );
    let (_kept, program) = compile("gcc", "gcc libc6-dev", &source, &["-static"]);
    let found = find(&std::fs::read(&program).unwrap()).unwrap();
    let named: Vec<_> = found
        .iter()
        .map(|allocator| (allocator.name, names(allocator).len()))
        .collect();
    assert_eq!(
        named.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        ["glibc", "jemalloc"]
    );
    assert_eq!(names(&found[1]), ["_rjem_malloc", "_rjem_sdallocx"]);
    assert!(!found[0].internal.contains(&found[1].internal.start));
}

#[test]
fn files_are_judged_before_they_are_read() {
    let open = |path: &str| find_in(&File::open(path).unwrap());
    assert_eq!(
        open("/usr/lib/x86_64-linux-gnu/libc.so.6").unwrap()[0].name,
        "glibc"
    );
    assert_eq!(open("/dev/zero"), Err(ImageError::NotElf.into()));
    assert_eq!(open("/tmp"), Err(ImageError::NotElf.into()));
    assert_eq!(open("/etc/passwd"), Err(ImageError::NotElf.into()));
    let huge = tempfile::tempfile().unwrap();
    huge.set_len(LARGEST + 1).unwrap();
    assert_eq!(
        find_in(&huge),
        Err(NoAllocator::TooLarge { size: LARGEST + 1 })
    );
}
