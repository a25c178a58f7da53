//! How much recordings take, and that they hold what they are to hold where much is told once.

use std::{collections::BTreeMap, path::Path};

use arrow_array::{
    cast::AsArray as _,
    types::{UInt8Type, UInt64Type},
};
use arrow_ipc::{convert::try_fb_to_schema, reader::StreamReader, root_as_message};
use arrow_schema::{DataType, Schema};
use memtrace_common::{heap::Function, unwind::End};

use super::{
    Reader, Writer,
    frame::{self, Next},
    samples::{Random, Realistic, StackNumbers, every_kind},
};
use crate::event::{Access, Event, EventKind, FileMapped, Symbol, SymbolFunction};

/// Writes a recording, compares what is read, and gives its bytes.
fn record(path: &Path, events: &[Event]) -> Vec<u8> {
    let mut writer = Writer::create(path).unwrap();
    events.iter().for_each(|event| writer.write(event).unwrap());
    writer.finish().unwrap();
    let mut numbers = StackNumbers::default();
    let mut read = 0;
    for (event, expected) in Reader::open(path).unwrap().zip(events) {
        assert_eq!(event.unwrap(), numbers.apply(expected.clone()));
        read += 1;
    }
    assert_eq!(read, events.len());
    std::fs::read(path).unwrap()
}

/// Compressed bytes of each column, those of a number in one, and `batches` for all else.
fn by_column(mut bytes: &[u8]) -> BTreeMap<String, usize> {
    fn buffers(data_type: &DataType) -> usize {
        match data_type {
            DataType::List(item) => 2 + buffers(item.data_type()),
            DataType::Utf8 => 3,
            _ => 2,
        }
    }
    let mut columns = BTreeMap::from([("batches".to_owned(), bytes.len())]);
    let mut schema = Schema::empty();
    while let Next::Frame(frame) = frame::read(&mut bytes).unwrap() {
        let message = root_as_message(&frame.metadata).unwrap();
        if let Some(found) = message.header_as_schema() {
            schema = try_fb_to_schema(found).unwrap();
        }
        let Some(batch) = message.header_as_record_batch() else {
            continue;
        };
        let mut lengths = batch.buffers().unwrap().iter();
        for field in schema.fields() {
            let name = field.name().trim_end_matches(['_', '0', '1', '2', '3']);
            let own = lengths.by_ref().take(buffers(field.data_type()));
            let own: usize = own.map(|buffer| buffer.length() as usize).sum();
            *columns.entry(name.to_owned()).or_default() += own;
            *columns.get_mut("batches").unwrap() -= own;
        }
        assert!(lengths.next().is_none());
    }
    columns
}

/// Tells what each column takes; shown by --nocapture.
fn print_columns(bytes: &[u8], events: usize) {
    let mut columns: Vec<_> = by_column(bytes).into_iter().collect();
    columns.sort_by_key(|column| std::cmp::Reverse(column.1));
    for (name, bytes) in columns {
        let per_event = bytes as f64 / events as f64;
        println!("{name:20} {bytes:10} {per_event:.3}");
    }
}

/// `MEMTRACE_RECORDING` names a recording, of which the bytes of each column are printed.
#[test]
fn columns_of_a_recording() {
    let Some(path) = std::env::var_os("MEMTRACE_RECORDING") else {
        return;
    };
    let events = Reader::open(&path).unwrap().count();
    let bytes = std::fs::read(path).unwrap();
    println!("{:.3} bytes per event", bytes.len() as f64 / events as f64);
    print_columns(&bytes, events);
}

/// Bytes per event without repetition; run with --nocapture to see them.
#[test]
fn recordings_are_small() {
    let directory = tempfile::tempdir().unwrap();
    let mut numbers = StackNumbers::default();
    let events = every_kind()
        .into_iter()
        .chain(Realistic::new().take(300_000));
    let events: Vec<Event> = events.map(|event| numbers.apply(event)).collect();
    let bytes = record(&directory.path().join("r"), &events);
    print_columns(&bytes, events.len());
    let per_event = bytes.len() as f64 / events.len() as f64;
    assert!(per_event < 3.3, "{per_event}");
}

