//! The columns of a record batch → events.

use arrow_array::{
    Array, BooleanArray, DictionaryArray, Int8Array, Int64Array, ListArray, RecordBatch,
    StringArray, UInt32Array, UInt64Array,
    cast::AsArray,
    types::{ArrowPrimitiveType, Int8Type, Int64Type, UInt32Type, UInt64Type},
};
use memtrace_common::{heap::Function, record::Call, unwind::End};

use super::{
    detail,
    schema::{CALLS, ENDS, FUNCTIONS, Tag},
};
use crate::event::{Access, Event, EventKind, Syscall};

/// A column of names, each resolved once per batch. `None` is a name this memtrace does not know.
struct Named<T> {
    keys: Int8Array,
    values: Vec<Option<T>>,
}

impl<T: Copy> Named<T> {
    fn new(
        column: &DictionaryArray<Int8Type>,
        known: impl Fn(&str) -> Option<T>,
    ) -> Result<Self, String> {
        let names = column
            .values()
            .as_string_opt::<i32>()
            .ok_or("a dictionary is not of names")?;
        let values = names.iter().map(|name| name.and_then(&known)).collect();
        Ok(Self {
            keys: column.keys().clone(),
            values,
        })
    }

    fn get(&self, row: usize) -> Option<T> {
        let key = usize::try_from(get(&self.keys, row)?).ok()?;
        *self.values.get(key)?
    }
}

/// What the next row's steps lead on from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Last {
    time_ns: u64,
    address: u64,
}

/// A batch, row by row.
pub(super) struct Rows {
    row: usize,
    rows: usize,
    last: Last,
    kind: Named<Tag>,
    time_step_ns: Int64Array,
    pid: UInt32Array,
    tid: UInt32Array,
    function: Named<Function>,
    address_step: Int64Array,
    size: UInt64Array,
    stack: UInt64Array,
    old_address: UInt64Array,
    frames: ListArray,
    stack_end: Named<End>,
    ip: UInt64Array,
    latency_ns: UInt64Array,
    major: BooleanArray,
    kernel_mode: BooleanArray,
    write: BooleanArray,
    protection: BooleanArray,
    instruction: BooleanArray,
    call: Named<Call>,
    arguments: ListArray,
    offset: UInt64Array,
    result: Int64Array,
    detail: StringArray,
}

impl Rows {
    /// The rows of a batch that has the schema of recordings; `last` is what the batch before ended with.
    pub(super) fn new(batch: &RecordBatch, last: Last) -> Result<Self, String> {
        let functions = |name: &str| {
            FUNCTIONS
                .iter()
                .find(|known| known.1 == name)
                .map(|known| known.0)
        };
        let calls = |name: &str| {
            CALLS
                .iter()
                .find(|known| known.1 == name)
                .map(|known| known.0)
        };
        let ends = |name: &str| {
            ENDS.iter()
                .find(|known| known.1 == name)
                .map(|known| known.0)
        };
        let kinds = |name: &str| Tag::ALL.iter().find(|tag| tag.name() == name).copied();
        Ok(Self {
            row: 0,
            rows: batch.num_rows(),
            last,
            kind: Named::new(
                column(batch, "kind", |array| array.as_dictionary_opt())?,
                kinds,
            )?,
            time_step_ns: numbers::<Int64Type>(batch, "time_step_ns")?,
            pid: numbers::<UInt32Type>(batch, "pid")?,
            tid: numbers::<UInt32Type>(batch, "tid")?,
            function: Named::new(
                column(batch, "function", |array| array.as_dictionary_opt())?,
                functions,
            )?,
            address_step: numbers::<Int64Type>(batch, "address_step")?,
            size: numbers::<UInt64Type>(batch, "size")?,
            stack: numbers::<UInt64Type>(batch, "stack")?,
            old_address: numbers::<UInt64Type>(batch, "old_address")?,
            frames: column(batch, "frames", |array| array.as_list_opt::<i32>())?.clone(),
            stack_end: Named::new(
                column(batch, "stack_end", |array| array.as_dictionary_opt())?,
                ends,
            )?,
            ip: numbers::<UInt64Type>(batch, "ip")?,
            latency_ns: numbers::<UInt64Type>(batch, "latency_ns")?,
            major: bits(batch, "major")?,
            kernel_mode: bits(batch, "kernel_mode")?,
            write: bits(batch, "write")?,
            protection: bits(batch, "protection")?,
            instruction: bits(batch, "instruction")?,
            call: Named::new(
                column(batch, "call", |array| array.as_dictionary_opt())?,
                calls,
            )?,
            arguments: column(batch, "arguments", |array| array.as_list_opt::<i32>())?.clone(),
            offset: numbers::<UInt64Type>(batch, "offset")?,
            result: numbers::<Int64Type>(batch, "result")?,
            detail: column(batch, "detail", |array| array.as_string_opt::<i32>())?.clone(),
        })
    }

