//! Tests that take a machine of their own.

/// Asserts that this is the machine that `cargo xtask vm` boots.
#[track_caller]
pub fn in_vm() {
    assert!(
        std::env::var_os("MEMTRACE_TEST_VM").is_some(),
        "this test takes a machine of its own: run `cargo xtask vm`"
    );
}
