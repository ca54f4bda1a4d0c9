//! The doctor's own reasons, TWL-D001 and on: stable, for people to search for. One table: code, what it means, what to
//! do. docs/errors.md shows the same.

/// Makes the enum and the table from one list.
macro_rules! codes {
    ($($name:ident $code:literal $cause:literal $remedy:literal)*) => {
        /// What kind of finding; the number is stable and stands in the documentation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $cause] $name,)*
        }

        impl Code {
            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As it is printed.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// What it means.
            pub fn cause(self) -> &'static str {
                match self { $(Self::$name => $cause,)* }
            }

            /// What to do next.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
}

codes! {
    Hidden "TWL-D001" "it cannot be judged with your rights"
        "ask somebody with more rights to run the doctor, or ask for the right named"
    Skipped "TWL-D002" "it was not judged, because something before it is wrong" "mend that first"
    NoAnswer "TWL-D003" "there was no answer in time, or none that is understood"
        "try again with a longer --request-timeout; then look at what stands in between"
    Kubeconfig "TWL-D004" "the kubeconfig cannot be used" "look at it: kubectl config view --minify"
    Dns "TWL-D005" "the name does not resolve" "check the name in the kubeconfig and this machine's DNS"
    Tcp "TWL-D006" "nothing accepts connections there" "check address, port, firewall and VPN; behind a proxy set HTTPS_PROXY"
    Proxy "TWL-D007" "the proxy does not let the connection through"
        "check HTTPS_PROXY with its user and password, or add the host to NO_PROXY"
    TlsIssuer "TWL-D008" "the certificate comes from a CA that is not trusted here"
        "put the right CA into certificate-authority-data; if a proxy reads TLS, go past it with NO_PROXY"
    TlsName "TWL-D009" "the certificate is for another name"
        "use a name from the certificate, or set tls-server-name in the kubeconfig"
    TlsExpiry "TWL-D010" "the certificate has expired, or will within days" "renew it; if it looks valid elsewhere, check this machine's clock"
    Tls "TWL-D011" "TLS fails for another reason" "see the reason; something that is no API server may answer there"
    Clock "TWL-D012" "two clocks differ" "synchronise them (NTP): tokens and certificates are judged by the clock"
    Unauthenticated "TWL-D013" "the parent does not know you" "log in again; then: kubectl auth can-i --list"
    OldKubernetes "TWL-D014" "this Kubernetes is older than what Towline is tested with" "update it; see docs/compatibility.md"
    NotInstalled "TWL-D015" "the hub's API is not installed in this parent" "kubectl apply -f deploy/crds.yaml -f deploy/hub.yaml, or choose another --context"
    Unavailable "TWL-D016" "the parent does not reach the hub" "kubectl -n clusternet-system get pods, then the hub's log; the APIService says why"
    Crds "TWL-D017" "the CRDs in the parent are of another version" "apply deploy/crds.yaml of the hub's version"
    Skew "TWL-D018" "versions are more than one minor version apart, or a major one"
        "bring command, hub and agent closer together"
    Rights "TWL-D019" "you may not do this" "ask an administrator of the parent for one of the roles in deploy/hub.yaml, or for access to the cluster"
    Gateway "TWL-D020" "the gateway cannot be used" "check --gateway-url, its certificate and what stands before it; see docs/gateway.md"
    Hub "TWL-D021" "the hub has no ready pod" "kubectl -n clusternet-system describe deployment clusternet-hub"
    Unknown "TWL-D022" "no such cluster is registered" "kubectl towline clusters; to have it join: kubectl towline register NAME"
    Pending "TWL-D023" "the cluster has asked to join and nobody has decided" "compare the key's fingerprint, then: kubectl towline approve NAME"
    ShutOut "TWL-D024" "a person has shut the cluster out" "to let it in again: kubectl towline approve NAME"
    Credential "TWL-D025" "what the agent's credential stands on is gone" "register the cluster again and apply the new agent.yaml; its id stays"
    NoTunnel "TWL-D026" "the agent is not connected" "where the cluster is: kubectl towline doctor --child"
    Stale "TWL-D027" "the cluster's status is old" "look at the hub's log; it writes a status at least once a minute"
    ChildApi "TWL-D028" "the cluster's own API server does not answer" "look at the kube-apiserver of that cluster"
    Conflict "TWL-D029" "two agents use one identity" "remove the copy, or register it as a cluster of its own"
    Refused "TWL-D030" "the cluster refuses the question" "see who refuses: kubectl towline access can-i CLUSTER VERB RESOURCE"
    Upgrade "TWL-D031" "upgraded connections (exec, port-forward) do not come through"
        "let Upgrade headers pass proxies and load balancers between you, parent and hub"
    Impersonation "TWL-D032" "the agent cannot act as you in the cluster, or may do more than it should"
        "apply agent.yaml again there; see docs/impersonation.md"
    Policy "TWL-D033" "the policy of the cluster's owner is closed, or not the one that is written" "ask the owner; see docs/policy.md"
    PodSecurity "TWL-D034" "the agent's namespace does not enforce the profile that agent.yaml sets"
        "kubectl label namespace clusternet-system pod-security.kubernetes.io/enforce=restricted (in the child)"
    Slow "TWL-D035" "answers take long" "look at the link between agent and parent"
    NoAgent "TWL-D036" "the agent is not installed here" "apply the agent.yaml of an invitation: kubectl towline register NAME (in the parent)"
    ScaledDown "TWL-D037" "the agent is scaled to zero" "kubectl -n clusternet-system scale deployment clusternet-agent --replicas=1"
    Image "TWL-D038" "the agent's image cannot be pulled" "check the image's name, the registry and imagePullSecrets; register --image names another"
    Pod "TWL-D039" "the agent's pod does not run" "kubectl -n clusternet-system describe pods -l app.kubernetes.io/name=clusternet-agent"
    Secret "TWL-D040" "a Secret of agent.yaml is missing" "apply the agent.yaml of an invitation again"
    ChildRbac "TWL-D041" "rights of agent.yaml are missing" "apply agent.yaml again"
    ChildDns "TWL-D042" "the cluster's DNS has no ready server" "look at CoreDNS: kubectl -n kube-system get pods -l k8s-app=kube-dns"
    AgentLog "TWL-D043" "the agent has logged trouble" "see the code of the agent in docs/errors.md"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_numbered_without_a_gap() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(code.as_str(), format!("TWL-D{:03}", index + 1));
            assert!(!code.remedy().contains('|') && !code.cause().contains('|'), "{code:?} breaks a table");
        }
    }
}