    /// The next row's event.
    pub(super) fn next(&mut self) -> Option<Result<Event, String>> {
        if self.row == self.rows {
            return None;
        }
        let row = self.row;
        self.row += 1;
        Some(
            self.event(row)
                .map_err(|what| format!("row {row} of a batch: {what}")),
        )
    }

    /// Rows that were not taken yet.
    pub(super) fn left(&self) -> usize {
        self.rows - self.row
    }

    /// What the rows taken so far lead on to.
    pub(super) fn last(&self) -> Last {
        self.last
    }

    fn event(&mut self, row: usize) -> Result<Event, String> {
        let kind = self.kind.get(row).ok_or("its kind is unknown")?;
        let step = need(&self.time_step_ns, row, "time_step_ns")?;
        self.last.time_ns = self.last.time_ns.wrapping_add_signed(step);
        Ok(Event {
            time_ns: self.last.time_ns,
            pid: need(&self.pid, row, "pid")?,
            tid: need(&self.tid, row, "tid")?,
            kind: self.kind(kind, row)?,
        })
    }

    fn address(&mut self, row: usize) -> Result<u64, String> {
        let step = need(&self.address_step, row, "address_step")?;
        self.last.address = self.last.address.wrapping_add_signed(step);
        Ok(self.last.address)
    }

    /// When what is told by this row began.
    fn entered_ns(&self, row: usize) -> Result<u64, String> {
        let latency_ns = need(&self.latency_ns, row, "latency_ns")?;
        Ok(self.last.time_ns.wrapping_sub(latency_ns))
    }

    fn kind(&mut self, tag: Tag, row: usize) -> Result<EventKind, String> {
        Ok(match tag {
            Tag::Alloc => EventKind::Alloc {
                function: self.function.get(row).ok_or("its function is unknown")?,
                address: self.address(row)?,
                size: need(&self.size, row, "size")?,
                stack: need(&self.stack, row, "stack")?,
            },
            Tag::AllocFailed => EventKind::AllocFailed {
                function: self.function.get(row).ok_or("its function is unknown")?,
                size: need(&self.size, row, "size")?,
            },
            Tag::Free => EventKind::Free {
                address: self.address(row)?,
            },
            Tag::Realloc => EventKind::Realloc {
                entered_ns: self.entered_ns(row)?,
                old_address: need(&self.old_address, row, "old_address")?,
                new_address: self.address(row)?,
                size: need(&self.size, row, "size")?,
                stack: need(&self.stack, row, "stack")?,
            },
            Tag::Stack => EventKind::Stack {
                id: need(&self.stack, row, "stack")?,
                frames: list(&self.frames, row, "frames")?.into(),
                end: self.stack_end.get(row).ok_or("its stack_end is unknown")?,
            },
            Tag::Fault => EventKind::Fault {
                address: self.address(row)?,
                ip: need(&self.ip, row, "ip")?,
                latency_ns: get(&self.latency_ns, row),
                stack: get(&self.stack, row).unwrap_or(0),
                access: self.access(row)?,
            },
            Tag::Syscall => EventKind::Syscall(Box::new(self.syscall(row)?)),
            Tag::SmapsBegin => EventKind::SmapsBegin,
            Tag::SmapsEnd => EventKind::SmapsEnd,
            Tag::ThreadExit => EventKind::ThreadExit,
            Tag::End => EventKind::End,
            Tag::FaultTotals
            | Tag::FileMapped
            | Tag::Smaps
            | Tag::Memory
            | Tag::Started
            | Tag::Fork
            | Tag::ThreadStart
            | Tag::Exec
            | Tag::CommandLine
            | Tag::Rename
            | Tag::Exit
            | Tag::Cgroup
            | Tag::HeapProbes
            | Tag::Symbol
            | Tag::Counted
            | Tag::Probe
            | Tag::Sampling
            | Tag::Touch
            | Tag::TouchSampling
            | Tag::Machine => {
                let json = self
                    .detail
                    .is_valid(row)
                    .then(|| self.detail.value(row))
                    .ok_or("it lacks detail")?;
                detail::from_json(tag, json)
                    .map_err(|error| format!("detail of {}: {error}", tag.name()))?
            }
        })
    }

