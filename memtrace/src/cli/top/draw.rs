//! Draws the screen: a head, the list or a view of one process, and the keys.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row, Table, TableState},
};

use super::{
    super::ps::{self, Sort},
    screen::{Detail, SORTS, Screen, VIEWS},
};
use crate::{
    report::{self, text::clean},
    units,
};

/// Columns of the list: heading, width, and what it is sorted by.
static COLUMNS: [(&str, u16, Sort); 7] = [
    ("PID", 7, Sort::Pid),
    ("COMMITTED", 9, Sort::Committed),
    ("LAZY", 9, Sort::Lazy),
    ("GROWTH/S", 10, Sort::Growth),
    ("FAULTS/S", 8, Sort::Faults),
    ("P99", 8, Sort::P99),
    ("HEAP", 9, Sort::Heap),
];

/// Draws everything.
pub fn screen(frame: &mut Frame<'_>, screen: &mut Screen) {
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ]);
    let [head, body, foot] = rows.areas(frame.area());
    frame.render_widget(Paragraph::new(title(screen)).bold(), head);
    // Below the list's headings.
    screen.page = usize::from(body.height.saturating_sub(1)).max(1);
    match &mut screen.detail {
        Some(detail) => view(frame, body, detail),
        None => list(frame, body, screen),
    }
    let keys = match &screen.trouble {
        Some(trouble) => Line::from(clean(trouble)).fg(Color::Red),
        None => keys(screen),
    };
    frame.render_widget(Paragraph::new(keys), foot);
}

fn title(screen: &Screen) -> String {
    let listing = &screen.listing;
    if let Some(detail) = &screen.detail {
        let line = listing.processes.iter().find(|line| line.pid == detail.pid);
        let name = line.map_or_else(String::new, |line| clean(&line.comm));
        return format!(
            "memtrace top  {name} (pid {})  {}",
            detail.pid, VIEWS[detail.view].2
        );
    }
    let processes = listing.processes.len() as u64;
    let committed = listing
        .processes
        .iter()
        .map(|line| line.committed_bytes)
        .sum();
    let mut title = format!(
        "memtrace top  {}  {} committed",
        units::counted(processes, "process", "processes"),
        units::bytes(committed)
    );
    let nearest = listing
        .cgroups
        .iter()
        .filter(|line| line.headroom_bytes.is_some());
    if let Some(line) = nearest.min_by_key(|line| line.headroom_bytes) {
        let left = units::bytes(line.headroom_bytes.unwrap_or(0));
        title.push_str(&format!("  {left} left of {}", clean(&line.path)));
    }
    if listing.lost > 0 {
        title.push_str(&format!("  {} events lost", units::count(listing.lost)));
    }
    title
}

fn list(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let columns = fitting(area.width);
    let heading = |(name, width, sort): &(&str, u16, Sort)| {
        let cell = Cell::from(right(name, *width));
        if *sort == screen.sort {
            cell.style(Style::new().add_modifier(Modifier::REVERSED))
        } else {
            cell
        }
    };
    let headings = columns.iter().map(heading).chain([Cell::from("NAME")]);
    let rows = screen.listing.processes.iter().map(|line| {
        let [pid, _, committed, lazy, growth, faults, p99, heap, name] = ps::cells(line);
        let figures = [pid, committed, lazy, growth, faults, p99, heap];
        let figures = figures.into_iter().zip(columns);
        let figures = figures.map(|(text, column)| right(&text, column.1));
        Row::new(figures.chain([name]))
    });
    let widths = columns.iter().map(|column| Constraint::Length(column.1));
    let table = Table::new(rows, widths.chain([Constraint::Min(4)]))
        .header(Row::new(headings).bold())
        .row_highlight_style(Style::new().bg(Color::Blue).fg(Color::White));
    let mut state = TableState::new().with_selected(screen.place());
    frame.render_stateful_widget(table, area, &mut state);
}

