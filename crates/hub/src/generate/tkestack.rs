//! What TKEStack 1.8 and 1.9 need to import a cluster: the kubeconfig to upload, or the values of the form, or the two
//! objects that the form makes. Pure.
//!
//! TKEStack cuts the address by hand at `:` and `/` and keeps host, port and path apart (`Cluster.status.addresses`);
//! 1.8 loses the path again where it proxies. It reads the first cluster and the first user of a kubeconfig, and of
//! these server, CA and token. Without a CA it does not verify the server, so none is given without one.

use api::secret::Secret;
use api::yaml;
use serde_json::json;

use super::formats::head;
use super::kubeconfig::{Reached, Token, kubeconfig};

/// An address as TKEStack keeps it.
#[derive(Debug, PartialEq, Eq)]
struct Address<'a> {
    host: &'a str,
    port: u16,
    path: &'a str,
}

/// Why TKEStack cannot do with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    /// Not https.
    #[error("TKEStack takes only servers that begin with https://; set the hub's --gateway-url so")]
    Scheme,
    /// `[::1]`
    #[error(
        "TKEStack cuts an address at each ':', so it takes no IPv6 literal; give the hub a --gateway-url with a name"
    )]
    Ipv6,
    /// `localhost`
    #[error(
        "TKEStack takes no host without a dot; give the hub a --gateway-url with a full name, or an IPv4 address"
    )]
    NoDot,
    /// `host:port`, where the port is none.
    #[error("the port of the hub's --gateway-url is no number from 1 to 65535; correct it")]
    Port,
    /// A second ':'.
    #[error("TKEStack cuts an address at each ':', so its path may hold none; use spec.address host or root")]
    ColonInPath,
    /// Nothing to verify with.
    #[error(
        "TKEStack does not verify a server whose CA it was not given; start the hub with --gateway-ca-file, also for a CA that others trust anyway"
    )]
    NoCa,
}

/// Whether TKEStack can do with this.
///
/// # Errors
/// Why not.
pub(super) fn check(cluster: &Reached<'_>) -> Result<(), Unfit> {
    split(cluster.server)?;
    cluster.ca_pem.map(drop).ok_or(Unfit::NoCa)
}

fn split(server: &str) -> Result<Address<'_>, Unfit> {
    let rest = server.strip_prefix("https://").ok_or(Unfit::Scheme)?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('[') {
        return Err(Unfit::Ipv6);
    }
    let (host, port) = match authority.split_once(':') {
        None => (authority, 443),
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0).ok_or(Unfit::Port)?),
    };
    // A dot at one of the ends is none between two labels.
    if !host.trim_matches('.').contains('.') {
        return Err(Unfit::NoDot);
    }
    if path.contains(':') {
        return Err(Unfit::ColonInPath);
    }
    Ok(Address { host, port, path })
}

/// The text, in three parts of which one is enough.
pub(super) fn text(cluster: &Reached<'_>, token: &Token<'_>) -> Secret {
    let section = |text: &str| format!("\n{}", yaml::comment(text));
    let name = cluster.name;
    let mut out = head(cluster, token);
    out.push_str(&section(&format!(
        "1. By file: save the next lines as {name}.kubeconfig and upload that as KubeConfig File."
    )));
    out.push_str(kubeconfig(cluster, token.text).reveal());
    out.push_str(&section("2. Or by hand: paste these into the form."));
    out.push_str(&format!("API Server: {}\n", one_line(cluster.server)));
    out.push_str(&format!("Token: {}\n", one_line(token.text.reveal())));
    out.push_str("CertFile:\n");
    for line in cluster.ca_pem.unwrap_or_default().lines() {
        out.push_str(&one_line(line));
        out.push('\n');
    }
    out.push_str(&section(
        "3. Or by kubectl, at the API of TKEStack: kubectl create -f, with the lines from here on.",
    ));
    out.push_str(&objects(cluster, token));
    Secret::from(out)
}

/// Text for a person to copy: it must not go on in the next line as something else.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| *c == ' ' || c.is_ascii_graphic()).collect()
}

