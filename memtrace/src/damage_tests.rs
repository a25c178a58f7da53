//! Files of traced programs are believed in nothing: damaged in whatever way, they do no harm to those who read them.
//!
//! Real files are damaged where it tells, by a generator with a fixed seed, and read by everyone who reads ELF files.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use object::{Object as _, ObjectSection as _, ReadCache};
use tempfile::TempDir;

use crate::{
    probe::{allocator, libraries},
    python::interpreter::Interpreters,
    stack::{module::build_id, symbolize::Mapping},
    unwind::compile::compile,
};

/// For a file to be read by everyone, which takes a second at most on a machine that does nothing else. Who has not
/// done it by then never will.
const PATIENCE: Duration = Duration::from_secs(300);

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// What may be damaged of a file: its headers, and each section that somebody reads.
fn parts(whole: &[u8]) -> Vec<(usize, usize)> {
    let elf = object::File::parse(whole).unwrap();
    let word = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
    let half = |at: usize| usize::from(u16::from_le_bytes([whole[at], whole[at + 1]]));
    // e_phoff, e_phnum; e_shoff, e_shnum: elf(5).
    let mut parts = vec![
        (0, 64),
        (word(32), half(56) * 56),
        (word(40), half(60) * 64),
    ];
    let sections = elf.sections().filter_map(|section| {
        let (start, length) = section.file_range()?;
        let bulk = [".rodata", ".data", ".data.rel.ro"];
        (!bulk.contains(&section.name().ok()?)).then_some((start as usize, length as usize))
    });
    parts.extend(sections.filter(|&(_, length)| length > 0));
    parts
}

fn damage(data: &mut Vec<u8>, parts: &[(usize, usize)], random: &mut Random) {
    for _ in 0..=random.below(6) {
        let (start, length) = parts[random.below(parts.len())];
        // Nearer to the beginning more often: there is what the rest is found by.
        let within = random.below(length).min(random.below(length));
        let at = start + within;
        let size = data.len() as u64;
        let values = [
            0,
            1,
            u64::MAX,
            1 << 63,
            1 << 31,
            size,
            size - 1,
            size / 2,
            0x7f,
            0x80,
        ];
        let value = values[random.below(values.len())].to_le_bytes();
        let width = [1, 2, 4, 8][random.below(4)];
        match random.below(8) {
            0 => data[at] ^= 1 << random.below(8),
            1 => data[at] = random.next() as u8,
            2 => {
                let last = data.len() - 64;
                let from = random.below(last);
                data.copy_within(from..from + 64, at.min(last));
            }
            _ => {
                let end = (at + width).min(data.len());
                data[at..end].copy_from_slice(&value[..end - at]);
            }
        }
    }
    if random.below(16) == 0 {
        data.truncate(random.below(data.len()));
    }
}

/// Everyone who reads files of traced programs, but for names, which have tests of their own.
fn read(path: &Path) {
    let file = File::open(path).unwrap();
    if let Ok(rows) = compile(&ReadCache::new(&file)) {
        assert!(rows.is_sorted_by_key(|row| row >> 32));
    }
    let _ = allocator::find_in(&file);
    let _ = libraries::files([path.to_owned()]);
    let _ = build_id(&file);
    let mapping = Mapping {
        start: 0x1000,
        end: 0x2000,
        path: path.to_str().unwrap().into(),
        ..Mapping::default()
    };
    let _ = Interpreters::default().thread_state(std::process::id(), &mapping);
}

/// Reads `rounds` damaged forms of a file. Where that fails, the form is kept, and its path told.
fn read_damaged(whole: &'static str, rounds: u64) {
    let original = fs::read(whole).unwrap();
    let parts = parts(&original);
    let (done, rounds_done) = mpsc::channel();
    let directory = TempDir::new().unwrap();
    // As an interpreter's, so that it is looked at as one.
    let path: PathBuf = directory.path().join("python3");
    let reader = {
        let path = path.clone();
        thread::spawn(move || {
            for round in 1..=rounds {
                let mut data = original.clone();
                damage(
                    &mut data,
                    &parts,
                    &mut Random(round.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                );
                fs::write(&path, data).unwrap();
                read(&path);
                done.send(round).unwrap();
            }
        })
    };
    for round in 1..=rounds {
        if rounds_done.recv_timeout(PATIENCE).is_err() {
            let kept = directory.keep().join("python3");
            let ended = reader.is_finished();
            panic!("{whole}, round {round}: {} ended {ended}", kept.display());
        }
    }
}

#[test]
fn a_damaged_c_library_does_no_harm() {
    read_damaged("/lib/x86_64-linux-gnu/libc.so.6", 50);
}

#[test]
fn a_damaged_loader_does_no_harm() {
    read_damaged("/lib64/ld-linux-x86-64.so.2", 250);
}

#[test]
fn a_damaged_program_does_no_harm() {
    read_damaged("/usr/bin/python3.11", 8);
}
