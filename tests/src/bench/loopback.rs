//! The sections without a link in between: latency, throughput, bulk, fairness, bad company, idle tunnels.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use super::backend::BODY;
use super::idle;
use super::load::{Client, percentile};
use super::options::Size;
use super::report::{Aim, Grid, Section};
use super::stage::{DIRECT, Stage};
use super::statistics::differences;
use super::usage;
use super::ways::{Way, beside_bulk, columns, fill, micros, millis, turns};

/// Requests at once when it is about how many there can be.
const IN_FLIGHT: usize = 64;

/// Lists of rounds, one for each way.
type Rounds = Vec<Vec<f64>>;

/// Waits for a small GET at a time.
///
/// # Errors
/// A request failed.
pub async fn latency(ways: &[Way], size: &Size) -> Result<Section> {
    let (mut p50, mut p99): (Rounds, Rounds) = (vec![Vec::new(); ways.len()], vec![Vec::new(); ways.len()]);
    for round in 0..size.rounds {
        for at in turns(ways.len(), round) {
            let mut times = ways[at].client.latencies(size.gets).await?;
            p50[at].push(micros(percentile(&mut times, 0.5)));
            p99[at].push(micros(percentile(&mut times, 0.99)));
        }
    }
    let added = |of: &Rounds| -> Rounds {
        let base = of.first().cloned().unwrap_or_default();
        let without =
            |(at, rounds): (usize, &Vec<f64>)| if at == 0 { Vec::new() } else { differences(rounds, &base) };
        of.iter().enumerate().map(without).collect()
    };
    let mut grid = Grid::new(columns(ways));
    let (added_p50, added_p99) = (added(&p50), added(&p99));
    grid.row("p50_us", "p50, µs", 0, p50);
    grid.row("added_p50_us", "added by the way, p50, µs", 0, added_p50);
    grid.row("p99_us", "p99, µs", 0, p99);
    grid.row("added_p99_us", "added by the way, p99, µs", 0, added_p99);
    grid.aim("added_p50_us", "direct_tunnel", Aim::AtMost(150.0));
    grid.aim("added_p99_us", "direct_tunnel", Aim::AtMost(500.0));
    let chart = grid.chart("Latency of a 1 KiB GET, loopback", "µs", &[("p50_us", "p50"), ("p99_us", "p99")]);
    Ok(Section {
        name: "latency",
        about: format!(
            "B1: latency of a 1 KiB GET on loopback, one at a time. {} rounds of {} GETs of each way; the added time is that of the same round.",
            size.rounds, size.gets
        ),
        grid,
        charts: vec![("latency", chart)],
        circumstances: String::new(),
    })
}

/// As many small GETs as there can be.
///
/// # Errors
/// A request failed.
pub async fn throughput(ways: &[Way], size: &Size) -> Result<Section> {
    let empty = || -> Rounds { vec![Vec::new(); ways.len()] };
    let (mut speed, mut all, mut core) = (empty(), empty(), empty());
    let roles = roles(ways);
    let mut each: Vec<Rounds> = roles.iter().map(|_| empty()).collect();
    for round in 0..size.rounds {
        for at in turns(ways.len(), round) {
            let way = &ways[at];
            let before = way.cpu()?;
            let (count, took) = way.client.saturate(IN_FLIGHT, size.saturation).await?;
            let after = way.cpu()?;
            let count = count as f64;
            speed[at].push(count / took.as_secs_f64());
            if !way.roles.is_empty() {
                all[at].push(way.used_by_all(&before, &after) * 1e6 / count);
            }
            for (role, rounds) in roles.iter().zip(&mut each) {
                rounds[at].extend(way.used(role, &before, &after).map(|used| used * 1e6 / count));
            }
            if let Some(hub) = way.used("hub", &before, &after).filter(|hub| *hub > 0.0) {
                core[at].push(count / hub);
            }
        }
    }
    let mut grid = Grid::new(columns(ways));
    grid.row("per_s", "GETs a second", 0, speed);
    grid.row("per_hub_core_s", "for each second of a core that the hub used", 0, core);
    for (role, rounds) in roles.iter().zip(each) {
        grid.row(format!("{role}_cpu_us"), format!("CPU of the {role} for a GET, µs"), 1, rounds);
    }
    grid.row("all_cpu_us", "CPU of all between client and child, µs", 1, all);
    grid.aim("per_hub_core_s", "direct_tunnel", Aim::AtLeast(20_000.0));
    grid.aim("all_cpu_us", "direct_tunnel", Aim::AtMost(40.0));
    let chart = grid.chart(
        "1 KiB GETs, 64 in flight: CPU of each",
        "µs",
        &[("all_cpu_us", "all between client and child")],
    );
    Ok(Section {
        name: "throughput",
        about: format!(
            "B3, B4: 1 KiB GETs, {IN_FLIGHT} in flight on one connection. {} rounds of {} s of each way; CPU is what the operating system says of each process.",
            size.rounds,
            size.saturation.as_secs()
        ),
        grid,
        charts: vec![("throughput", chart)],
        circumstances: String::new(),
    })
}

