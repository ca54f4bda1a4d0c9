//! agent.yaml: everything that a child needs to join, as one file for `kubectl apply -f`. Pure.
//!
//! Promises: applying it twice changes nothing (no field that the server rewrites, no key that the agent
//! fills); what is granted is what stands here, without a `*`; there is no way to turn TLS verification off,
//! and a private key never gets in. It holds an invitation, so it is a secret until the invitation is used.
//!
//! The agent's account can do nothing to workloads. Requests of people run as those people: the account
//! `clusternet-app-deployer` may impersonate users and the groups listed here, and nothing else, so a request
//! whose identity got lost is refused by the child (403) instead of running with somebody's rights.
//! These are the verbs of legacy impersonation, which every Kubernetes version has; an invitation does not know the
//! child's. They never stand beside the constrained verbs of KEP-5284: kube-apiserver tries the old verb after the
//! new ones, so one old rule would cancel them. On 1.36 and later an owner may put those in their place
//! (docs/impersonation.md), and the agent finds out which are there.

use api::names::{
    AGENT_ACCOUNT, CREATED_BY_HUB, CREDENTIAL_SECRET, ClusterName, IMPERSONATOR_ACCOUNT, IMPERSONATOR_ROLE,
    LABEL_CREATED_BY, POLICY_CONFIGMAP, REGISTRATION_SECRET, Role, SYSTEM_NAMESPACE, role_group,
};
use api::secret::Secret;
use api::{pem, yaml};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

/// Where the invitation's Secret is mounted in the agent's pod.
const REGISTRATION_MOUNT: &str = "/etc/towline/registration";
/// Port of the agent's probes; `runtime::admin` serves them there.
const PROBE_PORT: u16 = 8080;
/// The user of distroless images: no name, no shell, no home.
const NONROOT: u32 = 65532;
/// Largest CA bundle in bytes. Bundles of whole companies stay below; a Secret holds 1 MiB at most.
pub const MAX_CA: usize = 256 * 1024;

/// What an agent.yaml is made of; every value was checked when it was parsed.
#[derive(Debug, Clone)]
pub struct AgentManifest {
    /// The cluster to be.
    pub cluster_name: ClusterName,
    /// `https://…` of the parent's API server, without a path.
    pub parent_url: String,
    /// The CA that the parent's certificate has to come from, PEM.
    pub parent_ca_pem: String,
    /// The invitation's public id.
    pub invitation: String,
    /// Its secret.
    pub invitation_secret: Secret,
    /// The token that lets the agent through the parent's front door, to ask for registration.
    pub token: Secret,
    /// When the invitation ends.
    pub expires: Timestamp,
    /// Groups beyond the three roles that may be impersonated.
    pub groups: Vec<String>,
    /// The agent's image.
    pub image: String,
    /// The hub's gateway, if tunnels shall go there: its address, and the CA that its certificate has to come from, PEM.
    pub gateway: Option<(String, String)>,
}

/// Why there is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Something that must never leave the hub.
    #[error("the parent's CA file contains a private key; give the hub a file with certificates only")]
    PrivateKey,
    /// Nothing to verify the parent with.
    #[error("the parent's CA file holds no usable CERTIFICATE block")]
    NoCertificate,
    /// Not a certificate bundle.
    #[error("the parent's CA file is over {MAX_CA} bytes")]
    TooLarge,
    /// Plain HTTP, or no URL.
    #[error("the parent's address {0:?} is not https://host[:port]")]
    Address(String),
}

