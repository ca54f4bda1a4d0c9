//! The way to an API server, step by step, as the kubeconfig goes it: proxy, DNS, TCP, TLS. A connection of its own, so
//! that the certificate can be looked at; nothing is sent over it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use jiff::Timestamp;
use kube::Config;
use kube::client::ConfigExt as _;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, Error as TlsError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::codes::Code;
use super::finding::Finding;
use crate::duration::human;
use crate::output::shown;

/// Most bytes of a proxy's answer that are read: a status line and some headers.
const MAX_PROXY_ANSWER: usize = 8 * 1024;
/// A certificate that ends sooner is worth a word.
const SOON: i64 = 7 * 24 * 60 * 60;
/// Two clocks may differ so far: less than what a token's `notBefore` forgives.
pub(crate) const CLOCK: i64 = 10;
/// Beyond this tokens and certificates are refused.
const CLOCK_BROKEN: i64 = 300;

/// Walks the whole way. Each step is given a third of the time.
pub(crate) async fn way(config: &Config, limit: Duration, now: Timestamp) -> Vec<Finding> {
    let step = limit / 3;
    let proxy = config.proxy_url.as_ref();
    let mut findings = vec![match proxy {
        None => Finding::ok("proxy", "none"),
        Some(proxy) => Finding::ok("proxy", place(proxy)),
    }];
    let first = proxy.unwrap_or(&config.cluster_url);
    let stream = match reach(first, step).await {
        Ok((addresses, stream, reached)) => {
            findings.push(Finding::ok("dns", addresses));
            findings.push(Finding::ok("tcp", reached));
            stream
        }
        Err(finding) => {
            let dns_is_well = finding.check == "tcp";
            if dns_is_well {
                findings.push(Finding::ok("dns", place(first)));
            }
            findings.push(*finding);
            if !dns_is_well {
                findings.push(Finding::skipped("tcp", "no address"));
            }
            findings.push(Finding::skipped("tls", "no connection"));
            return findings;
        }
    };
    let work = handshake(config, stream);
    findings.push(match tokio::time::timeout(step, work).await {
        Ok(Ok(end)) => expiry(end, now),
        Ok(Err(finding)) => *finding,
        Err(_) => Finding::fail("tls", Code::NoAnswer, format!("no handshake in {} s", step.as_secs())),
    });
    findings
}

/// Host and port; a password in a URL is not shown.
fn place(uri: &Uri) -> String {
    format!("{}:{}", shown(uri.host().unwrap_or_default()), port(uri))
}

fn port(uri: &Uri) -> u16 {
    let usual = if uri.scheme_str() == Some("http") { 80 } else { 443 };
    uri.port_u16().unwrap_or(usual)
}

async fn reach(uri: &Uri, limit: Duration) -> Result<(String, TcpStream, String), Box<Finding>> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let looked = tokio::time::timeout(limit, tokio::net::lookup_host((host.as_str(), port(uri)))).await;
    let addresses: Vec<SocketAddr> = match looked {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(Box::new(Finding::fail("dns", Code::Dns, format!("{host}: {error}")))),
        Err(_) => {
            return Err(Box::new(Finding::fail("dns", Code::Dns, format!("{host}: no answer in time"))));
        }
    };
    let mut told: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    told.dedup();
    let failed =
        |why: String| Err(Box::new(Finding::fail("tcp", Code::Tcp, format!("{}: {why}", place(uri)))));
    match tokio::time::timeout(limit, TcpStream::connect(addresses.as_slice())).await {
        Ok(Ok(stream)) => {
            let reached = stream.peer_addr().map_or_else(|_| place(uri), |address| address.to_string());
            Ok((format!("{host}: {}", told.join(", ")), stream, reached))
        }
        Ok(Err(error)) => failed(error.to_string()),
        Err(_) => failed("no connection in time".to_owned()),
    }
}

/// Through the proxy if there is one; the end of the certificate's life.
async fn handshake(config: &Config, mut stream: TcpStream) -> Result<Option<i64>, Box<Finding>> {
    if let Some(proxy) = &config.proxy_url {
        connect(proxy, &config.cluster_url, &mut stream)
            .await
            .map_err(|why| Box::new(Finding::fail("tls", Code::Proxy, why)))?;
    }
    let other = |why: String| Box::new(Finding::fail("tls", Code::Tls, why));
    let tls = config.rustls_client_config().map_err(|error| other(crate::ask::innermost(&error)))?;
    let host = config.cluster_url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let name = config.tls_server_name.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name).map_err(|error| other(error.to_string()))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let stream = connector.connect(name, stream).await.map_err(|error| Box::new(refused(&error)))?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let first = certificates.first().and_then(|der| x509_parser::parse_x509_certificate(der).ok());
    Ok(first.map(|(_, certificate)| certificate.validity().not_after.timestamp()))
}

