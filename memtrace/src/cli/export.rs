//! `memtrace export`: a recording, or a table of the daemon's history, as a Parquet file.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{complain, status};
use crate::{
    daemon::Config,
    store::{
        history::columns::{self, Table},
        parquet::ParquetFile,
        recording::Reader,
    },
};

/// Arguments of `export`.
#[derive(Args)]
pub struct Export {
    /// Which table of the history.
    #[arg(
        value_enum,
        required_unless_present = "from",
        conflicts_with = "from",
        value_name = "TABLE"
    )]
    table: Option<Table>,
    /// The events of this recording in place of the history.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The history [default: /var/lib/memtrace/history.sqlite]
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    history: Option<PathBuf>,
    /// The Parquet file; what is there stays until the new one is whole.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl Export {
    /// Reads and writes, some ten thousand rows at a time.
    pub fn execute(self) -> Result<u8> {
        match (self.table, self.from) {
            (Some(table), _) => {
                let path = self
                    .history
                    .unwrap_or_else(|| Config::default().history_path());
                let mut file = ParquetFile::create(&self.output, table.schema())?;
                columns::read(&path, table, |batch| -> Result<()> {
                    Ok(file.write(batch)?)
                })?;
                file.finish()?;
            }
            (None, Some(from)) => {
                let mut reader = Reader::open(&from)?;
                let mut file = ParquetFile::create(&self.output, Reader::columns_schema())?;
                reader.columns(|batch| -> Result<()> { Ok(file.write(batch)?) })?;
                file.finish()?;
                if reader.truncated() {
                    complain(&format!(
                        "{} was cut: what is whole is there",
                        from.display()
                    ));
                }
            }
            (None, None) => return Err(super::usage("neither a table nor a recording is named")),
        }
        Ok(status::DONE)
    }
}