/// The roles of all ways.
fn roles(ways: &[Way]) -> Vec<&'static str> {
    let mut roles: Vec<&str> = Vec::new();
    for (role, _) in ways.iter().flat_map(|way| &way.roles) {
        if !roles.contains(role) {
            roles.push(role);
        }
    }
    roles
}

/// Large bodies.
///
/// # Errors
/// A request failed.
pub async fn bulk(ways: &[Way], size: &Size) -> Result<Section> {
    let empty = || -> Rounds { vec![Vec::new(); ways.len()] };
    let mut speed = empty();
    let roles = roles(ways);
    let mut each: Vec<Rounds> = roles.iter().map(|_| empty()).collect();
    for round in 0..size.rounds {
        for at in turns(ways.len(), round) {
            let way = &ways[at];
            let before = way.cpu()?;
            let took = way.client.bulk(size.body).await?;
            let after = way.cpu()?;
            speed[at].push(size.body as f64 / 1e6 / took.as_secs_f64());
            for (role, rounds) in roles.iter().zip(&mut each) {
                rounds[at].extend(way.used(role, &before, &after).map(|used| used * 1e9 / size.body as f64));
            }
        }
    }
    let mut grid = Grid::new(columns(ways));
    grid.row("mb_s", "MB/s", 0, speed);
    for (role, rounds) in roles.iter().zip(each) {
        grid.row(format!("{role}_cpu_s_per_gb"), format!("CPU of the {role}, s per GB"), 2, rounds);
    }
    grid.aim("mb_s", "direct_tunnel", Aim::AtLeast(500.0));
    grid.aim("hub_cpu_s_per_gb", "direct_tunnel", Aim::AtMost(2.0));
    let chart = grid.chart("One large body, loopback", "MB/s", &[("mb_s", "one stream")]);
    Ok(Section {
        name: "bulk",
        about: format!(
            "B5: a body of {} MB on one stream, loopback. {} rounds of one body of each way.",
            size.body / 1_000_000,
            size.rounds
        ),
        grid,
        charts: vec![("bulk", chart)],
        circumstances: String::new(),
    })
}

/// Small requests beside large ones, and beside users who do not read.
///
/// # Errors
/// A request failed.
pub async fn fairness(stage: &Stage, ways: &[Way], size: &Size) -> Result<Section> {
    let (mut p50, mut p99): (Rounds, Rounds) = (vec![Vec::new(); ways.len()], vec![Vec::new(); ways.len()]);
    for round in 0..size.rounds {
        for at in turns(ways.len(), round) {
            let (half, most) = beside_bulk(&ways[at].target, size.beside, size.body).await?;
            p50[at].push(millis(half));
            p99[at].push(millis(most));
        }
    }
    let mut grid = Grid::new(columns(ways));
    grid.row("beside_bulk_p50_ms", "small GET beside a bulk body in one connection, p50, ms", 2, p50);
    grid.row("beside_bulk_p99_ms", "the same, p99, ms", 2, p99);
    let direct_tunnel =
        ways.iter().position(|way| way.key == "direct_tunnel").context("the direct tunnel")?;
    grid.aim("beside_bulk_p99_ms", "direct_tunnel", Aim::AtMost(4.0));
    grid.aim("bad_company_p99_factor", "direct_tunnel", Aim::AtMost(2.0));
    for (key, title, rounds) in bad_company(stage, &ways[direct_tunnel].client, size).await? {
        let mut cells: Rounds = vec![Vec::new(); ways.len()];
        cells[direct_tunnel] = rounds;
        grid.row(key, title, 2, cells);
    }
    let chart = grid.chart(
        "Small GET beside a bulk body in the same connection, loopback",
        "ms",
        &[("beside_bulk_p50_ms", "p50"), ("beside_bulk_p99_ms", "p99")],
    );
    Ok(Section {
        name: "fairness",
        about: format!(
            "B7 (i), B8: small GETs while bodies of {} MB follow each other in the same connection and tunnel; then one user's GETs beside another's 100 stalled readers in the same tunnel and 200 silent strangers. {} rounds of {} GETs.",
            size.body / 1_000_000,
            size.rounds,
            size.beside
        ),
        grid,
        charts: vec![("fairness", chart)],
        circumstances: String::new(),
    })
}

