use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use object::{Object as _, ObjectSymbol as _};

use super::*;

const SOURCE: &str = "#include <unistd.h>
__attribute__((noinline)) void leaf(int x) { asm volatile(\"\" :: \"r\"(x)); }
static inline __attribute__((always_inline)) void middle(int x) {
    leaf(x + 1);
    asm volatile(\"nop\");
}
__attribute__((noinline)) int outer(int x) {
    middle(x);
    return x;
}
namespace names { __attribute__((noinline)) int inside(int x) { asm volatile(\"\"); return x; } }
int main(int c, char **) { if (c > 1) pause(); return outer(c) + names::inside(c); }
";

/// The program, compiled with debug information; it sleeps when it gets an argument.
pub(in crate::stack) fn program(directory: &Path, arguments: &[&str]) -> PathBuf {
    let source = directory.join("source.cc");
    std::fs::write(&source, SOURCE).unwrap();
    let program = directory.join("program");
    let output = Command::new("g++")
        .args(["-g", "-O2", "-o"])
        .args([&program, &source])
        .arg("-Wl,--build-id")
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("g++: {error}; apt-get install g++"));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    program
}

/// Address and file offset of a function; the first page of text is mapped at its file offset.
pub(in crate::stack) fn address(program: &Path, name: &str) -> u64 {
    let data = std::fs::read(program).unwrap();
    let file = object::File::parse(&*data).unwrap();
    file.symbols()
        .find(|symbol| symbol.name() == Ok(name))
        .unwrap()
        .address()
}

/// All of the file mapped at `BASE`.
pub(in crate::stack) fn mapping(path: &Path) -> Mapping {
    let length = std::fs::metadata(path).unwrap().len();
    let path = path.to_str().unwrap().into();
    Mapping {
        start: BASE,
        end: BASE + length,
        offset: 0,
        path,
        build_id: Box::default(),
    }
}

fn blaze() -> Blaze {
    Blaze::with(SystemTime::now(), DebugFiles::of_machine())
}

pub(in crate::stack) const BASE: u64 = 0x5555_0000_0000;

pub(in crate::stack) fn exact(address: u64) -> Frame {
    Frame {
        address,
        exact: true,
    }
}

/// The address after the first call instruction of a function.
fn after_call(program: &Path, name: &str) -> u64 {
    let start = address(program, name);
    let data = std::fs::read(program).unwrap();
    let code = &data[start as usize..][..64];
    let call = iced_x86::Decoder::with_ip(64, code, start, 0)
        .iter()
        .find(|one| one.is_call_near())
        .unwrap();
    call.next_ip()
}

#[test]
fn a_return_address_is_named_by_its_call_with_what_is_inlined() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), &[]);
    let mappings = [mapping(&program)];
    let process = Process {
        pid: None,
        mappings: &mappings,
    };
    let call = BASE + after_call(&program, "_Z5outeri");
    let inside = BASE + address(&program, "_ZN5names6insideEi");
    let found = blaze().symbolize(&process, &[Frame::of(call), exact(inside), exact(7)]);

    assert_eq!(found[0].frame, call);
    assert_eq!(found[0].offset, Some(call - BASE));
    assert_eq!(found[0].module.as_deref(), program.to_str());
    assert_eq!(found[0].build_id.as_ref().unwrap().len(), 40);
    let lines: Vec<_> = found[0]
        .functions
        .iter()
        .map(|one| (&*one.name, one.line.unwrap()))
        .collect();
    assert_eq!(lines, [("middle", 4), ("outer(int)", 8)]);
    assert!(
        found[0].functions[0]
            .file
            .as_ref()
            .unwrap()
            .ends_with("/source.cc")
    );

    assert_eq!(&*found[1].functions[0].name, "names::inside(int)");
    assert_eq!(found[1].functions[0].line, Some(11));
    let nowhere = Symbol {
        frame: 7,
        module: None,
        build_id: None,
        offset: None,
        functions: Box::default(),
    };
    assert_eq!(found[2], nowhere);
}

#[test]
fn names_come_from_debug_files_too() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), &[]);
    let start = address(&program, "_Z5outeri");
    for arguments in [
        &["--only-keep-debug", "program", "program.debug"][..],
        &["--strip-all", "program"],
        &["--add-gnu-debuglink=program.debug", "program"],
    ] {
        let status = Command::new("objcopy")
            .current_dir(directory.path())
            .args(arguments)
            .status()
            .unwrap();
        assert!(status.success(), "apt-get install binutils");
    }
    let mappings = [mapping(&program)];
    let process = Process {
        pid: None,
        mappings: &mappings,
    };
    let found = blaze().symbolize(&process, &[exact(BASE + start)]);
    assert_eq!(
        found[0].functions.last().map(|one| &*one.name),
        Some("outer(int)")
    );
    assert!(found[0].functions[0].line.is_some());
}

