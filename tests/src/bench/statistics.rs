//! What several rounds of one measurement come to: a median, and how far the rounds lie apart. Pure.

use serde_json::{Value, json};

/// The rounds of one measurement. Not empty: nothing measured is `None` where it is used.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    rounds: Vec<f64>,
}

impl Summary {
    /// One value for each round, in their order; `None` when there was no round.
    #[must_use]
    pub fn of(rounds: Vec<f64>) -> Option<Self> {
        (!rounds.is_empty()).then_some(Self { rounds })
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The middle one; of an even number the mean of the two in the middle.
    #[must_use]
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        let upper = sorted[middle];
        if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], upper) } else { upper }
    }

    /// The least of the rounds.
    #[must_use]
    pub fn least(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The most of the rounds.
    #[must_use]
    pub fn most(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Everything, for machines.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({ "median": self.median(), "min": self.least(), "max": self.most(), "rounds": self.rounds })
    }

    /// `663 (640 to 701)`, for people; one round alone has no spread.
    #[must_use]
    pub fn cell(&self, digits: usize) -> String {
        let median = number(self.median(), digits);
        if self.rounds.len() == 1 {
            return median;
        }
        format!("{median} ({} to {})", number(self.least(), digits), number(self.most(), digits))
    }
}

/// What each round of one has more than the same round of the other.
#[must_use]
pub fn differences(of: &[f64], base: &[f64]) -> Vec<f64> {
    of.iter().zip(base).map(|(of, base)| of - base).collect()
}

/// `25,364.5`.
#[must_use]
pub fn number(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let zero = text.chars().all(|c| matches!(c, '0' | '.'));
    format!("{}{grouped}{rest}", if value < 0.0 && !zero { "-" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_spread_are_those_of_the_rounds() {
        let odd = Summary::of(vec![30.0, 10.0, 20.0]).unwrap();
        assert_eq!((odd.median(), odd.least(), odd.most()), (20.0, 10.0, 30.0));
        let even = Summary::of(vec![4.0, 1.0, 2.0, 100.0]).unwrap();
        assert_eq!(even.median(), 3.0);
        assert_eq!(odd.cell(0), "20 (10 to 30)");
        assert_eq!(Summary::of(vec![1.5]).unwrap().cell(1), "1.5");
        assert_eq!(odd.json()["rounds"], json!([30.0, 10.0, 20.0]), "in their order");
        assert_eq!(Summary::of(Vec::new()), None);
    }

    #[test]
    fn a_difference_is_taken_within_a_round() {
        assert_eq!(differences(&[5.0, 9.0], &[1.0, 8.0]), [4.0, 1.0]);
    }

    #[test]
    fn numbers_are_grouped_as_people_write_them() {
        for (value, digits, text) in [
            (0.0, 0, "0"),
            (999.4, 0, "999"),
            (1_000.0, 0, "1,000"),
            (1_234_567.89, 1, "1,234,567.9"),
            (-25_364.0, 0, "-25,364"),
            (-0.04, 1, "0.0"),
        ] {
            assert_eq!(number(value, digits), text);
        }
    }
}
