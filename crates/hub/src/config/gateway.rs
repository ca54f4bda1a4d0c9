//! The gateway's part of the configuration: where it listens, by which names it is reached, and whether the certificate
//! that somebody else has made is for them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use runtime::files::read_small;
use runtime::tls::ServingCert;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

use super::{https_address, read_certificates, read_pair};

/// How the gateway is set up.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Certificate chain and key; the hub makes its own if there are none.
    pub files: Option<(PathBuf, PathBuf)>,
    /// Below it, each cluster has a host of its own; lower-case.
    pub domain: Option<String>,
    /// How people and tools reach it.
    pub url: Option<String>,
    /// CA of its certificate, unless every tool trusts that anyway.
    pub ca_pem: Option<String>,
    /// Whether agents are told of it.
    pub for_agents: bool,
    /// The hash of the key that the hub has made for it; see [`Gateway::pin`].
    pub own_pin: Option<String>,
}

impl Gateway {
    /// Base64 of the SHA-256 of its certificate's key, for whoever does not know its CA; nothing if every tool trusts that.
    pub fn pin(&self) -> Option<String> {
        self.ca_pem.as_ref()?;
        match &self.files {
            // As it is now: whoever replaces it may have another key.
            Some((cert, _)) => crate::certificates::pin(&read_small(cert).ok()?),
            None => self.own_pin.clone(),
        }
    }

    /// The names that a certificate of the hub's own making has to be for.
    pub fn names(&self) -> Vec<String> {
        let host = self.url.as_deref().and_then(host_of);
        let below = self.domain.as_ref().map(|domain| format!("*.{domain}"));
        host.into_iter().chain(self.domain.clone()).chain(below).collect()
    }
}

/// The gateway, if there shall be one; what is wrong is added to `wrong`.
pub(super) fn check(
    listen: Option<String>,
    (cert_file, key_file, ca_file): (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>),
    url: Option<String>,
    domain: Option<String>,
    for_agents: bool,
    wrong: &mut Vec<String>,
) -> Option<Gateway> {
    let Some(listen) = listen else {
        let files = [cert_file, key_file, ca_file].iter().any(Option::is_some);
        if files || url.is_some() || domain.is_some() || for_agents {
            wrong.push(
                "--gateway-* or --agents-use-gateway are set, but there is no --gateway-listen".to_owned(),
            );
        }
        return None;
    };
    let address = listen.parse();
    if address.is_err() {
        wrong.push(format!("--gateway-listen {listen:?} is no address with a port, like 0.0.0.0:8444"));
    }
    let url = url.and_then(|url| match https_address(&url) {
        Ok(url) if url.matches('/').count() == 2 => {
            let host = host_of(&url).unwrap_or_default();
            if host.parse::<IpAddr>().is_err() && !is_domain(&host) {
                wrong.push(format!(
                    "--gateway-url {url:?}: {host:?} is no host that a certificate can be for"
                ));
            }
            Some(url)
        }
        Ok(url) => {
            wrong.push(format!("--gateway-url {url:?} has a path; paths below it are those of clusters"));
            None
        }
        Err(why) => {
            wrong.push(format!("--gateway-url {why}"));
            None
        }
    });
    let names_ca = ca_file.is_some();
    let ca_pem = ca_file.and_then(|path| match read_certificates(&path) {
        Ok(pem) => Some(pem),
        Err(why) => {
            wrong.push(format!("--gateway-ca-file {}: {why}", path.display()));
            None
        }
    });
    let domain = domain.map(|domain| domain.trim_end_matches('.').to_ascii_lowercase());
    if let Some(domain) = domain.as_ref().filter(|domain| !is_domain(domain)) {
        wrong.push(format!("--gateway-domain {domain:?} is no domain, like k8s.example.com"));
    }
    if let (Some(domain), Some(host)) = (&domain, url.as_deref().and_then(host_of))
        && host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
    {
        wrong.push(format!(
            "--gateway-url: {host} is in --gateway-domain {domain}, where each host is a cluster's; take a host beside it"
        ));
    }
    let has_url = url.is_some();
    let files = match (cert_file, key_file) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => {
            wrong.push(
                "--gateway-cert-file and --gateway-key-file are needed both, or neither of them".to_owned(),
            );
            return None;
        }
    };
    let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
    let gateway = Gateway {
        listen: address.unwrap_or(unspecified),
        files,
        domain,
        url,
        ca_pem,
        for_agents,
        own_pin: None,
    };
    if for_agents && !has_url {
        wrong.push("--agents-use-gateway needs --gateway-url: that is where they go".to_owned());
    }
    if for_agents && gateway.files.is_some() && !names_ca {
        wrong.push("--agents-use-gateway needs --gateway-ca-file: an agent believes one CA alone".to_owned());
    }
    match &gateway.files {
        Some(files) => {
            let usable = read_pair(files).and_then(|(chain, key)| {
                ServingCert::new(&chain, key.reveal())?;
                Ok(chain)
            });
            match usable {
                Ok(chain) => wrong.extend(missing_names(&gateway, &chain)),
                Err(error) => wrong.push(format!("--gateway-cert-file, --gateway-key-file: {error:#}")),
            }
        }
        None if names_ca => wrong.push(
            "--gateway-ca-file is the CA of --gateway-cert-file; without that the hub makes both itself".to_owned(),
        ),
        None if gateway.names().is_empty() && !has_url => wrong.push(
            "--gateway-listen needs --gateway-cert-file and --gateway-key-file, or --gateway-url or --gateway-domain: the names for which the hub makes a certificate"
                .to_owned(),
        ),
        None => {}
    }
    Some(gateway)
}

/// The host of a URL, as it stands in a certificate.
fn host_of(url: &str) -> Option<String> {
    let url: http::Uri = url.parse().ok()?;
    let host = url.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    // An address has more than one spelling.
    Some(host.parse::<IpAddr>().map_or(host, |address| address.to_string()))
}

/// Labels with dots between them (RFC 1123 section 2.1), no longer than a name with 60 characters before it allows.
pub(super) fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 190 && text.split('.').all(label)
}

/// Names by which the gateway is reached and that its certificate is not for: whoever goes there would be told that
/// somebody stands in the way.
fn missing_names(gateway: &Gateway, chain_pem: &str) -> Vec<String> {
    let Some(leaf) = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).next().and_then(Result::ok) else {
        return Vec::new();
    };
    let Ok(certificate) = EndEntityCert::try_from(&leaf) else {
        return vec!["--gateway-cert-file: the certificate is not one of X.509 version 3".to_owned()];
    };
    let is_for = |name: &str| {
        ServerName::try_from(name)
            .is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    };
    let names: Vec<_> = certificate.valid_dns_names().collect();
    let names = if names.is_empty() { "no DNS name".to_owned() } else { names.join(", ") };
    let mut missing = Vec::new();
    if let Some(host) = gateway.url.as_deref().and_then(host_of).filter(|host| !is_for(host)) {
        missing.push(format!(
            "--gateway-cert-file: the certificate is for {names}, and not for {host}, the host of --gateway-url; take one that is, or correct --gateway-url"
        ));
    }
    if let Some(domain) = gateway.domain.as_ref().filter(|domain| !is_for(&format!("any.{domain}"))) {
        missing.push(format!(
            "--gateway-cert-file: the certificate is for {names}, and not for *.{domain} (--gateway-domain); take one that is, or leave --gateway-domain out"
        ));
    }
    missing
}
