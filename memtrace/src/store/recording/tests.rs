use std::{
    fs::{self, OpenOptions},
    io::Cursor,
    path::{Path, PathBuf},
};

use super::{
    FORMAT_VERSION, ReadError, Reader, WriteError, Writer,
    frame::{self, Next},
    read_ahead,
    samples::{Random, Realistic, every_kind},
    schema::Tag,
};
use crate::event::Event;

pub(super) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Writes batches; returns the file's bytes and where each batch ends.
fn record(path: &Path, batches: &[Vec<Event>]) -> (Vec<u8>, Vec<u64>) {
    let mut writer = Writer::create(path).unwrap();
    let mut ends = Vec::new();
    for batch in batches {
        batch.iter().for_each(|event| writer.write(event).unwrap());
        writer.flush().unwrap();
        ends.push(writer.bytes_written());
    }
    let size = writer.finish().unwrap();
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, size);
    (bytes, ends)
}

/// All events up to the end or the first error, and whether it was truncated.
pub(super) fn replay(path: &Path) -> (Vec<Event>, Result<bool, ReadError>) {
    drain(Reader::open(path))
}

/// The same for a recording in memory.
fn replay_bytes(bytes: &[u8]) -> (Vec<Event>, Result<bool, ReadError>) {
    drain(Reader::from_source(
        "altered".into(),
        Box::new(Cursor::new(bytes.to_vec())),
        bytes.len() as u64,
    ))
}

