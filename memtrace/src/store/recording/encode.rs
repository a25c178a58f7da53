//! Events → the columns of a record batch.
//!
//! Columns have no nulls: values of rows that have one stand together (`packed.rs`).

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Int8Array, RecordBatch, UInt32Array,
    builder::StringBuilder,
    types::{Int32Type, Int64Type, UInt8Type, UInt32Type, UInt64Type},
};
use arrow_schema::{ArrowError, SchemaRef};

use super::{
    blocks::{Freed, Numbered, Placed},
    detail::{self, Name},
    images::Images,
    packed::{Lists, Names, Packed, Planes, Step},
    schema::{ACCESS, CALLS, ENDS, FUNCTIONS, Tag, access_bits, call_key, function_key},
    tables::{Code, NO_MODULE, StackNumbers, Telling, Told},
};
use crate::event::{Event, EventKind, Pid, StackId, Symbol, Syscall};

/// What later rows refer to, for the whole recording.
struct State {
    images: Images,
    told: Told,
    stacks: StackNumbers,
    blocks: Numbered,
    time: Step,
    fault_address: u64,
    path: i64,
    /// Codes and bases that the row tells, and the codes of its stack.
    codes: Vec<u64>,
    bases: Vec<u64>,
    path_codes: Vec<u32>,
}

impl State {
    /// The number of a frame's code, which the row tells where that is new.
    fn code(&mut self, pid: Pid, word: u64) -> u32 {
        let (mut module, mut base) = self.images.find(pid, word);
        match self.told.base(pid, module, base) {
            Telling::Known => {}
            Telling::New => self.bases.extend([u64::from(module), base]),
            // A file may be mapped twice, with frames in both.
            Telling::Taken => (module, base) = (NO_MODULE, 0),
        }
        let offset = word.wrapping_sub(base);
        let code = self.told.code(Code { module, offset });
        if code.is_new {
            self.codes.extend([u64::from(module), offset]);
        }
        code.number
    }
}

/// The rows of the batch being collected.
pub(super) struct Rows {
    schema: SchemaRef,
    state: State,
    kind_names: Names,
    function_names: Names,
    call_names: Names,
    end_names: Names,
    variable_bytes: usize,
    kind: Vec<i8>,
    time_step: Planes,
    pid: Vec<u32>,
    tid: Vec<u32>,
    function: Packed<i8>,
    again: Packed<u8>,
    address_step: Planes,
    block: Planes,
    freed_step: Planes,
    size: Planes,
    stack: Planes,
    path_step: Packed<i32>,
    frames: Lists<UInt32Type>,
    stack_end: Packed<i8>,
    fault_address_step: Packed<i64>,
    code: Packed<u32>,
    latency: Planes,
    access: Packed<u8>,
    call: Packed<i8>,
    arguments: Lists<UInt64Type>,
    offset: Packed<u64>,
    result: Packed<i64>,
    name: Packed<u32>,
    detail: Vec<(usize, String)>,
    codes: Lists<UInt64Type>,
    bases: Lists<UInt64Type>,
}

