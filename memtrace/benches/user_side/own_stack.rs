//! A copied stack to walk: this program's own.

use std::{arch::asm, fs::File, slice};

use memtrace::{
    event::{Event, EventKind, FileMapped},
    unwind::{CopiedStack, Unwinder, tables::RowStore},
};
use memtrace_common::{
    code_file::{FileKey, FileRules},
    unwind::Registers,
};
use procfs::process::{MMPermissions, MMapPath, Process};

/// Frames of the recursion at whose end the stack is copied.
const DEPTH: u32 = 10;

/// Bytes that are copied at most.
const COPIED: u64 = 8192;

/// Rows in memory, as many as a test needs.
struct Rows(Vec<u64>);

impl RowStore for Rows {
    fn capacity(&self) -> u32 {
        1 << 21
    }

    fn write(&mut self, first: u32, rows: &[u64]) {
        let end = first as usize + rows.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[first as usize..end].copy_from_slice(rows);
    }

    fn row(&self, index: u32) -> Option<u64> {
        self.0.get(index as usize).copied()
    }

    fn key(&self, _: &File) -> Option<FileKey> {
        None
    }

    fn know(&mut self, _: FileKey, _: FileRules) {}

    fn forget(&mut self, _: &[FileKey]) {}
}

/// The stack at the end of a recursion, and who can walk it.
pub fn taken() -> (Unwinder, CopiedStack) {
    let mut unwinder = Unwinder::new(Box::new(Rows(Vec::new())), true);
    let process = Process::myself().expect("/proc");
    let mut stack_end = 0;
    for map in process.maps().expect("/proc/self/maps") {
        match &map.pathname {
            MMapPath::Path(path) if map.perms.contains(MMPermissions::EXECUTE) => {
                let mapped = FileMapped {
                    start: map.address.0,
                    length: map.address.1 - map.address.0,
                    offset: map.offset,
                    protection: 5,
                    flags: 2,
                    path: path.to_str().expect("a path in UTF-8").into(),
                    build_id: Box::default(),
                };
                unwinder.note(&Event {
                    time_ns: 1,
                    pid: std::process::id(),
                    tid: 0,
                    kind: EventKind::FileMapped(Box::new(mapped)),
                });
            }
            MMapPath::Stack => stack_end = map.address.1,
            _ => {}
        }
    }
    (unwinder, recurse(DEPTH, stack_end))
}

#[inline(never)]
fn recurse(depth: u32, stack_end: u64) -> CopiedStack {
    if depth > 0 {
        let copy = recurse(depth - 1, stack_end);
        // Not a tail call, which would leave no frame.
        return std::hint::black_box(copy);
    }
    let (ip, sp, bp): (u64, u64, u64);
    // SAFETY: three registers are read.
    unsafe {
        asm!("lea {}, [rip]", "mov {}, rsp", "mov {}, rbp", out(reg) ip, out(reg) sp, out(reg) bp);
    }
    let length = COPIED.min(stack_end - sp) as usize;
    // SAFETY: from the stack pointer to the end of the stack's mapping, which is the calling thread's own.
    let bytes = unsafe { slice::from_raw_parts(sp as *const u8, length) };
    CopiedStack {
        time_ns: 2,
        pid: std::process::id(),
        tid: 1,
        of_fault: false,
        kernel_ip: 0,
        trampoline_at: 0,
        returns_to: 0,
        registers: Registers { ip, sp, bp },
        bytes: bytes.into(),
    }
}
