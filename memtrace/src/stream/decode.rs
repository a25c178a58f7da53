//! Bytes of the ring buffers to [`Event`]s.
//!
//! The only place that reads wire structs. It never panics and never trusts a length: a record that is
//! shorter than its kind says, or of an unknown kind, is an error to be counted.

use std::mem::offset_of;

use memtrace_common::{
    frame::MAX_WORDS,
    heap::Function,
    record::{
        self, Alloc, AllocFailed, Arguments, COPY_OF_FAULT, Call, EXEC_UNFOLLOWED, Exec, Exit,
        FAULT_ACCESS_KNOWN, FAULT_INSTRUCTION, FAULT_KERNEL, FAULT_MAJOR, FAULT_PROTECTION,
        FAULT_WRITE, Fault, Fork, Free, Header, Kind, MEMORY_APPROXIMATE, MEMORY_FINAL, Memory,
        PYTHON_FILE_BYTES, PYTHON_LINES_BYTES, PYTHON_NAME_BYTES, PythonCode, PythonHead, Realloc,
        Rename, Seen, StackCopy, Touch,
    },
    unwind::End,
};

use crate::{
    event::{Access, Event, EventKind, MemoryTotals, Started, Syscall},
    python::code::{self, Code},
    unwind::CopiedStack,
};

/// Bytes per page of the kernel's counters.
const PAGE: u64 = 4096;

/// Why a record could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than its kind needs.
    #[error("a record of {length} bytes is too short")]
    Short {
        /// Bytes that were there.
        length: usize,
    },
    /// No such kind, function or call.
    #[error("unknown number {number} of {what}")]
    Unknown {
        /// What the number names.
        what: &'static str,
        /// The number.
        number: u32,
    },
}

/// Records that may be read from any bytes.
///
/// # Safety
/// The type is `repr(C)` and every bit pattern of its size is a value of it.
unsafe trait Wire: Copy {}

macro_rules! wire {
    ($($kind:ty),*) => {$(
        // SAFETY: repr(C), integers and arrays of integers throughout (memtrace-common).
        unsafe impl Wire for $kind {}
    )*};
}

wire!(
    Header,
    Alloc,
    AllocFailed,
    Free,
    Realloc,
    Fault,
    record::Syscall,
    Fork,
    Exec,
    Arguments,
    Exit
);
wire!(Touch, Rename, Memory, Seen, StackCopy, PythonHead);

fn read<T: Wire>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() < size_of::<T>() {
        return Err(DecodeError::Short {
            length: bytes.len(),
        });
    }
    // SAFETY: the length was checked, the read is unaligned, and T takes any bytes.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// What a record holds.
#[derive(Debug, PartialEq)]
pub enum Decoded {
    /// An event.
    Event(Event),
    /// A stack that is to be walked first.
    Copy(Box<CopiedStack>),
    /// A Python code object, which stacks to come name.
    Code {
        /// When, in nanoseconds.
        time_ns: u64,
        /// The process.
        pid: u32,
        /// The object.
        code: Box<Code>,
    },
}

impl Decoded {
    /// When it happened, in nanoseconds.
    pub fn time_ns(&self) -> u64 {
        match self {
            Self::Event(event) => event.time_ns,
            Self::Copy(copy) => copy.time_ns,
            Self::Code { time_ns, .. } => *time_ns,
        }
    }
}

