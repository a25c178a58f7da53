//! Questions to the daemon from a thread of its own: keys do not wait for answers.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use super::super::socket::Socket;
use crate::{
    daemon::{
        client::ClientError,
        protocol::{Listing, Reply, Request},
        within::Within,
    },
    report::document::Document,
};

/// What the screen shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All processes.
    Listing,
    /// One of them.
    Process(u32),
}

/// What the daemon said.
pub enum Answer {
    /// To [`Wanted::Listing`].
    Listing(Listing),
    /// To [`Wanted::Process`].
    Process(u32, Box<Document>),
    /// There is none; for a person.
    None(String),
}

/// Asks one question after the other.
pub struct Asker {
    questions: Sender<Wanted>,
    answers: Receiver<Answer>,
}

impl Asker {
    /// Asks a first time at once: whether there is a daemon is known when this returns.
    pub fn begin(socket: Socket, within: Within) -> Result<Self, ClientError> {
        let (sender, answers) = channel();
        let _ = sender.send(answer(&socket, &within, Wanted::Listing)?);
        let (questions, asked) = channel();
        thread::spawn(move || {
            while let Ok(mut wanted) = asked.recv() {
                // Of those that wait only the last one matters.
                while let Ok(later) = asked.try_recv() {
                    wanted = later;
                }
                let told = answer(&socket, &within, wanted);
                let told = told.unwrap_or_else(|error| Answer::None(error.to_string()));
                if sender.send(told).is_err() {
                    return;
                }
            }
        });
        Ok(Self { questions, answers })
    }

    /// Asks; the answer comes later.
    pub fn ask(&self, wanted: Wanted) {
        // The thread lives as long as this.
        let _ = self.questions.send(wanted);
    }

    /// The answers that came.
    pub fn answers(&self) -> impl Iterator<Item = Answer> + '_ {
        self.answers.try_iter()
    }
}

fn answer(socket: &Socket, within: &Within, wanted: Wanted) -> Result<Answer, ClientError> {
    Ok(match wanted {
        Wanted::Listing => match socket.ask(Request::Ps {})? {
            Reply::Ps(mut listing) => {
                within.narrow(&mut listing);
                Answer::Listing(listing)
            }
            _ => return Err(super::super::socket::strange()),
        },
        Wanted::Process(pid) => {
            let request = Request::Report {
                pids: vec![pid],
                since: None,
                until: None,
                within: Within::default(),
            };
            Answer::Process(pid, Box::new(socket.report(request)?))
        }
    })
}