    fn access(&self, row: usize) -> Result<Access, String> {
        Ok(Access {
            major: need_bit(&self.major, row, "major")?,
            kernel: need_bit(&self.kernel_mode, row, "kernel_mode")?,
            write: self.write.is_valid(row).then(|| self.write.value(row)),
            protection: need_bit(&self.protection, row, "protection")?,
            instruction: need_bit(&self.instruction, row, "instruction")?,
        })
    }

    fn syscall(&self, row: usize) -> Result<Syscall, String> {
        let arguments = list(&self.arguments, row, "arguments")?;
        Ok(Syscall {
            call: self.call.get(row).ok_or("its call is unknown")?,
            entered_ns: self.entered_ns(row)?,
            result: need(&self.result, row, "result")?,
            arguments: arguments
                .try_into()
                .map_err(|_| "a call has five arguments")?,
            offset: need(&self.offset, row, "offset")?,
        })
    }
}

fn column<'b, T>(
    batch: &'b RecordBatch,
    name: &str,
    cast: impl Fn(&'b dyn Array) -> Option<&'b T>,
) -> Result<&'b T, String> {
    let array = batch
        .column_by_name(name)
        .ok_or_else(|| format!("there is no column {name}"))?;
    cast(array.as_ref()).ok_or_else(|| format!("the column {name} has another type"))
}

fn numbers<P: ArrowPrimitiveType>(
    batch: &RecordBatch,
    name: &str,
) -> Result<arrow_array::PrimitiveArray<P>, String> {
    column(batch, name, |array| array.as_primitive_opt::<P>()).cloned()
}

fn bits(batch: &RecordBatch, name: &str) -> Result<BooleanArray, String> {
    column(batch, name, |array| array.as_boolean_opt()).cloned()
}

fn get<P: ArrowPrimitiveType>(
    column: &arrow_array::PrimitiveArray<P>,
    row: usize,
) -> Option<P::Native> {
    column.is_valid(row).then(|| column.value(row))
}

fn need<P: ArrowPrimitiveType>(
    column: &arrow_array::PrimitiveArray<P>,
    row: usize,
    name: &str,
) -> Result<P::Native, String> {
    get(column, row).ok_or_else(|| format!("it lacks {name}"))
}

fn need_bit(column: &BooleanArray, row: usize, name: &str) -> Result<bool, String> {
    column
        .is_valid(row)
        .then(|| column.value(row))
        .ok_or_else(|| format!("it lacks {name}"))
}

fn list(column: &ListArray, row: usize, name: &str) -> Result<Vec<u64>, String> {
    let lacking = || format!("it lacks {name}");
    let items = column
        .is_valid(row)
        .then(|| column.value(row))
        .ok_or_else(lacking)?;
    let numbers = items.as_primitive_opt::<UInt64Type>().ok_or_else(lacking)?;
    Ok(numbers.values().to_vec())
}
