//! The wall clock that points are dated by may be set, by far and either way, and be set right again.
//!
//! Set back, a process that runs lives through times again that it has points of. Those points go, or a state of before
//! would be its last one by time. What has ended keeps its dates. Set forward, everything looks old: so for a while
//! nothing goes for its age, and who sets the clock right within that time has lost nothing.

use rusqlite::Transaction;

use super::schema::TIERS;

/// Milliseconds for which nothing goes for its age after the clock may have been set.
const HOLD_MS: i64 = 3_600_000;

/// A smaller step forward makes nothing look old that is not.
const STEP_MS: i64 = 60_000;

/// From when on things may go for their age again.
#[derive(Default)]
pub struct Age {
    from_ms: Option<i64>,
}

impl Age {
    /// The clock went from `before_ms` to `now_ms` between two batches, or while there was no daemon: a machine whose
    /// clock has no battery starts anywhere.
    pub fn moved(&mut self, before_ms: i64, now_ms: i64) {
        if now_ms < before_ms || now_ms - before_ms > STEP_MS {
            self.from_ms = Some(now_ms.saturating_add(HOLD_MS));
        }
    }

    /// Whether what is old may go.
    pub fn counts(&self, now_ms: i64) -> bool {
        self.from_ms.is_none_or(|from_ms| now_ms >= from_ms)
    }
}

/// The clock was set back to `now_ms`: those who run have no points of later times and have begun by now.
pub fn set_back(transaction: &Transaction<'_>, now_ms: i64) -> rusqlite::Result<()> {
    for table in TIERS.iter().map(|tier| tier.table).chain(["growth"]) {
        let sql = format!(
            "DELETE FROM {table} WHERE time_ms > ?1 AND process IN (SELECT id FROM process WHERE end_ms IS NULL)"
        );
        transaction.execute(&sql, [now_ms])?;
    }
    let sql = "UPDATE process SET start_ms = ?1 WHERE start_ms > ?1 AND end_ms IS NULL";
    transaction.execute(sql, [now_ms]).map(drop)
}
