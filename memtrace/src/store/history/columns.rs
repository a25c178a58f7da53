//! The history's tables as columns, for other programs.

use std::{path::Path, sync::Arc};

use arrow_array::{
    ArrayRef, RecordBatch,
    builder::{BinaryBuilder, Float64Builder, Int64Builder, StringBuilder},
    types::TimestampMillisecondType,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use rusqlite::{Rows, types::ValueRef};

use super::{error::HistoryError, open};

/// Rows that are held at a time.
const ROWS: usize = 65_536;

/// What can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Table {
    /// A row for each process.
    Processes,
    /// Points a second apart, each with what tells whose it is.
    #[value(name = "points-1s")]
    Points1s,
    /// Points ten seconds apart.
    #[value(name = "points-10s")]
    Points10s,
    /// Points five minutes apart.
    #[value(name = "points-5min")]
    Points5min,
    /// Sites that grew, each with its stack and what tells whose it is.
    Growth,
    /// What happened to the daemon: gaps, losses, what was left out.
    Events,
    /// Named moments.
    Marks,
}

/// What a column holds.
#[derive(Clone, Copy)]
enum Kind {
    /// Milliseconds since 1970.
    Time,
    Number,
    Real,
    Text,
    Bytes,
}

type Column = (&'static str, Kind);

const WHOSE: [Column; 6] = [
    ("pid", Kind::Number),
    ("parent_pid", Kind::Number),
    ("comm", Kind::Text),
    ("exe", Kind::Text),
    ("cgroup", Kind::Text),
    ("container", Kind::Text),
];

const SAMPLE: [Column; 11] = [
    ("time_ms", Kind::Time),
    ("process", Kind::Number),
    ("reserved", Kind::Number),
    ("committed", Kind::Number),
    ("committed_peak", Kind::Number),
    ("heap_live", Kind::Number),
    ("minor", Kind::Number),
    ("major", Kind::Number),
    ("minor_ns", Kind::Number),
    ("major_ns", Kind::Number),
    ("faults", Kind::Bytes),
];

const PROCESS: [Column; 13] = [
    ("id", Kind::Number),
    ("start_ms", Kind::Time),
    ("end_ms", Kind::Time),
    ("command_line", Kind::Text),
    ("exit_code", Kind::Number),
    ("exit_signal", Kind::Number),
    ("peak_reserved", Kind::Number),
    ("peak_committed", Kind::Number),
    ("minor", Kind::Number),
    ("major", Kind::Number),
    ("minor_ns", Kind::Number),
    ("major_ns", Kind::Number),
    ("faults", Kind::Bytes),
];

const GROWTH: [Column; 14] = [
    ("time_ms", Kind::Time),
    ("process", Kind::Number),
    ("stack", Kind::Number),
    ("since_ms", Kind::Time),
    ("bytes", Kind::Number),
    ("bytes_error", Kind::Number),
    ("samples", Kind::Number),
    ("bytes_per_second", Kind::Real),
    ("bytes_per_second_error", Kind::Real),
    ("confidence", Kind::Real),
    ("over_ms", Kind::Number),
    ("leak_candidate", Kind::Number),
    ("oldest_ms", Kind::Time),
    ("newest_ms", Kind::Time),
];

const STACK: [Column; 2] = [("stack_end", Kind::Text), ("frames", Kind::Text)];

const EVENT: [Column; 5] = [
    ("time_ms", Kind::Time),
    ("end_ms", Kind::Time),
    ("kind", Kind::Text),
    ("count", Kind::Number),
    ("detail", Kind::Text),
];

const MARK: [Column; 2] = [("name", Kind::Text), ("time_ms", Kind::Time)];

impl Table {
    /// Columns with the name of the table that each is of, where there are two.
    fn columns(self) -> Vec<(&'static str, Column)> {
        let of = |table, columns: &[Column]| {
            let named = columns.iter().map(|&column| (table, column));
            named.collect::<Vec<_>>()
        };
        match self {
            Self::Processes => [of("p", &WHOSE), of("p", &PROCESS)].concat(),
            Self::Points1s | Self::Points10s | Self::Points5min => {
                [of("s", &SAMPLE), of("p", &WHOSE)].concat()
            }
            Self::Growth => [of("g", &GROWTH), of("k", &STACK), of("p", &WHOSE)].concat(),
            Self::Events => of("event", &EVENT),
            Self::Marks => of("mark", &MARK),
        }
    }

    fn source(self) -> &'static str {
        match self {
            Self::Processes => "process p ORDER BY p.id",
            Self::Points1s => "sample_1s s JOIN process p ON p.id = s.process ORDER BY s.time_ms",
            Self::Points10s => "sample_10s s JOIN process p ON p.id = s.process ORDER BY s.time_ms",
            Self::Points5min => {
                "sample_5min s JOIN process p ON p.id = s.process ORDER BY s.time_ms"
            }
            Self::Growth => {
                "growth g JOIN process p ON p.id = g.process JOIN stack k ON k.id = g.stack \
                 ORDER BY g.time_ms"
            }
            Self::Events => "event ORDER BY time_ms",
            Self::Marks => "mark ORDER BY rowid",
        }
    }

    /// The columns' names and types.
    pub fn schema(self) -> SchemaRef {
        let fields = self.columns().into_iter().map(|(_, (name, kind))| {
            let utc = || Some("UTC".into());
            let (name, data_type) = match kind {
                Kind::Time => (
                    name.trim_end_matches("_ms"),
                    DataType::Timestamp(TimeUnit::Millisecond, utc()),
                ),
                Kind::Number => (name, DataType::Int64),
                Kind::Real => (name, DataType::Float64),
                Kind::Text => (name, DataType::Utf8),
                Kind::Bytes => (name, DataType::Binary),
            };
            Field::new(name, data_type, true)
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }
}

/// Gives a table to `each`, some rows at a time, as one state of the database.
pub fn read<E: From<HistoryError>>(
    path: &Path,
    table: Table,
    mut each: impl FnMut(&RecordBatch) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |source| HistoryError::Database {
        path: path.to_owned(),
        source,
    };
    let connection = open::open_to_read(path)?;
    let columns = table.columns();
    let names = columns.iter().map(|(of, (name, _))| format!("{of}.{name}"));
    let names = names.collect::<Vec<_>>().join(", ");
    let sql = format!("SELECT {names} FROM {}", table.source());
    let mut statement = connection.prepare(&sql).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    loop {
        let batch = batch(&mut rows, table).map_err(failed)?;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        each(&batch)?;
    }
}

/// The next rows; none at the end.
fn batch(rows: &mut Rows<'_>, table: Table) -> rusqlite::Result<RecordBatch> {
    let kinds = table.columns().into_iter().map(|(_, (_, kind))| kind);
    let mut builders: Vec<Builder> = kinds.map(Builder::of).collect();
    for _ in 0..ROWS {
        let Some(row) = rows.next()? else { break };
        for (index, builder) in builders.iter_mut().enumerate() {
            if !builder.append(row.get_ref(index)?) {
                let what = "another type than the table has".to_owned();
                let found = row.get_ref(index)?.data_type();
                return Err(rusqlite::Error::InvalidColumnType(index, what, found));
            }
        }
    }
    let columns = builders.into_iter().map(Builder::finish).collect();
    RecordBatch::try_new(table.schema(), columns)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// One column under way.
enum Builder {
    Time(Int64Builder),
    Number(Int64Builder),
    Real(Float64Builder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
}

impl Builder {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Time => Self::Time(Int64Builder::new()),
            Kind::Number => Self::Number(Int64Builder::new()),
            Kind::Real => Self::Real(Float64Builder::new()),
            Kind::Text => Self::Text(StringBuilder::new()),
            Kind::Bytes => Self::Bytes(BinaryBuilder::new()),
        }
    }

    /// False where the value is of another type.
    fn append(&mut self, value: ValueRef<'_>) -> bool {
        match (self, value) {
            (Self::Time(to) | Self::Number(to), ValueRef::Integer(number)) => {
                to.append_value(number);
            }
            (Self::Time(to) | Self::Number(to), ValueRef::Null) => to.append_null(),
            (Self::Real(to), ValueRef::Real(number)) => to.append_value(number),
            (Self::Real(to), ValueRef::Null) => to.append_null(),
            (Self::Text(to), ValueRef::Text(text)) => {
                to.append_value(String::from_utf8_lossy(text));
            }
            (Self::Text(to), ValueRef::Null) => to.append_null(),
            (Self::Bytes(to), ValueRef::Blob(bytes)) => to.append_value(bytes),
            (Self::Bytes(to), ValueRef::Null) => to.append_null(),
            _ => return false,
        }
        true
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Time(mut column) => {
                let times = column
                    .finish()
                    .reinterpret_cast::<TimestampMillisecondType>();
                Arc::new(times.with_timezone("UTC"))
            }
            Self::Number(mut column) => Arc::new(column.finish()),
            Self::Real(mut column) => Arc::new(column.finish()),
            Self::Text(mut column) => Arc::new(column.finish()),
            Self::Bytes(mut column) => Arc::new(column.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::history::{Batch, Identity, Retention, Row, Writer};
    use arrow_array::{
        Array as _,
        cast::AsArray as _,
        types::{Float64Type, Int64Type},
    };

    const START: i64 = 1_700_000_000_000;

    #[test]
    fn points_say_whose_they_are_and_keep_what_was_not_measured_null() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("h");
        let retention = Retention {
            keep_ms: [3_600_000, 86_400_000, 30 * 86_400_000],
            bytes: 64 << 20,
        };
        let mut writer = Writer::open(&path, retention, START).unwrap();
        for second in 1..=100 {
            let identity = Identity {
                comm: "grows".into(),
                start_ms: START,
                ..Identity::default()
            };
            let row = Row {
                key: (7, 1),
                identity: (second == 1).then_some(identity),
                reserved: 1 << 20,
                committed: 4096 * second,
                heap_live: (second > 50).then_some(second),
                minor: second,
                major: 0,
                minor_ns: 0,
                major_ns: 0,
                buckets: Vec::new(),
                growth: Vec::new(),
            };
            let batch = Batch {
                time_ms: START + 1000 * second as i64,
                rows: vec![row],
                ..Batch::default()
            };
            writer.write(&batch).unwrap();
        }
        let of = |table: Table| {
            let mut batches = Vec::new();
            let kept = read(&path, table, |batch| -> Result<(), HistoryError> {
                batches.push(batch.clone());
                Ok(())
            });
            kept.unwrap();
            batches
        };
        let [points] = &of(Table::Points1s)[..] else {
            panic!("one batch");
        };
        assert_eq!(points.schema(), Table::Points1s.schema());
        let column = |name: &str| points.column_by_name(name).unwrap();
        let committed = column("committed").as_primitive::<Int64Type>();
        let expected: Vec<i64> = (1..=100).map(|second| 4096 * second).collect();
        assert_eq!(committed.values(), &expected[..]);
        let times = column("time").as_primitive::<TimestampMillisecondType>();
        assert_eq!(times.value(0), START + 1000);
        assert_eq!(column("heap_live").null_count(), 50);
        assert!(
            column("comm")
                .as_string::<i32>()
                .iter()
                .all(|comm| comm == Some("grows"))
        );
        assert_eq!(of(Table::Processes)[0].num_rows(), 1);
        assert_eq!(of(Table::Events)[0].num_rows(), 1, "the start");
        assert!(of(Table::Marks).is_empty());
        let connection = rusqlite::Connection::open(&path).unwrap();
        let rows = "INSERT INTO stack VALUES (5, 'start', '[]'); \
                    INSERT INTO growth VALUES (2000, 1, 5, 1000, 4096, 64, 3, 1.5, 0.5, 0.99, 60000, 1, 1500, 1900);";
        connection.execute_batch(rows).unwrap();
        let growth = &of(Table::Growth)[0];
        let rate = growth.column_by_name("bytes_per_second").unwrap();
        assert_eq!(rate.as_primitive::<Float64Type>().values(), &[1.5]);
        let frames = growth.column_by_name("frames").unwrap();
        assert_eq!(frames.as_string::<i32>().value(0), "[]");
    }
}
