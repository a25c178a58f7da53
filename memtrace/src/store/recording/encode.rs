//! Events → the columns of a record batch.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, ArrowPrimitiveType, BooleanArray, DictionaryArray, Int8Array, PrimitiveArray,
    RecordBatch, StringArray, UInt32Array,
    builder::{ListBuilder, PrimitiveBuilder, StringBuilder, UInt64Builder},
    types::{Int8Type, Int64Type, UInt64Type},
};
use arrow_schema::{ArrowError, SchemaRef};

use super::{
    detail,
    schema::{CALLS, ENDS, FUNCTIONS, Tag, call_key, function_key},
};
use crate::event::{Access, Event, EventKind, Syscall};

/// A nullable column that is touched only by rows that have a value in it.
struct Sparse<T> {
    values: Vec<T>,
    valid: Vec<bool>,
}

impl<T> Default for Sparse<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            valid: Vec::new(),
        }
    }
}

impl<T: Copy + Default> Sparse<T> {
    fn set(&mut self, row: usize, value: T) {
        self.pad(row);
        self.values.push(value);
        self.valid.push(true);
    }

    /// Makes the rows up to `rows` null. What lies under a null is nobody's business; a repeated
    /// value compresses better than a zero between values.
    fn pad(&mut self, rows: usize) {
        let filler = self.values.last().copied().unwrap_or_default();
        self.values.resize(rows, filler);
        self.valid.resize(rows, false);
    }

    fn finish<P: ArrowPrimitiveType<Native = T>>(&mut self, rows: usize) -> PrimitiveArray<P> {
        self.pad(rows);
        let mut builder = PrimitiveBuilder::<P>::with_capacity(rows);
        builder.append_values(&self.values, &self.valid);
        self.values.clear();
        self.valid.clear();
        builder.finish()
    }
}

impl Sparse<bool> {
    fn finish_bits(&mut self, rows: usize) -> ArrayRef {
        self.pad(rows);
        let bits = self.values.drain(..).zip(self.valid.drain(..));
        Arc::new(
            bits.map(|(value, valid)| valid.then_some(value))
                .collect::<BooleanArray>(),
        )
    }
}

/// A column of differences to the value before, in whatever row it stands: small where values are near each other,
/// and small numbers compress well. The first one is the difference to 0.
#[derive(Default)]
struct Steps {
    last: u64,
    steps: Sparse<i64>,
}

impl Steps {
    fn set(&mut self, row: usize, value: u64) {
        let step = value.wrapping_sub(std::mem::replace(&mut self.last, value));
        self.steps.set(row, step as i64);
    }

    fn finish(&mut self, rows: usize) -> PrimitiveArray<Int64Type> {
        self.steps.finish(rows)
    }
}

/// A nullable column of lists of numbers.
struct Lists {
    builder: ListBuilder<UInt64Builder>,
    rows: usize,
}

impl Lists {
    fn new() -> Self {
        Self {
            builder: ListBuilder::new(UInt64Builder::new()),
            rows: 0,
        }
    }

    fn set(&mut self, row: usize, numbers: &[u64]) {
        self.pad(row);
        self.builder.values().append_slice(numbers);
        self.builder.append(true);
        self.rows += 1;
    }

    fn pad(&mut self, rows: usize) {
        (self.rows..rows).for_each(|_| self.builder.append(false));
        self.rows = rows;
    }

    fn finish(&mut self, rows: usize) -> ArrayRef {
        self.pad(rows);
        self.rows = 0;
        Arc::new(self.builder.finish())
    }
}

/// What a column of names takes from: sent once per recording, so it must stay the same array.
struct Names(ArrayRef);

impl Names {
    fn new(names: impl Iterator<Item = &'static str>) -> Self {
        Self(Arc::new(names.map(Some).collect::<StringArray>()))
    }

    fn column(&self, keys: Int8Array) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(DictionaryArray::<Int8Type>::try_new(
            keys,
            Arc::clone(&self.0),
        )?))
    }
}

