//! Names for the stacks of a report, looked up by a thread of its own: reading debug information may take seconds.

use std::time::SystemTime;

use tokio::{
    sync::{mpsc, oneshot},
    task,
};

use super::{access::Viewer, protocol::Reply, within::Within};
use crate::{
    event::Pid,
    trace::naming::{Named, Names, Naming},
};

/// A report that waits for names.
pub struct Asked {
    /// Who asks.
    pub viewer: Viewer,
    /// Of these processes; empty for all.
    pub pids: Vec<Pid>,
    /// Of the processes in there.
    pub within: Within,
    /// The way back.
    pub reply: oneshot::Sender<Reply>,
}

/// Names that were found, and the report that waits for them.
pub struct Done {
    /// Of each process.
    pub names: Vec<Named>,
    /// What is to be answered; `None` where nobody waits.
    pub asked: Option<Asked>,
}

/// Looks up what is not named yet, and hands the question back through `done`.
pub fn look_up(
    unnamed: Vec<Naming>,
    began: SystemTime,
    asked: Option<Asked>,
    done: mpsc::Sender<Done>,
) {
    task::spawn_local(async move {
        let look = move || {
            let mut names = Names::new(began);
            unnamed.iter().map(|one| names.look_up(one)).collect()
        };
        // A look-up that failed leaves addresses without names.
        let names = task::spawn_blocking(look).await.unwrap_or_default();
        // The daemon may end meanwhile.
        let _ = done.send(Done { names, asked }).await;
    });
}
