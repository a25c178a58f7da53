//! Histories on disk: what is written, what is asked, and what damage does.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use super::{Batch, Ended, Identity, Reader, Retention, Row, Span, Writer};
use crate::report::document::LeftOut;

pub(super) const KEEP: Retention = Retention {
    keep_ms: [3_600_000, 86_400_000, 30 * 86_400_000],
    bytes: 64 << 20,
};

/// A moment in 2023.
pub(super) const START: i64 = 1_700_000_000_000;

const ALWAYS: Span = Span {
    since_ms: 0,
    until_ms: i64::MAX / 2,
};

pub(super) fn row(pid: u32, second: u64) -> Row {
    // One fault a second of the bucket 5, each 100 ns.
    let mut buckets = vec![0; 128];
    buckets[5] = second;
    Row {
        key: (pid, 7),
        identity: None,
        reserved: 1 << 30,
        committed: 4096 * second,
        heap_live: None,
        minor: second,
        major: 0,
        minor_ns: 100 * second,
        major_ns: 0,
        buckets,
        growth: Vec::new(),
    }
}

pub(super) fn named(mut row: Row, comm: &str) -> Row {
    row.identity = Some(Identity {
        parent_pid: 1,
        start_ms: START,
        comm: comm.into(),
        exe: format!("/bin/{comm}"),
        command_line: vec![comm.into(), "-x".into()],
        cgroup: "/g".into(),
        container: None,
    });
    row
}

pub(super) fn batch(second: u64, rows: Vec<Row>) -> Batch {
    Batch {
        time_ms: START + 1000 * second as i64,
        rows,
        ..Batch::default()
    }
}

pub(super) fn writer(path: &Path) -> Writer {
    Writer::open(path, KEEP, START).unwrap()
}

/// One process that grows for some seconds.
fn grow(path: &Path, seconds: u64) {
    let mut writer = writer(path);
    for second in 1..=seconds {
        let row = row(10, second);
        let row = if second == 1 {
            named(row, "grows")
        } else {
            row
        };
        writer.write(&batch(second, vec![row])).unwrap();
    }
}

pub(super) fn ended(pid: u32, second: u64) -> Ended {
    Ended {
        row: named(row(pid, second), "short"),
        end_ms: START + 1000 * second as i64 - 500,
        code: Some(3),
        signal: None,
        peak_reserved: 2 << 30,
        peak_committed: 1 << 20,
    }
}

fn count(path: &Path, sql: &str) -> i64 {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_span_is_told_by_its_own_faults_and_its_last_sizes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    grow(&path, 30);
    let span = Span {
        since_ms: START + 10_500,
        until_ms: START + 20_500,
    };
    let document = Reader::open(&path)
        .unwrap()
        .report(span, &[], |_| true)
        .unwrap();
    let [process] = &document.processes[..] else {
        panic!("one process");
    };
    assert_eq!(
        (process.pid, &process.comm[..], &process.exe[..]),
        (10, "grows", "/bin/grows")
    );
    assert_eq!(process.command_line, ["grows", "-x"]);
    assert_eq!(process.faults.minor, 10, "seconds 11 to 20");
    let latency = process.faults.latency_ns.as_ref().unwrap();
    assert_eq!(
        (latency.count, latency.minor_sum, latency.mean),
        (10, 1000, 100)
    );
    assert_eq!(process.address_space.committed_bytes, 4096 * 20);
    assert_eq!(process.address_space.lazy_bytes, (1 << 30) - 4096 * 20);
    assert_eq!(process.timeline.len(), 10);
    assert_eq!(
        process.timeline[0].time_ns,
        (START as u64 + 11_000) * 1_000_000
    );
    let other = Reader::open(&path)
        .unwrap()
        .report(span, &[11], |_| true)
        .unwrap();
    assert!(other.processes.is_empty());
}

#[test]
fn who_did_not_change_has_a_point_a_minute() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut writer = writer(&path);
    for second in 1..=125 {
        writer
            .write(&batch(second, vec![named(row(10, 1), "idle")]))
            .unwrap();
    }
    drop(writer);
    assert_eq!(
        count(&path, "SELECT count(*) FROM sample_1s"),
        3,
        "seconds 1, 61 and 121"
    );
    assert_eq!(count(&path, "SELECT count(*) FROM sample_10s"), 1);
    let span = Span {
        since_ms: START + 70_000,
        until_ms: START + 80_000,
    };
    let document = Reader::open(&path)
        .unwrap()
        .report(span, &[], |_| true)
        .unwrap();
    assert_eq!(document.processes[0].address_space.committed_bytes, 4096);
    assert_eq!(document.processes[0].faults.minor, 0);
}

