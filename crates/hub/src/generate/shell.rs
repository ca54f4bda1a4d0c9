//! Exports for a shell: `eval "$(…)"`. The names are those that Terraform's and OpenTofu's Kubernetes providers read,
//! and scripts may read them as well. Pure.

use api::secret::Secret;

use super::formats::head;
use super::kubeconfig::{Reached, Token};

/// The text.
pub(super) fn exports(cluster: &Reached<'_>, token: &Token<'_>) -> Secret {
    let mut out = head(cluster, token);
    for (name, value) in [("KUBE_HOST", cluster.server), ("KUBE_TOKEN", token.text.reveal())] {
        out.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    match cluster.ca_pem {
        Some(ca) => out.push_str(&format!("export KUBE_CLUSTER_CA_CERT_DATA={}\n", quoted(ca))),
        // That of another cluster must not stay.
        None => out.push_str("unset KUBE_CLUSTER_CA_CERT_DATA\n"),
    }
    Secret::from(out)
}

/// One word of a POSIX shell, whatever stands in it (XCU section 2.2.2). No shell can hold a NUL.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\0', "").replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::super::kubeconfig::tests::EDGE;
    use super::*;

    /// What a real shell makes of it: the three variables, and nothing else on its output.
    fn run(script: &str) -> [String; 3] {
        let print = "\nprintf '%s\\0%s\\0%s\\0' \"$KUBE_HOST\" \"$KUBE_TOKEN\" \"${KUBE_CLUSTER_CA_CERT_DATA-none}\"\n";
        let mut shell = Command::new("sh")
            .arg("-s")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        shell.stdin.take().unwrap().write_all(format!("{script}{print}").as_bytes()).unwrap();
        let output = shell.wait_with_output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let values: Vec<String> = said.strip_suffix('\0').unwrap().split('\0').map(str::to_owned).collect();
        values.try_into().unwrap()
    }

    fn made(cluster: &Reached<'_>, text: &str) -> String {
        let text = Secret::from(text.to_owned());
        let token = Token { text: &text, credential: "id", expires: jiff::Timestamp::UNIX_EPOCH };
        exports(cluster, &token).reveal().to_owned()
    }

    #[test]
    fn a_shell_holds_what_was_issued() {
        assert_eq!(run(&made(&EDGE, "twl-abc")), [EDGE.server, "twl-abc", EDGE.ca_pem.unwrap()]);
        let without = made(&Reached { ca_pem: None, ..EDGE }, "twl-abc");
        assert_eq!(run(&format!("KUBE_CLUSTER_CA_CERT_DATA=old\n{without}"))[2], "none");
    }

    proptest! {
        // Each case starts a shell.
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn no_text_is_ever_run(
            texts in proptest::collection::vec("[ -~é\n\r\t]{0,16}|(['\"`$(){};&|<>\\\\\n #!]|echo|x){0,12}", 3),
        ) {
            let cluster = Reached { name: &texts[0], server: &texts[1], ..EDGE };
            prop_assert_eq!(run(&made(&cluster, &texts[2])), [texts[1].as_str(), &texts[2], EDGE.ca_pem.unwrap()]);
        }
    }
}