/// As many columns as leave room for a name; the first one always.
fn fitting(width: u16) -> &'static [(&'static str, u16, Sort)] {
    const NAME: u16 = 8;
    let mut used = NAME;
    let fits = COLUMNS.iter().take_while(|column| {
        used += column.1 + 1;
        used <= width
    });
    &COLUMNS[..fits.count().max(1)]
}

fn right(text: &str, width: u16) -> String {
    format!("{text:>width$}", width = usize::from(width))
}

fn view(frame: &mut Frame<'_>, area: Rect, detail: &mut Detail) {
    let text = match &detail.document {
        Some(document) => {
            let style = report::Style {
                width: usize::from(area.width),
                ..report::Style::default()
            };
            let mut out = Vec::new();
            let rendered = report::by_name(VIEWS[detail.view].1)
                .ok()
                .map(|report| report.render(document, &style, &mut out));
            match rendered {
                Some(Ok(())) => String::from_utf8_lossy(&out).into_owned(),
                _ => String::new(),
            }
        }
        None => "asking …".to_owned(),
    };
    let lines: Vec<Line<'_>> = text.lines().map(Line::from).collect();
    let last = lines.len().saturating_sub(usize::from(area.height));
    detail.scroll = detail.scroll.min(last);
    let shown: Vec<Line<'_>> = lines.into_iter().skip(detail.scroll).collect();
    frame.render_widget(Paragraph::new(shown), area);
}

/// The keys that do something here; what is chosen stands out.
fn keys(screen: &Screen) -> Line<'static> {
    let mut spans = Vec::new();
    let mut key = |key: &str, name: &str, chosen: bool| {
        spans.push(Span::from(key.to_owned()).bold());
        let name = Span::from(format!(" {name} "));
        spans.push(if chosen { name.reversed() } else { name });
        spans.push(Span::from(" "));
    };
    match &screen.detail {
        Some(detail) => {
            for (index, (letter, _, name)) in VIEWS.iter().enumerate() {
                key(&letter.to_string(), name, index == detail.view);
            }
            key("↑↓", "scroll", false);
            key("Esc", "back", false);
        }
        None => {
            for (letter, sort, name) in SORTS {
                key(&letter.to_string(), name, sort == screen.sort);
            }
            key("Enter", "look into", false);
        }
    }
    key("q", "quit", false);
    Line::from(spans)
}

#[cfg(test)]
mod tests {
    use ratatui::{
        Terminal,
        backend::TestBackend,
        crossterm::event::{KeyCode, KeyEvent},
    };

    use super::*;
    use crate::{
        cli::top::ask::Answer,
        daemon::protocol::{Listing, ProcessLine},
        report::fixture,
    };

    fn line(pid: u32, committed_bytes: u64, faults_per_second: f64) -> ProcessLine {
        ProcessLine {
            pid,
            container_pid: None,
            comm: format!("name-{pid}"),
            reserved_bytes: 3 * committed_bytes,
            committed_bytes,
            lazy_bytes: 2 * committed_bytes,
            growth_per_second: 2048.0,
            minor: 1,
            major: 0,
            faults_per_second,
            fault_p99_ns: Some(1500),
            heap_live_bytes: (pid == 9).then_some(1 << 20),
            cgroup: "/".into(),
            container: None,
        }
    }

    fn filled() -> Screen {
        let mut screen = Screen::new(Sort::Committed);
        let listing = Listing {
            processes: vec![
                line(7, 1 << 20, 50.0),
                line(9, 3 << 30, 5.0),
                line(12345, 2 << 20, 500.0),
            ],
            ..Listing::default()
        };
        screen.take(Answer::Listing(listing));
        screen
    }

    /// The terminal's lines, without the blanks at their ends.
    fn shown(screen: &mut Screen, (width, height): (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| super::screen(frame, screen)).unwrap();
        let buffer = terminal.backend().buffer();
        let cells: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
        let line = |line: &[&str]| line.concat().trim_end().to_owned();
        cells.chunks(usize::from(width)).map(line).collect()
    }