/// Reads one record.
pub fn decode(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let header: Header = read(bytes)?;
    let Some(kind) = Kind::from_raw(header.kind) else {
        return Err(DecodeError::Unknown {
            what: "record",
            number: u32::from(header.kind),
        });
    };
    let kind = match kind {
        Kind::Alloc => alloc(read(bytes)?)?,
        Kind::AllocFailed => {
            let failed: AllocFailed = read(bytes)?;
            EventKind::AllocFailed {
                function: function(header.extra)?,
                size: failed.size,
            }
        }
        Kind::Free => EventKind::Free {
            address: read::<Free>(bytes)?.address,
        },
        Kind::Realloc => realloc(read(bytes)?),
        Kind::Stack => stack(bytes)?,
        Kind::StackCopy => return copy(bytes),
        Kind::PythonCode => return python_code(bytes),
        Kind::Fault => fault(&read(bytes)?),
        Kind::Touch => touch(read(bytes)?),
        Kind::Syscall => syscall(&read(bytes)?)?,
        Kind::Fork => fork(&read(bytes)?),
        Kind::Exec => exec(&read(bytes)?),
        Kind::Exit => exit(&read(bytes)?),
        Kind::Rename => EventKind::Rename {
            comm: text(&read::<Rename>(bytes)?.comm),
        },
        Kind::Memory => EventKind::Memory(Box::new(memory(&read(bytes)?))),
        Kind::Arguments => arguments(&read(bytes)?),
        Kind::Seen => seen(&read(bytes)?),
    };
    Ok(Decoded::Event(Event {
        time_ns: header.time_ns,
        pid: header.pid,
        tid: header.tid,
        kind,
    }))
}

fn alloc(alloc: Alloc) -> Result<EventKind, DecodeError> {
    let Alloc {
        header,
        address,
        size,
        stack,
    } = alloc;
    Ok(EventKind::Alloc {
        function: function(header.extra)?,
        address,
        size,
        stack,
    })
}

fn realloc(realloc: Realloc) -> EventKind {
    let Realloc {
        entered_ns,
        old_address,
        new_address,
        size,
        stack,
        ..
    } = realloc;
    EventKind::Realloc {
        entered_ns,
        old_address,
        new_address,
        size,
        stack,
    }
}

fn function(number: u32) -> Result<Function, DecodeError> {
    let all = [
        Function::Malloc,
        Function::Calloc,
        Function::Realloc,
        Function::Reallocarray,
        Function::PosixMemalign,
        Function::AlignedAlloc,
        Function::Free,
        Function::Pvalloc,
        Function::AlignedNew,
    ];
    all.into_iter()
        .find(|&function| function as u32 == number)
        .ok_or(DecodeError::Unknown {
            what: "function",
            number,
        })
}

/// Only the frames there are were sent: the record is shorter than its struct.
fn stack(bytes: &[u8]) -> Result<EventKind, DecodeError> {
    const ID: usize = offset_of!(record::Stack, id);
    const FRAMES: usize = offset_of!(record::Stack, frames);
    let header: Header = read(bytes)?;
    let short = DecodeError::Short {
        length: bytes.len(),
    };
    let count = (header.extra as usize).min(MAX_WORDS);
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
        bytes.map(u64::from_ne_bytes).ok_or(short)
    };
    let number = u32::from(header.flags);
    let end = u8::try_from(number).ok().and_then(End::from_raw);
    let end = end.ok_or(DecodeError::Unknown {
        what: "stack's end",
        number,
    })?;
    let frames = (0..count).map(|index| word(FRAMES + 8 * index));
    Ok(EventKind::Stack {
        id: word(ID)?,
        frames: frames.collect::<Result<_, _>>()?,
        end,
    })
}

/// The bytes behind those that could be read are not the stack's.
fn copy(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let StackCopy {
        header,
        registers,
        kernel_ip,
        trampoline_at,
        returns_to,
    } = read(bytes)?;
    let stack = bytes.get(size_of::<StackCopy>()..).unwrap_or_default();
    let length = (header.extra as usize).min(stack.len());
    Ok(Decoded::Copy(Box::new(CopiedStack {
        time_ns: header.time_ns,
        pid: header.pid,
        tid: header.tid,
        of_fault: header.flags & COPY_OF_FAULT != 0,
        registers,
        kernel_ip,
        trampoline_at,
        returns_to,
        bytes: stack[..length].into(),
    })))
}

