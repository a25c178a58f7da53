//! Answers about the past, each from a thread of its own: a long query holds nobody else up.

use std::{path::Path, sync::LazyLock};

use tokio::{
    sync::{Semaphore, oneshot},
    task,
};

use super::{access::Viewer, protocol::Reply, supervise::now_ms, within::Within};
use crate::store::history::{HistoryError, Reader, Span, Suspicion};

/// Queries at a time.
static QUERIES: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(2));

/// What is asked of the past.
pub struct Query {
    /// Of these processes; empty for all.
    pub pids: Vec<u32>,
    /// Of the processes in there.
    pub within: Within,
    /// Where it begins.
    pub since: Option<String>,
    /// Where it ends.
    pub until: Option<String>,
}

/// Answers through `reply` when the query is done.
pub fn answer(
    (path, suspicion): (&Path, Suspicion),
    viewer: Viewer,
    query: Query,
    reply: oneshot::Sender<Reply>,
) {
    // Whose a process was is not in the history.
    if viewer != Viewer::All {
        let refusal = "the past is root's: the history does not keep whose a process was";
        let _ = reply.send(Reply::error(refusal));
        return;
    }
    let path = path.to_owned();
    task::spawn_local(async move {
        let Ok(_turn) = QUERIES.acquire().await else {
            return;
        };
        let answer = match task::spawn_blocking(move || report(&path, &query)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                if error.is_damage() {
                    suspicion.tell(now_ms());
                }
                Reply::error(error)
            }
            Err(error) => Reply::error(format!("the query failed: {error}")),
        };
        let _ = reply.send(answer);
    });
}

fn report(path: &Path, query: &Query) -> Result<Reply, HistoryError> {
    let now_ms = now_ms();
    let reader = Reader::open(path)?;
    let moment = |text: &Option<String>, otherwise| match text {
        Some(text) => reader.moment(text, now_ms),
        None => Ok(otherwise),
    };
    let span = Span {
        since_ms: moment(&query.since, 0)?,
        until_ms: moment(&query.until, now_ms)?,
    };
    if span.since_ms > span.until_ms {
        return Ok(Reply::error("--since is later than --until"));
    }
    let document = reader.report(span, &query.pids, |cgroup| query.within.has(cgroup))?;
    Ok(Reply::Report(Box::new(document)))
}
