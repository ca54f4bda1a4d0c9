//! The same over a link with a delay and a rate: between agent and hub, and, for comparison, between the client and the
//! child. Both go through the fault proxy's link in one more process, so what it costs stands on both sides.
//!
//! The link ends TCP on both sides, so it has no loss and no slow start; its queue is one receive buffer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::idle;
use super::load::{Exec, percentile};
use super::machine::{Part, pin};
use super::options::Size;
use super::report::{Aim, Grid, Section};
use super::stage::{Stage, free, itself};
use super::statistics::differences;
use super::ways::{Way, beside_bulk, columns, millis, turns};
use crate::faults::link::{Death, LinkFaults, carry};
use crate::faults::schedule::Faults;
use crate::process::{Process, wait_until};
use crate::say;

/// Receive buffer at the near end of a link, which is what may wait in front of it: 5 ms at 100 Mbit/s. The kernel's own
/// would grow to megabytes there, since the sender is nearby, and a small answer would wait behind seconds of bulk, as on no
/// link in life.
const QUEUE: u32 = 64 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A link in a process of its own: from each first address to the second one.
///
/// # Errors
/// An address is taken.
pub async fn serve(
    round_trip: Duration,
    bits_a_second: u64,
    ways: Vec<(SocketAddr, SocketAddr)>,
) -> Result<()> {
    let faults = one_way(round_trip, bits_a_second);
    let faults = LinkFaults { there: faults.clone(), back: faults, idle_kill: None };
    let mut listeners = JoinSet::new();
    for (from, to) in ways {
        listeners.spawn(accept(listen(from)?, to, faults.clone()));
    }
    while let Some(ended) = listeners.join_next().await {
        ended??;
    }
    Ok(())
}

fn one_way(round_trip: Duration, bits_a_second: u64) -> Faults {
    let delay = (!round_trip.is_zero()).then_some((round_trip / 2, Duration::ZERO));
    Faults { delay, rate: Some(bits_a_second / 8), ..Faults::default() }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // Before anything listens: who connects learns the window then.
    socket.set_recv_buffer_size(QUEUE)?;
    socket.bind(address)?;
    Ok(socket.listen(BACKLOG)?)
}

async fn accept(listener: TcpListener, to: SocketAddr, faults: LinkFaults) -> Result<()> {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let faults = faults.clone();
                let socket = accepted?.0;
                open.spawn(async move { pass(socket, to, faults).await });
            }
            Some(_) = open.join_next() => {}
        }
    }
}

async fn pass(mut near: TcpStream, to: SocketAddr, faults: LinkFaults) -> Result<()> {
    let far = TcpSocket::new_v4()?;
    far.set_recv_buffer_size(QUEUE)?;
    let mut far = far.connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    carry(&mut near, &mut far, faults, 0, &Death::default()).await;
    Ok(())
}

/// A link, an agent behind it, and the two ways over it.
struct Link {
    // Dropped in this order.
    _agent: Process,
    _link: Process,
    ways: Vec<Way>,
}

impl Link {
    async fn start(stage: &Stage, n: usize, round_trip: u64, rate: u64) -> Result<Self> {
        let (to_hub, to_child) = (free()?, free()?);
        let both = [to_hub, stage.hub_address(), to_child, stage.child().address()]
            .map(|address| address.to_string());
        let [a, b, c, d] = both.each_ref().map(String::as_str);
        let (trip, bits) = (round_trip.to_string(), rate.to_string());
        let name = format!("bench-link-{n}");
        let link = itself(&name, ["link", &trip, &bits, a, b, c, d], stage.scratch().path())?
            .start(stage.scratch())?;
        pin(link.pid(), Part::Rest)?;
        wait_until("the link", Duration::from_secs(20), async || {
            link.check()?;
            Ok(TcpStream::connect(to_hub).await.map(drop)?)
        })
        .await?;
        let agent = stage.tunnel(&format!("bench-agent-{n}"), n, to_hub, stage.fake()).await?;
        let ways = vec![
            Way::new("no_tunnel", "no tunnel", stage.child().clone().at(to_child), Vec::new()).await?,
            Way::new("direct_tunnel", "tunnel", stage.cluster(&idle::cluster_id(n), "bench"), Vec::new())
                .await?,
        ];
        for way in &ways {
            // The hub closes a connection on which no request comes within ten seconds, and one of them has to wait.
            way.client.latencies(2).await?;
        }
        Ok(Self { _agent: agent, _link: link, ways })
    }
}

