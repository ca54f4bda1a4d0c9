//! The ways to the fake child that are compared: directly, through tunnels, through peers. What is measured of one is
//! measured of all, in turns, in the same minute.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use super::load::{Client, Target, percentile};
use super::usage::{Whose, cpu};

/// One way to the child.
#[derive(Debug)]
pub struct Way {
    /// In JSON.
    pub key: String,
    /// In tables.
    pub title: String,
    /// Where requests go.
    pub target: Target,
    /// A connection that is kept.
    pub client: Arc<Client>,
    /// Who works on it besides the client and the child, by name.
    pub roles: Vec<(&'static str, Whose)>,
}

impl Way {
    /// Connects.
    ///
    /// # Errors
    /// No connection.
    pub async fn new(
        key: &str,
        title: &str,
        target: Target,
        roles: Vec<(&'static str, Whose)>,
    ) -> Result<Self> {
        let client = Arc::new(Client::connect(&target).await?);
        Ok(Self { key: key.to_owned(), title: title.to_owned(), target, client, roles })
    }

    /// CPU that each of its roles has used so far.
    ///
    /// # Errors
    /// One is gone.
    pub fn cpu(&self) -> Result<Vec<Duration>> {
        self.roles.iter().map(|(_, whose)| cpu(*whose)).collect()
    }

    /// What a role has used between two such lists, in seconds; `None` when this way has no such role.
    #[must_use]
    pub fn used(&self, role: &str, before: &[Duration], after: &[Duration]) -> Option<f64> {
        let at = self.roles.iter().position(|(name, _)| *name == role)?;
        Some(after.get(at)?.saturating_sub(*before.get(at)?).as_secs_f64())
    }

    /// What all of them have used, in seconds.
    #[must_use]
    pub fn used_by_all(&self, before: &[Duration], after: &[Duration]) -> f64 {
        let each = before.iter().zip(after).map(|(before, after)| after.saturating_sub(*before));
        each.sum::<Duration>().as_secs_f64()
    }
}

/// The key and title of each.
pub fn columns(ways: &[Way]) -> impl Iterator<Item = (&str, &str)> {
    ways.iter().map(|way| (way.key.as_str(), way.title.as_str()))
}

/// The order of a round: each begins with another, so that none is always first or always after the same one.
pub fn turns(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |n| (n + round) % count)
}

/// One large body after the other, until it is dropped.
#[must_use]
pub fn fill(client: &Arc<Client>, bytes: usize) -> JoinSet<Result<()>> {
    let mut filling = JoinSet::new();
    let client = client.clone();
    filling.spawn(async move {
        loop {
            client.bulk(bytes).await?;
        }
    });
    filling
}

/// p50 and p99 of so many small GETs beside a bulk transfer in the same connection. It is a new one, which ends with the
/// transfer: the rest of a body that is cut off would be under way in the old.
///
/// # Errors
/// One of them failed.
pub async fn beside_bulk(target: &Target, count: usize, bytes: usize) -> Result<(Duration, Duration)> {
    let client = Arc::new(Client::connect(target).await?);
    let mut filling = fill(&client, bytes);
    // Those that come before the transfer has filled what it can are not counted.
    client.latencies(count / 10).await?;
    let mut times = client.latencies(count).await?;
    ensure!(filling.try_join_next().is_none(), "the bulk transfer ended early");
    Ok((percentile(&mut times, 0.5), percentile(&mut times, 0.99)))
}

/// Microseconds, to the tenth.
#[must_use]
pub fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

/// Milliseconds, to the hundredth.
#[must_use]
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_each_round_each_has_one_turn_and_another_is_first() {
        let rounds: Vec<Vec<_>> = (0..3).map(|round| turns(3, round).collect()).collect();
        assert_eq!(rounds, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
    }
}
