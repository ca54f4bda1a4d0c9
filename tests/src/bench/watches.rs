//! Many watches on one tunnel, each with an event a second: how late events come, and what a watch costs in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use http_body_util::BodyExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::backend::{clock, time_of};
use super::idle;
use super::load::{Client, Target};
use super::options::Size;
use super::report::{Aim, Grid, Section};
use super::stage::{DIRECT, Stage};
use super::statistics::differences;
use super::usage::resident_kib;
use super::ways::{millis, turns};
use crate::process::wait_until;
use crate::say;

/// Watches of one connection to a kube-apiserver, which allows 100.
const ON_ONE: usize = 80;
/// The users whose watches they are: one user's share of the hub is as many as all of them together.
const USERS: [&str; 4] = ["watcher-0", "watcher-1", "watcher-2", "watcher-3"];
/// Share of the events that have to come; who lost some is not asked how late the others were.
const ARRIVED: f64 = 0.9;

/// Watches that are open, and what comes on them.
struct Watches {
    tasks: JoinSet<Vec<(u64, u64)>>,
    begun: Arc<AtomicUsize>,
    stop: CancellationToken,
    count: usize,
    // They end with their connections.
    _clients: Vec<Client>,
}

impl Watches {
    async fn open(clients: Vec<Client>, count: usize) -> Result<Self> {
        let (stop, begun) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for n in 0..count {
            let mut events = clients[n % clients.len()].watch().await?;
            let (stop, begun) = (stop.clone(), begun.clone());
            tasks.spawn(async move {
                let mut times = Vec::new();
                loop {
                    let frame = tokio::select! {
                        biased;
                        () = stop.cancelled() => return times,
                        frame = events.frame() => frame,
                    };
                    let Some(Ok(frame)) = frame else { return times };
                    let Some(sent) = frame.data_ref().and_then(|event| time_of(event)) else { continue };
                    if times.is_empty() {
                        begun.fetch_add(1, Ordering::Relaxed);
                    }
                    times.push((sent, clock().saturating_sub(sent)));
                }
            });
        }
        let watches = Self { tasks, begun, stop, count, _clients: clients };
        wait_until("an event on each watch", Duration::from_secs(60), async || {
            let begun = watches.begun.load(Ordering::Relaxed);
            ensure!(begun >= count, "{begun} of {count} had one");
            Ok(())
        })
        .await?;
        Ok(watches)
    }

    /// How late events came for so long from now; ends the watches.
    async fn lateness(mut self, time: Duration) -> Result<Vec<u64>> {
        let from = clock();
        tokio::time::sleep(time).await;
        let until = clock();
        // Those that were made just before the end are still on their way.
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.stop.cancel();
        let mut late = Vec::new();
        while let Some(times) = self.tasks.join_next().await {
            late.extend(
                times?.into_iter().filter(|(sent, _)| (from..until).contains(sent)).map(|(_, late)| late),
            );
        }
        let expected = self.count as f64 * time.as_secs_f64();
        ensure!(late.len() as f64 >= expected * ARRIVED, "{} of {expected} events came", late.len());
        late.sort_unstable();
        Ok(late)
    }
}

async fn connections(target: impl Fn(usize) -> Target, count: usize) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for n in 0..count {
        clients.push(Client::connect(&target(n)).await?);
    }
    Ok(clients)
}

/// Each number of watches on the direct tunnel of a new hub and agent, in turns with as many on the child itself.
///
/// # Errors
/// A watch is refused, ends, or loses events.
pub async fn watches(stage: &mut Stage, size: &Size) -> Result<Section> {
    let columns = [("no_tunnel", "no tunnel"), ("direct_tunnel", "direct tunnel"), ("added", "added")];
    let mut grid = Grid::new(columns);
    let mut lines = Vec::new();
    for &count in size.watches {
        say(&format!("{count} watches"));
        stage.fresh_hub().await?;
        let mut rounds: [[Vec<f64>; 2]; 4] = Default::default();
        for round in 0..size.long_rounds {
            for way in turns(2, round) {
                let clients = if way == 0 {
                    connections(|_| stage.child().clone(), count.div_ceil(ON_ONE)).await?
                } else {
                    let id = idle::cluster_id(DIRECT);
                    connections(|n| stage.cluster(&id, USERS[n % USERS.len()]), USERS.len()).await?
                };
                let memory = || {
                    Ok::<_, anyhow::Error>((resident_kib(stage.hub_pid())?, resident_kib(stage.agent_pid())?))
                };
                stage.check()?;
                let before = memory()?;
                let open = Watches::open(clients, count).await?;
                let after = memory()?;
                // Later ones find what the first ones have left.
                if way == 1 && rounds[2][1].is_empty() {
                    rounds[2][1].push(after.0.saturating_sub(before.0) as f64 / count as f64);
                    rounds[3][1].push(after.1.saturating_sub(before.1) as f64 / count as f64);
                }
                let late = open.lateness(size.watching).await?;
                let at =
                    |share: f64| late.get((late.len() as f64 * share) as usize).copied().unwrap_or_default();
                rounds[0][way].push(millis(Duration::from_micros(at(0.5))));
                rounds[1][way].push(millis(Duration::from_micros(at(0.99))));
            }
        }
        let [p50, p99, hub, agent] = rounds;
        for (key, title, digits, cells) in [
            ("p50_ms", "events late by, p50, ms", 2, p50),
            ("p99_ms", "events late by, p99, ms", 2, p99),
            ("hub_kib", "memory of the hub for each, KiB", 1, hub),
            ("agent_kib", "memory of the agent for each, KiB", 1, agent),
        ] {
            let added = differences(&cells[1], &cells[0]);
            let [plain, tunnel] = cells;
            let title = format!("{count} watches: {title}");
            grid.row(format!("watches{count}_{key}"), title, digits, vec![plain, tunnel, added]);
        }
        grid.aim(format!("watches{count}_p99_ms"), "added", Aim::AtMost(20.0));
        grid.aim(format!("watches{count}_hub_kib"), "direct_tunnel", Aim::AtMost(16.0));
        lines.push((format!("watches{count}_p99_ms"), format!("{count} watches")));
    }
    let lines: Vec<_> = lines.iter().map(|(key, name)| (key.as_str(), name.as_str())).collect();
    let chart = grid.chart("How late a watch's event comes, p99", "ms", &lines);
    Ok(Section {
        name: "watches",
        about: format!(
            "B9: watches on one tunnel, each with an event of 0.5 KB a second, spread over the second; timed for {} s in {} rounds. Memory is that of a hub and an agent that have just started, with all watches open, divided by them.",
            size.watching.as_secs(),
            size.long_rounds
        ),
        grid,
        charts: vec![("watches", chart)],
        circumstances: String::new(),
    })
}
