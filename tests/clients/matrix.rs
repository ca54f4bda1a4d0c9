//! Makes trials of clients and commands, and enters what comes of them into tables.

use std::sync::{Arc, OnceLock};

use libtest_mimic::{Failed, Trial};
use tests::compatibility::{Cell, Table};
use tests::say;
use tokio::runtime::Runtime;

use crate::Shared;
use crate::commands::Command;
use crate::howto;
use crate::stage::Stage;
use crate::tkestack::{self, Release};
use crate::tool::{HELM, Report, STEPS, Step, Tool};

/// The door that kubectl comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The parent's kube-apiserver.
    Parent,
    /// The hub's gateway.
    Gateway,
}

/// What is tried, so far.
pub(crate) struct Matrix {
    runtime: Arc<Runtime>,
    stage: Arc<Stage>,
    trials: Vec<Trial>,
    tables: Vec<Shared>,
}

impl Matrix {
    pub(crate) fn new(runtime: &Arc<Runtime>, stage: &Arc<Stage>) -> Self {
        let (runtime, stage) = (runtime.clone(), stage.clone());
        Self { runtime, stage, trials: Vec::new(), tables: Vec::new() }
    }

    /// What the how-to pages say about trials and commands. All trials have to be there by then.
    pub(crate) fn howto(&mut self) {
        let names: Vec<String> = self.trials.iter().map(|trial| trial.name().to_owned()).collect();
        self.trials.push(Trial::test("howto::names_only_trials_that_exist", move || {
            failed(howto::names_only_trials_that_exist(&names))
        }));
        self.trials.push(Trial::test("howto::types_only_commands_that_there_are", || {
            failed(howto::types_only_commands_that_there_are())
        }));
    }

    /// The trials in their order, and the tables that they fill.
    pub(crate) fn finish(self) -> (Vec<Trial>, Vec<Shared>) {
        (self.trials, self.tables)
    }

    fn table(&mut self, by: &str, kind: &str, clients: &[String], rows: &[&str]) -> Shared {
        let table = Shared::new(Table::new(self.stage.heading(by), kind, clients, rows));
        self.tables.push(table.clone());
        table
    }

    /// Each command with each kubectl.
    pub(crate) fn kubectl(&mut self, way: Way, clients: &[(String, String)]) {
        let (by, prefix, more) = match way {
            Way::Parent => ("through the parent's kube-apiserver, hub and tunnel", "kubectl", &[][..]),
            Way::Gateway => ("through the gateway and tunnel", "gateway_kubectl", &Command::GATEWAY[..]),
        };
        let commands = [&Command::ALL[..], more].concat();
        let titles: Vec<_> = commands.iter().map(|command| command.title()).collect();
        let names: Vec<String> = clients.iter().map(|(version, _)| version.clone()).collect();
        let table = self.table(by, "kubectl", &names, &titles);
        for (column, (version, kubectl)) in clients.iter().enumerate() {
            for (row, &command) in commands.iter().enumerate() {
                let left = self.stage.without_a_node().filter(|_| command.needs_a_pod());
                if let Some(why) = &left {
                    table.lock().set(row, column, Cell::Left(why.clone()));
                }
                let (runtime, stage, table) = (self.runtime.clone(), self.stage.clone(), table.clone());
                let (kubectl, version) = (kubectl.clone(), version.clone());
                let name = format!("{prefix}_{version}::{}", command.promise());
                let trial = Trial::test(name, move || {
                    let cell = runtime.block_on(try_both_ways(&stage, way, &kubectl, &version, command));
                    enter(&table, row, column, cell)
                });
                self.trials.push(trial.with_ignored_flag(left.is_some()));
            }
        }
        let name = format!("every_command_works_with_some_{prefix}");
        self.trials.push(Trial::test(name, move || {
            let table = table.lock();
            let hopeless = table.hopeless();
            if hopeless.is_empty() {
                Ok(())
            } else {
                Err(format!("with none: {}", hopeless.join(", ")).into())
            }
        }));
    }

