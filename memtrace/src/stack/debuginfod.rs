//! Debug files from debuginfod servers (debuginfod(8)), only where the user names some.

use std::{
    fs::File,
    io,
    time::{Duration, Instant},
};

use ureq::Agent;

/// One answer may take so long: a file of some hundred MiB, or a server that prepares one.
const ANSWER: Duration = Duration::from_secs(20);
/// A server that does not take a connection in this time is not asked again.
const CONNECT: Duration = Duration::from_secs(5);
/// All answers together: the report waits for them.
const ALL: Duration = Duration::from_secs(60);
/// Largest file.
const SIZE: u64 = 4 << 30;

/// The servers of `DEBUGINFOD_URLS`.
#[derive(Debug)]
pub(super) struct Debuginfod {
    urls: Vec<String>,
    agent: Agent,
    /// What is left of the time for all answers.
    left: Duration,
}

impl Debuginfod {
    /// The servers that the environment names; `None` without any.
    pub(super) fn from_environment() -> Option<Self> {
        Self::new(&std::env::var("DEBUGINFOD_URLS").ok()?, ANSWER)
    }

    /// Servers by URL, separated by spaces, each with so long to answer.
    pub(super) fn new(urls: &str, answer: Duration) -> Option<Self> {
        let urls: Vec<String> = urls
            .split_whitespace()
            .map(|url| url.trim_end_matches('/').to_owned())
            .collect();
        let config = Agent::config_builder()
            .timeout_global(Some(answer))
            .timeout_connect(Some(CONNECT))
            .build();
        let agent = config.into();
        (!urls.is_empty()).then_some(Self {
            urls,
            agent,
            left: ALL,
        })
    }

    /// The debug file of a module by its hexadecimal build ID, from the first server that has it.
    pub(super) fn fetch(&mut self, build_id: &str) -> Option<File> {
        let mut found = None;
        let mut silent = Vec::new();
        for url in &self.urls {
            if self.left.is_zero() {
                log::warn!("debuginfod took {ALL:?}: no more is asked of it");
                self.urls.clear();
                return None;
            }
            let start = Instant::now();
            let answer = self.get(&format!("{url}/buildid/{build_id}/debuginfo"));
            self.left = self.left.saturating_sub(start.elapsed());
            match answer {
                Ok(file) => {
                    found = Some(file);
                    break;
                }
                Err(ureq::Error::StatusCode(_)) => {}
                Err(error) => {
                    log::warn!("{url}: {error}; it is not asked again");
                    silent.push(url.clone());
                }
            }
        }
        self.urls.retain(|url| !silent.contains(url));
        found
    }

    fn get(&self, url: &str) -> Result<File, ureq::Error> {
        let mut answer = self.agent.get(url).call()?;
        let mut file = tempfile::tempfile()?;
        let mut body = answer.body_mut().with_config().limit(SIZE).reader();
        io::copy(&mut body, &mut file)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        thread,
    };

    use super::*;

    /// A server on the loopback that gives one answer to everything; `None` is silence.
    fn serve(answer: Option<&'static [u8]>) -> (String, Arc<AtomicU32>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            let mut silent = Vec::new();
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                match answer {
                    Some(answer) => {
                        let _ = connection.read(&mut [0; 4096]);
                        let _ = connection.write_all(answer);
                    }
                    None => silent.push(connection),
                }
            }
        });
        (url, asked)
    }

    const MISSING: &[u8] =
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    const FOUND: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfile";

    #[test]
    fn the_next_server_is_asked_when_one_has_it_not() {
        let ((first, asked), (second, _)) = (serve(Some(MISSING)), serve(Some(FOUND)));
        let mut servers = Debuginfod::new(&format!("{first} {second}"), ANSWER).unwrap();
        for calls in 1..3 {
            let file = servers.fetch("abcd").unwrap();
            assert_eq!(file.metadata().unwrap().len(), 4);
            assert_eq!(asked.load(Ordering::SeqCst), calls);
        }
    }

    #[test]
    fn a_silent_server_is_asked_once_and_not_waited_for() {
        let (url, asked) = serve(None);
        let mut servers = Debuginfod::new(&url, Duration::from_millis(200)).unwrap();
        let start = Instant::now();
        assert!(servers.fetch("abcd").is_none());
        assert!(servers.fetch("abce").is_none());
        assert!(start.elapsed() < ANSWER);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn no_server_is_asked_that_nobody_named() {
        assert!(Debuginfod::new("", ANSWER).is_none());
        assert!(Debuginfod::new("  ", ANSWER).is_none());
    }
}
