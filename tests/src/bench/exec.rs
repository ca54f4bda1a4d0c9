//! A person at a terminal in a pod: how long opening an exec takes, and how long a keystroke takes to come back.

use anyhow::Result;

use super::load::{Exec, percentile};
use super::options::Size;
use super::report::{Aim, Grid, Section};
use super::ways::{Way, columns, micros, millis, turns};

/// Opens execs and types.
///
/// # Errors
/// One was refused, or broke off.
pub async fn exec(ways: &[Way], size: &Size) -> Result<Section> {
    let mut rounds: [Vec<Vec<f64>>; 4] = std::array::from_fn(|_| vec![Vec::new(); ways.len()]);
    for round in 0..size.rounds {
        for at in turns(ways.len(), round) {
            let way = &ways[at];
            let mut opening = Vec::with_capacity(size.execs);
            for _ in 0..size.execs {
                opening.push(Exec::open(&way.target).await?.1);
            }
            let mut echoes = Exec::open(&way.target).await?.0.echoes(size.keystrokes).await?;
            rounds[0][at].push(micros(percentile(&mut echoes, 0.5)));
            rounds[1][at].push(micros(percentile(&mut echoes, 0.99)));
            rounds[2][at].push(millis(percentile(&mut opening, 0.5)));
            rounds[3][at].push(millis(percentile(&mut opening, 0.99)));
        }
    }
    let mut grid = Grid::new(columns(ways));
    let [echo_p50, echo_p99, open_p50, open_p99] = rounds;
    grid.row("echo_p50_us", "a keystroke and back, p50, µs", 0, echo_p50);
    grid.row("echo_p99_us", "the same, p99, µs", 0, echo_p99);
    grid.row("open_p50_ms", "from the request to the 101, p50, ms", 2, open_p50);
    grid.row("open_p99_ms", "the same, p99, ms", 2, open_p99);
    grid.aim("echo_p50_us", "direct_tunnel", Aim::AtMost(150.0));
    grid.aim("echo_p99_us", "direct_tunnel", Aim::AtMost(500.0));
    grid.aim("open_p50_ms", "direct_tunnel", Aim::AtMost(2.0));
    let chart = grid.chart(
        "exec on loopback: a keystroke of 16 bytes and back",
        "µs",
        &[("echo_p50_us", "p50"), ("echo_p99_us", "p99")],
    );
    Ok(Section {
        name: "exec",
        about: format!(
            "B13: an upgraded stream to an exec that echoes, loopback. {} rounds of {} keystrokes of 16 bytes, one after the other, and of {} openings on a connection that stands; behind a tunnel the agent makes a new TLS connection to the child for each.",
            size.rounds, size.keystrokes, size.execs
        ),
        grid,
        charts: vec![("exec", chart)],
        circumstances: String::new(),
    })
}