/// The rows of the batch being collected.
pub(super) struct Rows {
    schema: SchemaRef,
    kind_names: Names,
    function_names: Names,
    call_names: Names,
    end_names: Names,
    variable_bytes: usize,
    kind: Vec<i8>,
    time_step_ns: Steps,
    pid: Vec<u32>,
    tid: Vec<u32>,
    function: Sparse<i8>,
    address_step: Steps,
    size: Sparse<u64>,
    stack: Sparse<u64>,
    old_address: Sparse<u64>,
    frames: Lists,
    stack_end: Sparse<i8>,
    ip: Sparse<u64>,
    latency_ns: Sparse<u64>,
    major: Sparse<bool>,
    kernel_mode: Sparse<bool>,
    write: Sparse<bool>,
    protection: Sparse<bool>,
    instruction: Sparse<bool>,
    call: Sparse<i8>,
    arguments: Lists,
    offset: Sparse<u64>,
    result: Sparse<i64>,
    detail: Vec<(usize, String)>,
}

impl Rows {
    pub(super) fn new(schema: SchemaRef) -> Self {
        Self {
            schema,
            kind_names: Names::new(Tag::ALL.iter().map(|tag| tag.name())),
            function_names: Names::new(FUNCTIONS.iter().map(|(_, name)| *name)),
            call_names: Names::new(CALLS.iter().map(|(_, name)| *name)),
            end_names: Names::new(ENDS.iter().map(|(_, name)| *name)),
            variable_bytes: 0,
            kind: Vec::new(),
            time_step_ns: Steps::default(),
            pid: Vec::new(),
            tid: Vec::new(),
            function: Sparse::default(),
            address_step: Steps::default(),
            size: Sparse::default(),
            stack: Sparse::default(),
            old_address: Sparse::default(),
            frames: Lists::new(),
            stack_end: Sparse::default(),
            ip: Sparse::default(),
            latency_ns: Sparse::default(),
            major: Sparse::default(),
            kernel_mode: Sparse::default(),
            write: Sparse::default(),
            protection: Sparse::default(),
            instruction: Sparse::default(),
            call: Sparse::default(),
            arguments: Lists::new(),
            offset: Sparse::default(),
            result: Sparse::default(),
            detail: Vec::new(),
        }
    }

    /// Rows collected.
    pub(super) fn len(&self) -> usize {
        self.kind.len()
    }

    /// Bytes of the lists and texts collected.
    pub(super) fn variable_bytes(&self) -> usize {
        self.variable_bytes
    }

    /// The `detail` of an event, where its kind has one.
    pub(super) fn detail_of(kind: &EventKind) -> serde_json::Result<Option<String>> {
        match kind {
            EventKind::Alloc { .. }
            | EventKind::AllocFailed { .. }
            | EventKind::Free { .. }
            | EventKind::Realloc { .. }
            | EventKind::Stack { .. }
            | EventKind::Fault { .. }
            | EventKind::Syscall(_)
            | EventKind::SmapsBegin
            | EventKind::SmapsEnd
            | EventKind::ThreadExit
            | EventKind::End => Ok(None),
            rare => detail::to_json(rare).map(Some),
        }
    }

