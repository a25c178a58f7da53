//! The columns of a record batch → events.

use arrow_array::{
    Array, ArrowPrimitiveType, DictionaryArray, Int8Array, Int32Array, Int64Array, ListArray,
    PrimitiveArray, RecordBatch, StringArray, UInt8Array, UInt32Array, UInt64Array,
    cast::AsArray as _,
    types::{Int8Type, Int32Type, Int64Type, UInt8Type, UInt32Type, UInt64Type},
};
use memtrace_common::{heap::Function, record::Call, unwind::End};

use super::{
    BATCH_VARIABLE_BYTES, EVENT_BYTES,
    detail::{self, Name},
    schema::{ACCESS, CALLS, ENDS, FUNCTIONS, Tag, access_of, plane},
    tables::{Code, Known},
};
use crate::event::{Event, EventKind, Pid, StackId, Symbol, Syscall};

/// A column of names, each resolved once per batch. `None` is a name this memtrace does not know.
struct Named<T> {
    keys: Int8Array,
    values: Vec<Option<T>>,
}

impl<T: Copy> Named<T> {
    fn new(batch: &RecordBatch, name: &str, known: &[(T, &str)]) -> Result<Self, String> {
        let column: &DictionaryArray<Int8Type> =
            column(batch, name, |array| array.as_dictionary_opt())?;
        let names = column
            .values()
            .as_string_opt::<i32>()
            .ok_or("a dictionary is not of names")?;
        let find = |name| known.iter().find(|known| known.1 == name);
        let values = names.iter().map(|name| Some(find(name?)?.0)).collect();
        Ok(Self {
            keys: column.keys().clone(),
            values,
        })
    }

    fn get(&self, row: usize) -> Option<T> {
        *self
            .values
            .get(usize::try_from(self.keys.value(row)).ok()?)?
    }
}

/// A number of which the three lowest bytes are in columns of their own.
struct Planes {
    bytes: [UInt8Array; 3],
    above: UInt64Array,
}

impl Planes {
    fn new(batch: &RecordBatch, name: &str) -> Result<Self, String> {
        let byte = |index| numbers::<UInt8Type>(batch, &plane(name, index));
        Ok(Self {
            bytes: [byte(0)?, byte(1)?, byte(2)?],
            above: numbers::<UInt64Type>(batch, &plane(name, 3))?,
        })
    }

    fn get(&self, row: usize) -> u64 {
        let [low, middle, high] = [0, 1, 2].map(|at| u64::from(self.bytes[at].value(row)));
        low | middle << 8 | high << 16 | self.above.value(row) << 24
    }

    /// A difference with its sign in the lowest bit.
    fn step(&self, row: usize) -> u64 {
        let step = self.get(row);
        step >> 1 ^ (step & 1).wrapping_neg()
    }
}

/// What the next row's numbers lead on from.
#[derive(Debug, Default)]
pub(super) struct State {
    time_ns: u64,
    address: u64,
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
    function: Named<Function>,
    address_step: Planes,
    size: Planes,
    stack: Planes,
    old_address_step: Int64Array,
    path_step: Int32Array,
    frames: ListArray,
    stack_end: Named<End>,
    fault_address_step: Int64Array,
    code: UInt32Array,
    latency: Planes,
    access: UInt8Array,
    call: Named<Call>,
    arguments: ListArray,
    offset: UInt64Array,
    result: Int64Array,
    name: UInt32Array,
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
            function: Named::new(batch, "function", &FUNCTIONS)?,
            address_step: Planes::new(batch, "address_step")?,
            size: Planes::new(batch, "size")?,
            stack: Planes::new(batch, "stack")?,
            old_address_step: numbers::<Int64Type>(batch, "old_address_step")?,
            path_step: numbers::<Int32Type>(batch, "path_step")?,
            frames: lists("frames")?,
            stack_end: Named::new(batch, "stack_end", &ENDS)?,
            fault_address_step: numbers::<Int64Type>(batch, "fault_address_step")?,
            code: numbers::<UInt32Type>(batch, "code")?,
            latency: Planes::new(batch, "latency")?,
            access: numbers::<UInt8Type>(batch, "access")?,
            call: Named::new(batch, "call", &CALLS)?,
            arguments: lists("arguments")?,
            offset: numbers::<UInt64Type>(batch, "offset")?,
            result: numbers::<Int64Type>(batch, "result")?,
            name: numbers::<UInt32Type>(batch, "name")?,
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
        self.state.time_ns = time_ns.wrapping_add(self.time_step.step(row));
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

