//! Medians, percentiles, ratios of rounds.
//!
//! Owns: arithmetic. Refuses: clocks and units. What has no values is `NaN`, which meets no target.

use std::time::Duration;

/// Milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The middle value; between two, their mean.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let half = sorted.len() / 2;
    match (sorted.len() % 2, sorted.get(half)) {
        (_, None) => f64::NAN,
        (1, Some(middle)) => *middle,
        (_, Some(upper)) => f64::midpoint(sorted[half - 1], *upper),
    }
}

/// The smallest value that at least `percent` of all do not exceed (nearest rank).
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let sorted = sorted(values);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// The largest.
pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// Two figures of each round that belong together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pairs(Vec<(f64, f64)>);

impl Pairs {
    /// One round: what is judged, and what it is compared with.
    pub(crate) fn push(&mut self, judged: f64, compared: f64) {
        self.0.push((judged, compared));
    }

    fn ratios(&self) -> Vec<f64> {
        self.0.iter().map(|(judged, compared)| judged / compared).collect()
    }

    /// The median of the rounds' ratios.
    pub(crate) fn ratio(&self) -> f64 {
        median(&self.ratios())
    }

    /// The smallest and the largest ratio of a round.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let ratios = sorted(&self.ratios());
        (ratios.first().copied().unwrap_or(f64::NAN), ratios.last().copied().unwrap_or(f64::NAN))
    }

    /// The medians of both figures, for reading; their quotient is not [`Pairs::ratio`].
    pub(crate) fn figures(&self) -> (f64, f64) {
        let of = |pick: fn(&(f64, f64)) -> f64| median(&self.0.iter().map(pick).collect::<Vec<_>>());
        (of(|p| p.0), of(|p| p.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_by_nearest_rank() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan() && percentile(&[], 50).is_nan() && largest(&[]).is_nan());
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&hundred, 99), 99.0);
        assert_eq!(percentile(&hundred, 100), 100.0);
        assert_eq!(percentile(&hundred, 1), 1.0);
        assert_eq!(percentile(&[7.0], 99), 7.0);
        assert_eq!(largest(&[1.0, 9.0, 3.0]), 9.0);
    }

    #[test]
    fn a_round_that_was_slow_for_both_changes_nothing() {
        let mut pairs = Pairs::default();
        for (judged, compared) in [(1.0, 1.0), (30.0, 10.0), (4.0, 2.0)] {
            pairs.push(judged, compared);
        }
        assert_eq!(pairs.ratio(), 2.0);
        assert_eq!(pairs.spread(), (1.0, 3.0));
        assert_eq!(pairs.figures(), (4.0, 2.0));
        assert!(Pairs::default().ratio().is_nan());
    }
}