/// Arrow's own reader opens it, and times and sizes are what docs/RECORDING.md makes of the columns.
#[test]
fn other_programs_find_the_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    let events: Vec<Event> = Realistic::new().take(70_000).collect();
    record(&path, &events);
    let file = std::fs::File::open(path).unwrap();
    let mut time_ns = 0i64;
    let mut seen = events.iter();
    for batch in StreamReader::try_new(file, None).unwrap() {
        let batch = batch.unwrap();
        let column = |name: &str, at: usize| batch.column_by_name(&format!("{name}_{at}")).unwrap();
        let number = |name: &str, row: usize| {
            let byte = |at| u64::from(column(name, at).as_primitive::<UInt8Type>().value(row));
            let above = column(name, 3).as_primitive::<UInt64Type>().value(row);
            byte(0) + byte(1) * 256 + byte(2) * 65_536 + above * 16_777_216
        };
        let mut sizes = 0;
        for row in 0..batch.num_rows() {
            let event = seen.next().unwrap();
            let step = number("time_step", row) as i64;
            time_ns += if step % 2 == 0 {
                step / 2
            } else {
                -(step / 2) - 1
            };
            assert_eq!(time_ns as u64, event.time_ns);
            if let EventKind::Alloc { size, .. } = event.kind {
                assert_eq!(number("size", sizes), size);
                sizes += 1;
            }
        }
    }
    assert_eq!(seen.next(), None);
}

/// A tree of processes that each run the same program for a moment, elsewhere in memory.
struct Tree {
    random: Random,
    time_ns: u64,
    events: Vec<Event>,
}

/// Files of the program, with code at these offsets.
const FILES: [&str; 3] = ["/usr/bin/cc1", "/lib/libc.so.6", "/lib/libz.so.1"];
const STACKS: u64 = 500;

impl Tree {
    fn push(&mut self, pid: u32, kind: EventKind) {
        self.time_ns += 128 + self.random.below(256);
        let (time_ns, tid) = (self.time_ns, pid);
        self.events.push(Event {
            time_ns,
            pid,
            tid,
            kind,
        });
    }

    fn map(&mut self, pid: u32, path: &str, start: u64, offset: u64) {
        let mapped = FileMapped {
            start,
            length: 16 << 20,
            offset,
            protection: 5,
            flags: 2,
            path: path.into(),
            build_id: Box::new([7; 20]),
        };
        self.push(pid, EventKind::FileMapped(Box::new(mapped)));
    }

    fn process(&mut self, pid: u32) {
        let bases = FILES.map(|_| 0x5000_0000_0000 + (self.random.below(1 << 30) << 12));
        for (path, start) in FILES.iter().zip(bases) {
            self.map(pid, path, start + 0x2000, 0x2000);
        }
        // The same program: the same stacks, from the same calls on.
        let mut calls = Random(77);
        let mut place = || {
            let file = calls.below(3) as usize;
            (file, 0x2000 + calls.below(1 << 13) * 4)
        };
        let heap = 0x5555_0000_0000 + (self.random.below(1 << 20) << 12);
        let mut seen = Vec::new();
        for stack in 0..STACKS {
            let frames: Vec<u64> = (0..12)
                .map(|_| place())
                .map(|(file, offset)| bases[file] + offset)
                .collect();
            let id = self.random.next() | 1;
            seen.extend_from_slice(&frames);
            let (frames, end) = (frames.into(), End::Start);
            self.push(pid, EventKind::Stack { id, frames, end });
            for block in 0..4 {
                let alloc = EventKind::Alloc {
                    function: Function::Malloc,
                    address: heap + (stack * 4 + block) * 64,
                    size: 40 + stack % 16,
                    stack: id,
                };
                self.push(pid, alloc);
            }
        }
        seen.sort_unstable();
        seen.dedup();
        self.fault(pid, heap, bases[0] + 0x2000);
        let (code, signal) = (Some(0), None);
        self.push(pid, EventKind::Exit { code, signal });
        // Frames are named when the process has ended.
        for frame in seen {
            self.symbol(pid, frame, &bases);
        }
    }