async fn connect(proxy: &Uri, target: &Uri, stream: &mut TcpStream) -> Result<(), String> {
    if proxy.scheme_str() != Some("http") {
        return Err("only an http:// proxy can be looked through".to_owned());
    }
    if proxy.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("the proxy wants a password, which is not sent from here".to_owned());
    }
    let to = format!("{}:{}", target.host().unwrap_or_default(), port(target));
    let failed = |error: io::Error| format!("the proxy broke off: {error}");
    let head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") && answer.len() < MAX_PROXY_ANSWER {
        answer.push(stream.read_u8().await.map_err(failed)?);
    }
    let answer = String::from_utf8_lossy(&answer);
    let line = answer.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(format!("the proxy answers {}", shown(line))),
    }
}

/// What a failed handshake means.
fn refused(error: &io::Error) -> Finding {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    let code = match tls {
        Some(TlsError::InvalidCertificate(why)) => of_certificate(why),
        Some(_) | None => Code::Tls,
    };
    Finding::fail("tls", code, error.to_string())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "rustls adds kinds; what is new has no code of its own")]
fn of_certificate(why: &CertificateError) -> Code {
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Code::TlsIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Code::TlsName,
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Code::TlsExpiry,
        _ => Code::Tls,
    }
}

fn expiry(end: Option<i64>, now: Timestamp) -> Finding {
    let Some(end) = end else { return Finding::ok("tls", "verified") };
    let left = end - now.as_second();
    if left < SOON {
        return Finding::warn(
            "tls",
            Code::TlsExpiry,
            format!("the certificate ends in {}", human(left.max(0))),
        );
    }
    Finding::ok("tls", format!("name and CA are right; good for {}", human(left)))
}

/// Compares the clock of another side with ours.
pub(crate) fn clock(check: &'static str, theirs: Option<Timestamp>, now: Timestamp) -> Finding {
    let Some(theirs) = theirs else {
        return Finding::warn(check, Code::NoAnswer, "the answer has no date");
    };
    let ahead = theirs.as_second() - now.as_second();
    if ahead.abs() <= CLOCK {
        return Finding::ok(check, format!("{} s apart", ahead.abs()));
    }
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    let message = format!("it is {} {side} this machine", human(ahead.abs()));
    if ahead.abs() > CLOCK_BROKEN {
        return Finding::fail(check, Code::Clock, message);
    }
    Finding::warn(check, Code::Clock, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn clocks_may_differ_a_little() {
        for (theirs, level) in [
            (1000, Level::Ok),
            (1010, Level::Ok),
            (990, Level::Ok),
            (1011, Level::Warn),
            (700, Level::Warn),
            (699, Level::Fail),
            (5000, Level::Fail),
        ] {
            assert_eq!(clock("clock", Some(at(theirs)), at(1000)).level, level, "{theirs}");
        }
        assert_eq!(clock("clock", None, at(0)).level, Level::Warn);
    }

    #[test]
    fn a_certificate_that_ends_soon_is_told() {
        assert_eq!(expiry(Some(SOON + 1000), at(1000)).level, Level::Ok);
        let soon = expiry(Some(SOON + 999), at(1000));
        assert_eq!((soon.level, soon.code.as_deref()), (Level::Warn, Some("TWL-D010")));
    }

    #[test]
    fn each_fault_of_a_certificate_has_its_code() {
        for (why, code) in [
            (CertificateError::UnknownIssuer, Code::TlsIssuer),
            (CertificateError::NotValidForName, Code::TlsName),
            (CertificateError::Expired, Code::TlsExpiry),
            (CertificateError::NotValidYet, Code::TlsExpiry),
            (CertificateError::Revoked, Code::Tls),
        ] {
            let error = io::Error::other(TlsError::InvalidCertificate(why.clone()));
            assert_eq!(refused(&error).code.as_deref(), Some(code.as_str()), "{why:?}");
        }
        assert_eq!(refused(&io::Error::other("eof")).code.as_deref(), Some("TWL-D011"));
    }

    #[tokio::test]
    async fn a_closed_port_is_told_from_a_name_that_does_not_resolve() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let config = Config::new(format!("https://127.0.0.1:{port}").parse().unwrap());
        let findings = way(&config, Duration::from_secs(9), at(0)).await;
        let codes: Vec<_> = findings.iter().map(|finding| finding.code.as_deref().unwrap_or("ok")).collect();
        assert_eq!(codes, ["ok", "ok", "TWL-D006", "TWL-D002"], "{findings:?}");
        let config = Config::new("https://no-such-host.invalid".parse().unwrap());
        let findings = way(&config, Duration::from_secs(9), at(0)).await;
        assert_eq!(findings[1].code.as_deref(), Some("TWL-D005"), "{findings:?}");
    }

    #[tokio::test]
    async fn a_proxy_that_says_no_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut config = Config::new("https://parent.example:6443".parse().unwrap());
        config.proxy_url = Some(format!("http://127.0.0.1:{port}").parse().unwrap());
        let proxy = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = [0; 64];
            let read = stream.read(&mut seen).await.unwrap();
            stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&seen[..read]).into_owned()
        };
        let (findings, asked) = tokio::join!(way(&config, Duration::from_secs(9), at(0)), proxy);
        assert!(asked.starts_with("CONNECT parent.example:6443 HTTP/1.1\r\n"), "{asked}");
        assert_eq!(findings[3].code.as_deref(), Some("TWL-D007"), "{findings:?}");
        assert!(findings[3].message.contains("407"), "{findings:?}");
    }
}
