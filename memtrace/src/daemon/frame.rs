//! One line of JSON from a stream that may be slow, endless or hostile, and one to it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Why no question came.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It ended without a line.
    #[error("the question ended without a newline")]
    Cut,
    /// More than the limit without a newline.
    #[error("a question has {limit} bytes at most")]
    TooLong {
        /// The limit.
        limit: usize,
    },
}

/// Reads up to a newline, which is left out; never holds more than `limit` bytes and a buffer.
pub async fn read_line(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<Vec<u8>, FrameError> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let length = stream.read(&mut chunk).await?;
        let read = &chunk[..length];
        if let Some(end) = read.iter().position(|&byte| byte == b'\n') {
            line.extend_from_slice(&read[..end]);
            return if line.len() > limit {
                Err(FrameError::TooLong { limit })
            } else {
                Ok(line)
            };
        }
        if length == 0 {
            return Err(FrameError::Cut);
        }
        line.extend_from_slice(read);
        if line.len() > limit {
            return Err(FrameError::TooLong { limit });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut bytes: &[u8], limit: usize) -> Result<Vec<u8>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime
            .block_on(read_line(&mut bytes, limit))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_has_an_end_and_a_limit() {
        assert_eq!(read(b"{}\nmore", 2), Ok(b"{}".to_vec()));
        assert_eq!(read(b"\n", 2), Ok(Vec::new()));
        assert_eq!(
            read(b"{}x\n", 2).unwrap_err(),
            "a question has 2 bytes at most"
        );
        assert_eq!(
            read(&[b'a'; 9000], 8000).unwrap_err(),
            "a question has 8000 bytes at most"
        );
        assert_eq!(
            read(b"{}", 2).unwrap_err(),
            "the question ended without a newline"
        );
        let long = [&[b'a'; 8000][..], b"\n"].concat();
        assert_eq!(read(&long, 8000).map(|line| line.len()), Ok(8000));
    }
}
