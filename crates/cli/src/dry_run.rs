//! `--dry-run` of commands that make or remove something: says what would be done, after the same look-ups and checks,
//! and changes nothing.

use kube::ResourceExt as _;

use crate::args::{Register, Unregister};
use crate::duration;
use crate::failure::Failure;
use crate::find;
use crate::output::{data, shown};
use crate::session::Session;

/// `register --dry-run`
pub(crate) async fn register(session: &Session, args: &Register) -> Result<(), Failure> {
    // A name that is taken would be refused when the agent comes; who may not look has to go without.
    let wanted = args.name.as_str().parse();
    let taken = match &wanted {
        Ok(wanted) => find::cluster(session, wanted).await.ok().flatten(),
        Err(_) => None,
    };
    data(&would_register(args, taken.map(|cluster| cluster.spec.cluster_id).as_deref()))
}

fn would_register(args: &Register, taken: Option<&str>) -> String {
    let mut text = format!(
        "Would make an invitation (dry run):\n  cluster    {}\n  good for   {}\n  approval   {}\n",
        args.name,
        duration::human(i64::try_from(args.ttl.as_secs()).unwrap_or(i64::MAX)),
        if args.auto_approve { "with the invitation" } else { "by a person" },
    );
    for (key, value) in &args.labels {
        text.push_str(&format!("  label      {key}={value}\n"));
    }
    for group in &args.groups {
        text.push_str(&format!("  group      {}\n", shown(group)));
    }
    if let Some(id) = taken {
        text.push_str(&format!(
            "  the name is taken by cluster {}: it is good for that one alone, to join again\n",
            shown(id)
        ));
    }
    text
}

/// `unregister --dry-run`
pub(crate) async fn unregister(session: &Session, args: &Unregister) -> Result<(), Failure> {
    let cluster = find::registered(session, &args.cluster).await?;
    data(&format!(
        "Would unregister (dry run):\n  cluster    {}\n  id         {}\n  its credential, role and registration request would be \
         removed and its tunnel closed; the namespace {} would stay\n",
        shown(&cluster.name_any()),
        shown(&cluster.spec.cluster_id),
        shown(&cluster.namespace().unwrap_or_default()),
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn what_would_be_made_is_said() {
        let line = "kubectl-towline register edge-1 --ttl 1h --label env=prod --group ops --dry-run";
        let Command::Register(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!() };
        let text = would_register(&args, Some("id-1"));
        for part in ["edge-1", "60m", "by a person", "env=prod", "ops", "taken by cluster id-1"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}
