//! Sampling of allocations by a Poisson process over the bytes that a thread asks for.
//!
//! Sample points lie at exponentially distributed distances, so where one lies says nothing of the next: a block of
//! `size` bytes is in the sample with the probability `1 - exp(-size / mean)`, whatever came before it.

/// Largest mean distance between sample points: fixed-point products of it stay within 64 bits.
pub const MAX_SAMPLE_BYTES: u64 = 1 << 34;

/// Bits behind the point.
const POINT: u32 = 24;

/// ln 2, in fixed point.
const LN_2: u64 = 11_629_080;

/// log2(1 + i / 256) in fixed point, for i from 0 to 256.
static LOG2: [u32; 257] = log2_table();

/// The digits of a logarithm by squaring: where the square passes 2, the digit is 1 and the square is halved.
const fn log2_table() -> [u32; 257] {
    let mut table = [0; 257];
    let mut index = 0;
    while index < 256 {
        let mut value = (256 + index as u128) << 55;
        let mut digits = 0u32;
        let mut bit = 0;
        while bit < POINT {
            value = ((value >> 31) * (value >> 31)) >> 1;
            digits <<= 1;
            if value >= 1 << 64 {
                value >>= 1;
                digits |= 1;
            }
            bit += 1;
        }
        table[index] = digits;
        index += 1;
    }
    table[256] = 1 << POINT;
    table
}

/// `-ln(u)` in fixed point, where `random` is drawn evenly and u is `(random + 1) / 2^32`.
#[inline(always)]
fn negative_logarithm(random: u32) -> u64 {
    let value = random as u64 + 1;
    let exponent = 63 - value.leading_zeros() as u64;
    let mantissa = value << (32 - exponent) & 0xffff_ffff;
    let index = (mantissa >> 24) as usize & 0xff;
    let (low, high) = (LOG2[index] as u64, LOG2[index + 1] as u64);
    let between = ((high - low) * (mantissa & 0xff_ffff)) >> 24;
    let log2 = (exponent << POINT) + low + between;
    (((32 << POINT) - log2) * LN_2) >> POINT
}

/// Bytes up to and with the next sample point, from 1. `mean` is at most [`MAX_SAMPLE_BYTES`].
#[inline(always)]
pub fn distance(mean: u64, random: u32) -> u64 {
    ((mean * negative_logarithm(random)) >> POINT) + 1
}

/// Bytes that a block counts for: a block of none can be in the sample too.
#[inline(always)]
pub fn sampled_size(size: u64) -> u64 {
    if size == 0 { 1 } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_those_of_the_mathematics_library() {
        for random in (0..u32::MAX).step_by(65_537).chain([0, 1, u32::MAX]) {
            let exact = -((f64::from(random) + 1.0) / 4_294_967_296.0).ln();
            let ours = negative_logarithm(random) as f64 / f64::from(1 << POINT);
            assert!(
                (ours - exact).abs() < 4e-6 + exact * 1e-6,
                "{random}: {ours}, {exact}"
            );
        }
    }

    #[test]
    fn distances_have_the_mean_they_are_asked_for() {
        let mean = 512 << 10;
        let steps = 1 << 20;
        let sum: u64 = (0..steps)
            .map(|step| distance(mean, (step as u32) << 12 | 1 << 11))
            .sum();
        let measured = sum as f64 / steps as f64;
        assert!((measured / mean as f64 - 1.0).abs() < 1e-4, "{measured}");
        assert!(distance(MAX_SAMPLE_BYTES, 0) > MAX_SAMPLE_BYTES * 22);
    }
}
