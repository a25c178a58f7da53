//! Samples into a profile: strings, functions, locations and mappings once each.

use rustc_hash::FxHashMap;

use super::super::sample::{Measure, Sample, Stack, Values};
use super::message::{self, Function, Label, Line, Location, Mapping, Profile, ValueType};
use crate::report::document::{Document, FoundBy, Frame, Process};
use crate::report::stack;

/// Pages, which mappings begin and end at.
const PAGE: u64 = 4096;

/// A file at a place: its path, its build ID, and where its first byte lies in memory.
type Module<'a> = (&'a str, Option<&'a str>, u64);

/// A profile in the making.
pub(super) struct Builder<'a> {
    measure: Measure,
    profile: Profile,
    strings: FxHashMap<String, i64>,
    /// By name and file.
    functions: FxHashMap<(i64, i64), u64>,
    /// By process, address, the innermost function and its line: a Python function has no address.
    locations: FxHashMap<(u32, u64, u64, i64), u64>,
    mappings: FxHashMap<Module<'a>, u64>,
    samples: FxHashMap<(u32, Vec<u64>), usize>,
}

impl<'a> Builder<'a> {
    /// A profile without samples.
    pub(super) fn new(measure: Measure) -> Self {
        let mut builder = Self {
            measure,
            profile: Profile::default(),
            strings: FxHashMap::default(),
            functions: FxHashMap::default(),
            locations: FxHashMap::default(),
            mappings: FxHashMap::default(),
            samples: FxHashMap::default(),
        };
        builder.string("");
        for column in measure.columns() {
            let (kind, unit) = (builder.string(column.name), builder.string(column.unit));
            builder.profile.sample_type.push(ValueType { kind, unit });
        }
        let main = measure.columns()[measure.main_column()].name;
        builder.profile.default_sample_type = builder.string(main);
        let about = format!("memtrace: {}", measure.about());
        let comment = builder.string(&about);
        builder.profile.comment.push(comment);
        builder
    }

