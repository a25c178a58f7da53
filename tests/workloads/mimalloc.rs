//! counts.c in Rust, on mimalloc as its global allocator: linked statically, under mimalloc's own names.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::process::ExitCode;

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// As large as a cache line: mimalloc has another function for what is aligned.
const ALIGNED: usize = 64;

/// Room for so many is there from the start, so that calls alone make a difference.
const MOST: usize = 100_000;

fn layout(turn: usize, size: usize) -> Option<Layout> {
    let align = if turn.is_multiple_of(3) { ALIGNED } else { 8 };
    Layout::from_size_align(size, align).ok()
}

/// Allocates, reallocates and frees; tells the bytes asked for, nothing where there was no memory.
fn calls(count: usize) -> Option<usize> {
    let mut bytes = 0;
    let mut blocks = Vec::with_capacity(MOST);
    for turn in 0..count {
        let first = layout(turn, 16 + turn % 500)?;
        let second = layout(turn, 600 + turn % 9000)?;
        bytes += first.size() + second.size();
        // SAFETY: no size is 0, and the block is reallocated with the layout that it was allocated with.
        let block = unsafe {
            let block = if turn.is_multiple_of(2) {
                alloc_zeroed(first)
            } else {
                alloc(first)
            };
            if block.is_null() {
                return None;
            }
            realloc(block, first, second.size())
        };
        if block.is_null() {
            return None;
        }
        blocks.push((block, second));
    }
    // One block in ten stays.
    for (turn, (block, layout)) in blocks.iter().enumerate() {
        if turn % 10 != 0 {
            // SAFETY: the block lives and has this layout.
            unsafe { dealloc(*block, *layout) };
        }
    }
    Some(bytes)
}

fn main() -> ExitCode {
    let count = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let count: usize = count.unwrap_or(0);
    let Some(bytes) = calls(count) else {
        return ExitCode::FAILURE;
    };
    let stay = count.div_ceil(10);
    println!(
        r#"{{"pid":{},"allocations":{count},"reallocations":{count},"frees":{},"bytes_allocated":{bytes},"live_blocks":{stay}}}"#,
        std::process::id(),
        count - stay,
    );
    ExitCode::SUCCESS
}
