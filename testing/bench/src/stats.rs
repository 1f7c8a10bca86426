//! Medians, percentiles and their spread.

use anyhow::{Context, Result};

/// The value that `percent` % of the samples do not exceed (nearest rank). `None` when there are no samples.
pub(crate) fn percentile(samples: &mut [f64], percent: f64) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * samples.len() as f64).ceil() as usize;
    samples.get(rank.clamp(1, samples.len().max(1)) - 1).copied()
}

/// The median of the rounds of one measurement, and the quartiles between which the middle half of them lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Summary {
    /// `None` when there were no rounds.
    pub(crate) fn of(mut rounds: Vec<f64>) -> Option<Self> {
        Some(Self {
            median: percentile(&mut rounds, 50.0)?,
            low: percentile(&mut rounds, 25.0)?,
            high: percentile(&mut rounds, 75.0)?,
        })
    }
}

/// The summary of the rounds of one measurement.
pub(crate) fn summary(rounds: &[f64]) -> Result<Summary> {
    Summary::of(rounds.to_vec()).context("a measurement without a round")
}

/// Round by round, the one divided by the other: what moves both by the same factor cancels out.
pub(crate) fn ratios(numerators: &[f64], denominators: &[f64]) -> Vec<f64> {
    numerators.iter().zip(denominators).map(|(numerator, denominator)| numerator / denominator).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (percent, expected) in [(0.0, 1.0), (50.0, 50.0), (99.0, 99.0), (99.1, 100.0), (100.0, 100.0)] {
            assert_eq!(percentile(&mut samples, percent), Some(expected), "{percent}");
        }
        assert_eq!(percentile(&mut [7.0], 99.0), Some(7.0));
        assert_eq!(percentile(&mut [], 50.0), None);
    }

    #[test]
    fn a_summary_has_the_middle_half() {
        let summary = Summary::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(summary, Summary { median: 2.0, low: 1.0, high: 3.0 });
        assert_eq!(Summary::of(Vec::new()), None);
    }

    #[test]
    fn ratios_go_round_by_round() {
        assert_eq!(ratios(&[1.0, 4.0], &[2.0, 2.0]), [0.5, 2.0]);
    }
}