    /// Adds a sample; values of the same stack of the same process are added up.
    pub(super) fn add(&mut self, sample: &Sample<'a>) {
        let process = sample.process;
        let locations = match &sample.stack {
            Stack::Frames(frames) => self.stack(process, frames),
            Stack::Words(words) => vec![self.words(process, words)],
        };
        let key = (process.pid, locations);
        let at = match self.samples.get(&key) {
            Some(&at) => at,
            None => {
                let at = self.new_sample(process, &key.1);
                self.samples.insert(key, at);
                at
            }
        };
        let sum = &mut self.profile.sample[at].value;
        let values: &Values = &sample.values;
        for (sum, &value) in sum.iter_mut().zip(values) {
            *sum = sum.saturating_add(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// The whole profile.
    pub(super) fn finish(mut self, document: &Document) -> Profile {
        let start = document.processes.iter().map(|one| one.start_time_ns).min();
        let last = |one: &Process| one.timeline.last().map(|point| point.time_ns);
        let end = document.processes.iter().filter_map(last).max();
        let nanos = end.unwrap_or(0).saturating_sub(start.unwrap_or(0));
        self.profile.duration_nanos = i64::try_from(nanos).unwrap_or(0);
        self.profile
    }

    fn new_sample(&mut self, process: &Process, locations: &[u64]) -> usize {
        let label = vec![
            Label {
                key: self.string("process"),
                str: self.string(&process.comm),
                num: 0,
            },
            Label {
                key: self.string("pid"),
                str: 0,
                num: i64::from(process.pid),
            },
        ];
        self.profile.sample.push(message::Sample {
            location_id: locations.to_vec(),
            value: vec![0; self.measure.columns().len()],
            label,
        });
        self.profile.sample.len() - 1
    }

    /// A location per address: inlined frames belong to the frame that follows them.
    fn stack(&mut self, process: &Process, frames: &[&'a Frame]) -> Vec<u64> {
        frames
            .chunk_by(|one, next| one.inlined && one.address == next.address)
            .map(|frames| self.location(process, frames))
            .collect()
    }

    fn location(&mut self, process: &Process, frames: &[&'a Frame]) -> u64 {
        let Some(&frame) = frames.first() else {
            return 0;
        };
        // Return addresses point behind the call, perhaps into the next line or function.
        let address = match frame.found_by {
            FoundBy::Interrupted => frame.address,
            _ => frame.address.saturating_sub(1),
        };
        let line: Vec<Line> = frames
            .iter()
            .filter(|frame| frame.function.is_some())
            .map(|frame| self.line(frame))
            .collect();
        let innermost = line
            .first()
            .map_or((0, 0), |line| (line.function_id, line.line));
        let key = (process.pid, address, innermost.0, innermost.1);
        if let Some(&id) = self.locations.get(&key) {
            return id;
        }
        let mapping_id = self.mapping(frame, address, &line, frames);
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(Location {
            id,
            mapping_id,
            address,
            line,
        });
        self.locations.insert(key, id);
        id
    }

    /// A location without an address.
    fn words(&mut self, process: &Process, words: &str) -> u64 {
        let name = self.string(words);
        let function_id = self.function(name, 0);
        let key = (process.pid, 0, function_id, 0);
        let id = self.profile.location.len() as u64 + 1;
        let known = *self.locations.entry(key).or_insert(id);
        if known == id {
            let line = vec![Line {
                function_id,
                line: 0,
            }];
            self.profile.location.push(Location {
                id,
                mapping_id: 0,
                address: 0,
                line,
            });
        }
        known
    }

    fn line(&mut self, frame: &Frame) -> Line {
        let name = self.string(&stack::name(frame));
        let file = self.string(frame.file.as_deref().unwrap_or_default());
        Line {
            function_id: self.function(name, file),
            line: i64::from(frame.line.unwrap_or(0)),
        }
    }

    fn function(&mut self, name: i64, filename: i64) -> u64 {
        let id = self.profile.function.len() as u64 + 1;
        let known = *self.functions.entry((name, filename)).or_insert(id);
        if known == id {
            self.profile.function.push(Function {
                id,
                name,
                system_name: name,
                filename,
            });
        }
        known
    }

    /// The mapping that holds `address`, made to hold it. It covers the pages that samples lie in: how far a
    /// mapping that is gone by now went is not known.
    fn mapping(&mut self, frame: &'a Frame, address: u64, line: &[Line], frames: &[&Frame]) -> u64 {
        let (Some(path), Some(offset)) = (frame.module.as_deref(), frame.offset) else {
            return 0;
        };
        let base = frame.address.wrapping_sub(offset);
        let page = address & !(PAGE - 1);
        let module = (path, frame.build_id.as_deref(), base);
        let id = match self.mappings.get(&module) {
            Some(&id) => id,
            None => {
                let id = self.profile.mapping.len() as u64 + 1;
                let (filename, build_id) = (
                    self.string(path),
                    self.string(frame.build_id.as_deref().unwrap_or_default()),
                );
                self.profile.mapping.push(Mapping {
                    id,
                    memory_start: page,
                    memory_limit: page.saturating_add(PAGE),
                    filename,
                    build_id,
                    has_functions: true,
                    ..Mapping::default()
                });
                self.mappings.insert(module, id);
                id
            }
        };
        let mapping = &mut self.profile.mapping[id as usize - 1];
        mapping.memory_start = mapping.memory_start.min(page);
        mapping.memory_limit = mapping.memory_limit.max(page.saturating_add(PAGE));
        mapping.file_offset = mapping.memory_start.wrapping_sub(base);
        mapping.has_filenames |= frame.file.is_some();
        mapping.has_line_numbers |= line.iter().any(|line| line.line != 0);
        mapping.has_inline_frames |= frames.len() > 1;
        id
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(&index) = self.strings.get(text) {
            return index;
        }
        let index = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }
}