/// Small GETs of one user in the direct tunnel, in turns alone and while another one has stopped reading a hundred large
/// answers in the same tunnel, and strangers hold two hundred connections, half of them with half a request.
async fn bad_company(
    stage: &Stage,
    client: &Client,
    size: &Size,
) -> Result<Vec<(&'static str, &'static str, Vec<f64>)>> {
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for _ in 0..size.long_rounds {
        let mut alone = client.latencies(size.gets).await?;
        let company = company(stage, size).await?;
        let mut beside = client.latencies(size.gets).await?;
        drop(company);
        let factor = |share, beside: &mut [Duration], alone: &mut [Duration]| {
            percentile(beside, share).as_secs_f64() / percentile(alone, share).as_secs_f64()
        };
        p50.push(factor(0.5, &mut beside, &mut alone));
        p99.push(factor(0.99, &mut beside, &mut alone));
    }
    Ok(vec![
        ("bad_company_p50_factor", "in bad company, times as long as alone, p50", p50),
        ("bad_company_p99_factor", "the same, p99", p99),
    ])
}

/// What is there to be there.
type Company = (Client, Vec<Incoming>, Vec<TlsStream<TcpStream>>);

async fn company(stage: &Stage, size: &Size) -> Result<Company> {
    let other = Client::with_window(&stage.cluster(&idle::cluster_id(DIRECT), "other"), 64 * 1024).await?;
    let (mut stalled, mut silent) = (Vec::new(), Vec::new());
    for n in 0..100 {
        stalled.push(other.open(&format!("{BODY}{}", size.body)).await?);
        silent.push(stage.front().dial(true).await?);
        let mut half = stage.front().dial(true).await?;
        half.write_all(format!("GET /apis HTTP/1.1\r\nHost: hub\r\nX-Number: {n}").as_bytes()).await?;
        silent.push(half);
    }
    Ok((other, stalled, silent))
}

/// Memory of tunnels on which nothing happens, and discovery beside them. The hub has to be new.
///
/// # Errors
/// A tunnel or request was refused.
pub async fn idle_tunnels(stage: &Stage, client: &Arc<Client>, size: &Size) -> Result<Section> {
    let mut held = JoinSet::new();
    stage.check()?;
    let before = usage::resident_kib(stage.hub_pid())?;
    for n in (0..=size.tunnels).filter(|n| *n != DIRECT) {
        idle::open(stage.front(), n, &mut held).await.with_context(|| format!("tunnel {n}"))?;
    }
    let after = usage::resident_kib(stage.hub_pid())?;
    let each = after.saturating_sub(before) as f64 / size.tunnels as f64;
    // With all of them open, and one more that is full.
    let filling = fill(client, size.body);
    let discovery = stage.front().clone().below(String::new(), &[("x-remote-user", "bench")]);
    let discovery = Client::connect(&discovery).await?;
    let mut times = Vec::with_capacity(size.gets);
    for _ in 0..size.gets {
        let asked = Instant::now();
        ensure!(discovery.get("/apis/proxies.clusternet.io/v1alpha1").await? > 0, "an empty document");
        times.push(asked.elapsed());
    }
    drop(filling);
    let mut grid = Grid::new([("hub", "hub")]);
    let mut row = |key: &str, title: &str, digits, value| grid.row(key, title, digits, vec![vec![value]]);
    row("kib_each", "memory for each idle tunnel, KiB", 1, each);
    row("rss_mib", "resident memory with all of them, MiB", 0, after as f64 / 1024.0);
    row("tunnels_in_a_gib", "so many fit in a GiB", 0, (1 << 20) as f64 / each.max(1.0));
    row(
        "discovery_p50_ms",
        "discovery beside them and a bulk body, p50, ms",
        2,
        millis(percentile(&mut times, 0.5)),
    );
    row("discovery_p99_ms", "the same, p99, ms", 2, millis(percentile(&mut times, 0.99)));
    grid.aim("kib_each", "hub", Aim::AtMost(85.0));
    grid.aim("tunnels_in_a_gib", "hub", Aim::AtLeast(12_000.0));
    grid.aim("discovery_p99_ms", "hub", Aim::AtMost(10.0));
    Ok(Section {
        name: "idle",
        about: format!(
            "B10: {} idle tunnels on a hub that has just started, each with TLS, from a client without a parent in between; its memory before and after.",
            size.tunnels
        ),
        grid,
        charts: Vec::new(),
        circumstances: String::new(),
    })
}