/// The text of the file.
///
/// # Errors
/// The CA or the address cannot be used.
pub fn generate(values: &AgentManifest) -> Result<Secret, ManifestError> {
    let ca = certificates_only(&values.parent_ca_pem)?;
    let url = checked_address(&values.parent_url)?;
    let gateway = values
        .gateway
        .as_ref()
        .map(|(url, ca)| Ok::<_, ManifestError>((checked_address(url)?.to_owned(), certificates_only(ca)?)));
    let values = &AgentManifest { gateway: gateway.transpose()?, ..values.clone() };
    let mut out = String::new();
    for line in [
        format!("Towline agent for cluster {}: lets it join {url}", values.cluster_name),
        format!("Good for one cluster until {}. Holds a secret: do not publish it.", rfc3339(values.expires)),
        "Run in the cluster that shall join:".to_owned(),
        "  kubectl apply -f agent.yaml".to_owned(),
        "Applying it again changes nothing. To leave, unregister at the hub, then:".to_owned(),
        "  kubectl delete -f agent.yaml".to_owned(),
    ] {
        out.push_str(&yaml::comment(&line));
    }
    for object in objects(values, url, &ca) {
        out.push_str("---\n");
        out.push_str(&yaml::document(&object));
    }
    Ok(Secret::from(out))
}

/// The CERTIFICATE blocks of a PEM text, each written anew; whatever else stood around them is gone.
///
/// # Errors
/// It holds a private key, or no certificate.
pub fn certificates_only(text: &str) -> Result<String, ManifestError> {
    if text.len() > MAX_CA {
        return Err(ManifestError::TooLarge);
    }
    // By text, not by parsed block: a key in a block that does not parse must not slip through either.
    if text.contains("PRIVATE KEY") {
        return Err(ManifestError::PrivateKey);
    }
    let mut out = String::new();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|_| ManifestError::NoCertificate)?;
        if x509_parser::parse_x509_certificate(&certificate).is_err() {
            return Err(ManifestError::NoCertificate);
        }
        out.push_str(&pem::block(pem::CERTIFICATE, &certificate));
    }
    if out.is_empty() { Err(ManifestError::NoCertificate) } else { Ok(out) }
}

fn checked_address(url: &str) -> Result<&str, ManifestError> {
    let refused = || ManifestError::Address(url.chars().take(100).collect());
    let parsed: http::Uri = url.parse().map_err(|_| refused())?;
    let host_alone = parsed.scheme_str() == Some("https")
        && parsed.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && matches!(parsed.path(), "" | "/")
        && parsed.query().is_none();
    if host_alone { Ok(url.trim_end_matches('/')) } else { Err(refused()) }
}

/// To the second: nobody reads fractions.
fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// In the order in which one `kubectl apply` needs them.
pub(crate) fn objects(values: &AgentManifest, url: &str, ca: &str) -> Vec<Value> {
    let mut objects = vec![
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": SYSTEM_NAMESPACE, "labels": {
                LABEL_CREATED_BY: CREATED_BY_HUB,
                // The agent fits the strictest profile (docs: Pod Security Standards).
                "pod-security.kubernetes.io/enforce": "restricted",
            } },
        }),
        account(AGENT_ACCOUNT),
        account(IMPERSONATOR_ACCOUNT),
    ];
    objects.extend(impersonation(&values.groups));
    objects.extend(agent_rights());
    objects.push(registration_secret(values, url, ca));
    // Without data: the agent fills it, and a later apply leaves alone what it never mentioned.
    objects.push(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": namespaced(CREDENTIAL_SECRET),
    }));
    objects.push(deployment(values));
    objects
}

fn namespaced(name: &str) -> Value {
    json!({ "name": name, "namespace": SYSTEM_NAMESPACE, "labels": { LABEL_CREATED_BY: CREATED_BY_HUB } })
}

fn cluster_wide(name: &str) -> Value {
    json!({ "name": name, "labels": { LABEL_CREATED_BY: CREATED_BY_HUB } })
}

fn account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": namespaced(name),
            // The deployment asks for its token itself; no other pod needs one.
            "automountServiceAccountToken": false })
}

