//! Tests that take a machine of their own.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whether this is the machine that `cargo xtask vm` boots: its processor is emulated.
pub fn is_vm() -> bool {
    std::env::var_os("MEMTRACE_TEST_VM").is_some()
}

/// Asserts that this is that machine.
#[track_caller]
pub fn in_vm() {
    assert!(
        is_vm(),
        "this test takes a machine of its own: run `cargo xtask vm`"
    );
}

/// The same, and holds other tests back that ask for it: the machine's memory and CPUs are one test's at a time.
#[track_caller]
pub fn alone_in_vm() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    in_vm();
    // A test that failed leaves nothing behind the lock that could be wrong.
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
