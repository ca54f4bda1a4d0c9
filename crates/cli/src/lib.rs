//! `kubectl towline`: what a person does with clusters, on top of plain `kubectl`.
//!
//! Data goes to stdout, everything said to a person to stderr; every error says what, why and the next
//! command; exit codes are in [`failure`]. It talks to the parent's API with the caller's own kubeconfig and
//! holds no rights and no state of its own.
//!
//! Reading order: [`args`] (the whole surface), [`config`] (kubeconfig and environment), [`session`] (one
//! bounded question to the parent), then one module per command.

pub mod args;
pub mod config;
pub mod failure;
#[doc(hidden)]
pub mod fuzzing;
pub mod session;

mod access;
mod answer;
mod approve;
mod ask;
mod bundle;
mod clusters;
mod complete;
mod credentials;
mod deliver;
pub mod doctor;
mod dry_run;
mod duration;
mod exec_credential;
mod find;
mod issue;
mod kubeconfig;
mod label;
mod merge;
mod out_file;
mod output;
mod register;
mod rename;
mod status;
mod token_cache;
mod unregister;
mod wait;
mod wanted;

use args::{Cli, Command};
use failure::Failure;
use session::Session;

/// Runs one command to its end.
///
/// # Errors
/// Whatever kept it from its end, with the exit code to leave with.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Version => output::data(&format!("kubectl-towline {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Kubeconfig(args) => deliver::run(&global, &args, false).await,
        Command::Use(args) => deliver::run(&global, &args.into(), true).await,
        Command::ExecCredential(args) => exec_credential::run(&global, &args).await,
        Command::Credentials(args) => credentials::run(&Session::open(&global).await?, &args).await,
        Command::Access(args) => Box::pin(access::run(&Session::open(&global).await?, &args)).await,
        Command::Label(args) => label::run(&Session::open(&global).await?, &args).await,
        Command::SupportBundle(args) => Box::pin(bundle::run(&Session::open(&global).await?, &args)).await,
        Command::Completion(args) => complete::script(&args),
        Command::Complete { words } => complete::answer(&words).await,
        Command::Register(args) if args.dry_run => {
            dry_run::register(&Session::open(&global).await?, &args).await
        }
        Command::Unregister(args) if args.dry_run => {
            dry_run::unregister(&Session::open(&global).await?, &args).await
        }
        Command::Register(args) => register::run(&Session::open(&global).await?, &args).await,
        Command::Clusters(args) => clusters::run(&Session::open(&global).await?, &args).await,
        Command::Status(args) => status::run(&Session::open(&global).await?, &args).await,
        Command::Approve(args) => approve::approve(&Session::open(&global).await?, &args).await,
        Command::Deny(args) => approve::deny(&Session::open(&global).await?, &args).await,
        Command::Doctor(args) => Box::pin(doctor::run(&global, &args)).await,
        Command::Rename(args) => rename::run(&Session::open(&global).await?, &args).await,
        Command::Unregister(args) => unregister::run(&Session::open(&global).await?, &args).await,
    }
}
