//! `credentials`: which tokens the hub has issued, and the end of one.

use api::kubeconfig::IssuedCredentialSpec;
use api::names::CREDENTIALS_PATH;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::args::{Credentials, CredentialsCommand};
use crate::duration;
use crate::failure::{Exit, Failure};
use crate::output::{data, say, shown, table};
use crate::session::Session;
use crate::{config, token_cache};

#[derive(Deserialize)]
struct List {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
    spec: IssuedCredentialSpec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &Credentials) -> Result<(), Failure> {
    match &args.command {
        None | Some(CredentialsCommand::List) => list(session).await,
        Some(CredentialsCommand::Revoke { ids }) => {
            for id in ids {
                revoke(session, id).await?;
            }
            Ok(())
        }
    }
}

async fn list(session: &Session) -> Result<(), Failure> {
    let list: List = session.ask("list the credentials", session.client.request(request("GET", "")?)).await?;
    if list.items.is_empty() {
        say(&format!(
            "There are no credentials.\nnext:  {} kubeconfig CLUSTER --role view --out FILE",
            session.command()
        ));
        return Ok(());
    }
    data(&written(&list, Timestamp::now()))
}

fn written(list: &List, now: Timestamp) -> String {
    let row = |item: &Item| {
        let spec = &item.spec;
        let ago = |at: Timestamp| format!("{} ago", duration::human(now.as_second() - at.as_second()));
        let left = spec.expires.as_second() - now.as_second();
        vec![
            shown(&item.metadata.name),
            shown(&spec.cluster_id),
            shown(&spec.owner),
            spec.role.map_or("own", |role| role.subresource()).to_owned(),
            shown(spec.service.as_deref().unwrap_or_default()),
            if left > 0 { duration::human(left) } else { "over".to_owned() },
            spec.last_used.map_or_else(|| "never".to_owned(), ago),
        ]
    };
    let head = ["ID", "CLUSTER ID", "OWNER", "ROLE", "SERVICE", "EXPIRES IN", "LAST USED"];
    let rows: Vec<_> =
        [head.map(str::to_owned).to_vec()].into_iter().chain(list.items.iter().map(row)).collect();
    table(&rows)
}

async fn revoke(session: &Session, id: &str) -> Result<(), Failure> {
    // It becomes a part of a path.
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Failure::new(Exit::Usage, format!("{} is no id of a credential", shown(id)))
            .next(format!("{} credentials", session.command())));
    }
    let doing = format!("revoke credential {id}");
    let _: Value = session.ask(&doing, session.client.request(request("DELETE", &format!("/{id}"))?)).await?;
    // `exec-credential` would go on handing it out here.
    if let Some(folder) = config::cache_folder() {
        token_cache::forget(&folder, id);
    }
    say(&format!("Credential {id} is revoked; what it has open ends within seconds."));
    Ok(())
}

fn request(method: &str, rest: &str) -> Result<http::Request<Vec<u8>>, Failure> {
    http::Request::builder()
        .method(method)
        .uri(format!("{CREDENTIALS_PATH}{rest}"))
        .header(http::header::ACCEPT, "application/json")
        .body(Vec::new())
        .map_err(|error| Failure::new(Exit::Error, format!("could not write the request: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_whose_where_until_when_and_is_fit_for_a_terminal() {
        let list: List = serde_json::from_value(serde_json::json!({ "items": [
            { "metadata": { "name": "0123456789abcdef" }, "spec": {
                "clusterId": "c1", "owner": "alice\u{1b}[2J", "role": "view", "service": "argo",
                "expires": "2030-01-01T02:00:00Z", "lastUsed": "2029-12-31T23:59:00Z" } },
            { "metadata": { "name": "1" }, "spec": {
                "clusterId": "c1", "owner": "bob", "expires": "2029-01-01T00:00:00Z" } },
        ]}))
        .unwrap();
        let text = written(&list, "2030-01-01T00:00:00Z".parse().unwrap());
        assert!(!text.contains('\u{1b}'), "{text:?}");
        let lines: Vec<&str> = text.lines().collect();
        for (line, words) in [(lines[1], ["view", "argo", "120m"]), (lines[2], ["own", "over", "never"])] {
            assert!(words.iter().all(|word| line.contains(word)), "{line}");
        }
    }
}
