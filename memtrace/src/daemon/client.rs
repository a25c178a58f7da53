//! Asks the daemon: what `ps`, `report` and `mark` use.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::protocol::{Answer, MAX_ANSWER, Question, Reply, Request, VERSION};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or not to us.
    #[error("no daemon answers at {path}: {source}; start one with memtrace daemon, or name its socket with --socket", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the daemon at {path} did not answer: {source}", path = path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It answered something else than was asked for.
    #[error(
        "the daemon's answer is not understood ({reason}): it is of another version of memtrace"
    )]
    Strange {
        /// What is strange.
        reason: String,
    },
    /// It refused.
    #[error("the daemon: {message}")]
    Refused {
        /// In its own words.
        message: String,
    },
}

/// Asks one question. A refusal is an error.
pub fn ask(path: &Path, request: Request) -> Result<Reply, ClientError> {
    let connected = UnixStream::connect(path);
    let mut stream = connected.map_err(|source| ClientError::Connect {
        path: path.to_owned(),
        source,
    })?;
    let line = exchange(&mut stream, request).map_err(|source| ClientError::Broken {
        path: path.to_owned(),
        source,
    })?;
    let answer: Answer = serde_json::from_slice(&line).map_err(|error| ClientError::Strange {
        reason: error.to_string(),
    })?;
    match answer.reply {
        Reply::Error { message } => Err(ClientError::Refused { message }),
        reply => Ok(reply),
    }
}

fn exchange(stream: &mut UnixStream, request: Request) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut question = serde_json::to_vec(&Question {
        version: VERSION,
        request,
    })?;
    question.push(b'\n');
    // A daemon that refuses may have closed its end already; its answer is there all the same.
    let sent = stream.write_all(&question);
    let mut line = Vec::new();
    let mut answer = BufReader::new(stream.take(MAX_ANSWER as u64 + 1));
    answer.read_until(b'\n', &mut line)?;
    if line.is_empty() {
        sent?;
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}