fn drain(reader: Result<Reader, ReadError>) -> (Vec<Event>, Result<bool, ReadError>) {
    let mut reader = match reader {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut events = Vec::new();
    loop {
        match reader.next_event() {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return (events, Ok(reader.truncated())),
            Err(error) => {
                assert!(
                    reader.next_event().unwrap().is_none(),
                    "nothing follows an error"
                );
                return (events, Err(error));
            }
        }
    }
}

fn small() -> Vec<Vec<Event>> {
    every_kind().chunks(45).map(<[Event]>::to_vec).collect()
}

#[test]
fn every_kind_comes_back() {
    let events = every_kind();
    for tag in Tag::ALL {
        assert!(
            events.iter().any(|event| Tag::of(&event.kind) == *tag),
            "no sample of {tag:?}"
        );
    }
    let scratch = Scratch::new();
    let path = scratch.path("all");
    record(&path, &small());
    let (read, end) = replay(&path);
    assert_eq!(read.len(), events.len());
    for (read, written) in read.iter().zip(&events) {
        assert_eq!(read, written);
    }
    assert!(!end.unwrap());
    assert_eq!(
        Reader::open(&path).unwrap().written_by(),
        env!("CARGO_PKG_VERSION")
    );
}

#[test]
fn an_empty_trace_is_a_whole_recording() {
    let scratch = Scratch::new();
    let path = scratch.path("empty");
    record(&path, &[]);
    let (read, end) = replay(&path);
    assert!(read.is_empty() && !end.unwrap());
}

#[test]
fn full_batches_end_by_themselves() {
    let scratch = Scratch::new();
    let path = scratch.path("long");
    let events: Vec<_> = Realistic::new().take(super::BATCH_ROWS * 2 + 5).collect();
    let mut writer = Writer::create(&path).unwrap();
    let empty = writer.bytes_written();
    for event in &events {
        writer.write(event).unwrap();
    }
    assert!(writer.bytes_written() > empty);
    drop(writer);
    let (read, end) = replay(&path);
    assert!(end.unwrap(), "no end mark without finish");
    assert_eq!(read.len(), super::BATCH_ROWS * 2);
    assert!(read == events[..read.len()]);
}

#[test]
fn a_summary_is_found_behind_a_whole_recording_alone() {
    let scratch = Scratch::new();
    let path = scratch.path("summary");
    let contents = "what it comes to; ".repeat(100);
    let mut writer = Writer::create(&path).unwrap();
    every_kind()
        .iter()
        .for_each(|event| writer.write(event).unwrap());
    writer.flush().unwrap();
    let events = writer.bytes_written() as usize;
    writer.finish_with(contents.as_bytes()).unwrap();
    let bytes = fs::read(&path).unwrap();
    let summary = |bytes: &[u8]| {
        fs::write(scratch.path("altered"), bytes).unwrap();
        Reader::open(scratch.path("altered")).unwrap().summary()
    };
    assert_eq!(summary(&bytes).as_deref(), Some(contents.as_bytes()));
    assert_eq!(replay_bytes(&bytes).0, every_kind());
    let end = events + frame::END.len();
    for length in events..bytes.len() {
        assert_eq!(summary(&bytes[..length]), None, "cut at {length}");
        let (read, whole) = replay_bytes(&bytes[..length]);
        assert_eq!(read.len(), every_kind().len());
        match whole {
            Ok(truncated) => assert!(truncated == (length < end) && length <= end),
            Err(error) => assert!(matches!(error, ReadError::Damaged { .. }) && length > end),
        }
        let mut altered = bytes.clone();
        altered[length] ^= 1;
        if length >= end {
            assert_eq!(summary(&altered), None, "changed at {length}");
            assert!(replay_bytes(&altered).1.is_err(), "changed at {length}");
        }
    }
}

#[test]
fn reading_ahead_gives_the_same() {
    let scratch = Scratch::new();
    let path = scratch.path("ahead");
    let events: Vec<_> = Realistic::new().take(super::BATCH_ROWS * 4 + 5).collect();
    let mut writer = Writer::create(&path).unwrap();
    events.iter().for_each(|event| writer.write(event).unwrap());
    let size = writer.finish().unwrap();
    let mut read = Vec::new();
    let mut last = 0;
    let truncated = read_ahead(Reader::open(&path).unwrap(), |batch, position| {
        assert!(last < position && position < size);
        last = position;
        read.extend(batch);
    });
    assert!(!truncated.unwrap());
    assert!(read == events);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    read.clear();
    let truncated = read_ahead(Reader::open(&path).unwrap(), |batch, _| read.extend(batch));
    assert!(truncated.unwrap() && read == events[..read.len()]);
    assert!(read.len() >= super::BATCH_ROWS);
}

#[test]
fn every_prefix_opens_up_to_the_cut() {
    let scratch = Scratch::new();
    let batches = small();
    let (bytes, ends) = record(&scratch.path("whole"), &batches);
    let events = batches.concat();
    for length in 1..bytes.len() {
        let (read, end) = replay_bytes(&bytes[..length]);
        assert!(end.unwrap(), "cut at {length}");
        let whole = ends.iter().filter(|end| **end <= length as u64).count();
        let count: usize = batches[..whole].iter().map(Vec::len).sum();
        assert!(read == events[..count], "cut at {length}");
    }
}

#[test]
fn prefixes_of_a_large_recording_hold_all_whole_batches() {
    let scratch = Scratch::new();
    let mut stream = Realistic::new();
    let batches: Vec<Vec<Event>> = (0..30)
        .map(|_| stream.by_ref().take(20_000).collect())
        .collect();
    let path = scratch.path("whole");
    let (bytes, ends) = record(&path, &batches);
    assert!(bytes.len() > 1 << 20, "{}", bytes.len());
    let mut random = Random(3);
    for _ in 0..12 {
        let length = random.below(bytes.len() as u64);
        // Cut in place, at ever other lengths of the same file.
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length)
            .unwrap();
        let (read, end) = replay(&path);
        assert!(end.unwrap());
        assert_eq!(
            read.len(),
            20_000 * ends.iter().filter(|end| **end <= length).count()
        );
        assert!(read.iter().eq(batches.iter().flatten().take(read.len())));
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn every_byte_changed_is_an_error_or_a_cut() {
    let scratch = Scratch::new();
    let (bytes, _) = record(&scratch.path("whole"), &small());
    let (bytes, events) = (&bytes, &every_kind());
    let alter = |at: usize| {
        for pattern in [1 << (at % 8), 0x80 >> (at % 7), 0xFF] {
            let mut altered = bytes.clone();
            altered[at] ^= pattern;
            let (read, end) = replay_bytes(&altered);
            assert!(
                read == events[..read.len()],
                "wrong events with byte {at} changed"
            );
            assert!(
                !matches!(end, Ok(false)),
                "byte {at} changed, and nobody noticed"
            );
        }
    };
    std::thread::scope(|scope| {
        for start in 0..4 {
            scope.spawn(move || (start..bytes.len()).step_by(4).for_each(alter));
        }
    });
}

/// Where each message begins, with the lengths of its metadata and body.
fn frames(mut bytes: &[u8]) -> Vec<(usize, usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Next::Frame(frame) = frame::read(&mut bytes).unwrap() {
        found.push((at, frame.metadata.len(), frame.body.len()));
        at += frame.len() as usize;
    }
    found
}

/// Puts the right checksums under changed bytes, as a forger would.
fn forge(bytes: &[u8], frames: &[(usize, usize, usize)]) -> Vec<u8> {
    let mut out = Vec::new();
    for &(at, metadata, body) in frames {
        let body_at = at + 8 + metadata;
        frame::append(
            &mut out,
            &bytes[at + 8..body_at - 8],
            &bytes[body_at..body_at + body],
        );
    }
    out.extend_from_slice(&frame::END);
    out
}

#[test]
fn forged_messages_never_panic_nor_take_much_memory() {
    let scratch = Scratch::new();
    let (bytes, _) = record(&scratch.path("whole"), &small());
    let frames = frames(&bytes);
    assert_eq!(forge(&bytes, &frames), bytes);
    let mut random = Random(11);
    // What the guard catches need not fill the output of the test.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << random.below(8);
        if random.below(4) == 0 {
            altered[random.below(bytes.len() as u64) as usize] = random.next() as u8;
        }
        let _ = replay_bytes(&forge(&altered, &frames));
    }
    std::panic::set_hook(hook);
    let peak = peak_memory();
    assert!(peak < 1 << 30, "{peak} bytes");
}

fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[test]
fn garbage_is_refused() {
    let scratch = Scratch::new();
    let (bytes, _) = record(&scratch.path("whole"), &small());
    let mut random = Random(5);
    for round in 0..2000 {
        let mut garbage: Vec<u8> = (0..random.below(3000))
            .map(|_| random.next() as u8)
            .collect();
        // Some begin well: with the mark of a message, or with half a recording.
        match round % 4 {
            1 => drop(garbage.splice(0..0, [0xFF; 4])),
            2 => drop(garbage.splice(0..0, [0xFF, 0xFF, 0xFF, 0xFF, 0x40, 2, 0, 0])),
            3 => {
                let half = random.below(bytes.len() as u64) as usize;
                drop(garbage.splice(0..0, bytes[..half].iter().copied()));
            }
            _ => {}
        }
        let _ = replay_bytes(&garbage);
    }
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let scratch = Scratch::new();
    let mut arrow = Vec::new();
    let schema = arrow_schema::Schema::new(vec![arrow_schema::Field::new(
        "x",
        arrow_schema::DataType::Int32,
        true,
    )]);
    arrow_ipc::writer::StreamWriter::try_new(&mut arrow, &schema)
        .unwrap()
        .finish()
        .unwrap();
    for other in [&b"#!/bin/sh\n"[..], b"ARROW1\0\0", b"P", &arrow] {
        let (_, end) = replay_bytes(other);
        let error = end.unwrap_err();
        assert!(matches!(error, ReadError::NotARecording { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
    }
    let missing = replay(&scratch.path("missing")).1.unwrap_err();
    assert!(matches!(missing, ReadError::Open { .. }), "{missing}");
    let directory = replay(scratch.0.path()).1.unwrap_err();
    assert!(matches!(directory, ReadError::Read { .. }), "{directory}");
}

#[test]
fn another_format_is_refused() {
    let scratch = Scratch::new();
    let (bytes, _) = record(&scratch.path("whole"), &[]);
    let frames = frames(&bytes);
    let key = bytes
        .windows(15)
        .position(|window| window == b"memtrace.format")
        .unwrap();
    // The value is the next string in the flatbuffer, or the one before.
    let mut found = false;
    for at in key.saturating_sub(64)..key + 64 {
        if bytes[at] == b'0' + FORMAT_VERSION as u8 && bytes[at - 4..at] == [1, 0, 0, 0] {
            let mut altered = bytes.clone();
            for other in [FORMAT_VERSION - 1, FORMAT_VERSION + 3] {
                altered[at] = b'0' + other as u8;
                let error = replay_bytes(&forge(&altered, &frames)).1.unwrap_err();
                let ReadError::OtherFormat {
                    version, supported, ..
                } = error
                else {
                    panic!("{error}");
                };
                assert_eq!((version, supported), (other, FORMAT_VERSION));
            }
            found = true;
        }
    }
    assert!(found);
}

#[test]
fn a_full_disk_keeps_what_was_written() {
    let error = Writer::create("/dev/full").err().unwrap();
    let WriteError::Write {
        cause, offset: 0, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(cause.raw_os_error(), Some(libc::ENOSPC));

    let scratch = Scratch::new();
    let path = scratch.path("full");
    let events = every_kind();
    let mut writer = Writer::create(&path).unwrap();
    events.iter().for_each(|event| writer.write(event).unwrap());
    writer.flush().unwrap();
    writer.replace_file(OpenOptions::new().write(true).open("/dev/full").unwrap());
    writer.write(&events[0]).unwrap();
    assert!(matches!(writer.flush(), Err(WriteError::Write { .. })));
    assert!(matches!(
        writer.write(&events[0]),
        Err(WriteError::Ended { .. })
    ));
    assert!(matches!(writer.finish(), Err(WriteError::Ended { .. })));
    let (read, end) = replay(&path);
    assert!(read == events && end.unwrap());
}