fn impersonation(groups: &[String]) -> Vec<Value> {
    let mut names: Vec<&str> = Role::ALL.iter().map(|&role| role_group(role)).collect();
    names.extend(groups.iter().map(String::as_str));
    let mut objects = vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": cluster_wide(IMPERSONATOR_ROLE),
            "rules": [
                { "apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"] },
                { "apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": names },
            ],
        }),
        binding(
            "ClusterRoleBinding",
            &cluster_wide(IMPERSONATOR_ROLE),
            ("ClusterRole", IMPERSONATOR_ROLE),
            &service_account(IMPERSONATOR_ACCOUNT),
        ),
    ];
    // The child's owner may remove or narrow any of these.
    for role in Role::ALL {
        let child_role = match role {
            Role::Admin => "cluster-admin",
            Role::Edit => "edit",
            Role::View => "view",
        };
        let group = role_group(role);
        objects.push(binding(
            "ClusterRoleBinding",
            &cluster_wide(group),
            ("ClusterRole", child_role),
            &json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group }),
        ));
    }
    objects
}

fn agent_rights() -> Vec<Value> {
    const NAME: &str = "clusternet:agent";
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": cluster_wide(NAME),
            "rules": [
                // For the cluster's status: nodes are summed, pods are counted. The owner may take the second away.
                { "apiGroups": [""], "resources": ["nodes"], "verbs": ["list"] },
                { "apiGroups": [""], "resources": ["pods"], "verbs": ["list"] },
                // Its UID is the cluster's id.
                { "apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"], "resourceNames": ["kube-system"] },
                { "nonResourceURLs": ["/version", "/healthz", "/livez", "/readyz"], "verbs": ["get"] },
            ],
        }),
        binding(
            "ClusterRoleBinding",
            &cluster_wide(NAME),
            ("ClusterRole", NAME),
            &service_account(AGENT_ACCOUNT),
        ),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": namespaced(NAME),
            "rules": [
                { "apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "update"],
                  "resourceNames": [CREDENTIAL_SECRET] },
                { "apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"],
                  "resourceNames": [IMPERSONATOR_ACCOUNT] },
                // The owner's policy. To read alone: nothing that comes through the agent may change it.
                { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"],
                  "resourceNames": [POLICY_CONFIGMAP] },
            ],
        }),
        binding("RoleBinding", &namespaced(NAME), ("Role", NAME), &service_account(AGENT_ACCOUNT)),
    ]
}

fn service_account(name: &str) -> Value {
    json!({ "kind": "ServiceAccount", "name": name, "namespace": SYSTEM_NAMESPACE })
}

fn binding(kind: &str, metadata: &Value, (role_kind, role): (&str, &str), subject: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role },
        "subjects": [subject],
    })
}

/// `data`, not `stringData`: the server turns the latter into the former, and a second apply would differ.
fn registration_secret(values: &AgentManifest, url: &str, ca: &str) -> Value {
    let data = |text: &str| STANDARD.encode(text);
    let mut secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": namespaced(REGISTRATION_SECRET),
        "data": {
            "parentURL": data(url),
            "ca.crt": data(ca),
            "regToken": data(values.token.reveal()),
            "invitation": data(&values.invitation),
            "invitationSecret": data(values.invitation_secret.reveal()),
            "expires": data(&rfc3339(values.expires)),
            "clusterName": data(values.cluster_name.as_str()),
        },
    });
    if let Some((url, ca)) = &values.gateway {
        secret["data"]["gatewayURL"] = data(url).into();
        secret["data"]["gateway-ca.crt"] = data(ca).into();
    }
    secret
}