/// Only the part of the line table that there is was sent.
fn python_code(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    const LINES: usize = offset_of!(PythonCode, lines);
    let head: PythonHead = read(bytes)?;
    let short = DecodeError::Short {
        length: bytes.len(),
    };
    let part = |at: usize, length: u32, most: usize| {
        let length = (length as usize).min(most);
        bytes.get(at..at + length).ok_or(short)
    };
    let name = part(
        offset_of!(PythonCode, name),
        head.name_bytes,
        PYTHON_NAME_BYTES,
    )?;
    let file = part(
        offset_of!(PythonCode, file),
        head.file_bytes,
        PYTHON_FILE_BYTES,
    )?;
    let lines = part(LINES, head.header.extra, PYTHON_LINES_BYTES)?;
    let code = Code::new(
        head.code,
        code::text(head.name_state, name),
        code::text(head.file_state, file),
        head.first_line,
        lines,
    );
    Ok(Decoded::Code {
        time_ns: head.header.time_ns,
        pid: head.header.pid,
        code: Box::new(code),
    })
}

fn fault(fault: &Fault) -> EventKind {
    let has = |flag| fault.header.flags & flag != 0;
    EventKind::Fault {
        address: fault.address,
        ip: fault.ip,
        latency_ns: (fault.latency_ns != u64::MAX).then_some(fault.latency_ns),
        stack: fault.stack,
        access: Access {
            major: has(FAULT_MAJOR),
            kernel: has(FAULT_KERNEL),
            write: has(FAULT_ACCESS_KNOWN).then_some(has(FAULT_WRITE)),
            protection: has(FAULT_PROTECTION),
            instruction: has(FAULT_INSTRUCTION),
        },
    }
}

fn touch(touch: Touch) -> EventKind {
    EventKind::Touch {
        address: touch.address,
        stack: touch.stack,
        faults: touch.header.extra,
    }
}

fn syscall(syscall: &record::Syscall) -> Result<EventKind, DecodeError> {
    let number = syscall.header.extra;
    let call = Call::from_raw(number).ok_or(DecodeError::Unknown {
        what: "system call",
        number,
    })?;
    Ok(EventKind::Syscall(Box::new(Syscall {
        call,
        entered_ns: syscall.entered_ns,
        result: syscall.result,
        arguments: syscall.arguments,
        offset: syscall.offset,
    })))
}

/// include/uapi/linux/sched.h
const CLONE_VM: u64 = 0x100;
const CLONE_THREAD: u64 = 0x1_0000;

fn fork(fork: &Fork) -> EventKind {
    if fork.clone_flags & CLONE_THREAD != 0 {
        return EventKind::ThreadStart {
            thread: fork.header.extra,
        };
    }
    EventKind::Fork {
        child: fork.header.extra,
        shares_memory: fork.clone_flags & CLONE_VM != 0,
        comm: text(&fork.comm),
    }
}

/// What the kernel side knows of a process that it met; /proc knows the rest.
fn seen(seen: &Seen) -> EventKind {
    EventKind::Started(Box::new(Started {
        parent: 0,
        start_ns: seen.header.time_ns,
        comm: text(&seen.comm),
        exe: Box::default(),
        already_running: true,
    }))
}

fn exec(exec: &Exec) -> EventKind {
    let length = (exec.header.extra as usize).min(exec.path.len());
    EventKind::Exec {
        path: text(&exec.path[..length]),
        comm: text(&exec.comm),
        unfollowed: exec.header.flags & EXEC_UNFOLLOWED != 0,
    }
}

fn exit(exit: &Exit) -> EventKind {
    if exit.header.extra == 0 {
        return EventKind::ThreadExit;
    }
    // The wait status: signal in the low seven bits, 0x80 for a core dump, exit code above.
    let signal = (exit.status & 0x7f) as i32;
    if signal != 0 {
        return EventKind::Exit {
            code: None,
            signal: Some(signal),
        };
    }
    EventKind::Exit {
        code: Some((exit.status >> 8 & 0xff) as i32),
        signal: None,
    }
}

