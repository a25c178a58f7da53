//! The messages of an Arrow IPC stream, with checksums where other tools see padding.
//!
//! ```text
//! FF FF FF FF | metadata length, u32 | metadata | body
//!                                     └ flatbuffer, zeros to a multiple of 8,
//!                                       CRC-32 of length and metadata before it, CRC-32 of the body
//! ```
//!
//! Arrow counts the padding after the flatbuffer into the metadata and never looks at it; the last
//! 8 bytes of it are ours. The first checksum makes the body's length, which is in the metadata,
//! worth believing before the body is read. A checksum finds accidents; what a forger could write
//! is checked besides ([`message`]).

use std::io::{self, Read};

use arrow_ipc::{Message, MessageHeader, root_as_message};

use super::{BATCH_ROWS, DECOMPRESSED_BYTES};

/// First bytes of every message.
const CONTINUATION: [u8; 4] = [0xFF; 4];

/// The end of a stream: a message without metadata.
pub(super) const END: [u8; 8] = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];

/// Bytes before the metadata.
const PREFIX: usize = 8;

/// Bytes of both checksums.
const CHECKSUMS: usize = 8;

/// Metadata of one message at most; a batch has less than 3 KiB of it.
const METADATA_BYTES: usize = 64 * 1024;

/// Body of one message at most: what does not compress is stored as it is, in padded buffers.
const BODY_BYTES: usize = DECOMPRESSED_BYTES + 64 * 1024;

/// A message that was read and whose checksums were right.
pub(super) struct Frame {
    /// The flatbuffer, and the padding with the checksums.
    pub(super) metadata: Vec<u8>,
    /// The buffers of a batch.
    pub(super) body: Vec<u8>,
}

/// What is at a place of the stream.
pub(super) enum Next {
    /// A whole message.
    Frame(Frame),
    /// The end mark.
    End,
    /// The file ends here, before the end mark.
    Cut,
    /// No message begins here.
    NoMessage,
    /// A message that was changed.
    Damaged {
        /// Its metadata, or what is there of it.
        metadata: Vec<u8>,
        /// What is wrong.
        what: &'static str,
    },
}

/// Appends a message to `out`.
pub(super) fn append(out: &mut Vec<u8>, message: &[u8], body: &[u8]) {
    let padded = message.len().next_multiple_of(8);
    let length = (padded + CHECKSUMS) as u32;
    out.extend_from_slice(&CONTINUATION);
    out.extend_from_slice(&length.to_le_bytes());
    let start = out.len();
    out.extend_from_slice(message);
    out.resize(start + padded, 0);
    let sum = metadata_sum(length, &out[start..]);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&crc32(&[body]).to_le_bytes());
    out.extend_from_slice(body);
}

/// Reads the next message. Memory grows with what the file holds, not with what it claims.
pub(super) fn read(source: &mut impl Read) -> io::Result<Next> {
    let mut prefix = Vec::with_capacity(PREFIX);
    let whole = fill(source, &mut prefix, PREFIX)?;
    let mark = &prefix[..prefix.len().min(CONTINUATION.len())];
    if mark != &CONTINUATION[..mark.len()] {
        return Ok(Next::NoMessage);
    }
    if !whole {
        return Ok(Next::Cut);
    }
    if prefix == END {
        return Ok(Next::End);
    }
    let length = u32_at(&prefix, CONTINUATION.len()) as usize;
    let mut metadata = Vec::new();
    let damaged = |metadata, what| Ok(Next::Damaged { metadata, what });
    if !(CHECKSUMS..=METADATA_BYTES).contains(&length) || !length.is_multiple_of(8) {
        return damaged(metadata, "a message has an impossible length");
    }
    if !fill(source, &mut metadata, length)? {
        return Ok(Next::Cut);
    }
    let sums = length - CHECKSUMS;
    if metadata_sum(length as u32, &metadata[..sums]) != u32_at(&metadata, sums) {
        return damaged(metadata, "the checksum of a message is wrong");
    }
    let Ok(message) = root_as_message(&metadata[..sums]) else {
        return damaged(metadata, "a message cannot be understood");
    };
    let length = usize::try_from(message.bodyLength()).unwrap_or(usize::MAX);
    let mut body = Vec::new();
    if length > BODY_BYTES {
        return damaged(metadata, "a message has an impossible length");
    }
    if !fill(source, &mut body, length)? {
        return Ok(Next::Cut);
    }
    if crc32(&[&body]) != u32_at(&metadata, sums + 4) {
        return damaged(metadata, "the checksum of a batch is wrong");
    }
    Ok(Next::Frame(Frame { metadata, body }))
}