impl Rows {
    pub(super) fn new(schema: SchemaRef) -> Self {
        Self {
            schema,
            state: State {
                images: Images::default(),
                told: Told::default(),
                stacks: StackNumbers::default(),
                blocks: Numbered::default(),
                time: Step::default(),
                fault_address: 0,
                path: 0,
                codes: Vec::new(),
                bases: Vec::new(),
                path_codes: Vec::new(),
            },
            kind_names: Names::new(Tag::ALL.iter().map(|tag| tag.name())),
            function_names: Names::new(FUNCTIONS.iter().map(|(_, name)| *name)),
            call_names: Names::new(CALLS.iter().map(|(_, name)| *name)),
            end_names: Names::new(ENDS.iter().map(|(_, name)| *name)),
            variable_bytes: 0,
            kind: Vec::new(),
            time_step: Planes::default(),
            pid: Vec::new(),
            tid: Vec::new(),
            function: Packed::default(),
            again: Packed::default(),
            address_step: Planes::default(),
            block: Planes::default(),
            freed_step: Planes::default(),
            size: Planes::default(),
            stack: Planes::default(),
            path_step: Packed::default(),
            frames: Lists::new(),
            stack_end: Packed::default(),
            fault_address_step: Packed::default(),
            code: Packed::default(),
            latency: Planes::default(),
            access: Packed::default(),
            call: Packed::default(),
            arguments: Lists::new(),
            offset: Packed::default(),
            result: Packed::default(),
            name: Packed::default(),
            detail: Vec::new(),
            codes: Lists::new(),
            bases: Lists::new(),
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
    pub(super) fn detail_of(&mut self, event: &Event) -> serde_json::Result<Option<String>> {
        match &event.kind {
            EventKind::Symbol(symbol) => self.name_of(event.pid, symbol).map(Some),
            kind if has_columns(kind) => Ok(None),
            kind => detail::to_json(kind).map(Some),
        }
    }

    /// What is said of a symbol but its frame. As its file offset is mostly that of its code, it is the same for
    /// all codes of a function without lines.
    fn name_of(&mut self, pid: Pid, symbol: &Symbol) -> serde_json::Result<String> {
        let (_, base) = self.state.images.find(pid, symbol.frame);
        let code = symbol.frame.wrapping_sub(base);
        let name = Name {
            module: symbol.module.clone(),
            build_id: symbol.build_id.clone(),
            offset: (symbol.offset).map(|offset| offset.wrapping_sub(code) as i64),
            functions: symbol.functions.clone(),
        };
        serde_json::to_string(&name)
    }

    /// Adds an event; `detail` is what [`Rows::detail_of`] gave for it.
    pub(super) fn push(&mut self, event: &Event, detail: Option<String>) {
        let row = self.kind.len();
        self.state.told.begin_row();
        self.state.images.note(event);
        self.kind.push(Tag::of(&event.kind) as i8);
        self.time_step.push(self.state.time.to(event.time_ns));
        self.pid.push(event.pid);
        self.tid.push(event.tid);
        match &event.kind {
            EventKind::Alloc {
                function,
                address,
                size,
                stack,
            } => {
                self.function.push(function_key(*function));
                self.push_block(event.pid, *address, *size);
                self.push_stack(*stack);
            }
            EventKind::AllocFailed { function, size } => {
                self.function.push(function_key(*function));
                self.size.push(*size);
            }
            EventKind::Free { address } => self.push_freed(event.pid, *address),
            EventKind::Realloc {
                entered_ns,
                old_address,
                new_address,
                size,
                stack,
            } => {
                self.latency.push(event.time_ns.wrapping_sub(*entered_ns));
                self.push_freed(event.pid, *old_address);
                self.push_block(event.pid, *new_address, *size);
                self.push_stack(*stack);
            }
            EventKind::Stack { id, frames, end } => {
                self.push_stack(*id);
                self.set_path(row, event.pid, frames, *end as i8);
            }
            EventKind::Fault {
                address,
                ip,
                latency_ns,
                stack,
                access,
            } => {
                let step = address.wrapping_sub(self.state.fault_address);
                self.state.fault_address = *address;
                self.fault_address_step.push(step as i64);
                self.push_code(event.pid, *ip);
                if let Some(latency_ns) = latency_ns {
                    self.latency.push(*latency_ns);
                }
                let timed = u8::from(latency_ns.is_some()) * ACCESS.timed;
                self.access.push(access_bits(access) | timed);
                self.push_stack(*stack);
            }
            EventKind::Syscall(syscall) => self.set_syscall(row, event.time_ns, syscall),
            EventKind::Symbol(symbol) => self.push_code(event.pid, symbol.frame),
            EventKind::Touch { stack, .. } => self.push_stack(*stack),
            // The others are in `detail`, or are nothing but their kind.
            _ => {}
        }
        self.set_detail(row, &event.kind, detail);
        self.set_told(row);
    }

    /// Where a block was given out, and how long it is.
    fn push_block(&mut self, pid: Pid, address: u64, size: u64) {
        match self.state.blocks.place(pid, address, size) {
            Placed::Again(nth) => self.again.push(nth),
            Placed::At(step) => {
                self.again.push(0);
                self.address_step.push(step);
            }
        }
        self.size.push(size);
    }

    fn push_freed(&mut self, pid: Pid, address: u64) {
        match self.state.blocks.free(pid, address) {
            Freed::Block(step) => self.block.push(step + 1),
            Freed::At(step) => {
                self.block.push(0);
                self.freed_step.push(step);
            }
        }
    }

    fn push_stack(&mut self, id: StackId) {
        self.stack.push(self.state.stacks.age(id).into());
    }

    fn push_code(&mut self, pid: Pid, word: u64) {
        let code = self.state.code(pid, word);
        self.code.push(code);
    }

    fn set_path(&mut self, row: usize, pid: Pid, frames: &[u64], end: i8) {
        let mut codes = std::mem::take(&mut self.state.path_codes);
        codes.clear();
        codes.extend(frames.iter().map(|&word| self.state.code(pid, word)));
        codes.push(end as u32);
        let path = self.state.told.path(&codes);
        codes.pop();
        // Whoever reads a batch has the frames of all its stacks in memory.
        self.variable_bytes += size_of_val(frames);
        if path.is_new {
            self.stack_end.push(end);
            self.variable_bytes += size_of_val(codes.as_slice());
            let shared = self.state.told.shared_with_last(&codes);
            codes.truncate(codes.len() - shared);
            codes.push(shared as u32);
            self.frames.set(row, &codes);
        }
        let step = i64::from(path.number) - self.state.path;
        self.state.path = path.number.into();
        self.path_step.push(step as i32);
        self.state.path_codes = codes;
    }

    fn set_syscall(&mut self, row: usize, time_ns: u64, syscall: &Syscall) {
        self.latency.push(time_ns.wrapping_sub(syscall.entered_ns));
        self.call.push(call_key(syscall.call));
        self.result.push(syscall.result);
        self.arguments.set(row, &syscall.arguments);
        self.offset.push(syscall.offset);
        self.variable_bytes += 8 * syscall.arguments.len();
    }

    fn set_detail(&mut self, row: usize, kind: &EventKind, detail: Option<String>) {
        let Some(detail) = detail else { return };
        let bytes = detail::bytes(kind, &detail);
        self.variable_bytes += bytes;
        if matches!(kind, EventKind::Symbol(_)) {
            let name = self.state.told.name(&detail, bytes);
            self.name.push(name.number);
            if !name.is_new {
                return;
            }
        }
        self.detail.push((row, detail));
    }

    fn set_told(&mut self, row: usize) {
        let State { codes, bases, .. } = &mut self.state;
        for (column, told) in [(&mut self.codes, codes), (&mut self.bases, bases)] {
            if !told.is_empty() {
                column.set(row, told);
                self.variable_bytes += 8 * told.len();
                told.clear();
            }
        }
    }

    /// The collected rows as a batch; nothing is collected afterwards.
    pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let rows = self.len();
        self.variable_bytes = 0;
        let kinds = Int8Array::from_iter_values(self.kind.drain(..));
        let mut columns = vec![self.kind_names.column(kinds)?];
        self.time_step.finish(rows, &mut columns);
        columns.push(Arc::new(UInt32Array::from_iter_values(self.pid.drain(..))));
        columns.push(Arc::new(UInt32Array::from_iter_values(self.tid.drain(..))));
        columns.push(self.function_names.column(self.function.finish(rows))?);
        columns.push(Arc::new(self.again.finish::<UInt8Type>(rows)));
        self.address_step.finish(rows, &mut columns);
        self.block.finish(rows, &mut columns);
        self.freed_step.finish(rows, &mut columns);
        self.size.finish(rows, &mut columns);
        self.stack.finish(rows, &mut columns);
        columns.push(Arc::new(self.path_step.finish::<Int32Type>(rows)));
        columns.push(self.frames.finish(rows));
        columns.push(self.end_names.column(self.stack_end.finish(rows))?);
        columns.push(Arc::new(self.fault_address_step.finish::<Int64Type>(rows)));
        columns.push(Arc::new(self.code.finish::<UInt32Type>(rows)));
        self.latency.finish(rows, &mut columns);
        columns.push(Arc::new(self.access.finish::<UInt8Type>(rows)));
        columns.push(self.call_names.column(self.call.finish(rows))?);
        columns.push(self.arguments.finish(rows));
        columns.push(Arc::new(self.offset.finish::<UInt64Type>(rows)));
        columns.push(Arc::new(self.result.finish::<Int64Type>(rows)));
        columns.push(Arc::new(self.name.finish::<UInt32Type>(rows)));
        columns.push(self.finish_detail(rows));
        columns.push(self.codes.finish(rows));
        columns.push(self.bases.finish(rows));
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
    }

    fn finish_detail(&mut self, rows: usize) -> ArrayRef {
        let bytes = self.detail.iter().map(|(_, text)| text.len()).sum();
        let mut builder = StringBuilder::with_capacity(rows, bytes);
        let mut next = 0;
        for (row, text) in self.detail.drain(..) {
            (next..row).for_each(|_| builder.append_value(""));
            builder.append_value(text);
            next = row + 1;
        }
        (next..rows).for_each(|_| builder.append_value(""));
        Arc::new(builder.finish())
    }
}

/// Whether a kind has nothing in `detail`.
pub(super) fn has_columns(kind: &EventKind) -> bool {
    matches!(
        kind,
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
            | EventKind::End
    )
}
