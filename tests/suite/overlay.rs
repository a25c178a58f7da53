//! Programs below an overlay, as those of containers are: stat(2) and the mapping tell different files.

use std::process::Command;

use memtrace_tests::Scratch;
use memtrace_tests::binary::{path, read};
use memtrace_tests::child::run;
use memtrace_tests::workload::{tool, workload};

#[test]
fn the_first_stacks_of_a_program_below_an_overlay_are_walked_in_the_kernel() {
    let scratch = Scratch::new();
    let report = scratch.path("report.json");
    // In a mount namespace that ends with the command.
    let script = "mount -t tmpfs none /mnt && cd /mnt && mkdir lower upper work merged || exit 99
        cp \"$2\" lower/program || exit 99
        mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none merged || exit 99
        exec \"$1\" run --format json --report-file \"$3\" -- /mnt/merged/program 1000";
    let mut command = Command::new(tool("unshare", "util-linux"));
    command.args(["--mount", "--propagation", "private"]);
    command.args(["sh", "-c", script, "sh"]);
    command.arg(path()).arg(workload("counts.c")).arg(&report);
    let traced = read(run(&mut command), &report);
    traced.finished.exited(0);
    traced.nothing_lost();
    assert!(traced.heap().allocations >= 1000);
    // A look-up of the kernel's may find it busy. Without it, all are copied until the mappings are known.
    let reasons = &traced.document.coverage.lost_by_reason;
    let copied = reasons.get("unwind_copied").copied().unwrap_or(0);
    assert!(copied <= 20, "{reasons:?} of 2,000");
}
