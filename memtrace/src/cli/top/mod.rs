//! `memtrace top`: what the daemon tracks, live in the terminal.

mod ask;
mod draw;
mod screen;

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};

use self::{ask::Asker, screen::Screen};
use super::{ps::Sort, socket::Socket, status};
use crate::daemon::within::Within;

/// How often the daemon is asked; it reads everything once a second.
const EVERY: Duration = Duration::from_secs(1);
/// How long a key may wait for an answer to be shown.
const WAIT: Duration = Duration::from_millis(100);

/// Arguments of `top`.
#[derive(Args)]
pub struct Top {
    /// Most of this first.
    #[arg(long, value_enum, default_value = "committed")]
    sort: Sort,
    #[command(flatten)]
    within: Within,
    #[command(flatten)]
    socket: Socket,
}

impl Top {
    /// Shows it until `q`.
    pub fn execute(self) -> Result<u8> {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            bail!("memtrace top needs a terminal: memtrace ps prints the same once");
        }
        // A daemon that is not there is told before the screen is taken.
        let asker = Asker::begin(self.socket, self.within)?;
        let mut terminal = ratatui::try_init().context("cannot set the terminal up")?;
        let shown = show(&mut terminal, Screen::new(self.sort), &asker);
        ratatui::try_restore().context("cannot give the terminal back")?;
        shown.context("cannot show")?;
        Ok(status::DONE)
    }
}

/// Draws when something changed: only the cells that differ are written.
fn show(terminal: &mut DefaultTerminal, mut screen: Screen, asker: &Asker) -> io::Result<()> {
    let mut asked: Option<Instant> = None;
    let mut changed = true;
    while !screen.is_done() {
        if asked.is_none_or(|at| at.elapsed() >= EVERY) || screen.take_impatience() {
            asker.ask(screen.wants());
            asked = Some(Instant::now());
        }
        for answer in asker.answers() {
            screen.take(answer);
            changed = true;
        }
        if std::mem::take(&mut changed) {
            terminal.draw(|frame| draw::screen(frame, &mut screen))?;
        }
        if event::poll(WAIT)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => screen.press(key),
                _ => {}
            }
            // A resize, too, is drawn at once.
            changed = true;
        }
    }
    Ok(())
}