    /// Each step with each client library, and curl.
    pub(crate) fn libraries(&mut self, tools: Vec<Tool>) {
        self.tools("through the gateway and tunnel, client libraries", "step", tools, &STEPS);
    }

    /// Each step with each Helm.
    pub(crate) fn helm(&mut self, tools: Vec<Tool>) {
        self.tools("through the gateway and tunnel", "Helm", tools, &HELM);
    }

    fn tools(&mut self, by: &str, kind: &str, tools: Vec<Tool>, steps: &[Step]) {
        let titles: Vec<_> = steps.iter().map(|step| step.title).collect();
        let names: Vec<String> = tools.iter().map(|tool| tool.title.clone()).collect();
        let table = self.table(by, kind, &names, &titles);
        for (column, tool) in tools.into_iter().enumerate() {
            let tool = Arc::new((tool, OnceLock::<Report>::new()));
            for (row, &step) in steps.iter().enumerate() {
                let none = tool.0.left_out(step).map(str::to_owned);
                let left = none.or_else(|| self.stage.without_a_node().filter(|_| step.needs_a_pod));
                if let Some(why) = &left {
                    table.lock().set(row, column, Cell::Left(why.clone()));
                }
                let (runtime, stage, table) = (self.runtime.clone(), self.stage.clone(), table.clone());
                let tool = tool.clone();
                let name = format!("gateway_{}::{}", tool.0.name, step.promise);
                let trial = Trial::test(name, move || {
                    let (tool, report) = &*tool;
                    let report = report.get_or_init(|| runtime.block_on(tool.run(&stage)));
                    let cell = report.of(step).map_or_else(Cell::Fails, |()| Cell::Works);
                    enter(&table, row, column, cell)
                });
                self.trials.push(trial.with_ignored_flag(left.is_some()));
            }
        }
    }

    /// What TKEStack asks. It takes the agent away at the end, so it comes last.
    pub(crate) fn tkestack(&mut self) {
        let cutting = "tkestack::cuts_every_address_that_the_hub_issues_as_it_is_meant";
        self.trials.push(Trial::test(cutting, || {
            failed(tkestack::cuts_every_address_that_the_hub_issues_as_it_is_meant())
        }));
        for part in tkestack::PARTS {
            for release in Release::ALL {
                let (runtime, stage) = (self.runtime.clone(), self.stage.clone());
                let name = format!("{}::{}", release.name(), part.promise);
                let trial = Trial::test(name, move || {
                    failed(runtime.block_on(tkestack::check(&stage, release, part)))
                });
                self.trials.push(trial.with_ignored_flag(self.stage.without_a_node().is_some()));
            }
        }
        let (runtime, stage) = (self.runtime.clone(), self.stage.clone());
        let away = Trial::test("tkestack::is_told_in_time_that_the_cluster_is_away", move || {
            failed(runtime.block_on(tkestack::is_told_in_time_that_the_cluster_is_away(&stage)))
        });
        self.trials.push(away.with_ignored_flag(self.stage.without_a_node().is_some()));
    }
}

fn failed(outcome: anyhow::Result<()>) -> Result<(), Failed> {
    outcome.map_err(|error| Failed::from(format!("{error:?}")))
}

fn enter(table: &Shared, row: usize, column: usize, cell: Cell) -> Result<(), Failed> {
    let judged = match &cell {
        Cell::Fails(why) => Err(Failed::from(why)),
        Cell::Works | Cell::Left(_) | Cell::NowhereWorks(_) => Ok(()),
    };
    table.lock().set(row, column, cell);
    judged
}

/// Through the hub; if that fails, directly, to know whose fault it is.
async fn try_both_ways(stage: &Stage, way: Way, kubectl: &str, version: &str, command: Command) -> Cell {
    let client = match way {
        Way::Parent => stage.through_hub(kubectl, version),
        Way::Gateway => stage.through_gateway(kubectl, version),
    };
    let through = match client {
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
