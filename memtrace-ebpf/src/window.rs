//! A part of the traced process's memory, read at once: a kilobyte costs little more than a word.

use core::arch::asm;

use aya_ebpf::helpers::{bpf_probe_read_user, generated};

/// Words of a window.
const WORDS: usize = 256;

/// What was read last.
#[repr(C)]
pub struct Window {
    /// Address of the first word.
    start: u64,
    /// Bytes that are there.
    length: u64,
    words: [u64; WORDS],
}

const PAGE: u64 = 4096;

impl Window {
    /// Bytes that are read at most.
    const MOST: u64 = ((WORDS - 1) * size_of::<u64>()) as u64;

    /// Nothing is there.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Whether nothing is there.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Reads from an address on.
    #[inline(always)]
    pub fn read(&mut self, start: u64) {
        self.fill(start, Self::MOST);
    }

    /// Reads up to an address, and no page that the last `least` bytes are not in.
    #[inline(always)]
    pub fn read_up_to(&mut self, end: u64, least: u64) {
        let page = end.wrapping_sub(least) & !(PAGE - 1);
        let above_page = end.wrapping_sub(page);
        let length = if above_page < Self::MOST {
            above_page
        } else {
            Self::MOST
        };
        self.fill(end.wrapping_sub(length), length);
    }

    /// Nothing is there where it cannot be read.
    #[inline(always)]
    fn fill(&mut self, start: u64, mut length: u64) {
        const { assert!(WORDS.is_power_of_two()) };
        // SAFETY: adds nothing to a register, so that the compiler, which knows the bound, tells it to the verifier.
        unsafe { asm!("{0} += 0", inout(reg) length, options(pure, nomem, nostack)) };
        let length = length & (Self::MOST | 7);
        let words = (&raw mut self.words).cast();
        // SAFETY: fewer bytes than there is room for, and the helper checks the user address.
        let failed =
            unsafe { generated::bpf_probe_read_user(words, length as u32, start as *const _) != 0 };
        self.start = start;
        self.length = if failed { 0 } else { length };
    }

    /// The index of an address, if so many words from it on are there.
    #[inline(always)]
    pub fn index(&self, address: u64, words: u64) -> Option<usize> {
        let distance = address.wrapping_sub(self.start);
        let index = distance >> 3;
        (distance & 7 == 0 && index + words <= self.length >> 3).then_some(index as usize)
    }

    /// The word with an index, which is told to the verifier as small enough: the compiler, which may know that it is,
    /// is not to leave that out.
    #[inline(always)]
    pub fn at(&self, mut index: usize) -> u64 {
        const { assert!(WORDS == 256) };
        // SAFETY: arithmetic on a register.
        unsafe { asm!("{0} &= 255", inout(reg) index, options(pure, nomem, nostack)) };
        self.words[index & (WORDS - 1)]
    }

    /// The word at an address, also where it is not there yet.
    #[inline(always)]
    pub fn word(&self, address: u64) -> Option<u64> {
        match self.index(address, 1) {
            Some(index) => Some(self.at(index)),
            // SAFETY: the helper checks the user address.
            None => unsafe { bpf_probe_read_user(address as *const u64) }.ok(),
        }
    }
}
