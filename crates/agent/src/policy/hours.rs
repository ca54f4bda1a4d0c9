//! The hours in which a policy admits anybody. Pure; time is an argument.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;

/// Days in the order of a week.
const DAYS: [(&str, Weekday); 7] = [
    ("Mon", Weekday::Monday),
    ("Tue", Weekday::Tuesday),
    ("Wed", Weekday::Wednesday),
    ("Thu", Weekday::Thursday),
    ("Fri", Weekday::Friday),
    ("Sat", Weekday::Saturday),
    ("Sun", Weekday::Sunday),
];
/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// From when to when, on which days, by whose clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Hours {
    zone_name: String,
    zone: TimeZone,
    days: Vec<Weekday>,
    from: u16,
    to: u16,
}

impl Hours {
    /// From parts that were read with the functions below. `to` before `from` is the next day.
    pub(super) fn new(zone: (String, TimeZone), days: Vec<Weekday>, from: u16, to: u16) -> Self {
        Self { zone_name: zone.0, zone: zone.1, days, from, to }
    }

    /// Whether the door is open then. What begins on one of the days lasts beyond midnight.
    pub fn open_at(&self, now: Timestamp) -> bool {
        let local = now.to_zoned(self.zone.clone());
        let minute = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).unwrap_or(DAY);
        let today = local.weekday();
        let began = |day| self.days.contains(&day);
        if self.from < self.to {
            return began(today) && (self.from..self.to).contains(&minute);
        }
        (minute >= self.from && began(today)) || (minute < self.to && began(today.previous()))
    }
}

/// `08:00`, up to `24:00`, in minutes.
pub(super) fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |digits: &str| {
        (digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| digits.parse().ok())?
    };
    let (hours, minutes): (u16, u16) = (number(hours)?, number(minutes)?);
    let all = hours * 60 + minutes;
    (minutes < 60 && all <= DAY).then_some(all)
}

/// `Mon`.
pub(super) fn day(text: &str) -> Option<Weekday> {
    DAYS.iter().find(|(name, _)| *name == text).map(|(_, day)| *day)
}

/// All days.
pub(super) fn every_day() -> Vec<Weekday> {
    DAYS.iter().map(|(_, day)| *day).collect()
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days: Vec<&str> =
            DAYS.iter().filter(|(_, day)| self.days.contains(day)).map(|(name, _)| *name).collect();
        let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        let (from, to) = (clock(self.from), clock(self.to));
        let next = if self.from >= self.to { " of the next day" } else { "" };
        write!(f, "{} from {from} to {to}{next}, {} time", days.join(" "), self.zone_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(days: &[&str], from: &str, to: &str) -> Hours {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let days = days.iter().map(|name| day(name).unwrap()).collect();
        Hours::new(("Europe/Berlin".to_owned(), zone), days, minute(from).unwrap(), minute(to).unwrap())
    }

    #[test]
    fn the_door_is_open_by_the_owners_clock_also_over_midnight_and_in_summer() {
        let office = hours(&["Mon", "Tue", "Wed", "Thu", "Fri"], "08:00", "18:00");
        let night = hours(&["Fri"], "22:00", "06:00");
        let always = hours(&["Sat"], "00:00", "24:00");
        for (hours, at, open) in [
            // A Thursday in winter, one hour ahead of UTC.
            (&office, "2026-01-15T06:59:59Z", false),
            (&office, "2026-01-15T07:00:00Z", true),
            (&office, "2026-01-15T16:59:59Z", true),
            (&office, "2026-01-15T17:00:00Z", false),
            // A Thursday in summer, two hours ahead.
            (&office, "2026-07-16T06:00:00Z", true),
            (&office, "2026-07-16T16:00:00Z", false),
            (&office, "2026-01-17T10:00:00Z", false),
            // From Friday to Saturday, 2026-01-16 to 17.
            (&night, "2026-01-16T20:59:00Z", false),
            (&night, "2026-01-16T21:00:00Z", true),
            (&night, "2026-01-17T04:59:00Z", true),
            (&night, "2026-01-17T05:00:00Z", false),
            (&night, "2026-01-16T03:00:00Z", false),
            (&night, "2026-01-17T22:00:00Z", false),
            (&always, "2026-01-16T23:00:00Z", true),
            (&always, "2026-01-17T22:59:59Z", true),
            (&always, "2026-01-17T23:00:00Z", false),
        ] {
            assert_eq!(hours.open_at(at.parse().unwrap()), open, "{hours} at {at}");
        }
    }

    #[test]
    fn a_time_of_day_is_two_digits_twice() {
        for good in ["00:00", "08:30", "23:59", "24:00"] {
            assert!(minute(good).is_some(), "{good}");
        }
        for bad in ["8:00", "24:01", "12:60", "1200", "", ":", "+1:00", "08:00:00", "٠٨:00"] {
            assert!(minute(bad).is_none(), "{bad}");
        }
    }
}
