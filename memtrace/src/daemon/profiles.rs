//! Heap profiles over HTTP, as Go programs serve their own: what continuous profilers scrape.
//!
//! `GET /debug/pprof/heap?pid=N` is of these processes; without a pid, of all whose heap is probed.

use hyper::{StatusCode, body::Bytes};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task,
    time::{Duration, timeout},
};

use super::{
    access::Viewer,
    protocol::{Reply, Request},
    socket::Asked,
    within::Within,
};
use crate::{
    event::Pid,
    export::{self, Measure},
    report::document::Document,
};

/// How long the names of a profile's stacks may take.
const ANSWER: Duration = Duration::from_secs(60);

/// Makes profiles, one at a time.
pub struct Profiles {
    questions: mpsc::Sender<Asked>,
    turn: Semaphore,
}

/// Why there is no profile.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub status: StatusCode,
    /// For people.
    pub message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, message }
    }
}

impl Profiles {
    /// Asks the daemon through `questions`.
    pub fn new(questions: mpsc::Sender<Asked>) -> Self {
        let turn = Semaphore::new(1);
        Self { questions, turn }
    }

    /// A heap profile of the processes that the query of a URL names.
    pub async fn heap(&self, query: Option<&str>) -> Result<Bytes, Refusal> {
        let named = pids(query.unwrap_or_default())
            .map_err(|message| Refusal::new(StatusCode::BAD_REQUEST, message))?;
        let Ok(_turn) = self.turn.try_acquire() else {
            let message = "another profile is being made: try again";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message));
        };
        let pids = match named.is_empty() {
            true => self.probed().await?,
            false => named,
        };
        if pids.is_empty() {
            let message = "no process's heap is probed: memtrace heap on";
            return Err(Refusal::new(StatusCode::NOT_FOUND, message));
        }
        let request = Request::Report {
            pids,
            since: None,
            until: None,
            within: Within::default(),
        };
        match self.ask(request).await? {
            Reply::Report(document) => encode(*document).await,
            _ => Err(strange()),
        }
    }

    /// Those whose heap is probed.
    async fn probed(&self) -> Result<Vec<Pid>, Refusal> {
        let Reply::Ps(listing) = self.ask(Request::Ps {}).await? else {
            return Err(strange());
        };
        let processes = listing.processes.into_iter();
        let probed = processes.filter(|line| line.heap_live_bytes.is_some());
        Ok(probed.map(|line| line.pid).collect())
    }

    async fn ask(&self, request: Request) -> Result<Reply, Refusal> {
        let unavailable = |message| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message);
        let (reply, answer) = oneshot::channel();
        let asked = Asked {
            viewer: Viewer::All,
            request,
            reply,
        };
        if self.questions.send(asked).await.is_err() {
            return Err(unavailable("the daemon ends"));
        }
        match timeout(ANSWER, answer).await {
            Ok(Ok(Reply::Error { message })) => Err(Refusal::new(StatusCode::NOT_FOUND, message)),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(unavailable("the daemon ends")),
            Err(_) => Err(unavailable("the profile took too long")),
        }
    }
}

fn strange() -> Refusal {
    Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "an answer to another question",
    )
}

/// Compressed by a thread of its own.
async fn encode(document: Document) -> Result<Bytes, Refusal> {
    let work = move || {
        let mut out = Vec::new();
        let format = export::by_name("pprof")?;
        format.export(&document, Measure::Leaks, &mut out).ok()?;
        Some(Bytes::from(out))
    };
    let encoded = task::spawn_blocking(work).await.ok().flatten();
    let failed = || {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the profile was not made",
        )
    };
    encoded.ok_or_else(failed)
}

/// The pids in the query of a URL. `seconds`, which profilers add, is of profiles of a span; a heap's is of now.
fn pids(query: &str) -> Result<Vec<Pid>, String> {
    let mut pids = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("pid", pid)) => match pid.parse() {
                Ok(pid) => pids.push(pid),
                Err(_) => return Err(format!("{pid:?} is no pid")),
            },
            Some(("seconds" | "debug" | "gc", _)) => {}
            _ => return Err(format!("{part:?} is not understood: pid=N")),
        }
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_pids() {
        assert_eq!(pids(""), Ok(vec![]));
        assert_eq!(pids("pid=7&seconds=10&pid=8"), Ok(vec![7, 8]));
        assert!(pids("pid=x").is_err());
        assert!(pids("command=redis").is_err());
    }
}
