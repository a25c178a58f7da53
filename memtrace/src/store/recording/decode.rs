//! The columns of a record batch → events.

use arrow_array::{
    Int32Array, Int64Array, ListArray, RecordBatch, StringArray, UInt8Array, UInt32Array,
    UInt64Array,
    cast::AsArray as _,
    types::{Int32Type, Int64Type, UInt8Type, UInt32Type, UInt64Type},
};
use memtrace_common::{heap::Function, record::Call, unwind::End};

use super::{
    BATCH_VARIABLE_BYTES, EVENT_BYTES,
    blocks::Blocks,
    detail::{self, Name},
    packed::unzigzag,
    schema::{ACCESS, CALLS, ENDS, FUNCTIONS, Tag, access_of},
    tables::{Code, Known},
    unpacked::{Named, Packed, Planes, column, list, numbers},
};
use crate::event::{Event, EventKind, Pid, StackId, Symbol, Syscall};

/// What the next row's numbers lead on from.
#[derive(Debug, Default)]
pub(super) struct State {
    time_ns: u64,
    blocks: Blocks,
    fault_address: u64,
    path: i64,
    /// Stacks that were seen.
    stacks: u64,
    known: Known,
}

impl State {
    /// A stack by its age; its id is its number, from 1 on.
    fn stack(&mut self, age: u64) -> Result<StackId, String> {
        if age == 1 {
            self.stacks += 1;
            return Ok(self.stacks);
        }
        match age.checked_sub(2) {
            None => Ok(0),
            Some(before) => match self.stacks.checked_sub(before) {
                None | Some(0) => Err("its stack is not known".to_owned()),
                Some(number) => Ok(number),
            },
        }
    }

    /// A code, and the frame that it is in a process.
    fn code(&self, pid: Pid, number: u32) -> Result<(Code, u64), String> {
        let code = self.known.code(number);
        let known = code.and_then(|code| Some((code, self.known.frame(pid, code)?)));
        known.ok_or_else(|| "its code is not known".to_owned())
    }
}

/// A batch, row by row.
pub(super) struct Rows {
    row: usize,
    rows: usize,
    /// Bytes of frames, names and command lines that rows have referred to.
    referred: usize,
    state: State,
    kind: Named<Tag>,
    time_step: Planes,
    pid: UInt32Array,
    tid: UInt32Array,
    function: Packed<Named<Function>>,
    again: Packed<UInt8Array>,
    address_step: Packed<Planes>,
    block: Packed<Planes>,
    freed_step: Packed<Planes>,
    size: Packed<Planes>,
    stack: Packed<Planes>,
    path_step: Packed<Int32Array>,
    frames: ListArray,
    stack_end: Packed<Named<End>>,
    fault_address_step: Packed<Int64Array>,
    code: Packed<UInt32Array>,
    latency: Packed<Planes>,
    access: Packed<UInt8Array>,
    call: Packed<Named<Call>>,
    arguments: ListArray,
    offset: Packed<UInt64Array>,
    result: Packed<Int64Array>,
    name: Packed<UInt32Array>,
    detail: StringArray,
    codes: ListArray,
    bases: ListArray,
}

