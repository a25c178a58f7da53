//! Events → a table for other programs: what a recording holds, without what makes it small.
//!
//! A column that does not apply is null.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, ArrowPrimitiveType, BooleanArray, Int8Array, PrimitiveArray, RecordBatch,
    UInt32Array, UInt64Array,
    builder::{ListBuilder, PrimitiveBuilder, StringBuilder, UInt64Builder},
    types::{Int64Type, UInt64Type},
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};

use super::{
    BATCH_ROWS, BATCH_VARIABLE_BYTES, detail,
    encode::has_columns,
    packed::Names,
    schema::{CALLS, ENDS, FUNCTIONS, Tag, call_key, function_key, names},
};
use crate::event::{Access, Event, EventKind, Syscall};

/// The columns of the table.
pub(super) fn schema() -> SchemaRef {
    let numbers = || DataType::List(Arc::new(Field::new("item", DataType::UInt64, true)));
    let optional = |name: &str, data_type| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        Field::new("kind", names(), false),
        Field::new("time_ns", DataType::UInt64, false),
        Field::new("pid", DataType::UInt32, false),
        Field::new("tid", DataType::UInt32, false),
        optional("function", names()),
        optional("address", DataType::UInt64),
        optional("size", DataType::UInt64),
        optional("stack", DataType::UInt64),
        optional("old_address", DataType::UInt64),
        optional("frames", numbers()),
        optional("stack_end", names()),
        optional("ip", DataType::UInt64),
        optional("latency_ns", DataType::UInt64),
        optional("major", DataType::Boolean),
        optional("kernel_mode", DataType::Boolean),
        optional("write", DataType::Boolean),
        optional("protection", DataType::Boolean),
        optional("instruction", DataType::Boolean),
        optional("call", names()),
        optional("arguments", numbers()),
        optional("offset", DataType::UInt64),
        optional("result", DataType::Int64),
        optional("detail", DataType::Utf8),
    ]))
}

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

/// The rows of the table that are collected.
pub(super) struct Table {
    schema: SchemaRef,
    kind_names: Names,
    function_names: Names,
    call_names: Names,
    end_names: Names,
    variable_bytes: usize,
    kind: Vec<i8>,
    time_ns: Vec<u64>,
    pid: Vec<u32>,
    tid: Vec<u32>,
    function: Sparse<i8>,
    address: Sparse<u64>,
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

impl Table {
    pub(super) fn new() -> Self {
        Self {
            schema: schema(),
            kind_names: Names::new(Tag::ALL.iter().map(|tag| tag.name())),
            function_names: Names::new(FUNCTIONS.iter().map(|(_, name)| *name)),
            call_names: Names::new(CALLS.iter().map(|(_, name)| *name)),
            end_names: Names::new(ENDS.iter().map(|(_, name)| *name)),
            variable_bytes: 0,
            kind: Vec::new(),
            time_ns: Vec::new(),
            pid: Vec::new(),
            tid: Vec::new(),
            function: Sparse::default(),
            address: Sparse::default(),
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

    /// Whether what was collected is to be taken.
    pub(super) fn is_full(&self) -> bool {
        self.kind.len() >= BATCH_ROWS || self.variable_bytes >= BATCH_VARIABLE_BYTES
    }

    /// Adds an event.
    pub(super) fn push(&mut self, event: &Event) -> serde_json::Result<()> {
        let row = self.kind.len();
        if !has_columns(&event.kind) {
            let detail = detail::to_json(&event.kind)?;
            self.variable_bytes += detail.len();
            self.detail.push((row, detail));
        }
        self.kind.push(Tag::of(&event.kind) as i8);
        self.time_ns.push(event.time_ns);
        self.pid.push(event.pid);
        self.tid.push(event.tid);
        match &event.kind {
            EventKind::Alloc {
                function,
                address,
                size,
                stack,
            } => {
                self.function.set(row, function_key(*function));
                self.address.set(row, *address);
                self.size.set(row, *size);
                self.stack.set(row, *stack);
            }
            EventKind::AllocFailed { function, size } => {
                self.function.set(row, function_key(*function));
                self.size.set(row, *size);
            }
            EventKind::Free { address } => self.address.set(row, *address),
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
                self.address.set(row, *new_address);
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
                self.address.set(row, *address);
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
        Ok(())
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
        let rows = self.kind.len();
        self.variable_bytes = 0;
        let columns: Vec<ArrayRef> = vec![
            self.kind_names
                .column(Int8Array::from_iter_values(self.kind.drain(..)))?,
            Arc::new(UInt64Array::from_iter_values(self.time_ns.drain(..))),
            Arc::new(UInt32Array::from_iter_values(self.pid.drain(..))),
            Arc::new(UInt32Array::from_iter_values(self.tid.drain(..))),
            self.function_names.column(self.function.finish(rows))?,
            Arc::new(self.address.finish::<UInt64Type>(rows)),
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use arrow_array::{
        cast::AsArray as _,
        types::{UInt32Type, UInt64Type},
    };
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use crate::{
        event::{Event, EventKind},
        store::{
            parquet::ParquetFile,
            recording::{ReadError, Reader, Writer, samples::Realistic},
        },
    };

    #[test]
    fn a_parquet_file_has_the_times_and_addresses_of_the_events() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let events: Vec<Event> = Realistic::new().take(100_000).collect();
        let mut writer = Writer::create(path("r")).unwrap();
        for batch in events.chunks(30_000) {
            batch.iter().for_each(|event| writer.write(event).unwrap());
            writer.flush().unwrap();
        }
        writer.finish().unwrap();

        let mut reader = Reader::open(path("r")).unwrap();
        let mut file = ParquetFile::create(&path("p"), Reader::columns_schema()).unwrap();
        let written = reader.columns(|batch| -> Result<(), ReadError> {
            file.write(batch).unwrap();
            Ok(())
        });
        written.unwrap();
        file.finish().unwrap();

        let opened = File::open(path("p")).unwrap();
        let batches = ParquetRecordBatchReaderBuilder::try_new(opened).unwrap();
        let mut seen = events.iter();
        for batch in batches.build().unwrap() {
            let batch = batch.unwrap();
            let column = |name| batch.column_by_name(name).unwrap();
            let times = column("time_ns").as_primitive::<UInt64Type>();
            let pids = column("pid").as_primitive::<UInt32Type>();
            let addresses = column("address").as_primitive::<UInt64Type>();
            for row in 0..batch.num_rows() {
                let event = seen.next().unwrap();
                assert_eq!(
                    (times.value(row), pids.value(row)),
                    (event.time_ns, event.pid)
                );
                let address = match &event.kind {
                    EventKind::Alloc { address, .. }
                    | EventKind::Free { address, .. }
                    | EventKind::Fault { address, .. } => *address,
                    _ => continue,
                };
                assert_eq!(addresses.value(row), address);
            }
        }
        assert_eq!(seen.next(), None);
    }
}