#[test]
fn a_file_with_another_build_id_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), &[]);
    let frames = [exact(BASE + address(&program, "_Z5outeri"))];
    let mut other = mapping(&program);
    other.build_id = [0xab, 0xcd].into();
    let mappings = [other];
    let mut blaze = blaze();
    let found = blaze.symbolize(
        &Process {
            pid: None,
            mappings: &mappings,
        },
        &frames,
    );
    assert!(found[0].functions.is_empty());
    assert_eq!(found[0].build_id.as_deref(), Some("abcd"));
    let mappings = [mapping(&program)];
    let found = blaze.symbolize(
        &Process {
            pid: None,
            mappings: &mappings,
        },
        &frames,
    );
    assert_eq!(&*found[0].functions[0].name, "outer(int)");
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_deleted_program_is_read_while_its_process_lives_and_known_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), &[]);
    let offset = address(&program, "_Z5outeri");
    let running = Running(
        Command::new(&program)
            .arg0("p")
            .arg("sleep")
            .spawn()
            .unwrap(),
    );
    let pid = running.0.id();
    // spawn() returns when exec has begun, before it has mapped the program.
    let line = loop {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let mut lines = maps.lines();
        if let Some(line) = lines.find(|line| line.contains("r-xp") && line.contains("/program")) {
            break line.to_owned();
        }
        std::thread::yield_now();
    };
    let fields: Vec<_> = line.split_whitespace().collect();
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    let (start, end) = fields[0].split_once('-').unwrap();
    let mappings = [Mapping {
        start: number(start),
        end: number(end),
        offset: number(fields[2]),
        path: fields[5].into(),
        build_id: Box::default(),
    }];
    std::fs::remove_file(&program).unwrap();
    let process = Process {
        pid: Some(pid),
        mappings: &mappings,
    };
    let frames = [exact(mappings[0].start - mappings[0].offset + offset)];
    let mut blaze = blaze();
    // The first address is not asked for until the process is gone.
    let first = blaze.symbolize(&process, &[exact(frames[0].address + 1)]);
    assert_eq!(&*first[0].functions[0].name, "outer(int)");
    drop(running);
    let found = blaze.symbolize(&process, &frames);
    assert_eq!(&*found[0].functions[0].name, "outer(int)");
    assert_eq!(found[0].frame, frames[0].address);
}

#[test]
fn what_is_no_file_has_no_module() {
    let mapping = |path: &str, start| Mapping {
        start,
        end: start + 0x1000,
        path: path.into(),
        ..Mapping::default()
    };
    let mappings = [
        mapping("//anon", 0x1000),
        mapping("[heap]", 0x2000),
        mapping("[vdso]", 0x3000),
        mapping("/dev/null", 0x4000),
    ];
    let frames = [exact(0x1010), exact(0x2010), exact(0x3010), exact(0x4010)];
    let found = blaze().symbolize(
        &Process {
            pid: None,
            mappings: &mappings,
        },
        &frames,
    );
    let modules: Vec<_> = found
        .iter()
        .map(|symbol| symbol.module.as_deref())
        .collect();
    assert_eq!(modules, [None, None, Some("[vdso]"), Some("/dev/null")]);
    assert!(found.iter().all(|symbol| symbol.functions.is_empty()));
}

#[test]
fn a_damaged_file_gives_no_names_and_no_panic() {
    let libc = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let program = std::fs::read(program(directory.path(), &[])).unwrap();
    for (whole, step) in [(&libc, libc.len() / 40), (&program, program.len() / 60)] {
        for length in (0..whole.len()).step_by(step) {
            let path = directory
                .path()
                .join(format!("cut-{}-{length}", whole.len()));
            std::fs::write(&path, &whole[..length]).unwrap();
            let mappings = [Mapping {
                end: BASE + whole.len() as u64,
                ..mapping(&path)
            }];
            let frames = [0, 0x1140, 0x98930, 0x99000].map(|offset| exact(BASE + offset));
            let found = blaze().symbolize(
                &Process {
                    pid: None,
                    mappings: &mappings,
                },
                &frames,
            );
            assert_eq!(found.len(), frames.len());
        }
    }
    // Bytes inside the debug sections.
    for at in (0x2000..program.len()).step_by(997) {
        let mut damaged = program.clone();
        for byte in &mut damaged[at..(at + 24).min(program.len())] {
            *byte ^= 0xff;
        }
        let path = directory.path().join(format!("hit-{at}"));
        std::fs::write(&path, &damaged).unwrap();
        let mappings = [mapping(&path)];
        let frames: Vec<_> = (0x1040..0x1240)
            .step_by(16)
            .map(|offset| exact(BASE + offset))
            .collect();
        let found = blaze().symbolize(
            &Process {
                pid: None,
                mappings: &mappings,
            },
            &frames,
        );
        assert_eq!(found.len(), frames.len());
    }
}

