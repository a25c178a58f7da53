//! File → events.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::{
    convert::try_fb_to_schema,
    reader::{read_dictionary, read_record_batch},
};
use arrow_schema::{ArrowError, Schema, SchemaRef};

use super::{
    ReadError,
    decode::{Rows, State as Rest},
    frame::{self, Frame, Next},
    schema::{self, FORMAT_KEY, FORMAT_VERSION, PROGRAM_KEY},
    summary,
    wide::{self, Table},
};
use crate::event::Event;

/// Bytes asked of the system at once.
const SOURCE_BYTES: usize = 64 * 1024;

/// A file, or what a test puts in its place.
type Source = BufReader<Box<dyn Read + Send>>;

/// Reads a recording, a batch at a time.
pub struct Reader {
    path: PathBuf,
    source: Source,
    /// Where the next message begins.
    offset: u64,
    size: u64,
    schema: SchemaRef,
    dictionaries: HashMap<i64, ArrayRef>,
    written_by: String,
    /// The batch that events are taken from, and where it began.
    batch: Option<(u64, Rows)>,
    /// What the batch after that one leads on from.
    rest: Rest,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Ended,
    Truncated,
    Failed,
}

impl Reader {
    /// Opens a recording and reads its schema. One that was cut before the schema was whole has no
    /// events and is truncated.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ReadError> {
        let path = path.as_ref().to_owned();
        let file = File::open(&path).map_err(|cause| ReadError::Open {
            path: path.clone(),
            cause,
        })?;
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        Self::from_source(path, Box::new(file), size)
    }

    pub(super) fn from_source(
        path: PathBuf,
        source: Box<dyn Read + Send>,
        size: u64,
    ) -> Result<Self, ReadError> {
        let mut reader = Self {
            path,
            source: BufReader::with_capacity(SOURCE_BYTES, source),
            offset: 0,
            size,
            schema: Arc::new(Schema::empty()),
            dictionaries: HashMap::new(),
            written_by: String::new(),
            batch: None,
            rest: Rest::default(),
            state: State::Reading,
        };
        reader.read_schema()?;
        Ok(reader)
    }

    /// The next event; `None` at the end. After an error there are no more.
    pub fn next_event(&mut self) -> Result<Option<Event>, ReadError> {
        loop {
            if let Some((offset, rows)) = &mut self.batch {
                let offset = *offset;
                match rows.next() {
                    Some(Ok(event)) => return Ok(Some(event)),
                    Some(Err(what)) => return Err(self.damaged(offset, what)),
                    None => {}
                }
            }
            if let Some((_, rows)) = self.batch.take() {
                self.rest = rows.into_state();
            }
            if self.state != State::Reading {
                return Ok(None);
            }
            self.read_message()?;
        }
    }

    /// The events of the next batch, or what is left of the present one; `None` at the end.
    pub fn next_batch(&mut self) -> Result<Option<Vec<Event>>, ReadError> {
        let mut events = Vec::new();
        while let Some(event) = self.next_event()? {
            events.push(event);
            let rows = self.batch.as_ref().map_or(0, |(_, rows)| rows.left());
            if rows == 0 {
                break;
            }
            events.reserve(rows);
        }
        Ok((!events.is_empty()).then_some(events))
    }

    /// Gives the events as a table, a batch at a time.
    pub fn columns<E: From<ReadError>>(
        &mut self,
        mut each: impl FnMut(&RecordBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut table = Table::new();
        loop {
            let event = self.next_event()?;
            if let Some(event) = &event {
                (table.push(event))
                    .map_err(|error| self.damaged(self.offset, error.to_string()))?;
            }
            if event.is_none() || table.is_full() {
                let batch = table.finish();
                each(&batch.map_err(|error| self.damaged(self.offset, error.to_string()))?)?;
            }
            if event.is_none() {
                return Ok(());
            }
        }
    }

    /// The names and types of [`Reader::columns`].
    pub fn columns_schema() -> SchemaRef {
        wide::schema()
    }

    /// What the writer put behind the end mark. `None` where it put nothing there, where the recording was cut, and
    /// where another version of memtrace wrote it, which may have counted otherwise. Reads no events.
    pub fn summary(&self) -> Option<Vec<u8>> {
        if self.written_by != env!("CARGO_PKG_VERSION") {
            return None;
        }
        summary::find(&mut File::open(&self.path).ok()?).ok()?
    }

    /// The recording stopped before its end mark. Known once [`Reader::next_event`] has given `None`.
    pub fn truncated(&self) -> bool {
        self.state == State::Truncated
    }

    /// Version of the memtrace that wrote the recording; empty where it was cut before that.
    pub fn written_by(&self) -> &str {
        &self.written_by
    }

    /// Bytes read so far, for showing progress.
    pub fn position(&self) -> u64 {
        self.offset
    }

    /// Bytes of the file when it was opened; 0 for what has no size, a pipe for instance.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn read_schema(&mut self) -> Result<(), ReadError> {
        let foreign = |reader: &Self, what| ReadError::NotARecording {
            path: reader.path.clone(),
            what,
        };
        let frame = match self.next_frame()? {
            Next::Frame(frame) => frame,
            Next::Cut if self.size == 0 => return Err(foreign(self, "it is empty")),
            Next::Cut => {
                self.state = State::Truncated;
                return Ok(());
            }
            Next::End => return Err(foreign(self, "it is an empty Arrow stream")),
            Next::NoMessage => return Err(foreign(self, "it does not begin as one")),
            // Another tool's stream has no checksums either, which is no damage.
            Next::Damaged { metadata, what } => {
                let ours = metadata
                    .windows(FORMAT_KEY.len())
                    .any(|window| window == FORMAT_KEY.as_bytes());
                return Err(match ours {
                    true => self.damaged(0, what),
                    false => foreign(
                        self,
                        "it is an Arrow stream of something else, or damaged where it begins",
                    ),
                });
            }
        };
        let message =
            frame::message(&frame.metadata, &frame.body).map_err(|what| self.damaged(0, what))?;
        let Some(found) = message.header_as_schema() else {
            return Err(foreign(self, "it does not begin with a schema"));
        };
        let schema = guard(|| try_fb_to_schema(found)).map_err(|what| self.damaged(0, what))?;
        self.accept(&schema)?;
        self.schema = Arc::new(schema);
        self.offset += frame.len();
        Ok(())
    }

    fn accept(&mut self, found: &Schema) -> Result<(), ReadError> {
        let Some(version) = found.metadata().get(FORMAT_KEY) else {
            return Err(ReadError::NotARecording {
                path: self.path.clone(),
                what: "it is an Arrow stream of something else",
            });
        };
        let version = version
            .parse::<u32>()
            .map_err(|_| self.damaged(0, "its format has no number"))?;
        if version != FORMAT_VERSION {
            let path = self.path.clone();
            return Err(ReadError::OtherFormat {
                path,
                version,
                supported: FORMAT_VERSION,
            });
        }
        if found.fields() != schema::schema().fields() {
            return Err(self.damaged(0, format!("its columns are not those of format {version}")));
        }
        self.written_by = found
            .metadata()
            .get(PROGRAM_KEY)
            .cloned()
            .unwrap_or_default();
        Ok(())
    }

    fn read_message(&mut self) -> Result<(), ReadError> {
        if let Some((offset, batch)) = self.read_batch()? {
            let rest = std::mem::take(&mut self.rest);
            let rows = Rows::new(&batch, rest).map_err(|what| self.damaged(offset, what))?;
            self.batch = Some((offset, rows));
        }
        Ok(())
    }

    /// The batch that the next message holds and where it began; `None` where it holds none.
    fn read_batch(&mut self) -> Result<Option<(u64, RecordBatch)>, ReadError> {
        let offset = self.offset;
        match self.next_frame()? {
            Next::Frame(frame) => {
                let length = frame.len();
                let batch = self
                    .decode(frame)
                    .map_err(|what| self.damaged(offset, what))?;
                self.offset += length;
                return Ok(batch.map(|batch| (offset, batch)));
            }
            Next::End => self.end(offset)?,
            Next::Cut => self.state = State::Truncated,
            Next::NoMessage => return Err(self.damaged(offset, "no message begins here")),
            Next::Damaged { what, .. } => return Err(self.damaged(offset, what)),
        }
        Ok(None)
    }

    /// Behind the end mark there is a summary or nothing, unless the mark is a damaged message.
    fn end(&mut self, offset: u64) -> Result<(), ReadError> {
        let mut rest = Vec::new();
        let limited = self.source.by_ref().take(summary::BLOCK_BYTES);
        match { limited }.read_to_end(&mut rest) {
            Ok(length) if length == 0 || summary::is_block(&rest) => {
                self.offset += (frame::END.len() + length) as u64;
                self.state = State::Ended;
                Ok(())
            }
            Ok(_) => Err(self.damaged(offset, "it goes on behind its end mark")),
            Err(cause) => Err(self.unreadable(cause)),
        }
    }

    fn next_frame(&mut self) -> Result<Next, ReadError> {
        frame::read(&mut self.source).map_err(|cause| self.unreadable(cause))
    }

    /// A record batch, or nothing where the message is a dictionary.
    fn decode(&mut self, frame: Frame) -> Result<Option<RecordBatch>, String> {
        let Frame { metadata, body } = frame;
        let message = frame::message(&metadata, &body)?;
        let body = body.into();
        let version = message.version();
        if let Some(batch) = message.header_as_record_batch() {
            let (schema, known) = (Arc::clone(&self.schema), &self.dictionaries);
            return guard(|| read_record_batch(&body, batch, schema, known, None, &version))
                .map(Some);
        }
        let dictionary = message
            .header_as_dictionary_batch()
            .ok_or("there is a second schema")?;
        let (schema, known) = (&self.schema, &mut self.dictionaries);
        guard(|| read_dictionary(&body, dictionary, schema, known, &version)).map(|()| None)
    }

    fn damaged(&mut self, offset: u64, what: impl Into<String>) -> ReadError {
        self.state = State::Failed;
        self.batch = None;
        ReadError::Damaged {
            path: self.path.clone(),
            offset,
            what: what.into(),
        }
    }

    fn unreadable(&mut self, cause: std::io::Error) -> ReadError {
        self.state = State::Failed;
        ReadError::Read {
            path: self.path.clone(),
            offset: self.offset,
            cause,
        }
    }
}

/// Calls Arrow on a message whose checksums and sizes are right. What a checksum lets pass is made
/// on purpose; Arrow reports most of that and panics on the rest (offsets of a list in a buffer that
/// is no multiple of their size, say): the panic becomes an error, and nothing is decoded after it.
fn guard<T>(decode: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(decoded)) => Ok(decoded),
        // Arrow's messages may quote what they found, over several lines.
        Ok(Err(error)) => Err(error.to_string().replace(char::is_control, " ")),
        Err(_) => Err("it cannot be decoded".to_owned()),
    }
}

impl Iterator for Reader {
    type Item = Result<Event, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_event().transpose()
    }
}