#[test]
fn coarser_points_sum_the_histograms_and_keep_the_peak() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut writer = writer(&path);
    for second in 1..=40 {
        let mut row = named(row(10, second), "peaks");
        if second == 15 {
            row.committed = 1 << 40;
        }
        writer.write(&batch(second, vec![row])).unwrap();
    }
    drop(writer);
    let peak = "SELECT max(committed_peak) FROM sample_10s";
    assert_eq!(count(&path, peak), 1 << 40);
    let connection = rusqlite::Connection::open(&path).unwrap();
    for table in ["sample_1s", "sample_10s"] {
        let sql = format!("SELECT faults FROM {table} WHERE faults IS NOT NULL");
        let mut statement = connection.prepare(&sql).unwrap();
        let mut sum = Vec::new();
        for bytes in statement
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .unwrap()
        {
            assert!(super::buckets::add(&bytes.unwrap(), &mut sum));
        }
        assert_eq!(sum[5], 40, "{table}");
    }
}

#[test]
fn a_process_of_one_millisecond_is_there_with_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut writer = writer(&path);
    let mut batch = batch(5, Vec::new());
    batch.ended.push(ended(20, 5));
    batch.lost = 4;
    writer.write(&batch).unwrap();
    let document = Reader::open(&path)
        .unwrap()
        .report(ALWAYS, &[20], |_| true)
        .unwrap();
    let process = &document.processes[0];
    assert_eq!(process.exit.unwrap().code, Some(3));
    assert_eq!(process.end_time_ns, Some((START as u64 + 4500) * 1_000_000));
    assert_eq!(process.faults.minor, 5);
    assert_eq!(process.address_space.peak_committed_bytes, 1 << 20);
    assert_eq!(document.coverage.lost, 4);
}

#[test]
fn what_was_not_written_is_in_the_next_batch() {
    let mut first = batch(1, vec![named(row(10, 1), "a"), named(row(11, 1), "b")]);
    first.ended.push(ended(20, 1));
    first.lost = 1;
    let mut later = batch(2, vec![row(10, 2)]);
    later.ended.push(Ended {
        row: row(11, 2),
        ..ended(11, 2)
    });
    later.lost = 2;
    first.absorb(later);
    assert_eq!((first.rows.len(), first.ended.len(), first.lost), (1, 2, 3));
    assert_eq!(first.rows[0].identity.as_ref().unwrap().comm, "a");
    assert_eq!(first.ended[1].row.identity.as_ref().unwrap().comm, "b");
    assert_eq!(first.time_ms, START + 2000);
}

#[test]
fn a_restart_is_a_gap_and_says_how_the_daemon_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    grow(&path, 3);
    let restarted = Writer::open(&path, KEEP, START + 60_000).unwrap();
    restarted.stop(START + 61_000).unwrap();
    drop(Writer::open(&path, KEEP, START + 90_000).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    let mut statement = connection
        .prepare("SELECT time_ms, end_ms, detail FROM event WHERE kind = 'gap' ORDER BY rowid")
        .unwrap();
    let gaps: Vec<(i64, i64, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        gaps,
        [
            (
                START + 3000,
                START + 60_000,
                "the daemon ended without a word".to_owned()
            ),
            (
                START + 60_000,
                START + 90_000,
                "the daemon did not run".to_owned()
            ),
        ]
    );
    let ends = "SELECT count(*) FROM process WHERE end_ms = 1700000003000";
    assert_eq!(count(&path, ends), 1, "its last word of the process");
}

/// What lived between the two was seen by the first and is in no batch.
#[test]
fn the_first_daemon_ended_before_its_first_batch_leaves_a_gap() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    drop(Writer::open(&path, KEEP, START).unwrap());
    drop(Writer::open(&path, KEEP, START + 5000).unwrap());
    let gaps = "SELECT count(*) FROM event \
                WHERE kind = 'gap' AND time_ms = 1700000000000 AND end_ms = 1700000005000";
    assert_eq!(count(&path, gaps), 1);
}