fn metadata_sum(length: u32, metadata: &[u8]) -> u32 {
    crc32(&[&length.to_le_bytes(), metadata])
}

/// Appends `count` bytes to `bytes`; false when the file ends before.
fn fill(source: &mut impl Read, bytes: &mut Vec<u8>, count: usize) -> io::Result<bool> {
    bytes.reserve(count.min(1 << 20));
    Ok(source.take(count as u64).read_to_end(bytes)? == count)
}

impl Frame {
    /// Bytes it takes in the file.
    pub(super) fn len(&self) -> u64 {
        (PREFIX + self.metadata.len() + self.body.len()) as u64
    }
}

/// The message, once the sizes it claims are known to be bearable.
pub(super) fn message<'m>(metadata: &'m [u8], body: &[u8]) -> Result<Message<'m>, &'static str> {
    let message = root_as_message(metadata).map_err(|_| "a message cannot be understood")?;
    check_sizes(message, body)?;
    Ok(message)
}

/// Arrow reserves memory as the buffers of a batch ask for it; they are asked here first.
fn check_sizes(message: Message<'_>, body: &[u8]) -> Result<(), &'static str> {
    let batch = match message.header_type() {
        MessageHeader::Schema => return Ok(()),
        MessageHeader::RecordBatch => message.header_as_record_batch(),
        MessageHeader::DictionaryBatch => match message.header_as_dictionary_batch() {
            // A dictionary that grows would grow without bound; memtrace writes whole ones.
            Some(dictionary) if !dictionary.isDelta() => dictionary.data(),
            _ => None,
        },
        _ => None,
    };
    let batch = batch.ok_or("a message is of no kind that memtrace writes")?;
    if !(0..=BATCH_ROWS as i64).contains(&batch.length()) {
        return Err("a batch has an impossible number of rows");
    }
    let compressed = batch.compression().is_some();
    let mut total = 0u64;
    for buffer in batch.buffers().iter().flatten() {
        let start =
            usize::try_from(buffer.offset()).map_err(|_| "a buffer lies outside its batch")?;
        let length =
            usize::try_from(buffer.length()).map_err(|_| "a buffer lies outside its batch")?;
        let end = start
            .checked_add(length)
            .ok_or("a buffer lies outside its batch")?;
        let bytes = body
            .get(start..end)
            .ok_or("a buffer lies outside its batch")?;
        // The length before compression comes first; -1 where the bytes are stored as they are.
        let claimed = match bytes.first_chunk::<8>() {
            Some(prefix) if compressed => i64::from_le_bytes(*prefix),
            _ if compressed && !bytes.is_empty() => return Err("a buffer is too short"),
            _ => -1,
        };
        let size = if claimed == -1 {
            Ok(length as u64)
        } else {
            u64::try_from(claimed)
        };
        total = total.saturating_add(size.map_err(|_| "a buffer has an impossible length")?);
        if total > DECOMPRESSED_BYTES as u64 {
            return Err("a batch is larger than memtrace writes");
        }
    }
    Ok(())
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// CRC-32 (IEEE 802.3, as zlib's crc32 and Python's zlib.crc32).
pub(super) fn crc32(parts: &[&[u8]]) -> u32 {
    !parts.iter().fold(!0, |crc, part| extend_crc32(crc, part))
}

fn extend_crc32(mut crc: u32, bytes: &[u8]) -> u32 {
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let low = crc ^ u32_at(chunk, 0);
        let high = u32_at(chunk, 4);
        crc = 0;
        for (index, word) in [low, high].into_iter().enumerate() {
            for byte in 0..4 {
                crc ^= TABLES[7 - index * 4 - byte][(word >> (8 * byte) & 0xFF) as usize];
            }
        }
    }
    for &byte in chunks.remainder() {
        crc = crc >> 8 ^ TABLES[0][((crc ^ u32::from(byte)) & 0xFF) as usize];
    }
    crc
}

/// `TABLES[n][b]`: what byte `b` adds to the remainder when `n` bytes follow it.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xEDB8_8320
            } else {
                crc >> 1
            };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut follow = 1;
    while follow < 8 {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[follow - 1][byte];
            tables[follow][byte] = crc >> 8 ^ tables[0][(crc & 0xFF) as usize];
            byte += 1;
        }
        follow += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_is_the_usual_one() {
        assert_eq!(crc32(&[b""]), 0);
        assert_eq!(crc32(&[b"1234", b"56789"]), 0xCBF4_3926);
        assert_eq!(
            crc32(&[b"The quick brown fox jumps over the lazy dog"]),
            0x414F_A339
        );
    }
}
