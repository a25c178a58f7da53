//! Medians and their bounds.

/// A median and the bounds that hold the true one with at least 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    /// The middle value, or the mean of the two.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Median {
    /// Of these samples; `None` of none.
    ///
    /// The bounds are order statistics: the true median lies outside the k-th least and k-th largest of n samples
    /// with the probability that fewer than k of n fair coins show heads, twice. No shape is assumed. With fewer
    /// than six samples not even the extremes are sure of 95 %, and they are what is given.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (first, last) = (sorted.first()?, sorted.len() - 1);
        let value = (sorted[last / 2] + sorted[sorted.len() / 2]) / 2.0;
        let outside = samples_outside(sorted.len());
        Some(Self {
            value,
            low: *sorted.get(outside).unwrap_or(first),
            high: sorted[last - outside],
        })
    }
}

/// How many samples may lie outside on either side.
fn samples_outside(count: usize) -> usize {
    let mut probability = 0.5f64.powi(count as i32);
    let mut outside = 0;
    let mut tail = probability;
    while outside < count / 2 {
        probability *= (count - outside) as f64 / (outside + 1) as f64;
        tail += probability;
        if 2.0 * tail > 0.05 {
            break;
        }
        outside += 1;
    }
    outside
}

/// The ratio of two tools, round by round.
pub fn ratio(of: &[f64], to: &[f64]) -> Option<Median> {
    let ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).collect();
    Median::of(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_the_tables() {
        // Conover, Practical Nonparametric Statistics, table A3: ranks for a median at 95 %.
        for (count, rank) in [(6, 1), (9, 2), (10, 2), (15, 4), (20, 6), (25, 8)] {
            assert_eq!(samples_outside(count) + 1, rank, "of {count}");
        }
    }

    #[test]
    fn median_of_an_even_number_is_between_the_middle_ones() {
        let median = Median {
            value: 2.5,
            low: 1.0,
            high: 4.0,
        };
        assert_eq!(Median::of(&[4.0, 1.0, 3.0, 2.0]), Some(median));
        assert_eq!(Median::of(&[]), None);
    }

    #[test]
    fn a_disturbance_of_a_whole_round_leaves_the_ratio() {
        let median = Median {
            value: 2.0,
            low: 2.0,
            high: 2.0,
        };
        assert_eq!(ratio(&[2.0, 20.0, 2.0], &[1.0, 10.0, 1.0]), Some(median));
    }
}