/// One name for one address.
fn name_of(mapping: Mapping, address: u64) -> Option<String> {
    let mappings = [mapping];
    let process = Process {
        pid: None,
        mappings: &mappings,
    };
    let found = blaze().symbolize(&process, &[exact(address)]);
    found[0].functions.last().map(|one| one.name.to_string())
}

#[test]
fn a_debug_file_with_a_wrong_sum_does_not_hide_the_symbols() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), &[]);
    let start = address(&program, "_Z5outeri");
    for arguments in [
        &["--only-keep-debug", "program", "program.debug"][..],
        &["--strip-debug", "program"],
        &["--add-gnu-debuglink=program.debug", "program"],
        &["--remove-section=.debug_line", "program.debug"],
    ] {
        objcopy(directory.path(), arguments);
    }
    let name = name_of(mapping(&program), BASE + start);
    assert_eq!(name.as_deref(), Some("outer(int)"));
}

pub(in crate::stack) fn objcopy(directory: &Path, arguments: &[&str]) {
    let status = Command::new("objcopy")
        .current_dir(directory)
        .args(arguments)
        .status()
        .unwrap();
    assert!(status.success(), "apt-get install binutils");
}

#[test]
fn rust_is_demangled() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source.rs");
    let text = "mod deep { #[inline(never)] pub fn run(x: u32) -> u32 { std::hint::black_box(x) } }
fn main() { deep::run(7); }";
    std::fs::write(&source, text).unwrap();
    let program = directory.path().join("program");
    let status = Command::new("rustc")
        .args(["-O", "-o"])
        .args([&program, &source])
        .status()
        .unwrap();
    assert!(status.success());
    let data = std::fs::read(&program).unwrap();
    let file = object::File::parse(&*data).unwrap();
    let symbol = file
        .symbols()
        .find(|symbol| symbol.name().is_ok_and(|name| name.contains("4deep3run")))
        .unwrap();
    // Text is mapped elsewhere than it lies in the file.
    let offset = object::ObjectSegment::file_range;
    let segment = object::Object::segments(&file)
        .find(|segment| {
            let start = object::ObjectSegment::address(segment);
            (start..start + object::ObjectSegment::size(segment)).contains(&symbol.address())
        })
        .unwrap();
    let place = symbol.address() - object::ObjectSegment::address(&segment) + offset(&segment).0;
    let name = name_of(mapping(&program), BASE + place).unwrap();
    assert!(name.ends_with("::deep::run"), "{name}");
}

#[test]
fn the_vdso_has_names() {
    let vdso = Mapping {
        start: 0x3000,
        end: 0x6000,
        path: "[vdso]".into(),
        ..Mapping::default()
    };
    let vdso_functions = Vdso::read();
    let offset = (0..0x3000)
        .find(|offset| vdso_functions.find(*offset) == Some("__vdso_getcpu"))
        .unwrap();
    let name = name_of(vdso, 0x3000 + offset);
    assert_eq!(name.as_deref(), Some("__vdso_getcpu"));
}

#[test]
fn a_fault_in_the_kernel_is_named_by_its_own_list() {
    let list = std::fs::read_to_string("/proc/kallsyms").unwrap();
    let line = list
        .lines()
        .find(|line| line.ends_with(" T vfs_read"))
        .unwrap();
    let start = u64::from_str_radix(line.split_once(' ').unwrap().0, 16).unwrap();
    let process = Process::default();
    let found = blaze().symbolize(&process, &[exact(start + 4), exact(KERNEL_HALF)]);
    // The list hides its addresses from all but root.
    let expected = (start != 0).then_some("vfs_read");
    let name = found[0].functions.first().map(|one| &*one.name);
    assert_eq!(name, expected);
    assert!(found[1].functions.is_empty(), "{found:?}");
}
