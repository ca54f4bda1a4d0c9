//! The hub's gateway on this machine: a port, a certificate of its own, and kubeconfigs that lead there.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::pki::Authority;
use crate::scratch::Scratch;

/// The domain below which each cluster has a host. Resolvers answer every name below localhost with loopback (RFC
/// 6761 section 6.3); kubectl is told the address by the kubeconfig instead.
pub const DOMAIN: &str = "k8s.localhost";

/// Where a gateway listens, and whom it shows.
#[derive(Debug)]
pub struct Gateway {
    /// Its port on loopback.
    pub port: u16,
    directory: PathBuf,
    ca_pem: String,
}

impl Gateway {
    /// Makes a certificate for localhost and for every cluster's host.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn create(scratch: &Scratch, port: u16) -> Result<Self> {
        let directory = scratch.directory("gateway")?;
        let authority = Authority::new("gateway CA")?;
        let names = ["localhost".to_owned(), format!("*.{DOMAIN}"), "127.0.0.1".to_owned()];
        let served = authority.server("gateway", &names)?;
        std::fs::write(directory.join("tls.crt"), &served.certificate_pem)?;
        std::fs::write(directory.join("tls.key"), &served.key_pem)?;
        std::fs::write(directory.join("ca.crt"), authority.certificate_pem())?;
        Ok(Self { port, directory, ca_pem: authority.certificate_pem().to_owned() })
    }

    /// The flags with which a hub opens it.
    pub fn arguments(&self) -> Vec<String> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        [
            ("--gateway-listen", format!("127.0.0.1:{}", self.port)),
            ("--gateway-cert-file", file("tls.crt")),
            ("--gateway-key-file", file("tls.key")),
            ("--gateway-ca-file", file("ca.crt")),
            ("--gateway-url", format!("https://127.0.0.1:{}", self.port)),
            ("--gateway-domain", DOMAIN.to_owned()),
        ]
        .map(|(flag, value)| [flag.to_owned(), value])
        .concat()
    }

    /// Writes a kubeconfig that somebody was given.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, name: &str, kubeconfig: &str) -> Result<PathBuf> {
        let path = self.directory.join(format!("{name}.kubeconfig"));
        std::fs::write(&path, kubeconfig).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// A kubeconfig with this path after the gateway's address, and this token.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, name: &str, path: &str, token: &str) -> Result<PathBuf> {
        self.write(
            name,
            serde_json::json!({ "server": format!("https://127.0.0.1:{}{path}", self.port) }),
            token,
        )
    }

    fn write(&self, name: &str, mut cluster: serde_json::Value, token: &str) -> Result<PathBuf> {
        use base64::Engine as _;
        let ca = base64::engine::general_purpose::STANDARD.encode(&self.ca_pem);
        cluster["certificate-authority-data"] = ca.into();
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{ "name": name, "cluster": cluster }],
            "users": [{ "name": name, "user": { "token": token } }],
            "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
        });
        self.keep(name, &config.to_string())
    }
}
