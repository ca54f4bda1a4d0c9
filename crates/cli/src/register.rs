//! `register`: asks the hub for an invitation and hands over the manifest, which holds a secret and is shown
//! this once.

use std::collections::BTreeMap;

use api::names::{ACCESS_GROUP, ACCESS_VERSION, INVITATIONS_PATH};
use api::registration::{
    AddressKind, ClusterInvitation, ClusterInvitationSpec, ClusterInvitationStatus, INVITATION_KIND,
};
use jiff::Timestamp;

use crate::args::{Network, Register, RegisterOutput, shell_word};
use crate::duration;
use crate::failure::{Exit, Failure};
use crate::out_file::OutFile;
use crate::output::{data, say, shown, stdout_is_terminal};
use crate::session::Session;

/// Runs the command.
pub(crate) async fn run(session: &Session, args: &Register) -> Result<(), Failure> {
    // The file first: an invitation that cannot be written down must not be made.
    let file = args.out.as_deref().map(|path| OutFile::create(path, args.force)).transpose()?;
    let invitation = invite(session, args).await?;
    let text = match args.output {
        RegisterOutput::Yaml => invitation.manifest.reveal().to_owned(),
        RegisterOutput::Command => one_command(invitation.manifest.reveal())?,
        RegisterOutput::Url => fetching(&invitation)?,
    };
    if file.is_none() && stdout_is_terminal() {
        say("warning: what follows holds a secret and is on your screen; --out FILE keeps it in a file.");
    }
    match file {
        Some(file) => file.finish(&text)?,
        None => data(&text)?,
    }
    say(&told(&session.command(), args, &invitation, Timestamp::now()));
    Ok(())
}

async fn invite(session: &Session, args: &Register) -> Result<ClusterInvitationStatus, Failure> {
    let body = serde_json::to_vec(&question(args))
        .map_err(|error| Failure::new(Exit::Error, format!("could not write the request: {error}")))?;
    let request = http::Request::post(INVITATIONS_PATH)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::ACCEPT, "application/json")
        .body(body)
        .map_err(|error| Failure::new(Exit::Error, format!("could not write the request: {error}")))?;
    let doing = format!("make an invitation for cluster {}", args.name);
    let answer: ClusterInvitation = session.ask(&doing, session.client.request(request)).await?;
    answer.status.ok_or_else(|| {
        Failure::new(Exit::Error, format!("could not {doing}: the hub's answer holds no manifest"))
            .next("compare the versions of hub and command: kubectl towline version")
    })
}

fn question(args: &Register) -> ClusterInvitation {
    let mut metadata = serde_json::Map::new();
    metadata.insert("name".to_owned(), args.name.as_str().into());
    ClusterInvitation {
        api_version: format!("{ACCESS_GROUP}/{ACCESS_VERSION}"),
        kind: INVITATION_KIND.to_owned(),
        metadata,
        spec: ClusterInvitationSpec {
            cluster_name: args.name.clone(),
            ttl_seconds: Some(args.ttl.as_secs()),
            auto_approve: args.auto_approve,
            address: match args.network {
                Network::Public => AddressKind::Public,
                Network::Intranet => AddressKind::Intranet,
            },
            cluster_labels: args.labels.iter().cloned().collect::<BTreeMap<String, String>>(),
            groups: args.groups.clone(),
            image: args.image.clone(),
            one_time_address: args.output == RegisterOutput::Url,
        },
        status: None,
    }
}

/// The manifest inside a command, to paste into a shell that reaches the cluster.
fn one_command(manifest: &str) -> Result<String, Failure> {
    const END: &str = "END_OF_AGENT_YAML";
    // A line equal to the end word would turn the rest of the manifest into shell commands.
    if manifest.lines().any(|line| line.trim_end() == END) {
        return Err(Failure::new(Exit::Error, "the manifest cannot stand in a command").next("use -o yaml"));
    }
    // In braces: a shell runs nothing of it before it has read the last line, so half a command applies nothing.
    Ok(format!("{{ kubectl apply -f - <<'{END}'\n{}\n{END}\n}}\n", manifest.trim_end()))
}

