//! Writes batches, each in one transaction, and keeps the database within its bounds.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::{
    batch::{Batch, Ended, Identity, Key, Row},
    buckets,
    clock::{self, Age},
    error::HistoryError,
    growth,
    known::{Known, Point},
    open,
    retention::{self, Retention},
    schema::TIERS,
};

/// Milliseconds between two looks at what is too old.
const PRUNE_MS: i64 = 60_000;

/// A longer silence before a batch is a gap.
const GAP_MS: i64 = 5_000;

/// The writing end of a history.
pub struct Writer {
    path: PathBuf,
    connection: Connection,
    retention: Retention,
    known: HashMap<Key, Known>,
    pruned_ms: i64,
    age: Age,
    /// The last batch that was written.
    written_ms: Option<i64>,
}

impl Writer {
    /// Opens or makes the database, and notes that the daemon starts: what lies between the last batch and now was not
    /// seen.
    pub fn open(path: &Path, retention: Retention, now_ms: i64) -> Result<Self, HistoryError> {
        let opened = open::open(path, retention.bytes)?;
        let mut writer = Self {
            path: path.to_owned(),
            connection: opened.connection,
            retention,
            known: HashMap::new(),
            pruned_ms: 0,
            age: Age::default(),
            written_ms: None,
        };
        if let Some(aside) = opened.aside {
            writer.note_damage(now_ms, &aside)?;
        }
        writer.try_with(|writer| writer.begin(now_ms))?;
        Ok(writer)
    }

    /// Writes one batch. Where the file is damaged, it is moved aside and a new one begun with this batch. On any other
    /// failure nothing of the batch is in the database.
    pub fn write(&mut self, batch: &Batch) -> Result<(), HistoryError> {
        let done = self.try_with(|writer| writer.write_once(batch));
        match done {
            Err(error) if error.is_damage() => {
                log::warn!("{error}");
                self.begin_anew(batch.time_ms)?;
                self.try_with(|writer| writer.write_once(batch))
            }
            Err(error) if is_full(&error) => {
                let room = self.try_with(|writer| {
                    retention::make_room(&writer.connection, &writer.retention)
                })?;
                if !room {
                    return Err(error);
                }
                self.try_with(|writer| writer.write_once(batch))
            }
            other => other,
        }
    }

    /// Looks at the file as others see it, and begins anew where it is damaged: the writer itself may go on for long
    /// with what it has in its cache.
    pub fn verify(&mut self, now_ms: i64) -> Result<(), HistoryError> {
        match open::verify(&self.path) {
            Err(error) if error.is_damage() => self.begin_anew(now_ms),
            other => other,
        }
    }

    /// Names a moment.
    pub fn mark(&mut self, name: &str, time_ms: i64) -> Result<(), HistoryError> {
        self.try_with(|writer| {
            let sql = "INSERT INTO mark (name, time_ms) VALUES (?1, ?2)";
            writer
                .connection
                .execute(sql, params![name, time_ms])
                .map(drop)
        })
    }

    /// Notes something that happened to the daemon itself.
    pub fn note(&mut self, event: &Note<'_>) -> Result<(), HistoryError> {
        self.try_with(|writer| insert_event(&writer.connection, event))
    }

    /// Notes that the daemon stops in good order.
    pub fn stop(mut self, now_ms: i64) -> Result<(), HistoryError> {
        self.try_with(|writer| {
            set_state(&writer.connection, "stopped", 1)?;
            let stop = Note::at(now_ms, "stop", "the daemon was told to stop");
            insert_event(&writer.connection, &stop)
        })
    }