fn memory(memory: &Memory) -> MemoryTotals {
    let bytes = |pages: i64| (pages.max(0) as u64).saturating_mul(PAGE);
    let resident = bytes(memory.file)
        .saturating_add(bytes(memory.anonymous))
        .saturating_add(bytes(memory.shared));
    MemoryTotals {
        file_bytes: bytes(memory.file),
        anonymous_bytes: bytes(memory.anonymous),
        shared_bytes: bytes(memory.shared),
        swapped_bytes: bytes(memory.swap),
        peak_resident_bytes: memory.peak.saturating_mul(PAGE).max(resident),
        mapped_bytes: memory.mapped.saturating_mul(PAGE),
        peak_mapped_bytes: memory.peak_mapped.max(memory.mapped).saturating_mul(PAGE),
        break_start: memory.break_start,
        break_end: memory.break_end,
        stack: memory.stack,
        approximate: memory.header.flags & MEMORY_APPROXIMATE != 0,
        last: memory.header.flags & MEMORY_FINAL != 0,
    }
}

fn arguments(arguments: &Arguments) -> EventKind {
    let length = (arguments.header.extra as usize).min(arguments.bytes.len());
    let bytes = &arguments.bytes[..length];
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let words = bytes
        .split(|&byte| byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned());
    EventKind::CommandLine {
        arguments: words.collect(),
        truncated: arguments.header.flags != 0,
    }
}

fn text(bytes: &[u8]) -> Box<str> {
    let bytes = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*: a fixed sequence, so that a failure comes back.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    #[test]
    fn any_bytes_give_an_event_or_an_error() {
        let mut state = 1;
        for round in 0..200_000u64 {
            let length = random(&mut state) as usize % 320;
            let mut bytes: Vec<u8> = (0..length).map(|_| random(&mut state) as u8).collect();
            if let Some(kind) = bytes.get_mut(..2) {
                kind.copy_from_slice(&((round % 16) as u16).to_ne_bytes());
            }
            if let Ok(event) = decode(&bytes) {
                assert!(
                    length >= size_of::<Header>(),
                    "{event:?} from {length} bytes"
                );
            }
        }
    }

    #[test]
    fn a_short_record_is_told() {
        let mut bytes = [0u8; 47];
        bytes[0] = Kind::Alloc as u8;
        assert_eq!(decode(&bytes), Err(DecodeError::Short { length: 47 }));
    }

    #[test]
    fn a_wait_status_is_code_or_signal() {
        let header = Header {
            kind: Kind::Exit as u16,
            flags: 0,
            pid: 1,
            tid: 1,
            extra: 1,
            time_ns: 0,
        };
        let of = |status| {
            exit(&Exit {
                header,
                status,
                comm: [0; 16],
            })
        };
        assert_eq!(
            of(0x300),
            EventKind::Exit {
                code: Some(3),
                signal: None
            }
        );
        assert_eq!(
            of(0x8b),
            EventKind::Exit {
                code: None,
                signal: Some(11)
            }
        );
    }

    #[test]
    fn arguments_are_split_at_nul() {
        let mut record = Arguments {
            header: Header {
                kind: 13,
                flags: 0,
                pid: 1,
                tid: 1,
                extra: 7,
                time_ns: 0,
            },
            bytes: [0; record::ARGUMENT_BYTES],
        };
        record.bytes[..7].copy_from_slice(b"ls\0-l\0\0");
        let EventKind::CommandLine {
            arguments,
            truncated,
        } = super::arguments(&record)
        else {
            panic!("not a command line");
        };
        assert_eq!(
            (&arguments[..], truncated),
            (&["ls".to_owned(), "-l".into(), String::new()][..], false)
        );
    }
}
