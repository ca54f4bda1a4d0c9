//! Sums of Kubernetes quantities (apimachinery `pkg/api/resource/quantity.go`), as far as nodes use them.
//! Pure and exact to a thousandth; what cannot be read counts as nothing.

/// A quantity in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantity {
    thousandths: i128,
    /// Written with a binary suffix (`Ki`, `Mi`, …), which the sum then has as well.
    binary: bool,
}

const SUFFIXES: [(&str, i128, i128, bool); 16] = [
    ("Ki", 1 << 10, 1, true),
    ("Mi", 1 << 20, 1, true),
    ("Gi", 1 << 30, 1, true),
    ("Ti", 1 << 40, 1, true),
    ("Pi", 1 << 50, 1, true),
    ("Ei", 1 << 60, 1, true),
    ("n", 1, 1_000_000_000, false),
    ("u", 1, 1_000_000, false),
    ("m", 1, 1_000, false),
    ("k", 1_000, 1, false),
    ("M", 1_000_000, 1, false),
    ("G", 1_000_000_000, 1, false),
    ("T", 1_000_000_000_000, 1, false),
    ("P", 1_000_000_000_000_000, 1, false),
    ("E", 1_000_000_000_000_000_000, 1, false),
    ("", 1, 1, false),
];

/// Most digits of a quantity; with the largest suffix and the fraction they stay far below `i128`.
const MAX_DIGITS: usize = 15;

impl Quantity {
    /// Reads `4`, `3920m`, `1.5Gi`; no exponents, which no kubelet writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, (_, multiply, divide, binary)) =
            SUFFIXES.iter().find_map(|suffix| text.strip_suffix(suffix.0).map(|number| (number, *suffix)))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |text: &str| text.len() <= MAX_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) {
            return None;
        }
        let value: i128 = format!("{whole}{fraction}").parse().ok()?;
        let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        let thousandths = value.checked_mul(multiply)?.checked_mul(1000)?.checked_div(divide * scale)?;
        Some(Self { thousandths, binary })
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            thousandths: self.thousandths.saturating_add(other.thousandths),
            binary: self.binary || other.binary,
        }
    }
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kibi = 1024 * 1000;
        if self.binary && self.thousandths % kibi == 0 {
            write!(f, "{}Ki", self.thousandths / kibi)
        } else if self.thousandths % 1000 == 0 {
            write!(f, "{}", self.thousandths / 1000)
        } else {
            write!(f, "{}m", self.thousandths)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_nodes_report_is_read_and_summed() {
        for (one, two, sum) in [
            ("4", "3920m", "7920m"),
            ("500m", "500m", "1"),
            ("16393216Ki", "16Gi", "33170432Ki"),
            ("110", "110", "220"),
            ("1.5Gi", "0", "1572864Ki"),
            ("47093746742", "1k", "47093747742"),
            ("100n", "2", "2"),
        ] {
            let both = Quantity::parse(one).unwrap().plus(Quantity::parse(two).unwrap());
            assert_eq!(both.to_string(), sum, "{one} + {two}");
        }
        for bad in ["", "Ki", "-1", "1e3", "x", ".5", "99999999999999999999"] {
            assert!(Quantity::parse(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9.eEkKMGiTPmnu+-]{0,40}") {
            let _ = Quantity::parse(&text).map(|quantity| quantity.plus(quantity).to_string());
        }
    }
}
