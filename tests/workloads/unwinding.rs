//! unwinding N: leaks N blocks through functions of several shapes and prints, for each, its size and the stack as
//! libgcc's unwinder sees it, as stacks.cpp does. To be compiled with either strategy of panics.

use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::io::Write;

unsafe extern "C" {
    fn malloc(size: usize) -> *mut c_void;
    fn backtrace(buffer: *mut *mut c_void, size: c_int) -> c_int;
}

#[inline(never)]
fn leak(size: usize) {
    let mut frames = [std::ptr::null_mut::<c_void>(); 128];
    // SAFETY: there is room for so many; the block is leaked on purpose.
    let count = unsafe {
        black_box(malloc(size));
        backtrace(frames.as_mut_ptr(), 128)
    };
    let mut line = size.to_string();
    for frame in &frames[1..count as usize] {
        line += &format!(" {:#x}", *frame as usize);
    }
    writeln!(std::io::stdout(), "{line}").expect("stdout");
}

/// Has something to drop when a panic passes.
struct Held(Vec<usize>);

impl Drop for Held {
    fn drop(&mut self) {
        black_box(&self.0);
    }
}

#[inline(never)]
fn held(size: usize, depth: usize) {
    let held = Held(vec![size; depth + 1]);
    step(size, depth);
    black_box(&held);
}

#[inline(never)]
fn large(size: usize, depth: usize) {
    let mut space = [0u8; 3000];
    black_box(&mut space);
    step(size, depth);
    black_box(&mut space);
}

#[inline(never)]
fn through(size: usize, depth: usize) {
    let call: Box<dyn Fn(usize)> = Box::new(move |size| step(size, depth));
    black_box(call)(size);
    black_box(());
}

#[inline(never)]
fn step(size: usize, depth: usize) {
    match (depth, (size + depth) % 3) {
        (0, _) => leak(size),
        (_, 0) => held(size, depth - 1),
        (_, 1) => large(size, depth - 1),
        _ => through(size, depth - 1),
    }
    black_box(());
}

fn main() {
    let count: usize = std::env::args().nth(1).map_or(0, |n| n.parse().expect("a number"));
    for size in 100_000..100_000 + count {
        step(size, size % 20);
    }
}
