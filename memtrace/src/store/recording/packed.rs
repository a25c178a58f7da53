//! How the columns of a recording are collected.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, ArrowPrimitiveType, DictionaryArray, Int8Array, PrimitiveArray, StringArray,
    builder::{ListBuilder, PrimitiveBuilder},
    types::{Int8Type, UInt8Type, UInt64Type},
};
use arrow_schema::{ArrowError, Field};

use super::schema::item;

/// A column that not every row has a value of: the values stand together, zeros follow.
#[derive(Default)]
pub(super) struct Packed<T>(Vec<T>);

impl<T: Copy + Default> Packed<T> {
    pub(super) fn push(&mut self, value: T) {
        self.0.push(value);
    }

    pub(super) fn finish<P: ArrowPrimitiveType<Native = T>>(
        &mut self,
        rows: usize,
    ) -> PrimitiveArray<P> {
        self.0.resize(rows, T::default());
        PrimitiveArray::from_iter_values(self.0.drain(..))
    }
}

/// A number in four columns: its three lowest bytes, and what is above them. zstd takes bytes as a whole, and sees
/// no more in a word of which the lowest is random.
#[derive(Default)]
pub(super) struct Planes {
    bytes: [Packed<u8>; 3],
    above: Packed<u64>,
}

impl Planes {
    pub(super) fn push(&mut self, value: u64) {
        let lowest = value.to_le_bytes();
        for (plane, byte) in self.bytes.iter_mut().zip(lowest) {
            plane.push(byte);
        }
        self.above.push(value >> 24);
    }

    pub(super) fn finish(&mut self, rows: usize, columns: &mut Vec<ArrayRef>) {
        for plane in &mut self.bytes {
            columns.push(Arc::new(plane.finish::<UInt8Type>(rows)));
        }
        columns.push(Arc::new(self.above.finish::<UInt64Type>(rows)));
    }
}

/// A difference to the value before, with its sign in the lowest bit: small where the values are near each other.
#[derive(Default)]
pub(super) struct Step(u64);

impl Step {
    pub(super) fn to(&mut self, value: u64) -> u64 {
        zigzag(value.wrapping_sub(std::mem::replace(&mut self.0, value)))
    }
}

pub(super) fn zigzag(difference: u64) -> u64 {
    difference << 1 ^ (difference as i64 >> 63) as u64
}

pub(super) fn unzigzag(step: u64) -> u64 {
    step >> 1 ^ (step & 1).wrapping_neg()
}

/// A column of lists of numbers; empty where there is none.
pub(super) struct Lists<P: ArrowPrimitiveType> {
    builder: ListBuilder<PrimitiveBuilder<P>>,
    rows: usize,
}

impl<P: ArrowPrimitiveType> Lists<P> {
    pub(super) fn new() -> Self {
        let field = Field::clone(&item(P::DATA_TYPE));
        Self {
            builder: ListBuilder::new(PrimitiveBuilder::new()).with_field(field),
            rows: 0,
        }
    }

    pub(super) fn set(&mut self, row: usize, numbers: &[P::Native]) {
        self.pad(row);
        self.builder.values().append_slice(numbers);
        self.builder.append(true);
        self.rows += 1;
    }

    fn pad(&mut self, rows: usize) {
        (self.rows..rows).for_each(|_| self.builder.append(true));
        self.rows = rows;
    }

    pub(super) fn finish(&mut self, rows: usize) -> ArrayRef {
        self.pad(rows);
        self.rows = 0;
        Arc::new(self.builder.finish())
    }
}

/// What a column of names takes from: sent once per recording, so it must stay the same array.
pub(super) struct Names(ArrayRef);

impl Names {
    pub(super) fn new(names: impl Iterator<Item = &'static str>) -> Self {
        Self(Arc::new(names.map(Some).collect::<StringArray>()))
    }

    pub(super) fn column(&self, keys: Int8Array) -> Result<ArrayRef, ArrowError> {
        let array = DictionaryArray::<Int8Type>::try_new(keys, Arc::clone(&self.0))?;
        Ok(Arc::new(array))
    }
}
