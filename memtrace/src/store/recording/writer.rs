//! Events → file.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_ipc::{
    CompressionType, MetadataVersion,
    writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions},
};
use arrow_schema::{ArrowError, SchemaRef};

use super::{
    BATCH_ROWS, BATCH_VARIABLE_BYTES, EVENT_BYTES, FRAME_BYTES, WriteError, detail, encode::Rows,
    frame, schema, summary,
};
use crate::event::{Event, EventKind};

/// It takes 3 % less room than the first level for 5 % more time; higher levels cost the machine that is being traced
/// more than they save.
const ZSTD_LEVEL: i32 = 3;

/// Writes a recording.
///
/// Without [`Writer::finish`] the recording has no end mark: it reads as one that was cut, and what
/// was collected since the last flush is not in it.
pub struct Writer {
    path: PathBuf,
    file: File,
    /// Bytes written, all of them whole messages.
    written: u64,
    failed: bool,
    /// The file still has what was in it before; the first write empties it.
    stale: bool,
    rows: Rows,
    encoder: Encoder,
}

/// Arrow's side of the writing, and its state over the whole stream.
struct Encoder {
    generator: IpcDataGenerator,
    dictionaries: DictionaryTracker,
    options: IpcWriteOptions,
    context: IpcWriteContext,
    /// Messages that were encoded and are not yet written.
    out: Vec<u8>,
}

impl Encoder {
    fn new() -> Result<Self, ArrowError> {
        let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5)?
            .try_with_compression(Some(CompressionType::ZSTD))?
            .try_with_compression_level(Some(ZSTD_LEVEL))?;
        Ok(Self {
            generator: IpcDataGenerator::default(),
            dictionaries: DictionaryTracker::new(true),
            options,
            context: IpcWriteContext::default(),
            out: Vec::new(),
        })
    }

    fn schema(&mut self, schema: &SchemaRef) {
        let message = self.generator.schema_to_bytes_with_dictionary_tracker(
            schema,
            &mut self.dictionaries,
            &self.options,
        );
        frame::append(&mut self.out, &message.ipc_message, &message.arrow_data);
    }

    fn batch(&mut self, rows: &mut Rows) -> Result<(), ArrowError> {
        let batch = rows.finish()?;
        let (dictionaries, batch) = self.generator.encode(
            &batch,
            &mut self.dictionaries,
            &self.options,
            &mut self.context,
        )?;
        for message in dictionaries.iter().chain([&batch]) {
            frame::append(&mut self.out, &message.ipc_message, &message.arrow_data);
        }
        Ok(())
    }
}

impl Writer {
    /// Creates the file, or empties it where it exists, and writes the schema.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, WriteError> {
        let path = path.as_ref().to_owned();
        let file = File::create(&path).map_err(|cause| WriteError::Create {
            path: path.clone(),
            cause,
        })?;
        Self::start(path, file, false)
    }

    /// Records to a file that is open for writing. A regular one is left as it is until the first batch
    /// is written, so that a trace that never starts takes no earlier recording with it.
    pub fn over(path: impl AsRef<Path>, file: File) -> Result<Self, WriteError> {
        let stale = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Self::start(path.as_ref().to_owned(), file, stale)
    }

    fn start(path: PathBuf, file: File, stale: bool) -> Result<Self, WriteError> {
        let schema = Arc::new(schema::schema());
        let mut encoder = Encoder::new().map_err(|error| WriteError::Encode {
            path: path.clone(),
            what: error.to_string(),
        })?;
        encoder.schema(&schema);
        let mut writer = Self {
            path,
            file,
            written: 0,
            failed: false,
            stale,
            rows: Rows::new(schema),
            encoder,
        };
        if !stale {
            writer.write_out()?;
        }
        Ok(writer)
    }

    /// Collects an event; a full batch is written to the file.
    ///
    /// After [`WriteError::EventTooLarge`] the recording goes on without that event; after any
    /// other error it has ended.
    pub fn write(&mut self, event: &Event) -> Result<(), WriteError> {
        if self.failed {
            return Err(WriteError::Ended {
                path: self.path.clone(),
                offset: self.written,
            });
        }
        let detail =
            (self.rows.detail_of(event)).map_err(|error| self.encode_error(error.to_string()))?;
        let bytes = match &event.kind {
            EventKind::Stack { frames, .. } => FRAME_BYTES * frames.len(),
            kind => (detail.as_ref()).map_or(0, |detail| detail::bytes(kind, detail)),
        };
        if bytes > EVENT_BYTES {
            let kind = schema::Tag::of(&event.kind).name();
            return Err(WriteError::EventTooLarge {
                path: self.path.clone(),
                kind,
                bytes,
                limit: EVENT_BYTES,
            });
        }
        self.rows.push(event, detail);
        if self.rows.len() >= BATCH_ROWS || self.rows.variable_bytes() >= BATCH_VARIABLE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Ends the batch and hands it to the system: it survives the end of this process.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        if self.failed {
            return Err(WriteError::Ended {
                path: self.path.clone(),
                offset: self.written,
            });
        }
        if self.rows.len() == 0 {
            return Ok(());
        }
        if let Err(error) = self.encoder.batch(&mut self.rows) {
            self.failed = true;
            return Err(self.encode_error(error.to_string()));
        }
        self.write_out()
    }

    /// Writes what is left, and the end mark. Returns the size of the recording in bytes.
    pub fn finish(mut self) -> Result<u64, WriteError> {
        self.flush()?;
        self.encoder.out.extend_from_slice(&frame::END);
        self.write_out()?;
        Ok(self.written)
    }

    /// As [`Writer::finish`], with a summary that [`Reader::summary`](super::Reader::summary) gives.
    pub fn finish_with(mut self, summary: &[u8]) -> Result<u64, WriteError> {
        self.flush()?;
        self.encoder.out.extend_from_slice(&frame::END);
        summary::append(&mut self.encoder.out, summary)
            .map_err(|error| self.encode_error(error.to_string()))?;
        self.write_out()?;
        Ok(self.written)
    }

    /// Where the recording is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file so far.
    pub fn bytes_written(&self) -> u64 {
        self.written
    }

    fn write_out(&mut self) -> Result<(), WriteError> {
        let emptied = if self.stale {
            self.stale = false;
            self.file.set_len(0)
        } else {
            Ok(())
        };
        let written = emptied.and_then(|()| self.file.write_all(&self.encoder.out));
        if let Err(cause) = written {
            self.failed = true;
            // Half a message is of no use to anybody; where it cannot be taken back, readers stop before it.
            let _ = self.file.set_len(self.written);
            return Err(WriteError::Write {
                path: self.path.clone(),
                offset: self.written,
                cause,
            });
        }
        self.written += self.encoder.out.len() as u64;
        self.encoder.out.clear();
        Ok(())
    }

    fn encode_error(&self, what: String) -> WriteError {
        WriteError::Encode {
            path: self.path.clone(),
            what,
        }
    }

    #[cfg(test)]
    pub(super) fn replace_file(&mut self, file: File) {
        self.file = file;
    }
}
