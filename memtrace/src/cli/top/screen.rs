//! What is shown and what keys do to it; nothing here draws or asks.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    super::ps::{self, Sort},
    ask::{Answer, Wanted},
};
use crate::{daemon::protocol::Listing, report::document::Document};

/// Keys that sort, what by, and what the footer calls them.
pub const SORTS: [(char, Sort, &str); 6] = [
    ('c', Sort::Committed, "committed"),
    ('l', Sort::Lazy, "lazy"),
    ('g', Sort::Growth, "growth"),
    ('f', Sort::Faults, "faults"),
    ('p', Sort::P99, "p99"),
    ('h', Sort::Heap, "heap"),
];

/// Views of one process: key, report and name.
pub const VIEWS: [(char, &str, &str); 4] = [
    ('t', "timeline", "timeline"),
    ('m', "layout", "mappings"),
    ('s', "leaks", "sites"),
    ('g', "growth", "growth"),
];

/// Everything that the terminal shows.
pub struct Screen {
    /// The last answer.
    pub listing: Listing,
    /// What processes are sorted by.
    pub sort: Sort,
    /// The process under the cursor: it stays when the order changes.
    pub cursor: Option<u32>,
    /// The process that is looked into.
    pub detail: Option<Detail>,
    /// Why there was no answer to the last question.
    pub trouble: Option<String>,
    /// Rows of the list, or lines of the view, that fit: set by whoever draws.
    pub page: usize,
    impatient: bool,
    done: bool,
}

/// A look into one process.
pub struct Detail {
    /// Which.
    pub pid: u32,
    /// Index into [`VIEWS`].
    pub view: usize,
    /// Lines above the first one that is shown.
    pub scroll: usize,
    /// Once it came.
    pub document: Option<Document>,
}

impl Screen {
    /// Nothing known yet.
    pub fn new(sort: Sort) -> Self {
        Self {
            listing: Listing::default(),
            sort,
            cursor: None,
            detail: None,
            trouble: None,
            page: 1,
            impatient: false,
            done: false,
        }
    }

    /// Whether it is to be left.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether something is shown that was not asked for yet.
    pub fn take_impatience(&mut self) -> bool {
        std::mem::take(&mut self.impatient)
    }

    /// What is to be asked.
    pub fn wants(&self) -> Wanted {
        match &self.detail {
            Some(detail) => Wanted::Process(detail.pid),
            None => Wanted::Listing,
        }
    }

    /// Takes an answer; one to a question of before is of no use any more.
    pub fn take(&mut self, answer: Answer) {
        self.trouble = None;
        match answer {
            Answer::Listing(listing) => {
                self.listing = listing;
                self.order();
            }
            Answer::Process(pid, document) => {
                if let Some(detail) = self.detail.as_mut().filter(|detail| detail.pid == pid) {
                    detail.document = Some(*document);
                }
            }
            Answer::None(reason) => self.trouble = Some(reason),
        }
    }

    /// Does what a key says.
    pub fn press(&mut self, key: KeyEvent) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => self.done = true,
            KeyCode::Char('q') => self.done = true,
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::PageUp => self.go(-(self.page as isize)),
            KeyCode::PageDown | KeyCode::Char(' ') => self.go(self.page as isize),
            KeyCode::Home => self.go(isize::MIN),
            KeyCode::End => self.go(isize::MAX),
            KeyCode::Enter => self.enter(),
            KeyCode::Esc | KeyCode::Backspace => {
                self.impatient = self.detail.take().is_some();
                self.trouble = None;
            }
            KeyCode::Tab => {
                if let Some(detail) = &mut self.detail {
                    detail.show((detail.view + 1) % VIEWS.len());
                }
            }
            KeyCode::Char(key) => self.choose(key),
            _ => {}
        }
    }

    /// Where the cursor is among the processes.
    pub fn place(&self) -> usize {
        let at = |pid| {
            self.listing
                .processes
                .iter()
                .position(|line| line.pid == pid)
        };
        self.cursor.and_then(at).unwrap_or(0)
    }

    fn choose(&mut self, key: char) {
        if let Some(detail) = &mut self.detail {
            if let Some(view) = VIEWS.iter().position(|view| view.0 == key) {
                detail.show(view);
            }
        } else if let Some((_, sort, _)) = SORTS.iter().find(|sort| sort.0 == key) {
            self.sort = *sort;
            self.order();
        }
    }

    fn enter(&mut self) {
        if self.detail.is_some() {
            return;
        }
        if let Some(line) = self.listing.processes.get(self.place()) {
            self.cursor = Some(line.pid);
            self.detail = Some(Detail {
                pid: line.pid,
                view: 0,
                scroll: 0,
                document: None,
            });
            self.impatient = true;
        }
    }

    fn go(&mut self, by: isize) {
        if let Some(detail) = &mut self.detail {
            detail.scroll = detail.scroll.saturating_add_signed(by);
            return;
        }
        let last = self.listing.processes.len().saturating_sub(1);
        let place = self.place().saturating_add_signed(by).min(last);
        self.cursor = self.listing.processes.get(place).map(|line| line.pid);
    }

    fn order(&mut self) {
        ps::sort(&mut self.listing.processes, self.sort);
    }
}

impl Detail {
    fn show(&mut self, view: usize) {
        (self.view, self.scroll) = (view, 0);
    }
}
