//! `kubeconfig --role`: asks the hub for a kubeconfig with a token of its own, good for one cluster. The token is shown
//! this once; the hub keeps a hash.

use api::kubeconfig::{
    Format, KUBECONFIG_REQUEST_KIND, KubeconfigRequestSpec, KubeconfigRequestStatus, Spelling,
};
use api::names::{ACCESS_GROUP, ACCESS_VERSION, KUBECONFIG_REQUESTS_PATH, Role};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::{Address, IssuedRole, Kubeconfig, shell_word};
use crate::duration;
use crate::failure::{Exit, Failure};
use crate::out_file::OutFile;
use crate::output::{data, say, shown, stdout_is_terminal};
use crate::session::Session;

#[derive(Deserialize)]
struct Answer {
    status: Option<KubeconfigRequestStatus>,
}

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &Kubeconfig, role: IssuedRole) -> Result<(), Failure> {
    // The file first: a token that cannot be written down must not be issued.
    let file = args.out.as_deref().map(|path| OutFile::create(path, args.force)).transpose()?;
    let status = issue(session, args, role).await?;
    if file.is_none() && stdout_is_terminal() {
        say("warning: what follows holds a token and is on your screen; --out FILE keeps it in a file.");
    }
    match file {
        Some(file) => file.finish(status.kubeconfig.reveal())?,
        None => data(status.kubeconfig.reveal())?,
    }
    let expires = status.expires.map_or(0, Timestamp::as_second);
    let left = duration::human(expires - Timestamp::now().as_second());
    let id = shown(status.credential.as_deref().unwrap_or_default());
    let file =
        args.out.as_ref().map_or_else(|| "FILE".to_owned(), |path| shell_word(&path.display().to_string()));
    say(&format!(
        "Credential {id} for cluster {}, good for {left}. End it: {} credentials revoke {id}\n\
         next:  kubectl --kubeconfig {file} get namespaces",
        args.cluster,
        session.command(),
    ));
    Ok(())
}

async fn issue(
    session: &Session,
    args: &Kubeconfig,
    role: IssuedRole,
) -> Result<KubeconfigRequestStatus, Failure> {
    let wrong = |error: String| Failure::new(Exit::Error, format!("could not write the request: {error}"));
    let body = serde_json::to_vec(&question(args, role)).map_err(|error| wrong(error.to_string()))?;
    let request = http::Request::post(KUBECONFIG_REQUESTS_PATH)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::ACCEPT, "application/json")
        .body(body)
        .map_err(|error| wrong(error.to_string()))?;
    let doing = format!("get a kubeconfig for cluster {}", args.cluster);
    let answer: Answer = session.ask(&doing, session.client.request(request)).await?;
    answer.status.ok_or_else(|| {
        Failure::new(Exit::Error, format!("could not {doing}: the hub's answer holds no kubeconfig"))
            .next("compare the versions of hub and command: kubectl towline version")
    })
}

fn question(args: &Kubeconfig, role: IssuedRole) -> Value {
    let spec = KubeconfigRequestSpec {
        cluster: args.cluster.to_string(),
        role: match role {
            IssuedRole::Admin => Some(Role::Admin),
            IssuedRole::Edit => Some(Role::Edit),
            IssuedRole::View => Some(Role::View),
            IssuedRole::Own => None,
        },
        service: args.service.clone(),
        ttl_seconds: args.ttl.map(|ttl| ttl.as_secs()),
        address: Some(match args.address {
            Address::Path => Spelling::Path,
            Address::Host => Spelling::Host,
            Address::Root => Spelling::Root,
        }),
        format: Format::Kubeconfig,
    };
    json!({
        "apiVersion": format!("{ACCESS_GROUP}/{ACCESS_VERSION}"), "kind": KUBECONFIG_REQUEST_KIND,
        "metadata": { "name": args.cluster.as_str() }, "spec": spec,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(arguments: &[&str]) -> Option<Kubeconfig> {
        let cli =
            Cli::try_parse_from([&["kubectl-towline", "kubeconfig", "edge-1"], arguments].concat()).ok()?;
        if let Command::Kubeconfig(args) = cli.command { Some(args) } else { None }
    }

    #[test]
    fn the_question_is_what_was_typed() {
        let args =
            parsed(&["--role", "view", "--ttl", "2h", "--service", "argo", "--address", "root"]).unwrap();
        assert_eq!(
            question(&args, IssuedRole::View)["spec"],
            json!({ "cluster": "edge-1", "role": "view", "service": "argo", "ttlSeconds": 7200, "address": "root" })
        );
        let own = parsed(&["--role", "own"]).unwrap();
        assert_eq!(
            question(&own, IssuedRole::Own)["spec"],
            json!({ "cluster": "edge-1", "address": "path" })
        );
    }

    #[test]
    fn what_belongs_to_a_token_needs_one() {
        for wrong in [&["--ttl", "2h"][..], &["--service", "a"], &["--address", "root"], &["--role", "root"]]
        {
            assert!(parsed(wrong).is_none(), "{wrong:?}");
        }
        assert!(parsed(&[]).unwrap().role.is_none());
    }
}
