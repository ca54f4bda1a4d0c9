//! Clients of many kinds and ages, each against a child behind NAT through hub and tunnel: kubectl through the parent's
//! kube-apiserver; kubectl, Helm, client libraries and curl through the gateway, with the kubeconfigs that the hub issues;
//! and what TKEStack asks of a cluster. One trial for each client and command. At the end tables, on the terminal and in
//! `target/compatibility.md`.
//!
//! What kubectl cannot do is tried directly in the child with the same kubectl. If it fails there too, that is
//! between this kubectl and this Kubernetes, and the table says so; if it works there, it is our fault.
//!
//! `TOWLINE_CLIENTS=few` takes fewer versions of kubectl, and all other clients. A client that cannot be fetched ends the
//! run, before anything is tried.

mod access;
mod bare;
mod commands;
mod curl;
mod fetch;
mod helm;
mod howto;
mod http1;
mod kube_rs;
mod matrix;
mod stage;
mod tkestack;
mod tool;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use libtest_mimic::Arguments;
use tests::compatibility::Table;
use tests::say;
use tests::towline::repository;
use tokio::runtime::Runtime;

use fetch::Fetched;
use matrix::{Matrix, Way};
use stage::Stage;

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
    let fetched = Fetched::all(few)?;

    let stage = Arc::new(runtime.block_on(Stage::set_up())?);
    let named = runtime.block_on(fetched.named(&stage))?;
    let mut matrix = Matrix::new(&runtime, &stage);
    matrix.kubectl(Way::Parent, &named.kubectl);
    let ends: Vec<_> = named.kubectl.first().into_iter().chain(named.kubectl.last()).cloned().collect();
    matrix.kubectl(Way::Gateway, &ends);
    matrix.libraries(fetched.libraries()?);
    matrix.helm(named.helm);
    matrix.tkestack();
    matrix.howto();
    let (trials, tables) = matrix.finish();

    let conclusion = libtest_mimic::run(&arguments, trials);
    show(&tables.iter().map(|table| table.lock().markdown()).collect::<Vec<_>>().join("\n"))?;
    end(&runtime, stage, conclusion.exit_code())
}

/// Takes everything down, and looks whether something stayed.
fn end(runtime: &Runtime, stage: Arc<Stage>, code: ExitCode) -> Result<ExitCode> {
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

/// A table that the trials share.
#[derive(Clone)]
pub(crate) struct Shared(Arc<std::sync::Mutex<Table>>);

impl Shared {
    pub(crate) fn new(table: Table) -> Self {
        Self(Arc::new(std::sync::Mutex::new(table)))
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn show(markdown: &str) -> Result<()> {
    let path = repository().join("target/compatibility.md");
    std::fs::create_dir_all(repository().join("target"))?;
    std::fs::write(&path, markdown).with_context(|| path.display().to_string())?;
    say(&format!("{}\n\n{markdown}", path.display()));
    Ok(())
}