    fn address(&mut self, row: usize) -> u64 {
        let step = self.address_step.step(row);
        self.state.address = self.state.address.wrapping_add(step);
        self.state.address
    }

    fn function(&self, row: usize) -> Result<Function, String> {
        Ok(self.function.get(row).ok_or("its function is unknown")?)
    }

    fn stack(&mut self, row: usize) -> Result<StackId, String> {
        self.state.stack(self.stack.get(row))
    }

    /// When what is told by this row began.
    fn entered_ns(&self, row: usize) -> u64 {
        self.state.time_ns.wrapping_sub(self.latency.get(row))
    }

    fn kind(&mut self, tag: Tag, row: usize, pid: Pid) -> Result<EventKind, String> {
        Ok(match tag {
            Tag::Alloc => EventKind::Alloc {
                function: self.function(row)?,
                address: self.address(row),
                size: self.size.get(row),
                stack: self.stack(row)?,
            },
            Tag::AllocFailed => EventKind::AllocFailed {
                function: self.function(row)?,
                size: self.size.get(row),
            },
            Tag::Free => EventKind::Free {
                address: self.address(row),
            },
            Tag::Realloc => {
                let new_address = self.address(row);
                EventKind::Realloc {
                    entered_ns: self.entered_ns(row),
                    old_address: new_address.wrapping_add_signed(self.old_address_step.value(row)),
                    new_address,
                    size: self.size.get(row),
                    stack: self.stack(row)?,
                }
            }
            Tag::Stack => self.frames(row, pid)?,
            Tag::Fault => self.fault(row, pid)?,
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
        let number = self.stack(row)?;
        if let EventKind::Touch { stack, .. } = &mut kind {
            *stack = number;
        }
        Ok(kind)
    }

    fn frames(&mut self, row: usize, pid: Pid) -> Result<EventKind, String> {
        let id = self.stack(row)?;
        let state = &mut self.state;
        state.path = state.path.wrapping_add(self.path_step.value(row).into());
        let number = u32::try_from(state.path).map_err(|_| "its path is not known")?;
        if number == state.known.next_path() {
            let end = self.stack_end.get(row).ok_or("its stack_end is unknown")?;
            let codes = list::<UInt32Type>(&self.frames, row)?;
            state.known.add_path(&codes, end);
        }
        let path = state.known.path(pid, number);
        let (frames, end) = path.ok_or("its path is not known")?;
        self.refer(size_of_val(frames.as_ref()))?;
        Ok(EventKind::Stack { id, frames, end })
    }

    fn fault(&mut self, row: usize, pid: Pid) -> Result<EventKind, String> {
        let step = self.fault_address_step.value(row);
        self.state.fault_address = self.state.fault_address.wrapping_add_signed(step);
        let access = self.access.value(row);
        Ok(EventKind::Fault {
            address: self.state.fault_address,
            ip: self.state.code(pid, self.code.value(row))?.1,
            latency_ns: (access & ACCESS.timed != 0).then(|| self.latency.get(row)),
            stack: self.stack(row)?,
            access: access_of(access),
        })
    }

    fn syscall(&self, row: usize) -> Result<Syscall, String> {
        let arguments = list::<UInt64Type>(&self.arguments, row)?;
        Ok(Syscall {
            call: self.call.get(row).ok_or("its call is unknown")?,
            entered_ns: self.entered_ns(row),
            result: self.result.value(row),
            arguments: (arguments.as_ref().try_into()).map_err(|_| "a call has five arguments")?,
            offset: self.offset.value(row),
        })
    }

    fn symbol(&mut self, row: usize, pid: Pid) -> Result<EventKind, String> {
        let number = self.name.value(row);
        let state = &mut self.state;
        if number == state.known.next_name() {
            let text = self.detail.value(row);
            let name: Name = serde_json::from_str(text)
                .map_err(|error| format!("detail of a symbol: {error}"))?;
            let bytes = detail::name_bytes(text, name.functions.len());
            state.known.add_name(name, bytes);
        }
        let (code, frame) = state.code(pid, self.code.value(row))?;
        let name = state.known.name(number);
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
) -> Result<PrimitiveArray<P>, String> {
    column(batch, name, |array| array.as_primitive_opt::<P>()).cloned()
}

fn list<P: ArrowPrimitiveType>(column: &ListArray, row: usize) -> Result<Box<[P::Native]>, String> {
    let items = column.value(row);
    let numbers = items.as_primitive_opt::<P>();
    let numbers = numbers.ok_or("a list has another type")?;
    Ok(numbers.values().as_ref().into())
}