    fn try_with<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<T>,
    ) -> Result<T, HistoryError> {
        work(self).map_err(|source| HistoryError::Database {
            path: self.path.clone(),
            source,
        })
    }

    fn begin(&mut self, now_ms: i64) -> rusqlite::Result<()> {
        let last_ms = state(&self.connection, "written_ms")?;
        let stopped = state(&self.connection, "stopped")? == Some(1);
        if let Some(last_ms) = last_ms {
            self.age.moved(last_ms, now_ms);
        }
        let transaction = self.connection.transaction()?;
        if let Some(last_ms) = last_ms {
            let detail = if stopped {
                "the daemon did not run"
            } else {
                "the daemon ended without a word"
            };
            let complete_ms = state(&transaction, "complete_ms")?.unwrap_or(last_ms);
            insert_event(&transaction, &Note::gap(complete_ms, now_ms, detail))?;
            // Whether they still run is found anew; of these rows no more is known.
            let sql = "UPDATE process SET end_ms = ?1 WHERE end_ms IS NULL";
            transaction.execute(sql, [last_ms])?;
        }
        set_state(&transaction, "stopped", 0)?;
        insert_event(
            &transaction,
            &Note::at(now_ms, "start", "the daemon starts"),
        )?;
        set_complete(&transaction, now_ms, 0)?;
        transaction.commit()
    }

    fn begin_anew(&mut self, now_ms: i64) -> Result<(), HistoryError> {
        // Closed first: the end of a connection removes the journal by its name, which will be the new one's.
        self.try_with(|writer| {
            writer.connection = Connection::open_in_memory()?;
            Ok(())
        })?;
        let opened = open::open(&self.path, self.retention.bytes)?;
        self.connection = opened.connection;
        // Every process is new to a new database.
        self.known.values_mut().for_each(Known::forget_row);
        self.written_ms = None;
        self.try_with(|writer| set_complete(&writer.connection, now_ms, 0))?;
        let aside = opened.aside.unwrap_or_else(|| "nowhere".to_owned());
        self.note_damage(now_ms, &aside)
    }

    fn note_damage(&mut self, now_ms: i64, aside: &str) -> Result<(), HistoryError> {
        log::warn!("the history was damaged: it is {aside} now, and a new one begins");
        let detail = format!("the history was damaged and is {aside} now");
        self.note(&Note::at(now_ms, "damaged", &detail))
    }

    fn write_once(&mut self, batch: &Batch) -> rusqlite::Result<()> {
        let time_ms = batch.time_ms;
        let transaction = self.connection.transaction()?;
        if let Some(before) = self.written_ms {
            self.age.moved(before, time_ms);
            if time_ms < before {
                clock::set_back(&transaction, time_ms)?;
                insert_event(
                    &transaction,
                    &Note::gap(before, time_ms, "the clock was set back"),
                )?;
            } else if before + GAP_MS < time_ms {
                let detail = "nothing could be written, or the clock was set";
                insert_event(&transaction, &Note::gap(before, time_ms, detail))?;
            }
        }
        for (kind, count, detail) in [
            ("lost", batch.lost, "events were lost"),
            ("dropped", batch.dropped, "ended processes were not written"),
        ] {
            if count > 0 {
                let note = Note {
                    count: Some(count),
                    ..Note::at(time_ms, kind, detail)
                };
                insert_event(&transaction, &note)?;
            }
        }
        for left_out in &batch.left_out {
            // Its end moves on as long as it lasts: whatever ends the daemon, it is known.
            let sql = "UPDATE event SET end_ms = ?1 \
                       WHERE time_ms = ?2 AND kind = 'budget' AND detail = ?3";
            let moved =
                transaction.execute(sql, params![time_ms, left_out.since_ms, left_out.what])?;
            if moved == 0 {
                let note = Note {
                    end_ms: Some(time_ms),
                    ..Note::at(left_out.since_ms, "budget", &left_out.what)
                };
                insert_event(&transaction, &note)?;
            }
        }
        let running = batch.rows.iter().map(|row| (row, time_ms, None));
        let ended = batch
            .ended
            .iter()
            .map(|one| (&one.row, one.end_ms, Some(one)));
        let mut written = Vec::new();
        for (row, time_ms, ended) in running.chain(ended) {
            let known = self.known.entry(row.key).or_default();
            let done = write_row(&transaction, known, row, time_ms, ended)?;
            written.push((row, time_ms, done));
        }
        set_complete(&transaction, time_ms, batch.behind_ms)?;
        transaction.commit()?;
        // Only now: what is rolled back stays due.
        for (row, time_ms, done) in written {
            if let Some(known) = self.known.get_mut(&row.key) {
                known.id = Some(done.id);
                known.wrote(row, time_ms, &done.tiers);
            }
        }
        for ended in &batch.ended {
            self.known.remove(&ended.row.key);
        }
        self.written_ms = Some(time_ms);
        if (time_ms - self.pruned_ms).abs() >= PRUNE_MS {
            self.pruned_ms = time_ms;
            if self.age.counts(time_ms) {
                retention::drop_old(&self.connection, &self.retention, time_ms)?;
            }
            retention::keep_bound(&self.connection, &self.retention)?;
        }
        Ok(())
    }
}

/// Whether there is no room, on the disk or within the bound.
fn is_full(error: &HistoryError) -> bool {
    matches!(error, HistoryError::Database { source, .. }
        if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
}

/// Something that happened to the daemon.
pub struct Note<'a> {
    time_ms: i64,
    /// Where it lasted.
    pub end_ms: Option<i64>,
    kind: &'a str,
    /// How many, where it can be counted.
    pub count: Option<u64>,
    detail: &'a str,
}

impl<'a> Note<'a> {
    /// At one moment.
    pub fn at(time_ms: i64, kind: &'a str, detail: &'a str) -> Self {
        Self {
            time_ms,
            end_ms: None,
            kind,
            count: None,
            detail,
        }
    }

    /// Between two moments, which a clock that was set back tells in the other order.
    fn gap(from_ms: i64, to_ms: i64, detail: &'a str) -> Self {
        Self {
            end_ms: Some(from_ms.max(to_ms)),
            ..Self::at(from_ms.min(to_ms), "gap", detail)
        }
    }
}

