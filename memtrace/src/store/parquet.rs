//! Parquet files: one table each, for any engine that reads them.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
};
use tempfile::NamedTempFile;

/// Why a file is not written.
#[derive(Debug, thiserror::Error)]
pub enum ParquetFileError {
    /// The system refused.
    #[error("cannot write {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The table cannot be encoded, or the disk is full.
    #[error("cannot write {path}: {source}", path = path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ParquetError,
    },
}

/// A file that is being written, under another name until it is whole.
pub struct ParquetFile {
    path: PathBuf,
    writer: ArrowWriter<File>,
    unfinished: NamedTempFile,
}

impl ParquetFile {
    /// Begins one. What is at `path` stays until this is finished; only its owner may read it, since it may hold
    /// command lines.
    pub fn create(path: &Path, schema: SchemaRef) -> Result<Self, ParquetFileError> {
        let failed = |source| ParquetFileError::File {
            path: path.to_owned(),
            source,
        };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let unfinished = NamedTempFile::new_in(directory).map_err(failed)?;
        let file = unfinished.reopen().map_err(failed)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .build();
        let writer = ArrowWriter::try_new(file, schema, Some(properties));
        Ok(Self {
            path: path.to_owned(),
            writer: writer.map_err(|source| ParquetFileError::Encode {
                path: path.to_owned(),
                source,
            })?,
            unfinished,
        })
    }

    /// Adds rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), ParquetFileError> {
        let written = self.writer.write(batch);
        written.map_err(|source| ParquetFileError::Encode {
            path: self.path.clone(),
            source,
        })
    }

    /// Puts the file in its place.
    pub fn finish(self) -> Result<(), ParquetFileError> {
        let path = self.path;
        if let Err(source) = self.writer.close() {
            return Err(ParquetFileError::Encode { path, source });
        }
        match self.unfinished.persist(&path) {
            Ok(_) => Ok(()),
            Err(error) => Err(ParquetFileError::File {
                path,
                source: error.error,
            }),
        }
    }
}
