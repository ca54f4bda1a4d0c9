//! The same lives of tunnels, one after the other for as long as one likes, and what they do to the memory of the
//! process: `make soak T=10m`.

#![expect(clippy::print_stdout, reason = "the slope is what a soak is run for")]

use std::time::{Duration, Instant};

use super::{Plan, Sort, try_plan};

/// Memory is still growing into its usual size in the first of so many parts of the time.
const WARM_UP: usize = 5;
/// Samples in the whole time.
const SAMPLES: u32 = 200;
/// A steeper slope is a leak, in MB an hour. One leaked task or buffer of 1 KiB for each life, ten a second, would be 36.
const STEEPEST: f64 = 0.5;
/// Memory comes in pages and grows to the largest of all lives so far: so many MB say nothing, however short the run. It
/// takes ten minutes to see a leak of 1 KiB.
const NOISE: f64 = 4.0;

#[test]
#[ignore = "takes as long as it is told: make soak T=10m"]
fn memory_stays_level_however_many_tunnels_have_lived() {
    #[expect(clippy::disallowed_methods, reason = "a switch of the test, not of the product")]
    let length = std::env::var("TOWLINE_SOAK").unwrap_or_else(|_| "60".to_owned());
    let length = duration(&length).expect("TOWLINE_SOAK is a number with s, m or h");
    let (began, mut samples, mut lives) = (Instant::now(), Vec::new(), 0_u64);
    while began.elapsed() < length {
        for sort in [Sort::Bad, Sort::Dead, Sort::Leaving, Sort::Damaged] {
            let told = try_plan(Plan::new(sort, lives));
            assert!(told.is_ok(), "{told:?}: TOWLINE_SEED={lives} shows it again as {sort:?}");
        }
        lives += 1;
        let hours = began.elapsed().as_secs_f64() / 3_600.0;
        if samples
            .last()
            .is_none_or(|(last, _)| (hours - last) * 3_600.0 * f64::from(SAMPLES) > length.as_secs_f64())
        {
            samples.push((hours, resident()));
        }
    }
    let (all, warm) = (samples.len(), samples.len() / WARM_UP);
    let slope = slope(&samples[warm..]);
    let bound = bound(&samples[warm..]);
    let last = samples.last().map_or(0.0, |(_, memory)| *memory);
    println!(
        "{} tunnels in {length:?}: {last:.1} MB at the end, {slope:+.2} MB an hour once warm, at most {bound:.2}",
        4 * lives
    );
    assert!(all > 20, "too short to tell");
    assert!(slope < bound, "{slope} MB an hour");
}

/// The steepest slope that is no leak, over the time of these samples.
fn bound(points: &[(f64, f64)]) -> f64 {
    let hours = points.last().zip(points.first()).map_or(0.0, |(last, first)| last.0 - first.0);
    STEEPEST + NOISE / hours
}

/// A number of seconds, or with `s`, `m` or `h`.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, text.chars().last()),
        None => (text, None),
    };
    let seconds = match unit {
        Some('m') => 60,
        Some('h') => 3_600,
        _ => 1,
    };
    Some(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?))
}

/// Resident memory of this process in MB.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4.096 / 1_000.0
}

/// Of the line with the least squares of distance to these points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let both: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let square: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if square > 0.0 { both / square } else { 0.0 }
}

#[test]
fn a_slope_is_the_slope_and_a_length_is_read() {
    let line: Vec<_> = (0..50).map(|x| (f64::from(x), 7.0 + 0.5 * f64::from(x))).collect();
    assert!((slope(&line) - 0.5).abs() < 1e-9);
    assert!(slope(&[(1.0, 1.0)]).abs() < 1e-9);
    assert!((bound(&[(1.0, 7.0), (2.0, 7.0), (9.0, 7.0)]) - (STEEPEST + NOISE / 8.0)).abs() < 1e-9);
    for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7_200)] {
        assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
    }
    assert_eq!(duration("soon"), None);
}