/// Latency, a bulk body, and small requests beside one, on each link.
///
/// # Errors
/// A request failed.
pub async fn links(stage: &Stage, size: &Size) -> Result<Section> {
    let mut grid: Option<Grid> = None;
    let mut names = Vec::new();
    for (number, &(round_trip, rate)) in size.links.iter().enumerate() {
        let name =
            format!("{round_trip} ms, {}", if rate < 1_000_000_000 { "100 Mbit/s" } else { "1 Gbit/s" });
        say(&format!("link of {name}"));
        let link = Link::start(stage, size.tunnels + 1 + number, round_trip, rate).await?;
        let grid = grid.get_or_insert_with(|| Grid::new(columns(&link.ways).chain([("added", "added")])));
        let key = format!("rtt{round_trip}_{}mbit", rate / 1_000_000);
        measure(grid, &link.ways, &key, &name, size).await?;
        grid.aim(format!("{key}_p50_ms"), "added", Aim::AtMost(1.0));
        grid.aim(format!("{key}_exec_open_p50_ms"), "added", Aim::AtMost(2.0));
        if round_trip == 100 {
            grid.aim(format!("{key}_mb_s"), "direct_tunnel", Aim::AtLeast(20.0));
        }
        if rate < 1_000_000_000 {
            // A round trip and 40 ms.
            let most = round_trip as f64 + 40.0;
            grid.aim(format!("{key}_beside_p99_ms"), "direct_tunnel", Aim::AtMost(most));
        }
        names.push((key, name));
    }
    let grid = grid.unwrap_or_else(|| Grid::new([("no_tunnel", "no tunnel")]));
    let chart = |title: &str, unit: &str, what: &str| {
        let keys: Vec<_> = names.iter().map(|(key, name)| (format!("{key}_{what}"), name.as_str())).collect();
        grid.chart(title, unit, &keys.iter().map(|(key, name)| (key.as_str(), *name)).collect::<Vec<_>>())
    };
    let charts = vec![
        ("links-latency", chart("1 KiB GET over a link, p50", "ms", "p50_ms")),
        ("links-bulk", chart("One large body over a link", "MB/s", "mb_s")),
        ("links-fairness", chart("Small GET beside a bulk body over a link, p99", "ms", "beside_p99_ms")),
    ];
    Ok(Section {
        name: "links",
        about: format!(
            "B2, B6, B7 (ii), B13: over links made by a proxy in user space, between agent and hub for the tunnel, between client and child without one. {} rounds of {} GETs, one body of {} MB, {} GETs beside such bodies in the same connection, and execs.",
            size.long_rounds,
            size.over_link,
            size.body / 1_000_000,
            size.over_link
        ),
        grid,
        charts,
        circumstances: String::new(),
    })
}

async fn measure(grid: &mut Grid, ways: &[Way], key: &str, name: &str, size: &Size) -> Result<()> {
    let mut rounds: [Vec<Vec<f64>>; 7] = std::array::from_fn(|_| vec![Vec::new(); ways.len()]);
    for round in 0..size.long_rounds {
        for at in turns(ways.len(), round) {
            let Way { client, target, .. } = &ways[at];
            let mut times = client.latencies(size.over_link).await?;
            rounds[0][at].push(millis(percentile(&mut times, 0.5)));
            rounds[1][at].push(millis(percentile(&mut times, 0.99)));
            rounds[2][at].push(size.body as f64 / 1e6 / client.bulk(size.body).await?.as_secs_f64());
            let (p50, p99) = beside_bulk(target, size.over_link, size.body).await?;
            rounds[3][at].push(millis(p50));
            rounds[4][at].push(millis(p99));
            let mut opening = Vec::new();
            for _ in 0..size.over_link.div_ceil(4) {
                opening.push(Exec::open(target).await?.1);
            }
            let mut echoes = Exec::open(target).await?.0.echoes(size.over_link).await?;
            rounds[5][at].push(millis(percentile(&mut opening, 0.5)));
            rounds[6][at].push(millis(percentile(&mut echoes, 0.5)));
        }
    }
    let [p50, p99, speed, beside_p50, beside_p99, opening, echoes] = rounds;
    let mut row = |what: &str, title: &str, digits, mut cells: Vec<Vec<f64>>, added: bool| {
        let added = if added { differences(&cells[1], &cells[0]) } else { Vec::new() };
        cells.push(added);
        grid.row(format!("{key}_{what}"), format!("{name}: {title}"), digits, cells);
    };
    row("p50_ms", "GET, p50, ms", 2, p50, true);
    row("p99_ms", "GET, p99, ms", 2, p99, true);
    row("mb_s", "one body, MB/s", 1, speed, false);
    row("beside_p50_ms", "GET beside a body, p50, ms", 1, beside_p50, false);
    row("beside_p99_ms", "GET beside a body, p99, ms", 1, beside_p99, false);
    row("exec_open_p50_ms", "exec, request to 101, p50, ms", 2, opening, true);
    row("exec_echo_p50_ms", "exec, keystroke and back, p50, ms", 2, echoes, true);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Sends so many bytes over a link, and waits for one back; how long that took.
    async fn there_and_back(round_trip: Duration, bits: u64, bytes: usize) -> Duration {
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (from, to) = (free().unwrap(), target.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(round_trip, bits, vec![(from, to)]));
        let mut near =
            wait_until("the link", Duration::from_secs(10), async || Ok(TcpStream::connect(from).await?))
                .await
                .unwrap();
        let (mut far, _) = target.accept().await.unwrap();
        let started = Instant::now();
        let send = async {
            near.write_all(&vec![7; bytes]).await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
        };
        let receive = async {
            let mut all = vec![0; bytes];
            far.read_exact(&mut all).await.unwrap();
            assert!(all.iter().all(|byte| *byte == 7));
            far.write_all(&[1]).await.unwrap();
        };
        tokio::join!(send, receive);
        started.elapsed()
    }

    #[tokio::test]
    async fn a_link_is_as_far_and_as_slow_as_it_says() {
        let trip = Duration::from_millis(100);
        let small = there_and_back(trip, 1_000_000_000, 1).await;
        assert!(small >= trip, "{small:?}");
        // 2 MB at 100 Mbit/s are 160 ms.
        let large = there_and_back(Duration::ZERO, 100_000_000, 2_000_000).await;
        assert!(large >= Duration::from_millis(150), "{large:?}");
    }

    #[test]
    fn a_late_timer_does_not_slow_a_link_and_a_long_one_is_full() {
        let faults = one_way(Duration::from_millis(100), 1_000_000_000);
        assert_eq!(faults.delay, Some((Duration::from_millis(50), Duration::ZERO)));
        assert_eq!(faults.rate, Some(125_000_000));
        assert_eq!(one_way(Duration::ZERO, 8).delay, None);
    }
}