    #[test]
    fn everything_is_on_a_screen_of_80_by_24() {
        let mut screen = filled();
        let lines = shown(&mut screen, (80, 24));
        assert_eq!(lines[0], "memtrace top  3 processes  3.0 GiB committed");
        assert_eq!(
            lines[1..5],
            [
                "    PID COMMITTED      LAZY   GROWTH/S FAULTS/S      P99      HEAP NAME",
                "      9   3.0 GiB   6.0 GiB   +2.0 KiB        5   1.5 µs   1.0 MiB name-9",
                "  12345   2.0 MiB   4.0 MiB   +2.0 KiB      500   1.5 µs         - name-12345",
                "      7   1.0 MiB   2.0 MiB   +2.0 KiB       50   1.5 µs         - name-7",
            ]
        );
        assert_eq!(
            lines[23],
            "c committed  l lazy  g growth  f faults  p p99  h heap  Enter look into  q quit"
        );
    }

    fn press(screen: &mut Screen, keys: &[KeyCode]) {
        for &key in keys {
            screen.press(KeyEvent::from(key));
        }
    }

    #[test]
    fn keys_sort_and_move_and_the_cursor_stays_on_its_process() {
        let mut screen = filled();
        press(&mut screen, &[KeyCode::Down, KeyCode::Char('f')]);
        assert_eq!((screen.cursor, screen.place()), (Some(12345), 0));
        let lines = shown(&mut screen, (80, 24));
        assert!(lines[2].contains("name-12345") && lines[4].contains("name-9"));
        press(&mut screen, &[KeyCode::End, KeyCode::PageDown]);
        assert_eq!(screen.cursor, Some(9));
        press(&mut screen, &[KeyCode::Home, KeyCode::Up]);
        assert_eq!(screen.cursor, Some(12345));
        assert!(!screen.is_done());
        press(&mut screen, &[KeyCode::Char('q')]);
        assert!(screen.is_done());
    }

    #[test]
    fn a_process_is_looked_into() {
        let mut screen = filled();
        let process = fixture::process();
        screen.cursor = Some(9);
        press(&mut screen, &[KeyCode::Enter]);
        assert!(screen.take_impatience());
        assert_eq!(shown(&mut screen, (80, 24))[1], "asking …");
        let mut document = fixture::empty();
        document.processes.push(process);
        screen.take(Answer::Process(9, Box::new(document)));
        for (key, name) in [('t', "timeline"), ('m', "mappings"), ('s', "sites")] {
            press(&mut screen, &[KeyCode::Char(key)]);
            let lines = shown(&mut screen, (80, 24));
            assert_eq!(lines[0], format!("memtrace top  name-9 (pid 9)  {name}"));
            assert!(
                lines[1..23].iter().filter(|line| !line.is_empty()).count() > 2,
                "{lines:?}"
            );
            assert!(lines[23].contains("Esc back"), "{}", lines[23]);
        }
        press(&mut screen, &[KeyCode::Char('g')]);
        let lines = shown(&mut screen, (80, 24));
        assert_eq!(lines[0], "memtrace top  name-9 (pid 9)  growth");
        assert_eq!(
            lines[1],
            "1 process not sampled: the daemon samples those that grow."
        );
        assert!(lines[23].ends_with("Esc back  q quit"), "{}", lines[23]);
        press(&mut screen, &[KeyCode::Esc]);
        assert!(shown(&mut screen, (80, 24))[2].contains("name-9"));
    }

    #[test]
    fn any_size_is_drawn_and_the_cursor_stays_in_sight() {
        let mut screen = filled();
        screen.listing.processes = (1..200).map(|pid| line(pid, 1 << 20, 1.0)).collect();
        screen.cursor = Some(150);
        for size in [(80, 24), (20, 5), (1, 1), (250, 90)] {
            let lines = shown(&mut screen, size);
            let seen = lines.iter().any(|line| line.contains("    150 "));
            assert_eq!(seen, size.0 > 1, "{size:?}: {lines:?}");
        }
        screen.take(Answer::None("the daemon ended".into()));
        let lines = shown(&mut screen, (80, 24));
        assert_eq!(lines[23], "the daemon ended");
    }
}
