//! kubectl of many ages, each against a child behind NAT through hub and tunnel. One trial for each version and
//! command. At the end a table, on the terminal and in `target/compatibility.md`.
//!
//! A command that fails is tried directly in the child with the same kubectl. If it fails there too, that is
//! between this kubectl and this Kubernetes, and the table says so; if it works there, it is our fault.
//!
//! `TOWLINE_CLIENTS=few` takes the oldest, one in the middle and the newest.

mod bare;
mod commands;
mod stage;

use std::process::{Command as Process, ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};
use tests::compatibility::{Cell, Table};
use tests::kubectl::Kubectl;
use tests::say;
use tests::towline::repository;
use tokio::runtime::Runtime;

use commands::Command;
use stage::Stage;

/// Fetched by `hack/kubectl-versions.sh`; the newest is the one that all other tests use.
const VERSIONS: [&str; 6] = ["1.20", "1.24", "1.28", "1.30", "1.32", "1.35"];
const FEW: [&str; 2] = ["1.20", "1.28"];

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if arguments.list {
        return Ok(libtest_mimic::run(&arguments, Vec::new()).exit_code());
    }
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let runtime =
        Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?);
    #[expect(clippy::disallowed_methods, reason = "the one place that reads this variable")]
    let few = match std::env::var("TOWLINE_CLIENTS").as_deref() {
        Ok("few") => true,
        Ok("all") | Err(_) => false,
        Ok(other) => bail!("TOWLINE_CLIENTS is `few` or `all`, not {other:?}"),
    };
    let fetched = fetch(if few { &FEW } else { &VERSIONS })?;

    let stage = Arc::new(runtime.block_on(Stage::set_up())?);
    let clients = runtime.block_on(clients(&stage, fetched))?;
    let names: Vec<String> = clients.iter().map(|(version, _)| version.clone()).collect();
    let table = Table::new(stage.heading(), &names, &Command::ALL.map(Command::title));
    let table = Arc::new(Mutex::new(table));

    let mut trials = Vec::new();
    for (column, (version, kubectl)) in clients.into_iter().enumerate() {
        for (row, command) in Command::ALL.into_iter().enumerate() {
            let (runtime, stage, table) = (runtime.clone(), stage.clone(), table.clone());
            let (kubectl, version) = (kubectl.clone(), version.clone());
            let name = format!("kubectl_{version}::{}", command.promise());
            let left = stage.left_out(command);
            if let Some(why) = &left {
                lock(&table).set(row, column, Cell::Left(why.clone()));
            }
            let trial = Trial::test(name, move || {
                let cell = runtime.block_on(try_both_ways(&stage, &kubectl, &version, command));
                let judged = match &cell {
                    Cell::Fails(why) => Err(Failed::from(why)),
                    Cell::Works | Cell::Left(_) | Cell::NowhereWorks(_) => Ok(()),
                };
                lock(&table).set(row, column, cell);
                judged
            });
            trials.push(trial.with_ignored_flag(left.is_some()));
        }
    }
    let all = table.clone();
    trials.push(Trial::test("every_command_works_with_some_kubectl", move || {
        let table = lock(&all);
        let hopeless = table.hopeless();
        if hopeless.is_empty() { Ok(()) } else { Err(format!("with none: {}", hopeless.join(", ")).into()) }
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    show(&lock(&table))?;
    finish(&runtime, stage, conclusion.exit_code())
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes everything down, and looks whether something stayed.
fn finish(runtime: &Runtime, stage: Arc<Stage>, code: ExitCode) -> Result<ExitCode> {
    let name = stage.run().to_owned();
    let entered = runtime.enter();
    drop(stage);
    drop(entered);
    let remains = tests::scratch::remains(&name);
    if remains.is_empty() {
        return Ok(code);
    }
    say(&format!("!!! left behind: {}", remains.join(", ")));
    Ok(ExitCode::FAILURE)
}

/// Through the hub; if that fails, directly, to know whose fault it is.
async fn try_both_ways(stage: &Stage, kubectl: &str, version: &str, command: Command) -> Cell {
    let through = match stage.through_hub(kubectl, version) {
        Ok(client) => command.try_it(&client).await,
        Err(error) => Err(error),
    };
    let Err(through) = through else { return Cell::Works };
    let direct = match stage.directly(kubectl, version) {
        Ok(client) => command.try_it(&client).await,
        Err(error) => return Cell::Fails(format!("{through:#}; not tried directly: {error:#}")),
    };
    match direct {
        Ok(()) => Cell::Fails(format!("{through:#}")),
        Err(direct) => {
            say(&format!("    kubectl {version} cannot do it directly either: {direct:#}"));
            Cell::NowhereWorks(format!("{direct:#}"))
        }
    }
}

/// The paths of the versions.
fn fetch(versions: &[&str]) -> Result<Vec<String>> {
    let script = repository().join("hack/kubectl-versions.sh");
    let output = Process::new(&script)
        .args(versions)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !output.status.success() {
        bail!("{} failed; the reason stands above", script.display());
    }
    let lines = String::from_utf8(output.stdout)?;
    let path = |line: &str| line.split_once(' ').map(|(_, path)| path.to_owned());
    Ok(lines.lines().filter_map(path).collect())
}

/// Version (as the client itself says it) and path of each, the newest last.
async fn clients(stage: &Stage, fetched: Vec<String>) -> Result<Vec<(String, String)>> {
    let newest = stage.newest().display().to_string();
    let mut found = Vec::new();
    for path in fetched.into_iter().chain([newest]) {
        let version = version(stage.plain(), &path).await?;
        // Whoever points KUBEBUILDER_ASSETS to a Kubernetes of one of these versions has its kubectl twice.
        if !found.iter().any(|(known, _)| *known == version) {
            found.push((version, path));
        }
    }
    Ok(found)
}

async fn version(kubectl: &Kubectl, path: &str) -> Result<String> {
    let said = kubectl.clone().with_binary(path).ok(&["version", "--client", "-o", "json"]).await?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let version = said["clientVersion"]["gitVersion"].as_str().context("kubectl says no version")?;
    Ok(version.trim_start_matches('v').to_owned())
}

fn show(table: &Table) -> Result<()> {
    let markdown = table.markdown();
    let path = repository().join("target/compatibility.md");
    std::fs::create_dir_all(repository().join("target"))?;
    std::fs::write(&path, &markdown).with_context(|| path.display().to_string())?;
    say(&format!("{}\n\n{markdown}", path.display()));
    Ok(())
}
