//! What a sample says of all blocks, and how far off that may be.
//!
//! A block of `size` bytes is in the sample with the probability p = 1 - exp(-size / mean), independently of the
//! others ([`memtrace_common::sampling`]). So each that is stands for 1 / p of its kind: the sum is right on average
//! (Horvitz and Thompson), and its variance is estimated by the sum of y² (1 - p) / p², where y is what is summed.

use memtrace_common::sampling::sampled_size;

use super::tally::Amount;

/// Numbers of blocks are kept in so many parts of a block, where they are estimates: 1 / p is no whole number, and a
/// large block's is between 1 and 2.
pub const PARTS: u64 = 1024;

/// A number of blocks from its parts, to the nearest.
pub fn whole(parts: u64) -> u64 {
    parts.saturating_add(PARTS / 2) / PARTS
}

/// How a heap was sampled, and the standard errors of its estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Mean distance between sample points, in bytes.
    pub mean_bytes: u64,
    /// Blocks in the sample.
    pub blocks: u64,
    /// Of allocations.
    pub allocated: Errors,
    /// Of live blocks.
    pub live: Errors,
}

/// Standard errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Of bytes.
    pub bytes: u64,
    /// Of a number of blocks.
    pub blocks: u64,
}

/// Variances of bytes and numbers of blocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variances {
    bytes: f64,
    blocks: f64,
}

impl Variances {
    /// A block of the sample is part of the sum.
    pub fn add(&mut self, mean_bytes: u64, size: u64) {
        let of_block = variance(mean_bytes, size);
        self.blocks += of_block;
        self.bytes += of_block * (size as f64).powi(2);
    }

    /// It is no more.
    pub fn subtract(&mut self, mean_bytes: u64, size: u64) {
        let of_block = variance(mean_bytes, size);
        self.blocks -= of_block;
        self.bytes -= of_block * (size as f64).powi(2);
    }

    /// Their roots. What rounding left below zero is zero.
    pub fn errors(&self) -> Errors {
        let root = |variance: f64| variance.max(0.0).sqrt().round() as u64;
        Errors {
            bytes: root(self.bytes),
            blocks: root(self.blocks),
        }
    }
}

/// The probability of a block to be in the sample.
fn probability(mean_bytes: u64, size: u64) -> f64 {
    -(-(sampled_size(size) as f64) / mean_bytes as f64).exp_m1()
}

fn variance(mean_bytes: u64, size: u64) -> f64 {
    let probability = probability(mean_bytes, size);
    (1.0 - probability) / (probability * probability)
}

/// Bytes, and blocks in [`PARTS`], that a block of the sample stands for.
pub fn weighted(mean_bytes: u64, size: u64) -> Amount {
    let probability = probability(mean_bytes, size);
    Amount {
        bytes: (size as f64 / probability).round() as u64,
        blocks: (PARTS as f64 / probability).round() as u64,
    }
}

/// The sample of one heap.
#[derive(Clone, Debug)]
pub struct Sample {
    mean_bytes: u64,
    blocks: u64,
    allocated: Variances,
    live: Variances,
}

impl Sample {
    /// No block yet, at this mean distance.
    pub fn new(mean_bytes: u64) -> Self {
        Self {
            mean_bytes,
            blocks: 0,
            allocated: Variances::default(),
            live: Variances::default(),
        }
    }

    /// What a forked child begins with: blocks that live, none allocated.
    pub fn fork(&self) -> Self {
        Self {
            live: self.live,
            ..Self::new(self.mean_bytes)
        }
    }

    /// Mean distance between sample points, in bytes.
    pub fn mean_bytes(&self) -> u64 {
        self.mean_bytes
    }

    /// A block was handed out, by an allocation or a reallocation.
    pub fn allocate(&mut self, size: u64) {
        self.blocks += 1;
        self.allocated.add(self.mean_bytes, size);
    }

    /// A block lives.
    pub fn place(&mut self, size: u64) {
        self.live.add(self.mean_bytes, size);
    }

    /// A block lives no more.
    pub fn take(&mut self, size: u64) {
        self.live.subtract(self.mean_bytes, size);
    }

    /// The errors, for the report.
    pub fn told(&self) -> Sampled {
        Sampled {
            mean_bytes: self.mean_bytes,
            blocks: self.blocks,
            allocated: self.allocated.errors(),
            live: self.live.errors(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_stands_for_as_many_as_its_probability_says() {
        // Of size ln 2 × mean, half of the blocks are in the sample: here 0.4999997 of them.
        let amount = weighted(1 << 20, 726_817);
        assert_eq!((whole(amount.blocks), amount.blocks), (2, 2 * PARTS));
        assert_eq!(amount.bytes, 1_453_635);
        // y² (1 - p) / p² = 2 y² for a block.
        let mut variances = Variances::default();
        variances.add(1 << 20, 726_817);
        let expected = Errors {
            bytes: 1_027_875,
            blocks: 1,
        };
        assert_eq!(variances.errors(), expected);
        variances.subtract(1 << 20, 726_817);
        assert_eq!(variances.errors(), Errors::default());
    }

    #[test]
    fn large_blocks_are_counted_without_error() {
        let mut variances = Variances::default();
        variances.add(64, 1 << 20);
        assert_eq!(weighted(64, 1 << 20).blocks, PARTS);
        assert_eq!(weighted(64, 1 << 20).bytes, 1 << 20);
        assert_eq!(variances.errors(), Errors::default());
    }

    #[test]
    fn estimates_of_many_samples_scatter_as_their_errors_say() {
        let (mean, size, blocks, runs) = (4096u64, 100u64, 2000u64, 400);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as u32
        };
        let (mut sum, mut outside) = (0.0, 0);
        for _ in 0..runs {
            let mut until = memtrace_common::sampling::distance(mean, random());
            let (mut estimate, mut variances) = (0, Variances::default());
            for _ in 0..blocks {
                if until > size {
                    until -= size;
                } else {
                    until = memtrace_common::sampling::distance(mean, random());
                    estimate += weighted(mean, size).blocks;
                    variances.add(mean, size);
                }
            }
            let off = whole(estimate) as f64 - blocks as f64;
            sum += off;
            outside += u32::from(off.abs() > 1.96 * variances.errors().blocks as f64);
        }
        // The standard error of one run is about 285 blocks: of the mean of 400 runs, 14.
        assert!((sum / f64::from(runs)).abs() < 45.0, "{sum}");
        // 5 % of 400, within four standard deviations.
        assert!((8..40).contains(&outside), "{outside}");
    }
}