/// The command that fetches the manifest. Where nobody trusts the gateway's CA beforehand, curl compares the key that is
/// shown with the one that the hub has named here, over the parent's API; kubectl could only be told to trust anybody.
fn fetching(invitation: &ClusterInvitationStatus) -> Result<String, Failure> {
    let Some(address) = &invitation.one_time_address else {
        return Err(Failure::new(Exit::Error, "the hub has given no address for the manifest")
            .next("compare the versions of hub and command, or use -o command"));
    };
    // It goes into a shell.
    let in_address = |byte: u8| byte.is_ascii_alphanumeric() || b":/._-[]".contains(&byte);
    let in_pin = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    let address =
        Some(address.reveal()).filter(|text| text.starts_with("https://") && text.bytes().all(in_address));
    let pin = invitation.pin.as_deref();
    let (Some(address), true) = (address, pin.is_none_or(|pin| pin.bytes().all(in_pin))) else {
        return Err(Failure::new(
            Exit::Error,
            "the hub's address for the manifest cannot stand in a command",
        )
        .next("use -o command"));
    };
    // Brackets of an IPv6 address are a pattern to shells, and to curl without -g.
    let (address, glob) =
        if address.contains('[') { (format!("'{address}'"), "g") } else { (address.to_owned(), "") };
    Ok(match pin {
        None => format!("kubectl apply -f {address}\n"),
        Some(pin) => {
            format!("curl -fsSk{glob} --pinnedpubkey 'sha256//{pin}' {address} | kubectl apply -f -\n")
        }
    })
}

