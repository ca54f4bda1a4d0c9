//! `make storm N=2000`: kills a hub, starts it again, and measures how its agents come back. Prints what was measured
//! and writes JSON; ends with 1 when an agent does not come back.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use tests::say;
use tests::storm::{child, crowd};

/// Agents, without a number on the command line: the figure of the design.
const AGENTS: usize = 2_000;

/// What the agent's binary has too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match storm() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("the storm failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn storm() -> Result<()> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // As the agent's binary, each on one thread.
    let one = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => one()?.block_on(measure(AGENTS)),
        ["child", address, directory] => {
            one()?.block_on(child::serve(address.parse()?, Path::new(directory)))
        }
        ["agents", first, count, child, directory] => {
            one()?.block_on(crowd::run(first.parse()?, count.parse()?, child.parse()?, Path::new(directory)))
        }
        [agents] => one()?.block_on(measure(agents.parse()?)),
        other => bail!("make storm knows N=2000, not {other:?}"),
    }
}

async fn measure(agents: usize) -> Result<()> {
    let (result, all) = tests::storm::run(agents).await?;
    let text = serde_json::to_string_pretty(&result)?;
    writeln!(std::io::stdout().lock(), "{text}")?;
    let path = tests::towline::repository().join("target/storm.json");
    std::fs::write(&path, text)?;
    say(&format!("JSON: {}", path.display()));
    ensure!(all, "not all of {agents} agents came back");
    Ok(())
}