fn insert_event(connection: &Connection, note: &Note<'_>) -> rusqlite::Result<()> {
    let sql =
        "INSERT INTO event (time_ms, end_ms, kind, count, detail) VALUES (?1, ?2, ?3, ?4, ?5)";
    let count = note.count.map(signed);
    let mut statement = connection.prepare_cached(sql)?;
    statement.execute(params![
        note.time_ms,
        note.end_ms,
        note.kind,
        count,
        note.detail
    ])?;
    Ok(())
}

fn state(connection: &Connection, key: &str) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT value FROM state WHERE key = ?1";
    connection
        .query_row(sql, [key], |row| row.get(0))
        .optional()
}

fn set_state(connection: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO state (key, value) VALUES (?1, ?2)";
    connection
        .prepare_cached(sql)?
        .execute(params![key, value])?;
    Ok(())
}

/// Up to when all is in the database. A daemon that begins says so before its first batch: ended before that, it leaves
/// a gap all the same.
fn set_complete(connection: &Connection, now_ms: i64, behind_ms: i64) -> rusqlite::Result<()> {
    set_state(connection, "written_ms", now_ms)?;
    set_state(connection, "complete_ms", now_ms - behind_ms)
}

/// What a transaction has of a process.
struct Done {
    id: i64,
    tiers: Vec<usize>,
}

/// Writes what is due of a process: its row, its points, its end.
fn write_row(
    transaction: &Transaction<'_>,
    known: &mut Known,
    row: &Row,
    time_ms: i64,
    ended: Option<&Ended>,
) -> rusqlite::Result<Done> {
    if let Some(identity) = &row.identity {
        known.identity.clone_from(identity);
    }
    let id = match known.id {
        Some(id) => {
            if let Some(identity) = &row.identity {
                update_identity(transaction, id, identity)?;
            }
            id
        }
        None => insert_process(transaction, row.key.0, &known.identity)?,
    };
    let mut tiers = Vec::new();
    for point in known.due(row, time_ms, ended.is_some()) {
        write_point(transaction, id, row, time_ms, &point)?;
        tiers.push(point.tier);
    }
    growth::write(transaction, id, time_ms, &row.growth)?;
    if let Some(ended) = ended {
        end_process(transaction, id, ended)?;
    }
    Ok(Done { id, tiers })
}

fn write_point(
    transaction: &Transaction<'_>,
    id: i64,
    row: &Row,
    time_ms: i64,
    point: &Point,
) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT OR REPLACE INTO {} (time_ms, process, reserved, committed, committed_peak, heap_live, minor, \
         major, minor_ns, major_ns, faults) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        TIERS[point.tier].table
    );
    transaction.prepare_cached(&sql)?.execute(params![
        time_ms,
        id,
        signed(row.reserved),
        signed(row.committed),
        signed(point.committed_peak),
        row.heap_live.map(signed),
        signed(row.minor),
        signed(row.major),
        signed(row.minor_ns),
        signed(row.major_ns),
        point.faults,
    ])?;
    Ok(())
}

fn insert_process(
    transaction: &Transaction<'_>,
    pid: u32,
    identity: &Identity,
) -> rusqlite::Result<i64> {
    let sql = "INSERT INTO process (pid, parent_pid, start_ms, comm, exe, command_line, cgroup, container) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    transaction.prepare_cached(sql)?.execute(params![
        pid,
        identity.parent_pid,
        identity.start_ms,
        identity.comm,
        identity.exe,
        json(&identity.command_line),
        identity.cgroup,
        identity.container,
    ])?;
    Ok(transaction.last_insert_rowid())
}

fn update_identity(
    transaction: &Transaction<'_>,
    id: i64,
    identity: &Identity,
) -> rusqlite::Result<()> {
    let sql = "UPDATE process SET comm = ?2, exe = ?3, command_line = ?4, cgroup = ?5, container = ?6 WHERE id = ?1";
    transaction.prepare_cached(sql)?.execute(params![
        id,
        identity.comm,
        identity.exe,
        json(&identity.command_line),
        identity.cgroup,
        identity.container,
    ])?;
    Ok(())
}

fn end_process(transaction: &Transaction<'_>, id: i64, ended: &Ended) -> rusqlite::Result<()> {
    let sql = "UPDATE process SET end_ms = ?2, exit_code = ?3, exit_signal = ?4, peak_reserved = ?5, \
               peak_committed = ?6, minor = ?7, major = ?8, \
               minor_ns = ?9, major_ns = ?10, faults = ?11 WHERE id = ?1";
    transaction.prepare_cached(sql)?.execute(params![
        id,
        ended.end_ms,
        ended.code,
        ended.signal,
        signed(ended.peak_reserved),
        signed(ended.peak_committed),
        signed(ended.row.minor),
        signed(ended.row.major),
        signed(ended.row.minor_ns),
        signed(ended.row.major_ns),
        buckets::encode(&ended.row.buckets),
    ])?;
    Ok(())
}

fn json(words: &[String]) -> String {
    serde_json::to_string(words).unwrap_or_default()
}

/// SQLite's integers have a sign; no count here comes near it.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
