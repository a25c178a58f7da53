//! The batches of a recording for other programs: with times and addresses where the file has differences.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, UInt64Array, cast::AsArray as _, types::Int64Type};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};

use super::schema::schema;

/// A column of differences, and what it becomes.
const SUMS: [(&str, &str); 2] = [("time_step_ns", "time_ns"), ("address_step", "address")];

/// The columns of [`Sums::take`].
pub(super) fn absolute_schema() -> SchemaRef {
    let schema = schema();
    let fields = schema.fields().iter().map(|field| {
        let sum = SUMS.iter().find(|(step, _)| step == field.name());
        match sum {
            Some((_, name)) => Arc::new(Field::new(*name, DataType::UInt64, field.is_nullable())),
            None => Arc::clone(field),
        }
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// What the differences add up to so far, of each of [`SUMS`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums([u64; SUMS.len()]);

impl Sums {
    /// The batch with sums. Batches must come in their order.
    pub(super) fn take(&mut self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let schema = batch.schema();
        let columns = batch
            .columns()
            .iter()
            .zip(schema.fields())
            .map(|(column, field)| {
                let sum = SUMS.iter().position(|(step, _)| step == field.name());
                match (sum, column.as_primitive_opt::<Int64Type>()) {
                    (Some(index), Some(steps)) => {
                        let sum = &mut self.0[index];
                        let mut add = |step: i64| {
                            *sum = sum.wrapping_add(step as u64);
                            *sum
                        };
                        let sums = steps.iter().map(|step| step.map(&mut add));
                        Arc::new(sums.collect::<UInt64Array>()) as ArrayRef
                    }
                    _ => Arc::clone(column),
                }
            });
        RecordBatch::try_new(absolute_schema(), columns.collect())
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