    fn symbol(&mut self, pid: u32, frame: u64, bases: &[u64; 3]) {
        let near = |base: &u64| frame.wrapping_sub(*base) < 1 << 24;
        let file = bases.iter().position(near).unwrap();
        let offset = frame - bases[file];
        let function = SymbolFunction {
            name: format!("function_{}", offset / 100).into(),
            file: None,
            line: None,
        };
        let symbol = Symbol {
            frame,
            module: Some(FILES[file].into()),
            build_id: Some("07".repeat(20).into()),
            offset: Some(offset),
            functions: Box::new([function]),
        };
        self.push(pid, EventKind::Symbol(Box::new(symbol)));
    }

    fn fault(&mut self, pid: u32, address: u64, ip: u64) {
        let fault = EventKind::Fault {
            address,
            ip,
            latency_ns: None,
            stack: 0,
            access: Access::default(),
        };
        self.push(pid, fault);
    }
}

fn tree(processes: u32) -> Vec<Event> {
    let mut tree = Tree {
        random: Random(5),
        time_ns: 1 << 40,
        events: Vec::new(),
    };
    (1..=processes).for_each(|pid| tree.process(pid));
    tree.events
}

/// Where a program runs for the second time, nothing of its stacks and names is told again: what is left is
/// mostly the random byte of each time.
#[test]
fn short_processes_of_one_program_take_little() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    let (once, often) = (tree(1), tree(16));
    let first = record(&path, &once).len();
    let all = record(&path, &often);
    print_columns(&all, often.len());
    let per_event = (all.len() - first) as f64 / (often.len() - once.len()) as f64;
    assert!(per_event < 2.0, "{per_event}");
}

/// More codes than are remembered: both sides forget them at the same row.
#[test]
fn what_is_told_once_is_told_again_where_there_is_too_much_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(9);
    let mut events = Vec::new();
    for id in 1..=2300u64 {
        let frames: Box<[u64]> = (0..1000).map(|_| random.next() >> 17).collect();
        let time_ns = id;
        let event = |kind| Event {
            time_ns,
            pid: 1,
            tid: 1,
            kind,
        };
        let ip = frames[0];
        events.push(event(EventKind::Stack {
            id,
            frames,
            end: End::Start,
        }));
        let fault = EventKind::Fault {
            address: id,
            ip,
            latency_ns: Some(id),
            stack: id / 2,
            access: Access::default(),
        };
        events.push(event(fault));
    }
    record(&directory.path().join("r"), &events);
}

/// One file twice in a process, as dlmopen and wrappers of libraries have it: frames of both mappings in one stack
/// come back as they were, whichever was told before.
#[test]
fn a_file_that_is_mapped_twice_keeps_the_frames_of_both() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (0x7f00_0000_0000u64, 0x7f80_0000_0000u64);
    let mut trace = Tree {
        random: Random(3),
        time_ns: 1,
        events: Vec::new(),
    };
    let stack = |id: u64, frames: &[u64]| EventKind::Stack {
        id,
        frames: frames.into(),
        end: End::Start,
    };
    for pid in [1, 2] {
        for start in [first, second] {
            let start = start + u64::from(pid) * 0x1000_0000;
            trace.map(pid, "/lib/libc.so.6", start, 0);
        }
        let at = |base: u64, offset: u64| base + u64::from(pid) * 0x1000_0000 + offset;
        let id = u64::from(pid) * 100;
        // Neither base is told; the first is; the second is.
        let both = [at(first, 8), at(second, 16), at(first, 24), at(second, 8)];
        trace.push(pid, stack(id + 1, &both));
        trace.push(pid, stack(id + 2, &[at(first, 32)]));
        trace.push(pid, stack(id + 3, &both));
        trace.fault(pid, 0x1000, at(second, 40));
        trace.push(pid, stack(id + 4, &both));
        trace.push(pid, stack(id + 5, &[at(second, 16), at(first, 16)]));
    }
    record(&directory.path().join("r"), &trace.events);
}
