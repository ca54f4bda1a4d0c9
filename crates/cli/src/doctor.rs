//! `doctor`: looks at the whole way from here to a cluster, one check after the other, and says of each whether it is
//! well, with a code and a remedy if not. It changes nothing.
//!
//! What is asked is asked at once, each question with a deadline; what is found is printed in the order of the way. What
//! a finding means is decided by pure functions beside the questions.

mod child;
mod cluster;
pub mod codes;
mod finding;
mod network;
mod parent;
mod rights;
mod through;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use api::names::ClusterId;
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use jiff::Timestamp;
use kube::{Client, Config};

use crate::args::{Doctor, Global, ReportOutput};
use crate::failure::{Exit, Failure};
use crate::output::{data, json};
use crate::session::Session;
use crate::{config, find};
use codes::Code;
use finding::{Finding, document, healthy};
pub(crate) use rights::{may, socket};

/// Longest time for one question: a person waits, and a hub that needs longer is a finding.
const MOST: Duration = Duration::from_secs(10);

/// Checks that run beside the others.
type Group<'a> = Pin<Box<dyn Future<Output = Vec<Finding>> + 'a>>;

/// Runs the command.
pub(crate) async fn run(global: &Global, args: &Doctor) -> Result<(), Failure> {
    let table = args.output == ReportOutput::Table;
    let color = config::color(global);
    let mut print = |finding: &Finding| if table { data(&finding.line(color)) } else { Ok(()) };
    let findings = examine(global, args, &mut print).await?;
    if !table {
        let text = serde_json::to_string_pretty(&document(&findings))
            .map_err(|error| Failure::new(Exit::Error, format!("could not write the findings: {error}")))?;
        data(&(json(&text) + "\n"))?;
    }
    let failed = findings.iter().filter(|finding| finding.level == finding::Level::Fail).count();
    if healthy(&findings) {
        return Ok(());
    }
    Err(Failure::new(Exit::Error, format!("{failed} of {} checks fail", findings.len()))
        .next("each has its remedy below it; codes: docs/errors.md"))
}

/// What a doctor finds, as JSON, for a support bundle.
pub(crate) async fn report(global: &Global, cluster: Option<&ClusterId>) -> serde_json::Value {
    let args = Doctor { cluster: cluster.cloned(), ..Doctor::default() };
    match examine(global, &args, &mut |_| Ok(())).await {
        Ok(findings) => document(&findings),
        Err(failure) => serde_json::json!({ "error": failure.to_string() }),
    }
}

async fn examine(
    global: &Global,
    args: &Doctor,
    print: &mut impl FnMut(&Finding) -> Result<(), Failure>,
) -> Result<Vec<Finding>, Failure> {
    let limit = global.request_timeout.min(MOST);
    let side = if args.is_child() { args.child_side(global) } else { global.clone() };
    let side = Global { request_timeout: limit, ..side };
    let opened = async {
        let config = config::client_config(&side).await?;
        Ok::<_, Failure>((config, Session::open(&side).await?))
    };
    let (config, session) = match opened.await {
        Ok(opened) => opened,
        Err(failure) => {
            let finding = Finding::fail("kubeconfig", Code::Kubeconfig, failure.to_string());
            print(&finding)?;
            return Ok(vec![finding]);
        }
    };
    let first = Finding::ok("kubeconfig", config.cluster_url.authority().map_or("", |host| host.as_str()));
    let mut groups: FuturesOrdered<Group<'_>> = FuturesOrdered::new();
    groups.push_back(Box::pin(async { vec![first] }));
    if args.is_child() {
        child_side(&mut groups, &config, &session.client, limit);
    } else {
        parent_side(&mut groups, &config, &session, args, limit);
    }
    let mut all = Vec::new();
    while let Some(findings) = groups.next().await {
        for finding in &findings {
            print(finding)?;
        }
        all.extend(findings);
    }
    Ok(all)
}

fn child_side<'a>(
    groups: &mut FuturesOrdered<Group<'a>>,
    config: &'a Config,
    client: &'a Client,
    limit: Duration,
) {
    groups.push_back(Box::pin(network::way(config, limit, Timestamp::now())));
    groups.push_back(Box::pin(child::server(client, limit)));
    groups.push_back(Box::pin(child::agent(client, limit)));
    groups.push_back(Box::pin(child::belongings(client, limit)));
}

fn parent_side<'a>(
    groups: &mut FuturesOrdered<Group<'a>>,
    config: &'a Config,
    session: &'a Session,
    args: &'a Doctor,
    limit: Duration,
) {
    let client = &session.client;
    groups.push_back(Box::pin(network::way(config, limit, Timestamp::now())));
    groups.push_back(Box::pin(async move { vec![parent::authentication(client, limit).await] }));
    groups.push_back(Box::pin(parent::version(client, limit)));
    groups.push_back(Box::pin(async move { vec![parent::api_services(client, limit).await] }));
    groups.push_back(Box::pin(async move { vec![parent::crds(client, limit).await] }));
    let gateway = parent::GatewayAt { url: args.gateway.clone(), ca: args.gateway_ca.clone() };
    groups.push_back(Box::pin(async move { parent::hub(client, limit, &gateway).await }));
    groups.push_back(Box::pin(async move { vec![rights::of_commands(client, limit).await] }));
    if let Some(wanted) = &args.cluster {
        groups.push_back(Box::pin(one_cluster(session, wanted, limit)));
    }
}

async fn one_cluster(session: &Session, wanted: &ClusterId, limit: Duration) -> Vec<Finding> {
    let cluster = match find::cluster(session, wanted).await {
        Ok(Some(cluster)) => cluster,
        Ok(None) => {
            let request = find::request(session, wanted).await.ok().flatten();
            return vec![cluster::unregistered(request.as_ref())];
        }
        // Whoever may use a cluster need not be able to look it up: what was typed is then taken for its id.
        Err(failure) if failure.exit() == Exit::Denied => {
            let mut findings = vec![Finding::warn("registration", Code::Hidden, failure.to_string())];
            findings.extend(reached(&session.client, wanted, limit).await);
            return findings;
        }
        Err(failure) => return vec![Finding::fail("registration", Code::NoAnswer, failure.to_string())],
    };
    let Ok(id) = cluster.spec.cluster_id.parse::<ClusterId>() else {
        return vec![Finding::fail("registration", Code::NoAnswer, "the cluster has a broken id")];
    };
    let client = &session.client;
    let (credential, reached) =
        tokio::join!(cluster::credential(client, &cluster, limit), Box::pin(reached(client, &id, limit)));
    let mut findings = cluster::of_object(&cluster, Timestamp::now());
    findings.insert(1.min(findings.len()), credential);
    findings.extend(reached);
    findings
}

/// What does not need the cluster's object.
async fn reached(client: &Client, id: &ClusterId, limit: Duration) -> Vec<Finding> {
    let (rights, through) =
        tokio::join!(rights::of_cluster(client, id, limit), Box::pin(through::all(client, id, limit)));
    std::iter::once(rights).chain(through).collect()
}