    /// Adds an event; `detail` is what [`Rows::detail_of`] gave for it.
    pub(super) fn push(&mut self, event: &Event, detail: Option<String>) {
        let row = self.kind.len();
        self.kind.push(Tag::of(&event.kind) as i8);
        self.time_step_ns.set(row, event.time_ns);
        self.pid.push(event.pid);
        self.tid.push(event.tid);
        if let Some(detail) = detail {
            self.variable_bytes += detail.len();
            self.detail.push((row, detail));
        }
        match &event.kind {
            EventKind::Alloc {
                function,
                address,
                size,
                stack,
            } => {
                self.function.set(row, function_key(*function));
                self.address_step.set(row, *address);
                self.size.set(row, *size);
                self.stack.set(row, *stack);
            }
            EventKind::AllocFailed { function, size } => {
                self.function.set(row, function_key(*function));
                self.size.set(row, *size);
            }
            EventKind::Free { address } => self.address_step.set(row, *address),
            EventKind::Realloc {
                entered_ns,
                old_address,
                new_address,
                size,
                stack,
            } => {
                let latency_ns = event.time_ns.wrapping_sub(*entered_ns);
                self.latency_ns.set(row, latency_ns);
                self.old_address.set(row, *old_address);
                self.address_step.set(row, *new_address);
                self.size.set(row, *size);
                self.stack.set(row, *stack);
            }
            EventKind::Stack { id, frames, end } => {
                self.stack.set(row, *id);
                self.frames.set(row, frames);
                self.stack_end.set(row, *end as i8);
                self.variable_bytes += 8 * frames.len();
            }
            EventKind::Fault {
                address,
                ip,
                latency_ns,
                stack,
                access,
            } => {
                self.address_step.set(row, *address);
                self.ip.set(row, *ip);
                if *stack != 0 {
                    self.stack.set(row, *stack);
                }
                if let Some(latency_ns) = latency_ns {
                    self.latency_ns.set(row, *latency_ns);
                }
                self.set_access(row, access);
            }
            EventKind::Syscall(syscall) => {
                let latency_ns = event.time_ns.wrapping_sub(syscall.entered_ns);
                self.latency_ns.set(row, latency_ns);
                self.set_syscall(row, syscall);
            }
            // The others are in `detail`, or are nothing but their kind.
            _ => {}
        }
    }

    fn set_access(&mut self, row: usize, access: &Access) {
        self.major.set(row, access.major);
        self.kernel_mode.set(row, access.kernel);
        self.protection.set(row, access.protection);
        self.instruction.set(row, access.instruction);
        if let Some(write) = access.write {
            self.write.set(row, write);
        }
    }

    fn set_syscall(&mut self, row: usize, syscall: &Syscall) {
        self.call.set(row, call_key(syscall.call));
        self.result.set(row, syscall.result);
        self.arguments.set(row, &syscall.arguments);
        self.offset.set(row, syscall.offset);
        self.variable_bytes += 8 * syscall.arguments.len();
    }

    /// The collected rows as a batch; nothing is collected afterwards.
    pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let rows = self.len();
        self.variable_bytes = 0;
        let columns: Vec<ArrayRef> = vec![
            self.kind_names
                .column(Int8Array::from_iter_values(self.kind.drain(..)))?,
            Arc::new(self.time_step_ns.finish(rows)),
            Arc::new(UInt32Array::from_iter_values(self.pid.drain(..))),
            Arc::new(UInt32Array::from_iter_values(self.tid.drain(..))),
            self.function_names.column(self.function.finish(rows))?,
            Arc::new(self.address_step.finish(rows)),
            Arc::new(self.size.finish::<UInt64Type>(rows)),
            Arc::new(self.stack.finish::<UInt64Type>(rows)),
            Arc::new(self.old_address.finish::<UInt64Type>(rows)),
            self.frames.finish(rows),
            self.end_names.column(self.stack_end.finish(rows))?,
            Arc::new(self.ip.finish::<UInt64Type>(rows)),
            Arc::new(self.latency_ns.finish::<UInt64Type>(rows)),
            self.major.finish_bits(rows),
            self.kernel_mode.finish_bits(rows),
            self.write.finish_bits(rows),
            self.protection.finish_bits(rows),
            self.instruction.finish_bits(rows),
            self.call_names.column(self.call.finish(rows))?,
            self.arguments.finish(rows),
            Arc::new(self.offset.finish::<UInt64Type>(rows)),
            Arc::new(self.result.finish::<Int64Type>(rows)),
            self.finish_detail(rows),
        ];
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
    }

    fn finish_detail(&mut self, rows: usize) -> ArrayRef {
        let bytes = self.detail.iter().map(|(_, text)| text.len()).sum();
        let mut builder = StringBuilder::with_capacity(rows, bytes);
        let mut next = 0;
        for (row, text) in self.detail.drain(..) {
            (next..row).for_each(|_| builder.append_null());
            builder.append_value(text);
            next = row + 1;
        }
        (next..rows).for_each(|_| builder.append_null());
        Arc::new(builder.finish())
    }
}
