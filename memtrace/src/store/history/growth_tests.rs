//! What grows, on disk.

use super::{
    super::tests::{START, batch, named, row, writer},
    super::{Ended, Grown, Reader, Retention, Span, Writer},
};
use crate::report::document::{FoundBy, Frame, GrowthSite, StackEnd};

const HOUR_MS: i64 = 3_600_000;

fn frame(offset: u64, function: Option<&str>) -> Frame {
    Frame {
        address: 0x1000 + offset,
        module: Some("/bin/a".into()),
        build_id: None,
        offset: Some(offset),
        function: function.map(str::to_owned),
        file: None,
        line: None,
        inlined: false,
        found_by: FoundBy::Rules,
    }
}

fn grown(bytes: u64, leak_candidate: bool, frames: Vec<Frame>) -> Grown {
    Grown {
        site: GrowthSite {
            bytes,
            bytes_error: 7,
            samples: 5,
            bytes_per_second: 17_476.0,
            bytes_per_second_error: 12.5,
            confidence: 0.999,
            over_ns: 200_000_000_000,
            leak_candidate,
            stack_end: Some(StackEnd::Start),
            ..GrowthSite::default()
        },
        frames,
        since_ms: START,
        oldest_ms: START + 1000,
        newest_ms: START + 2000,
    }
}

#[test]
fn sites_that_grow_are_kept_with_their_stacks_and_their_levels() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.sqlite");
    let mut writer = writer(&path);
    for minute in 1..=10u64 {
        let mut row = row(10, minute);
        if minute == 1 {
            row = named(row, "a");
        }
        // Names are known later.
        let name = (minute >= 5).then_some("leaks");
        let leak = grown(
            minute << 20,
            minute >= 4,
            vec![frame(1, name), frame(2, None)],
        );
        let cache = grown(30 << 20, false, vec![frame(3, None)]);
        row.growth = vec![leak, cache];
        writer.write(&batch(60 * minute, vec![row])).unwrap();
    }
    let reader = Reader::open(&path).unwrap();
    let at = |minute: i64| START + 60_000 * minute;
    let span = |since, until| Span {
        since_ms: at(since),
        until_ms: at(until),
    };
    let told = |span| {
        let process = reader
            .report(span, &[10], |_| true)
            .unwrap()
            .processes
            .remove(0);
        let growth = process.growth.clone().unwrap();
        (process, growth)
    };
    let (process, growth) = told(span(2, 8));
    assert_eq!(growth.since_ns, START as u64 * 1_000_000);
    let leak = &growth.sites[0];
    assert_eq!((leak.leak_candidate, leak.bytes), (true, 8 << 20));
    assert_eq!((leak.bytes_per_second, leak.confidence), (17_476.0, 0.999));
    assert_eq!(leak.oldest_age_ns, 479_000_000_000);
    assert_eq!(leak.stack_end, Some(StackEnd::Start));
    let names: Vec<_> = process
        .stack(&leak.stack)
        .map(|one| one.function.as_deref())
        .collect();
    assert_eq!(names, [Some("leaks"), None]);
    let levels: Vec<u64> = leak.points.iter().map(|point| point.bytes >> 20).collect();
    assert_eq!(levels, [2, 3, 4, 5, 6, 7, 8]);
    // As it was before it was a candidate: most bytes first.
    let (_, before) = told(span(0, 3));
    let first = &before.sites[0];
    assert_eq!((first.leak_candidate, first.bytes), (false, 30 << 20));
    // Of a time in which nothing was written any more, nothing is told.
    let later = reader.report(span(30, 40), &[10], |_| true).unwrap();
    assert!(later.processes[0].growth.is_none());
}

#[test]
fn sites_thin_out_with_age_and_go_with_their_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.sqlite");
    let retention = Retention {
        keep_ms: [HOUR_MS, 2 * HOUR_MS, 24 * HOUR_MS],
        bytes: 64 << 20,
    };
    let mut writer = Writer::open(&path, retention, START).unwrap();
    let minutes = 4 * 60;
    for minute in 1..=minutes {
        let mut row = row(10, minute);
        if minute == 1 {
            row = named(row, "a");
        }
        row.growth = vec![grown(minute, false, vec![frame(1, None)])];
        writer.write(&batch(60 * minute, vec![row])).unwrap();
    }
    let reader = rusqlite::Connection::open(&path).unwrap();
    let count = |sql: &str| {
        reader
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    let points = count("SELECT count(*) FROM growth");
    // Two hours of minutes, and two of half hours.
    assert!((120..120 + 8).contains(&points), "{points}");
    let end = Ended {
        row: row(10, minutes),
        end_ms: START + 60_000 * minutes as i64,
        code: Some(0),
        signal: None,
        peak_reserved: 0,
        peak_committed: 0,
    };
    let mut last = batch(60 * minutes + 60, Vec::new());
    last.ended = vec![end];
    writer.write(&last).unwrap();
    // A day later; the clock, which jumped, is believed after an hour.
    for minute in minutes + 24 * 60..minutes + 26 * 60 {
        writer.write(&batch(60 * minute, Vec::new())).unwrap();
    }
    assert_eq!(count("SELECT count(*) FROM growth"), 0);
    assert_eq!(count("SELECT count(*) FROM stack"), 0);
}
