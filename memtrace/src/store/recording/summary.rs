//! The block behind the end mark: what is wanted of the whole at once.
//!
//! ```text
//! end mark | contents, as zlib compresses them | length of that, u32 | CRC-32 of that, u32 | "memtrsum"
//! ```
//!
//! Arrow stops at the end mark and does not look further. The block is found from the end of the file. What its
//! contents mean is the writer's and the reader's affair.

use std::{
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write as _},
};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};

use super::frame::{crc32, u32_at};

const MARK: &[u8; 8] = b"memtrsum";

/// Length, checksum and mark.
const TAIL: usize = 16;

/// Contents at most, compressed.
const BYTES: u64 = 64 << 20;

/// A block at most.
pub(super) const BLOCK_BYTES: u64 = BYTES + TAIL as u64;

/// Contents at most, decompressed.
const CONTENTS: u64 = 256 << 20;

/// Appends a block to `out`. One that a reader would refuse is left out.
pub(super) fn append(out: &mut Vec<u8>, contents: &[u8]) -> io::Result<()> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(contents)?;
    let block = encoder.finish()?;
    let compressed = block.len() as u64;
    if compressed > BYTES || contents.len() as u64 > CONTENTS {
        return Ok(());
    }
    out.extend_from_slice(&block);
    out.extend_from_slice(&(block.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32(&[&block]).to_le_bytes());
    out.extend_from_slice(MARK);
    Ok(())
}

/// Whether these bytes are one whole block.
pub(super) fn is_block(bytes: &[u8]) -> bool {
    block_length(bytes).is_some_and(|length| length + TAIL == bytes.len() && is_sound(bytes))
}

/// The contents of the block that the file ends with, if it ends with one.
pub(super) fn find(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    let size = file.seek(SeekFrom::End(0))?;
    let Some(at) = size.checked_sub(TAIL as u64) else {
        return Ok(None);
    };
    let mut tail = Vec::with_capacity(TAIL);
    file.seek(SeekFrom::Start(at))?;
    file.take(TAIL as u64).read_to_end(&mut tail)?;
    let Some(start) = block_length(&tail).and_then(|length| at.checked_sub(length as u64)) else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(size - start).read_to_end(&mut bytes)?;
    if !is_block(&bytes) {
        return Ok(None);
    }
    bytes.truncate(bytes.len() - TAIL);
    let mut contents = Vec::new();
    ZlibDecoder::new(&*bytes)
        .take(CONTENTS)
        .read_to_end(&mut contents)?;
    Ok(Some(contents))
}

/// The length of the compressed contents, by the end of `bytes`.
fn block_length(bytes: &[u8]) -> Option<usize> {
    let tail = bytes.last_chunk::<TAIL>()?;
    let length = u32_at(tail, 0);
    (tail[8..] == *MARK && u64::from(length) <= BYTES).then_some(length as usize)
}

fn is_sound(bytes: &[u8]) -> bool {
    let block = &bytes[..bytes.len() - TAIL];
    crc32(&[block]) == u32_at(bytes, bytes.len() - TAIL + 4)
}