impl Rows {
    /// The rows of a batch that has the schema of recordings; `state` is what the batch before ended with.
    pub(super) fn new(batch: &RecordBatch, state: State) -> Result<Self, String> {
        let kinds: Vec<(Tag, &str)> = Tag::ALL.iter().map(|tag| (*tag, tag.name())).collect();
        let lists = |name| column(batch, name, |array| array.as_list_opt::<i32>()).cloned();
        let text = column(batch, "detail", |array| array.as_string_opt::<i32>())?;
        Ok(Self {
            row: 0,
            rows: batch.num_rows(),
            referred: 0,
            state,
            kind: Named::new(batch, "kind", &kinds)?,
            time_step: Planes::new(batch, "time_step")?,
            pid: numbers::<UInt32Type>(batch, "pid")?,
            tid: numbers::<UInt32Type>(batch, "tid")?,
            function: Packed::new(Named::new(batch, "function", &FUNCTIONS)?),
            again: Packed::new(numbers::<UInt8Type>(batch, "again")?),
            address_step: Packed::new(Planes::new(batch, "address_step")?),
            block: Packed::new(Planes::new(batch, "block")?),
            freed_step: Packed::new(Planes::new(batch, "freed_step")?),
            size: Packed::new(Planes::new(batch, "size")?),
            stack: Packed::new(Planes::new(batch, "stack")?),
            path_step: Packed::new(numbers::<Int32Type>(batch, "path_step")?),
            frames: lists("frames")?,
            stack_end: Packed::new(Named::new(batch, "stack_end", &ENDS)?),
            fault_address_step: Packed::new(numbers::<Int64Type>(batch, "fault_address_step")?),
            code: Packed::new(numbers::<UInt32Type>(batch, "code")?),
            latency: Packed::new(Planes::new(batch, "latency")?),
            access: Packed::new(numbers::<UInt8Type>(batch, "access")?),
            call: Packed::new(Named::new(batch, "call", &CALLS)?),
            arguments: lists("arguments")?,
            offset: Packed::new(numbers::<UInt64Type>(batch, "offset")?),
            result: Packed::new(numbers::<Int64Type>(batch, "result")?),
            name: Packed::new(numbers::<UInt32Type>(batch, "name")?),
            detail: text.clone(),
            codes: lists("codes")?,
            bases: lists("bases")?,
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
    pub(super) fn into_state(self) -> State {
        self.state
    }

    fn event(&mut self, row: usize) -> Result<Event, String> {
        let kind = self.kind.get(row).ok_or("its kind is unknown")?;
        let (time_ns, pid) = (self.state.time_ns, self.pid.value(row));
        self.state.time_ns = time_ns.wrapping_add(unzigzag(self.time_step.get(row)));
        self.take_told(row, pid)?;
        Ok(Event {
            time_ns: self.state.time_ns,
            pid,
            tid: self.tid.value(row),
            kind: self.kind(kind, row, pid)?,
        })
    }

    /// Codes and bases that the row tells.
    fn take_told(&mut self, row: usize, pid: Pid) -> Result<(), String> {
        let known = &mut self.state.known;
        known.begin_row();
        for (column, is_base) in [(&self.bases, true), (&self.codes, false)] {
            if column.value_length(row) <= 0 {
                continue;
            }
            let numbers = list::<UInt64Type>(column, row)?;
            let (pairs, rest) = numbers.as_chunks::<2>();
            if !rest.is_empty() {
                return Err("what it tells is no pair".to_owned());
            }
            for &[module, at] in pairs {
                let module = u32::try_from(module).map_err(|_| "there is no such module")?;
                if is_base {
                    known.add_base(pid, module, at);
                } else {
                    known.add_code(Code { module, offset: at });
                }
            }
        }
        Ok(())
    }

    /// Where a block was given out, and how long it is.
    fn block(&mut self, pid: Pid) -> Result<(u64, u64), String> {
        let size = self.size.take();
        let address = match self.again.take() {
            0 => self.state.blocks.place(pid, size, self.address_step.take()),
            nth => self.state.blocks.place_again(pid, size, nth)?,
        };
        Ok((address, size))
    }

    fn freed(&mut self) -> Result<u64, String> {
        match self.block.take().checked_sub(1) {
            None => Ok(self.state.blocks.free_at(self.freed_step.take())),
            Some(step) => self.state.blocks.free(step),
        }
    }

    fn function(&mut self) -> Result<Function, String> {
        Ok(self.function.take().ok_or("its function is unknown")?)
    }

    fn stack(&mut self) -> Result<StackId, String> {
        let age = self.stack.take();
        self.state.stack(age)
    }

    fn frame(&mut self, pid: Pid) -> Result<(Code, u64), String> {
        let number = self.code.take();
        self.state.code(pid, number)
    }

    /// When what is told by this row began.
    fn entered_ns(&mut self) -> u64 {
        self.state.time_ns.wrapping_sub(self.latency.take())
    }

    fn kind(&mut self, tag: Tag, row: usize, pid: Pid) -> Result<EventKind, String> {
        Ok(match tag {
            Tag::Alloc => {
                let function = self.function()?;
                let (address, size) = self.block(pid)?;
                EventKind::Alloc {
                    function,
                    address,
                    size,
                    stack: self.stack()?,
                }
            }
            Tag::AllocFailed => EventKind::AllocFailed {
                function: self.function()?,
                size: self.size.take(),
            },
            Tag::Free => EventKind::Free {
                address: self.freed()?,
            },
            Tag::Realloc => {
                let entered_ns = self.entered_ns();
                let old_address = self.freed()?;
                let (new_address, size) = self.block(pid)?;
                EventKind::Realloc {
                    entered_ns,
                    old_address,
                    new_address,
                    size,
                    stack: self.stack()?,
                }
            }
            Tag::Stack => self.frames(row, pid)?,
            Tag::Fault => self.fault(pid)?,
            Tag::Syscall => EventKind::Syscall(Box::new(self.syscall(row)?)),
            Tag::Symbol => self.symbol(row, pid)?,
            Tag::Touch => self.touch(row)?,
            Tag::CommandLine => {
                let kind = self.detail(tag, row)?;
                self.refer(detail::bytes(&kind, self.detail.value(row)))?;
                kind
            }
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
            | Tag::Rename
            | Tag::Exit
            | Tag::Cgroup
            | Tag::HeapProbes
            | Tag::Counted
            | Tag::Probe
            | Tag::Sampling
            | Tag::TouchSampling
            | Tag::Machine => self.detail(tag, row)?,
        })
    }

    fn detail(&self, tag: Tag, row: usize) -> Result<EventKind, String> {
        detail::from_json(tag, self.detail.value(row))
            .map_err(|error| format!("detail of {}: {error}", tag.name()))
    }

    /// A row may say much in little, and rows of a batch are held together.
    fn refer(&mut self, bytes: usize) -> Result<(), String> {
        self.referred += bytes;
        if self.referred > BATCH_VARIABLE_BYTES + EVENT_BYTES {
            return Err("its batch says more than memtrace writes".to_owned());
        }
        Ok(())
    }

    /// What is in `detail` knows the stack by the id that it had.
    fn touch(&mut self, row: usize) -> Result<EventKind, String> {
        let mut kind = self.detail(Tag::Touch, row)?;
        let number = self.stack()?;
        if let EventKind::Touch { stack, .. } = &mut kind {
            *stack = number;
        }
        Ok(kind)
    }

    fn frames(&mut self, row: usize, pid: Pid) -> Result<EventKind, String> {
        let id = self.stack()?;
        let state = &mut self.state;
        state.path = state.path.wrapping_add(self.path_step.take().into());
        let number = u32::try_from(state.path).map_err(|_| "its path is not known")?;
        if number == state.known.next_path() {
            let end = self.stack_end.take().ok_or("its stack_end is unknown")?;
            let codes = list::<UInt32Type>(&self.frames, row)?;
            let (&shared, codes) = codes.split_last().ok_or("its path is not told")?;
            let added = state.known.add_path(codes, shared as usize, end);
            added.ok_or("it has more of the path before than there is")?;
        }
        let path = state.known.path(pid, number);
        let (frames, end) = path.ok_or("its path is not known")?;
        self.refer(size_of_val(frames.as_ref()))?;
        Ok(EventKind::Stack { id, frames, end })
    }

    fn fault(&mut self, pid: Pid) -> Result<EventKind, String> {
        let step = self.fault_address_step.take();
        self.state.fault_address = self.state.fault_address.wrapping_add_signed(step);
        let access = self.access.take();
        Ok(EventKind::Fault {
            address: self.state.fault_address,
            ip: self.frame(pid)?.1,
            latency_ns: (access & ACCESS.timed != 0).then(|| self.latency.take()),
            stack: self.stack()?,
            access: access_of(access),
        })
    }

    fn syscall(&mut self, row: usize) -> Result<Syscall, String> {
        let arguments = list::<UInt64Type>(&self.arguments, row)?;
        Ok(Syscall {
            call: self.call.take().ok_or("its call is unknown")?,
            entered_ns: self.entered_ns(),
            result: self.result.take(),
            arguments: (arguments.as_ref().try_into()).map_err(|_| "a call has five arguments")?,
            offset: self.offset.take(),
        })
    }

    fn symbol(&mut self, row: usize, pid: Pid) -> Result<EventKind, String> {
        let number = self.name.take();
        let state = &mut self.state;
        if number == state.known.next_name() {
            let text = self.detail.value(row);
            let name: Name = serde_json::from_str(text)
                .map_err(|error| format!("detail of a symbol: {error}"))?;
            let bytes = detail::name_bytes(text, name.functions.len());
            state.known.add_name(name, bytes);
        }
        let (code, frame) = self.frame(pid)?;
        let name = self.state.known.name(number);
        let (name, bytes) = name.ok_or("its name is not known")?;
        self.refer(bytes)?;
        Ok(EventKind::Symbol(Box::new(Symbol {
            frame,
            module: name.module.clone(),
            build_id: name.build_id.clone(),
            offset: name
                .offset
                .map(|more| code.offset.wrapping_add_signed(more)),
            functions: name.functions.clone(),
        })))
    }
}
