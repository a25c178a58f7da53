//! How the columns of a recording are read.

use arrow_array::{
    Array, ArrowPrimitiveType, DictionaryArray, Int8Array, ListArray, PrimitiveArray, RecordBatch,
    UInt8Array, UInt64Array,
    cast::AsArray as _,
    types::{Int8Type, UInt8Type, UInt64Type},
};

use super::schema::plane;

/// A column of names, each resolved once per batch. `None` is a name this memtrace does not know.
pub(super) struct Named<T> {
    keys: Int8Array,
    values: Vec<Option<T>>,
}

impl<T: Copy> Named<T> {
    pub(super) fn new(
        batch: &RecordBatch,
        name: &str,
        known: &[(T, &str)],
    ) -> Result<Self, String> {
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

    pub(super) fn get(&self, row: usize) -> Option<T> {
        *self
            .values
            .get(usize::try_from(self.keys.value(row)).ok()?)?
    }
}

/// A column of which only some rows have a value: the next one is the next such row's.
pub(super) struct Packed<T> {
    column: T,
    next: usize,
}

impl<T> Packed<T> {
    pub(super) fn new(column: T) -> Self {
        Self { column, next: 0 }
    }

    /// The place of the next value. A row takes one at most, so there is one for each.
    fn advance(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }
}

impl<T: Copy> Packed<Named<T>> {
    pub(super) fn take(&mut self) -> Option<T> {
        let at = self.advance();
        self.column.get(at)
    }
}

impl<P: ArrowPrimitiveType> Packed<PrimitiveArray<P>> {
    pub(super) fn take(&mut self) -> P::Native {
        let at = self.advance();
        self.column.value(at)
    }
}

impl Packed<Planes> {
    pub(super) fn take(&mut self) -> u64 {
        let at = self.advance();
        self.column.get(at)
    }
}

/// A number of which the three lowest bytes are in columns of their own.
pub(super) struct Planes {
    bytes: [UInt8Array; 3],
    above: UInt64Array,
}

impl Planes {
    pub(super) fn new(batch: &RecordBatch, name: &str) -> Result<Self, String> {
        let byte = |index| numbers::<UInt8Type>(batch, &plane(name, index));
        Ok(Self {
            bytes: [byte(0)?, byte(1)?, byte(2)?],
            above: numbers::<UInt64Type>(batch, &plane(name, 3))?,
        })
    }

    pub(super) fn get(&self, row: usize) -> u64 {
        let [low, middle, high] = [0, 1, 2].map(|at| u64::from(self.bytes[at].value(row)));
        low | middle << 8 | high << 16 | self.above.value(row) << 24
    }
}

pub(super) fn column<'b, T>(
    batch: &'b RecordBatch,
    name: &str,
    cast: impl Fn(&'b dyn Array) -> Option<&'b T>,
) -> Result<&'b T, String> {
    let array = batch
        .column_by_name(name)
        .ok_or_else(|| format!("there is no column {name}"))?;
    cast(array.as_ref()).ok_or_else(|| format!("the column {name} has another type"))
}

pub(super) fn numbers<P: ArrowPrimitiveType>(
    batch: &RecordBatch,
    name: &str,
) -> Result<PrimitiveArray<P>, String> {
    column(batch, name, |array| array.as_primitive_opt::<P>()).cloned()
}

pub(super) fn list<P: ArrowPrimitiveType>(
    column: &ListArray,
    row: usize,
) -> Result<Box<[P::Native]>, String> {
    let items = column.value(row);
    let numbers = items.as_primitive_opt::<P>();
    let numbers = numbers.ok_or("a list has another type")?;
    Ok(numbers.values().as_ref().into())
}