fn deployment(values: &AgentManifest) -> Value {
    let selector = json!({ "app.kubernetes.io/name": AGENT_ACCOUNT });
    let probe = |path: &str| json!({ "httpGet": { "path": path, "port": "probes" }, "periodSeconds": 10 });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": namespaced(AGENT_ACCOUNT),
        "spec": {
            "replicas": 1,
            // One serves. A new one is ready when the one before has named it as its successor, and only then that goes.
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "selector": { "matchLabels": selector },
            "template": {
                "metadata": {
                    "labels": selector,
                    // A new invitation starts a new pod, which reads it at once.
                    "annotations": { "access.towline.io/invitation": values.invitation },
                },
                "spec": {
                    "serviceAccountName": AGENT_ACCOUNT,
                    "automountServiceAccountToken": true,
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": NONROOT, "runAsGroup": NONROOT, "fsGroup": NONROOT,
                        "seccompProfile": { "type": "RuntimeDefault" },
                    },
                    "containers": [{
                        "name": "agent",
                        "image": values.image,
                        "command": ["/towline-agent"],
                        "ports": [{ "name": "probes", "containerPort": PROBE_PORT, "protocol": "TCP" }],
                        "livenessProbe": probe("/livez"),
                        "readinessProbe": probe("/readyz"),
                        // No limits: a CPU limit is added latency, and the right memory limit is the owner's.
                        "resources": { "requests": { "cpu": "50m", "memory": "32Mi" } },
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": { "drop": ["ALL"] },
                        },
                        "volumeMounts": [{ "name": "registration", "mountPath": REGISTRATION_MOUNT, "readOnly": true }],
                    }],
                    "volumes": [{ "name": "registration", "secret": { "secretName": REGISTRATION_SECRET, "optional": false, "defaultMode": 0o440 } }],
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generate::tests::{golden, parse};

    /// A self-signed CA that never signed anything but itself; its key is not kept.
    const CA: &str = include_str!("testdata/ca.pem");

    fn values() -> AgentManifest {
        AgentManifest {
            cluster_name: "edge-1".parse().unwrap(),
            parent_url: "https://parent.example.com:6443".to_owned(),
            parent_ca_pem: CA.to_owned(),
            invitation: "0123456789abcdef".to_owned(),
            invitation_secret: Secret::from("invitation-secret".to_owned()),
            token: Secret::from("front-door-token".to_owned()),
            expires: "2030-01-02T03:04:05Z".parse().unwrap(),
            groups: vec!["developers".to_owned()],
            image: "registry.example.com/towline-agent:0.1.0".to_owned(),
            gateway: None,
        }
    }

    fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
        objects
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
            .unwrap_or_else(|| panic!("{kind} {name}"))
    }

    #[test]
    fn the_example_in_deploy_is_what_the_hub_generates() {
        golden("agent.example.yaml", generate(&values()).unwrap().reveal());
    }

    #[test]
    fn the_text_reads_back_as_the_objects() {
        let ca = certificates_only(CA).unwrap();
        let wanted = objects(&values(), "https://parent.example.com:6443", &ca);
        assert_eq!(parse(generate(&values()).unwrap().reveal()), wanted);
    }

    #[test]
    fn no_rule_holds_a_star_and_nothing_turns_verification_off() {
        let text = generate(&values()).unwrap();
        assert!(!text.reveal().contains('*') && !text.reveal().to_lowercase().contains("insecure"));
    }

    #[test]
    fn the_impersonator_may_impersonate_and_nothing_else() {
        let objects = parse(generate(&values()).unwrap().reveal());
        let rules = find(&objects, "ClusterRole", IMPERSONATOR_ROLE)["rules"].as_array().unwrap();
        assert!(rules.iter().all(|rule| rule["verbs"] == json!(["impersonate"])));
        let groups = json!(["clusternet:admin", "clusternet:edit", "clusternet:view", "developers"]);
        assert_eq!(rules[1]["resourceNames"], groups);
        let subjects: Vec<_> =
            objects.iter().filter(|object| object["subjects"][0]["name"] == IMPERSONATOR_ACCOUNT).collect();
        assert_eq!(subjects.len(), 1, "bound once");
    }

    #[test]
    fn the_agent_may_read_its_policy_and_not_write_it() {
        let objects = parse(generate(&values()).unwrap().reveal());
        let rules = find(&objects, "Role", "clusternet:agent")["rules"].as_array().unwrap();
        let about: Vec<_> = rules.iter().filter(|rule| rule["resources"] == json!(["configmaps"])).collect();
        assert_eq!(about.len(), 1);
        assert_eq!(
            (&about[0]["verbs"], &about[0]["resourceNames"]),
            (&json!(["get"]), &json!(["clusternet-agent-policy"]))
        );
    }

    #[test]
    fn the_gateway_stands_beside_the_parent_with_a_ca_of_its_own() {
        let gateway = |url: &str, ca: &str| {
            let gateway = Some((url.to_owned(), ca.to_owned()));
            generate(&AgentManifest { gateway, ..values() })
        };
        let objects = parse(gateway("https://hub.example.com:8444/", CA).unwrap().reveal());
        let data = &find(&objects, "Secret", REGISTRATION_SECRET)["data"];
        assert_eq!(data["gatewayURL"], STANDARD.encode("https://hub.example.com:8444"));
        assert_eq!(data["gateway-ca.crt"], STANDARD.encode(certificates_only(CA).unwrap()));
        assert_eq!(gateway("https://hub.example.com", "").unwrap_err(), ManifestError::NoCertificate);
        assert!(gateway("http://hub.example.com", CA).is_err());
    }

    #[test]
    fn a_private_key_never_gets_in() {
        for key in ["PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"] {
            let pem = format!("{CA}-----BEGIN {key}-----\nAAAA\n-----END {key}-----\n");
            assert_eq!(certificates_only(&pem), Err(ManifestError::PrivateKey));
        }
    }

    #[test]
    fn only_certificates_are_kept_of_a_ca_file() {
        let clean = certificates_only(CA).unwrap();
        let with_text = format!("# our CA\r\n{}\r\nsubject: x", CA.replace('\n', "\r\n"));
        assert_eq!(certificates_only(&with_text).unwrap(), clean);
        assert_eq!(certificates_only(""), Err(ManifestError::NoCertificate));
        assert_eq!(certificates_only(&"x".repeat(MAX_CA + 1)), Err(ManifestError::TooLarge));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(certificates_only(garbage), Err(ManifestError::NoCertificate));
    }

    #[test]
    fn only_an_https_host_is_an_address() {
        for bad in
            ["http://a", "a", "", "https://", "https://u:p@a", "https://a/b", "https://a?b", "https://a\n- b"]
        {
            assert!(checked_address(bad).is_err(), "{bad}");
        }
        for good in ["https://a", "https://a/", "https://[::1]:6443", "https://10.0.0.1:6443"] {
            assert_eq!(checked_address(good), Ok(good.trim_end_matches('/')));
        }
    }

    #[test]
    fn a_printed_value_shows_no_secret() {
        let shown = format!("{:?}", values());
        assert!(!shown.contains("invitation-secret") && !shown.contains("front-door-token"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_out_of_its_place(
            name in "[a-z0-9]([-a-z0-9]{0,58}[a-z0-9])?",
            groups in proptest::collection::vec("\\PC{1,30}|[-#:{}\\[\\]&*!|>%@`\"'\n ]{1,10}", 0..4),
            image in "\\PC{1,40}",
            invitation in "\\PC{0,20}",
            secrets in ("\\PC{0,20}", "\\PC{0,20}"),
        ) {
            let values = AgentManifest {
                cluster_name: name.parse().unwrap(),
                groups: groups.clone(), image: image.clone(), invitation: invitation.clone(),
                invitation_secret: Secret::from(secrets.0), token: Secret::from(secrets.1.clone()),
                ..values()
            };
            let objects = parse(generate(&values).unwrap().reveal());
            prop_assert_eq!(objects.len(), 15);
            let pod = &find(&objects, "Deployment", AGENT_ACCOUNT)["spec"]["template"];
            prop_assert_eq!(&pod["spec"]["containers"][0]["image"], &json!(image));
            prop_assert_eq!(&pod["metadata"]["annotations"]["access.towline.io/invitation"], &json!(invitation));
            let names = &find(&objects, "ClusterRole", IMPERSONATOR_ROLE)["rules"][1]["resourceNames"];
            prop_assert_eq!(names.as_array().unwrap()[3..].to_vec(), groups.into_iter().map(Value::from).collect::<Vec<_>>());
            let data = &find(&objects, "Secret", REGISTRATION_SECRET)["data"];
            prop_assert_eq!(&data["regToken"], &json!(STANDARD.encode(&secrets.1)));
            prop_assert_eq!(&data["clusterName"], &json!(STANDARD.encode(&name)));
        }
    }
}