/// Types of tkestack/tke, `api/platform/v1/types.go`. A Cluster's name has to begin with `cls-` and be alone
/// (`pkg/platform/registry/cluster/strategy.go`), so TKEStack makes it; a tenant that the caller has replaces the one
/// that stands here.
fn objects(cluster: &Reached<'_>, token: &Token<'_>) -> String {
    let reference = format!("cc-{}", token.credential);
    let credential = json!({
        "apiVersion": "platform.tkestack.io/v1", "kind": "ClusterCredential",
        "metadata": { "name": reference },
        "tenantID": "default",
        "clusterName": "",
        "caCert": cluster.ca_base64(),
        "token": token.text.reveal(),
    });
    // Was checked; an address that cannot be cut would be none.
    let Ok(Address { host, port, path }) = split(cluster.server) else { return String::new() };
    let cluster = json!({
        "apiVersion": "platform.tkestack.io/v1", "kind": "Cluster",
        "metadata": { "generateName": "cls-" },
        "spec": {
            "tenantID": "default", "displayName": cluster.name, "type": "Imported",
            "clusterCredentialRef": { "name": reference },
        },
        "status": { "addresses": [{ "type": "Advertise", "host": host, "port": port, "path": path }] },
    });
    format!("---\n{}---\n{}", yaml::document(&credential), yaml::document(&cluster))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kubeconfig::tests::EDGE;
    use super::super::tests::parse;
    use super::*;

    #[test]
    fn an_address_is_cut_as_tkestack_cuts_it() {
        for (server, expected) in [
            ("https://edge-1.k8s.example.com", Ok(("edge-1.k8s.example.com", 443, ""))),
            ("https://hub.example.com:8444", Ok(("hub.example.com", 8444, ""))),
            ("https://10.0.0.1:8444/k8s/clusters/a", Ok(("10.0.0.1", 8444, "/k8s/clusters/a"))),
            ("http://hub.example.com", Err(Unfit::Scheme)),
            ("https://[2001:db8::1]:8444", Err(Unfit::Ipv6)),
            ("https://[2001:db8::1]", Err(Unfit::Ipv6)),
            ("https://localhost:8444", Err(Unfit::NoDot)),
            ("https://hub.", Err(Unfit::NoDot)),
            ("https://hub", Err(Unfit::NoDot)),
            ("https://hub.example.com:0", Err(Unfit::Port)),
            ("https://hub.example.com:x", Err(Unfit::Port)),
            ("https://hub.example.com:8444:1", Err(Unfit::Port)),
            ("https://hub.example.com/a:b", Err(Unfit::ColonInPath)),
        ] {
            let expected = expected.map(|(host, port, path)| Address { host, port, path });
            assert_eq!(split(server), expected, "{server}");
        }
        let server = "https://edge-1.k8s.example.com";
        assert_eq!(check(&Reached { server, ca_pem: None, ..EDGE }), Err(Unfit::NoCa));
        assert_eq!(check(&Reached { server, ..EDGE }), Ok(()));
    }

    #[test]
    fn each_of_the_three_parts_is_whole_by_itself() {
        let secret = Secret::from("twl-abc".to_owned());
        let expires = "2030-01-02T03:04:05Z".parse().unwrap();
        let token = Token { text: &secret, credential: "0123456789abcdef", expires };
        let cluster = Reached { server: "https://edge-1.k8s.example.com:8444", ..EDGE };
        let made = text(&cluster, &token);
        let parts: Vec<&str> = made.reveal().split("\n\n").collect();
        let [_, file, form, objects] = &parts[..] else { panic!("{}", parts.len()) };
        // TKEStack's parser takes one document.
        let read = parse(file);
        assert_eq!(read.len(), 1);
        assert_eq!(read[0]["clusters"][0]["cluster"]["server"], cluster.server);
        assert_eq!(read[0]["users"][0]["user"], json!({ "token": "twl-abc" }));
        assert!(form.contains(
            "\nAPI Server: https://edge-1.k8s.example.com:8444\nToken: twl-abc\nCertFile:\n-----BEGIN"
        ));
        let [credential, imported] = &parse(objects)[..] else { panic!("two objects") };
        assert_eq!(credential["caCert"], cluster.ca_base64().unwrap());
        assert_eq!(credential["token"], "twl-abc");
        assert_eq!(imported["spec"]["clusterCredentialRef"]["name"], credential["metadata"]["name"]);
        assert_eq!(imported["spec"]["type"], "Imported");
        let address =
            json!({ "type": "Advertise", "host": "edge-1.k8s.example.com", "port": 8444, "path": "" });
        assert_eq!(imported["status"]["addresses"], json!([address]));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_second_line_or_object(
            texts in proptest::collection::vec("\\PC{0,20}|[-#:{}\n\r\t\" ]{1,12}", 3),
        ) {
            let secret = Secret::from(texts[1].clone());
            let token = Token { text: &secret, credential: &texts[2], expires: jiff::Timestamp::UNIX_EPOCH };
            let cluster = Reached { name: &texts[0], server: "https://a.b", ..EDGE };
            let made = text(&cluster, &token);
            prop_assert!(made.reveal().is_ascii());
            let lines = |text: &str| text.lines().count();
            let plain = Secret::from("t".to_owned());
            let usual = Token { text: &plain, credential: "c", expires: token.expires };
            let usual = text(&Reached { name: "n", ..cluster }, &usual);
            prop_assert_eq!(lines(made.reveal()), lines(usual.reveal()));
        }
    }
}
