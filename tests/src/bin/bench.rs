//! `make bench`: what the hub and the agent add to a direct connection, in one run: latency, requests a second, bytes a
//! second, CPU and memory, on loopback and over links. Prints tables, writes `target/bench.json`, and with
//! `--publish` the tables and plots of `docs/performance.md`.
//!
//! This process measures; all others that take part are in `bench::stage`, some of them this program again. `--smoke` is
//! short and checks counts, CPU and memory with wide margins; clock time is printed and not judged.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value};
use tests::bench::direct_agent::Child;
use tests::bench::machine::{Machine, Moment};
use tests::bench::options::{Options, PeerCommand};
use tests::bench::report::Section;
use tests::bench::stage::{CHILD_CA, CHILD_CERTIFICATE, CHILD_KEY, Stage, TOKEN, front, read};
use tests::bench::ways::Way;
use tests::bench::{apiserver, backend, direct_agent, exec, links, loopback, peer, people, watches};
use tests::say;
use tests::towline::repository;

/// What the agent's binary has too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("the benchmark failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let many = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let one = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["backend", address, directory] => many()?.block_on(backend(address.parse()?, Path::new(directory))),
        ["agent", n, hub, child, directory] => {
            one()?.block_on(direct_agent(n.parse()?, hub.parse()?, child.parse()?, Path::new(directory)))
        }
        ["link", round_trip, bits, a, b, c, d, _] => {
            let ways = vec![(a.parse()?, b.parse()?), (c.parse()?, d.parse()?)];
            one()?.block_on(links::serve(Duration::from_millis(round_trip.parse()?), bits.parse()?, ways))
        }
        ["peer"] => one()?.block_on(peer::example(peer::print_line)),
        _ => many()?.block_on(run(Options::parse(&arguments)?)),
    }
}

async fn backend(address: SocketAddr, directory: &Path) -> Result<()> {
    backend::serve(address, &read(directory, CHILD_CERTIFICATE)?, &read(directory, CHILD_KEY)?).await
}

async fn direct_agent(n: usize, hub: SocketAddr, child: SocketAddr, directory: &Path) -> Result<()> {
    let child = Child { address: child, ca: directory.join(CHILD_CA), token: directory.join(TOKEN) };
    direct_agent::serve(&front(hub, directory)?, n, child).await
}

/// What one hop costs that does nothing but pass on: always there, so that a figure of ours has more to stand beside than
/// nothing.
fn plain_hop() -> Result<PeerCommand> {
    let myself = std::env::current_exe()?;
    Ok(PeerCommand { name: "plain-proxy".to_owned(), command: format!("exec '{}' peer", myself.display()) })
}

async fn run(mut options: Options) -> Result<()> {
    ensure!(
        !(options.publish && cfg!(debug_assertions)),
        "figures of a debug build are not published; make bench builds a release"
    );
    options.peers.insert(0, plain_hop()?);
    let machine = Machine::read(repository()).words();
    say(&machine);
    let mut stage = Stage::start(&options).await?;
    let mut all = Map::new();
    let mut ways = Vec::new();
    for name in options.only.clone() {
        let before = Moment::now();
        let mut section = measure(name, &mut stage, &mut ways, &options).await?;
        section.circumstances = format!("{machine} {}", Moment::now().words_since(before));
        print(&section.text())?;
        all.insert(name.to_owned(), section.json());
        if options.publish {
            section.publish(&repository().join("docs"))?;
        }
    }
    let path = repository().join("target/bench.json");
    let result = Value::Object(all);
    std::fs::write(&path, serde_json::to_string_pretty(&result)?)?;
    say(&format!("JSON: {}", path.display()));
    if options.judge { judge_result(&result, &options) } else { Ok(()) }
}