#[test]
fn any_damage_is_moved_aside_or_harmless() {
    let whole = {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("h");
        grow(&path, 100);
        fs::read(&path).unwrap()
    };
    let mut state = 88_172_645_463_325_252u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut moved = 0;
    for turn in 0..60 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("h");
        fs::write(&path, &whole).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        if turn % 3 == 0 {
            file.set_len(random() % whole.len() as u64).unwrap();
        } else {
            let at = random() % whole.len() as u64;
            let bit = 1 << (random() % 8);
            file.write_at(&[whole[at as usize] ^ bit], at).unwrap();
        }
        let mut writer = Writer::open(&path, KEEP, START + 200_000).unwrap();
        writer
            .write(&batch(201, vec![named(row(30, 1), "after")]))
            .unwrap();
        let reader = Reader::open(&path).unwrap();
        match reader.report(ALWAYS, &[30], |_| true) {
            Ok(document) => assert_eq!(document.processes[0].comm, "after"),
            // Found only where it is read: the next write or start will move it.
            Err(error) => assert!(error.is_damage(), "{error}"),
        }
        moved += i32::from(directory.path().join("h.damaged-1").exists());
    }
    assert!(moved >= 15, "only {moved} of 60 were found");
}

#[test]
fn a_file_of_another_program_is_moved_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    fs::write(
        &path,
        "no database at all, but a text of some length".repeat(100),
    )
    .unwrap();
    grow(&path, 2);
    assert!(directory.path().join("h.damaged-1").exists());
    let document = Reader::open(&path)
        .unwrap()
        .report(ALWAYS, &[], |_| true)
        .unwrap();
    assert_eq!(document.coverage.lost_by_reason["history_damaged"], 1);
}

#[test]
fn a_file_damaged_under_way_is_begun_anew_with_what_runs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut writer = writer(&path);
    writer
        .write(&batch(1, vec![named(row(10, 1), "lives")]))
        .unwrap();
    drop(writer);
    // Opened again, so that the journal is in the database.
    let mut writer = Writer::open(&path, KEEP, START).unwrap();
    writer
        .write(&batch(2, vec![named(row(10, 2), "lives")]))
        .unwrap();
    for name in ["h", "h-wal"] {
        let file = fs::File::options()
            .write(true)
            .open(directory.path().join(name))
            .unwrap();
        let length = file.metadata().unwrap().len();
        file.write_all_at(&vec![0x5a; length as usize], 0).unwrap();
    }
    writer.verify(START + 3000).unwrap();
    writer.write(&batch(3, vec![row(10, 3)])).unwrap();
    let document = Reader::open(&path)
        .unwrap()
        .report(ALWAYS, &[10], |_| true)
        .unwrap();
    assert_eq!(document.processes[0].comm, "lives");
}

#[test]
fn a_newer_version_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    grow(&path, 1);
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Writer::open(&path, KEEP, START).err().unwrap();
    assert!(
        error.to_string().ends_with(
            "is of version 99, this memtrace knows 1: update memtrace, or move the file away"
        ),
        "{error}"
    );
    assert!(!directory.path().join("h.damaged-1").exists());
}

#[test]
fn what_is_old_goes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let keep = Retention {
        keep_ms: [60_000, 120_000, 1_000_000],
        ..KEEP
    };
    let mut writer = Writer::open(&path, keep, START).unwrap();
    for second in 1..=300 {
        let mut batch = batch(second, vec![named(row(10, second), "grows")]);
        batch.ended.push(ended(1000 + second as u32, second));
        writer.write(&batch).unwrap();
    }
    drop(writer);
    let oldest = |table| count(&path, &format!("SELECT min(time_ms) FROM {table}")) - START;
    // A look a minute: the last one was at second 241 or 300.
    assert!(
        (180_000..=240_000).contains(&oldest("sample_1s")),
        "{}",
        oldest("sample_1s")
    );
    assert!((120_000..=180_000).contains(&oldest("sample_10s")));
    assert!(oldest("sample_5min") <= 2000);
}

#[test]
fn the_size_has_a_bound() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let keep = Retention {
        bytes: 1 << 20,
        ..KEEP
    };
    let mut writer = Writer::open(&path, keep, START).unwrap();
    for second in 1..=400 {
        let rows = (0..40).map(|pid| named(row(pid, second), "many")).collect();
        writer.write(&batch(second, rows)).unwrap();
    }
    let newest = "SELECT max(time_ms) FROM sample_1s";
    assert_eq!(count(&path, newest), START + 400_000);
    assert!(fs::metadata(&path).unwrap().len() <= 1 << 20);
}

