//! Durations as people write them (`24h`) and as kubectl shows them (`3h12m`). Pure.

use std::time::Duration;

use jiff::Timestamp;

/// The longest duration that is taken: ten years. Longer ones are slips of the finger.
const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);

/// Parses `30m`, `24h`, `7d`, `1h30m`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    const FORM: &str = "has to be a duration such as 30m, 24h, 7d or 1h30m";
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let count: u64 = rest[..digits].parse().map_err(|_| FORM)?;
        let unit = match rest[digits..].chars().next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 60 * 60,
            Some('d') => 24 * 60 * 60,
            Some(_) | None => return Err(FORM.to_owned()),
        };
        let part = Duration::from_secs(count.checked_mul(unit).ok_or(FORM)?);
        total = total.checked_add(part).filter(|sum| *sum <= LONGEST).ok_or("is longer than ten years")?;
        rest = &rest[digits + 1..];
    }
    if total.is_zero() {
        return Err(FORM.to_owned());
    }
    Ok(total)
}

/// Time since `then`, as in kubectl's AGE column; `<unknown>` without a time.
pub(crate) fn age(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "<unknown>".to_owned(), |then| human(now.as_second() - then.as_second()))
}

/// Seconds in the words of kubectl (apimachinery `util/duration`, `HumanDuration`).
pub(crate) fn human(seconds: i64) -> String {
    let minutes = seconds / 60;
    let hours = minutes / 60;
    let days = hours / 24;
    let years = days / 365;
    let two = |large: i64, large_unit: char, small: i64, small_unit: char| {
        if small == 0 {
            format!("{large}{large_unit}")
        } else {
            format!("{large}{large_unit}{small}{small_unit}")
        }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, 'd', hours % 24, 'h'),
        _ if days < 730 => format!("{days}d"),
        _ if years < 8 => two(years, 'y', days % 365, 'd'),
        _ => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in
            [("30s", 30), ("30m", 1800), ("24h", 86_400), ("7d", 604_800), ("1h30m", 5400), ("090s", 90)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "24",
            "h",
            "-1h",
            "+1h",
            "1.5h",
            "1w",
            "0s",
            "1h ",
            " 1h",
            "1ä",
            "11y",
            "99999999999999999999s",
            "4000d",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_are_kubectls() {
        const M: i64 = 60;
        const H: i64 = 60 * M;
        const D: i64 = 24 * H;
        // The rows of apimachinery util/duration/duration_test.go.
        for (seconds, shown) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (1, "1s"),
            (119, "119s"),
            (2 * M, "2m"),
            (2 * M + 1, "2m1s"),
            (10 * M - 1, "9m59s"),
            (10 * M, "10m"),
            (10 * M + 1, "10m"),
            (3 * H - 1, "179m"),
            (3 * H, "3h"),
            (3 * H + M, "3h1m"),
            (8 * H - M, "7h59m"),
            (8 * H, "8h"),
            (2 * D - 1, "47h"),
            (2 * D, "2d"),
            (2 * D + H, "2d1h"),
            (8 * D - H, "7d23h"),
            (8 * D, "8d"),
            (2 * 365 * D - 1, "729d"),
            (2 * 365 * D, "2y"),
            (2 * 365 * D + D, "2y1d"),
            (8 * 365 * D, "8y"),
        ] {
            assert_eq!(human(seconds), shown, "{seconds}");
        }
    }
}