async fn measure(name: &str, stage: &mut Stage, ways: &mut Vec<Way>, options: &Options) -> Result<Section> {
    let size = &options.size;
    say(name);
    if name == "watches" {
        // It wants a hub of its own.
        ways.clear();
        return watches::watches(stage, size).await;
    }
    if ways.is_empty() {
        *ways = stage.ways().await?;
        say("warm-up");
        for way in ways.iter() {
            way.client.latencies(200).await?;
            if name != "idle" {
                way.client.saturate(64, size.saturation / 3).await?;
            }
        }
    }
    match name {
        "idle" => {
            let direct = ways.iter().find(|way| way.key == "direct_tunnel").context("the direct tunnel")?;
            loopback::idle_tunnels(stage, &direct.client, size).await
        }
        "latency" => loopback::latency(ways, size).await,
        "throughput" => loopback::throughput(ways, size).await,
        "bulk" => loopback::bulk(ways, size).await,
        "fairness" => loopback::fairness(stage, ways, size).await,
        // A peer is not asked for upgrades.
        "exec" => exec::exec(&ways[..3], size).await,
        "links" => links::links(stage, size).await,
        "apiserver" => apiserver::apiserver(stage, size).await,
        _ => {
            let (cli, kubectl) = stage.command_lines();
            people::people(&cli, kubectl, size).await
        }
    }
}

fn print(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// Judged against the same machine in the same minute, for a neighbour that takes the cores slows all of them down: CPU
/// that hub and agent use for a request, as a multiple of the wall-clock time that the direct path takes for one at the
/// same load; and memory, which no neighbour changes. A leak, a busy loop or a lost connection pool is a factor. That each
/// watch had its events, each keystroke came back and each body was whole is an error where it is measured.
fn judge_result(result: &Value, options: &Options) -> Result<()> {
    let number = |section: &str, line: &str, way: &str| {
        let path = format!("/{section}/figures/{line}/{way}/median");
        result.pointer(&path).and_then(Value::as_f64).with_context(|| format!("{path} was not measured"))
    };
    if options.wants("throughput") && options.wants("bulk") {
        let request = 1e6 / number("throughput", "per_s", "no_tunnel")?;
        let gigabyte = 1e3 / number("bulk", "mb_s", "no_tunnel")?;
        for way in ["direct_tunnel", "through_parent"] {
            let both = number("throughput", "hub_cpu_us", way)? + number("throughput", "agent_cpu_us", way)?;
            let (requests, bytes) = (both / request, number("bulk", "hub_cpu_s_per_gb", way)? / gigabyte);
            say(&format!("{way}: {requests:.1} direct requests of CPU each; {bytes:.1} direct transfers"));
            ensure!(requests <= MOST_REQUESTS, "a request costs {requests:.1} direct ones ({way})");
            ensure!(bytes <= MOST_TRANSFERS, "a transfer costs {bytes:.1} direct ones ({way})");
        }
    }
    let most = |section: &str, line: &str, limit: f64, what: &str| -> Result<()> {
        if options.wants(section) {
            let found = number(section, line, if section == "idle" { "hub" } else { "direct_tunnel" })?;
            ensure!(found <= limit, "{what}: {found:.1}, at most {limit}");
        }
        Ok(())
    };
    most(
        "fairness",
        "bad_company_p50_factor",
        MOST_COMPANY,
        "another user's GETs in bad company, times as long",
    )?;
    most("idle", "kib_each", MOST_KIB, "KiB of the hub for an idle tunnel")?;
    let watches = format!("watches{}_hub_kib", options.size.watches.last().unwrap_or(&0));
    most("watches", &watches, MOST_WATCH_KIB, "KiB of the hub for a watch")
}

/// CPU of hub and agent for a request, in direct requests: 3 to 6 were measured.
const MOST_REQUESTS: f64 = 15.0;
/// CPU of the hub for a transfer, in direct transfers: 1 to 2 were measured.
const MOST_TRANSFERS: f64 = 6.0;
/// Another user's median in bad company, as a multiple of that user's median alone: 1.0 to 1.2 were measured. A hub whose
/// flow control or locks are shared between streams waits for those who do not read, which is without end.
const MOST_COMPANY: f64 = 3.0;
/// Memory of the hub for an idle tunnel: 91 were measured, more with few tunnels.
const MOST_KIB: f64 = 300.0;
/// Memory of the hub for a watch.
const MOST_WATCH_KIB: f64 = 100.0;