#[test]
fn moments_are_marks_ages_and_times() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut writer = writer(&path);
    writer.mark("deploy", START).unwrap();
    writer.mark("deploy", START + 5000).unwrap();
    let reader = Reader::open(&path).unwrap();
    let now = START + 7_200_000;
    let moment = |text| reader.moment(text, now).map_err(|error| error.to_string());
    assert_eq!(moment("deploy"), Ok(START + 5000));
    assert_eq!(moment("2h"), Ok(START));
    assert_eq!(moment("@1700000001"), Ok(START + 1000));
    assert!(
        moment("never")
            .unwrap_err()
            .starts_with("\"never\" is no mark, no age and no time")
    );
}

#[test]
fn what_was_left_out_is_told_for_as_long_as_it_lasted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut writer = writer(&path);
    let left_out = LeftOut {
        since_ms: START + 3000,
        until_ms: None,
        what: "heap probes of a (pid 7): why".into(),
    };
    for second in 1..=20 {
        let mut batch = batch(second, vec![row(10, second)]);
        if (3..=9).contains(&second) {
            batch.left_out.push(left_out.clone());
        }
        writer.write(&batch).unwrap();
    }
    let told = |since: i64, until: i64| {
        let span = Span {
            since_ms: START + since * 1000,
            until_ms: START + until * 1000,
        };
        let document = Reader::open(&path)
            .unwrap()
            .report(span, &[], |_| true)
            .unwrap();
        document.coverage.left_out
    };
    let expected = LeftOut {
        until_ms: Some(START + 9000),
        ..left_out
    };
    for (since, until) in [(5, 6), (1, 20)] {
        assert_eq!(told(since, until), std::slice::from_ref(&expected));
    }
    assert_eq!(told(10, 20), []);
    assert_eq!(told(1, 2), []);
}

#[test]
fn a_clock_set_forward_ages_nothing_for_an_hour() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    const YEAR: u64 = 365 * 86_400;
    let first = "SELECT count(*) FROM sample_1s WHERE time_ms = 1700000001000";
    let mut writer = writer(&path);
    let mut at = |second| {
        let row = named(row(10, second), "grows");
        writer.write(&batch(second, vec![row])).unwrap();
        count(&path, first)
    };
    assert_eq!((1..=60).map(&mut at).last(), Some(1));
    let kept = (YEAR..YEAR + 3600).step_by(4).map(&mut at).last();
    assert_eq!(kept, Some(1), "it may be set right again");
    let gone = (YEAR + 3600..YEAR + 3720).step_by(4).map(&mut at).last();
    assert_eq!(gone, Some(0), "it was not");
    drop(writer);
    // The same at a start: nobody knows what the clock did meanwhile.
    let mut writer = Writer::open(&path, KEEP, START + 3 * YEAR as i64 * 1000).unwrap();
    let before = count(&path, "SELECT count(*) FROM sample_1s");
    writer.write(&batch(3 * YEAR, vec![])).unwrap();
    assert_eq!(count(&path, "SELECT count(*) FROM sample_1s"), before);
}

#[test]
fn a_clock_set_back_leaves_the_last_state_the_last() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    let mut writer = writer(&path);
    for second in 100..=200 {
        writer
            .write(&batch(second, vec![named(row(10, second), "falls")]))
            .unwrap();
    }
    let mut last = batch(150, vec![row(10, 3)]);
    last.ended.push(ended(11, 180));
    writer.write(&last).unwrap();
    writer.write(&batch(201, vec![row(10, 3)])).unwrap();
    let span = |since: i64, until: i64| Span {
        since_ms: START + since * 1000,
        until_ms: START + until * 1000,
    };
    let reader = Reader::open(&path).unwrap();
    for (since, until) in [(100, 150), (100, 201), (190, 210)] {
        let document = reader.report(span(since, until), &[10], |_| true).unwrap();
        let [process] = &document.processes[..] else {
            panic!("one process runs");
        };
        assert_eq!(
            process.address_space.committed_bytes,
            row(10, 3).committed,
            "{since} to {until}"
        );
        // Set back, and silent until it said the same again.
        assert_eq!(document.coverage.lost_by_reason["history_gap"], 2);
    }
    let ended = "SELECT count(*) FROM process WHERE pid = 11 AND end_ms = 1700000179500";
    assert_eq!(count(&path, ended), 1);
}