/// What the person is told.
fn told(command: &str, args: &Register, invitation: &ClusterInvitationStatus, now: Timestamp) -> String {
    let name = &args.name;
    let left = duration::human(invitation.expires.as_second() - now.as_second());
    let mut lines = vec![
        format!(
            "Invitation {} for cluster {name}, good for one cluster, once, for {left}.",
            shown(&invitation.invitation)
        ),
        "It holds a secret. Take it back before it is used: \
         kubectl -n clusternet-system delete secret invitation-ID"
            .replace("ID", &shown(&invitation.invitation)),
        String::new(),
        "Next, where the cluster is:".to_owned(),
    ];
    let file = args.out.as_ref().map(|path| shell_word(&path.display().to_string()));
    lines.push(match (args.output, file) {
        (RegisterOutput::Yaml, Some(file)) => format!("  kubectl --context CHILD apply -f {file}"),
        (RegisterOutput::Yaml, None) => "  kubectl --context CHILD apply -f FILE".to_owned(),
        (RegisterOutput::Command | RegisterOutput::Url, Some(file)) => format!("  sh {file}"),
        (RegisterOutput::Command, None) => "  paste the command above".to_owned(),
        (RegisterOutput::Url, None) => "  paste the command above; it works once, within the hour".to_owned(),
    });
    lines.push("then here:".to_owned());
    lines.push(if args.auto_approve {
        format!("  {command} clusters --watch")
    } else {
        format!("  {command} approve {name} --wait")
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use api::secret::Secret;
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> Register {
        let words = ["kubectl-towline", "register"].into_iter().chain(line.split_whitespace());
        let Command::Register(args) = Cli::try_parse_from(words).unwrap().command else { panic!("{line}") };
        args
    }

    #[test]
    fn what_is_asked_is_what_the_flags_say() {
        let args = args("edge-1 --ttl 1h --network intranet --label env=prod --group ops --auto-approve");
        let body = serde_json::to_value(question(&args)).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterInvitation",
                "metadata": { "name": "edge-1" },
                "spec": { "clusterName": "edge-1", "ttlSeconds": 3600, "autoApprove": true,
                          "address": "intranet", "clusterLabels": { "env": "prod" }, "groups": ["ops"] },
            })
        );
    }

    fn offered(address: Option<&str>, pin: Option<&str>) -> ClusterInvitationStatus {
        ClusterInvitationStatus {
            invitation: "k7f2".to_owned(),
            expires: Timestamp::from_second(86_400).unwrap(),
            manifest: Secret::default(),
            command: String::new(),
            one_time_address: address.map(|text| Secret::from(text.to_owned())),
            pin: pin.map(str::to_owned),
        }
    }

    #[test]
    fn the_command_that_fetches_the_manifest_trusts_a_known_ca_or_one_key() {
        assert!(question(&args("edge-1 -o url")).spec.one_time_address);
        assert!(!question(&args("edge-1 -o command")).spec.one_time_address);
        let address = "https://hub.example.com:8444/register/twm-0-A_b.yaml";
        assert_eq!(fetching(&offered(Some(address), None)).unwrap(), format!("kubectl apply -f {address}\n"));
        assert_eq!(
            fetching(&offered(Some(address), Some("aB+/=="))).unwrap(),
            format!("curl -fsSk --pinnedpubkey 'sha256//aB+/==' {address} | kubectl apply -f -\n")
        );
        let six = fetching(&offered(Some("https://[2001:db8::1]/register/t.yaml"), Some("aB="))).unwrap();
        assert!(six.contains("-fsSkg") && six.contains(" 'https://[2001:db8::1]/register/t.yaml' "), "{six}");
        for (address, pin) in [
            (None, None),
            (Some("http://hub/register/t.yaml"), None),
            (Some("https://hub/register/t.yaml; rm -rf x"), None),
            (Some("https://hub/$(id).yaml"), None),
            (Some("https://hub/register/t.yaml"), Some("a' 'b")),
        ] {
            assert!(fetching(&offered(address, pin)).is_err(), "{address:?} {pin:?}");
        }
    }

    #[test]
    fn no_manifest_breaks_out_of_the_command() {
        assert_eq!(
            one_command("a: b\n").unwrap(),
            "{ kubectl apply -f - <<'END_OF_AGENT_YAML'\na: b\nEND_OF_AGENT_YAML\n}\n"
        );
        assert!(one_command("a: b\nEND_OF_AGENT_YAML\nrm -rf x\n").is_err());
        assert!(one_command("a: b\nEND_OF_AGENT_YAML\r\nrm -rf x\n").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_runs_the_whole_command_or_none_of_it() {
        let manifest = "a: $(touch x) `touch x`\nb: 'it''s'\n".repeat(3);
        let command = one_command(&manifest).unwrap();
        // A shell function in the place of kubectl: it prints what it is asked and what it is given.
        let run = |command: &str| {
            let script = format!("kubectl() {{ echo \"ran $*\"; cat; }}\n{command}");
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(run(&command), format!("ran apply -f -\n{manifest}"));
        for end in 0..command.trim_end().len() {
            assert_eq!(run(&command[..end]), "", "cut at {end}");
        }
    }

    #[test]
    fn the_person_is_told_the_next_command_and_no_secret() {
        let invitation = ClusterInvitationStatus {
            invitation: "k7f2".to_owned(),
            expires: Timestamp::from_second(86_400).unwrap(),
            manifest: Secret::from("s3cr3t".to_owned()),
            command: String::new(),
            one_time_address: None,
            pin: None,
        };
        let now = Timestamp::from_second(0).unwrap();
        let text = told("kubectl towline", &args("edge-1 --out a.yaml"), &invitation, now);
        assert!(text.contains("kubectl --context CHILD apply -f a.yaml"), "{text}");
        assert!(text.ends_with("  kubectl towline approve edge-1 --wait"), "{text}");
        assert!(text.contains("for 24h") && text.contains("secret invitation-k7f2"), "{text}");
        assert!(!text.contains("s3cr3t"), "{text}");
        let text = told("kubectl towline", &args("edge-1 --auto-approve"), &invitation, now);
        assert!(text.ends_with("clusters --watch"), "{text}");
    }
}
