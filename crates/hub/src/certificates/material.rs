//! A small CA and the one serving certificate that it signs, as they stand in a Secret: what is to be done about them at
//! a time, and doing it. Pure; reading and writing the Secret is elsewhere.

use std::net::IpAddr;
use std::time::Duration;

use api::names::{CREATED_BY_HUB, HUB_SERVICE, LABEL_CREATED_BY, SYSTEM_NAMESPACE};
use api::pem;
use api::secret::Secret as Hidden;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;

/// Five years: longer than anybody leaves a hub alone; it signs nothing but the hub's own certificate.
const CA_LIFE: SignedDuration = SignedDuration::from_hours(5 * 365 * 24);
/// 90 days: renewed after 60, which leaves a month for a hub that was switched off.
const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Certificates start an hour early, for clocks that are behind.
const BACKDATE: SignedDuration = SignedDuration::from_hours(1);

/// What a certificate is to be.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// The host names and IP addresses that it is for.
    pub(super) names: Vec<String>,
    /// A renewal keeps both keys and the CA's name: for those who have written down one of them.
    pub(super) keeps_keys: bool,
}

/// What the Secret holds, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Material {
    /// The CA that signs, then older ones that are still valid.
    pub(super) ca_bundle: String,
    /// The key of the first of them.
    pub(super) ca_key: Hidden,
    /// The serving certificate.
    pub(super) chain: String,
    /// Its key.
    pub(super) key: Hidden,
}

/// What is to be done about a [`Material`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing.
    Keep,
    /// Sign a new serving certificate with the CA that there is.
    NewLeaf,
    /// Make a new CA, keep the old one in the bundle, and sign with the new one.
    NewCa,
}

/// Decides by the clock and by what the certificates say of themselves. Anything that cannot be read, does not
/// fit together or is for other names is replaced.
pub(super) fn plan(wanted: &Wanted, now: Timestamp, existing: Option<&Material>) -> Plan {
    let Some(existing) = existing else { return Plan::NewCa };
    let Some(ca) = certificates(&existing.ca_bundle).into_iter().next() else { return Plan::NewCa };
    let Some((ca_facts, ca_key)) = facts(&ca).zip(KeyPair::from_pem(existing.ca_key.reveal()).ok()) else {
        return Plan::NewCa;
    };
    if ca_facts.public_key != ca_key.public_key_raw() || due(now, &ca_facts) {
        return Plan::NewCa;
    }
    let Some(leaf) = certificates(&existing.chain).into_iter().next() else { return Plan::NewLeaf };
    let Some((leaf_facts, leaf_key)) = facts(&leaf).zip(KeyPair::from_pem(existing.key.reveal()).ok()) else {
        return Plan::NewLeaf;
    };
    let fits = leaf_facts.public_key == leaf_key.public_key_raw()
        && leaf_facts.issuer == ca_facts.subject
        && wanted.names.iter().all(|name| leaf_facts.names.contains(name));
    if fits && !due(now, &leaf_facts) { Plan::Keep } else { Plan::NewLeaf }
}

/// Carries a [`Plan`] out. A new CA stands in the bundle before those in `older` that are still valid.
///
/// # Errors
/// Making keys or signing failed.
pub(super) fn make(
    wanted: &Wanted,
    now: Timestamp,
    existing: Option<&Material>,
    older: &str,
    plan: Plan,
) -> Result<Material, rcgen::Error> {
    let (ca_pem, ca_key, older) = match (plan, existing) {
        (Plan::Keep, Some(existing)) => return Ok(existing.clone()),
        (Plan::NewLeaf, Some(existing)) => {
            let mut all = certificates(&existing.ca_bundle).into_iter();
            let first = all.next().ok_or(rcgen::Error::CouldNotParseCertificate)?;
            (to_pem(&first), KeyPair::from_pem(existing.ca_key.reveal())?, all.collect())
        }
        (Plan::NewCa | Plan::Keep | Plan::NewLeaf, _) => {
            let kept = existing.filter(|_| wanted.keeps_keys).and_then(ca_again);
            let mut params = ca_params(now);
            let key = match kept {
                Some((subject, key)) => {
                    params.distinguished_name = subject;
                    key
                }
                None => KeyPair::generate()?,
            };
            (params.self_signed(&key)?.pem(), key, certificates(older))
        }
    };
    let ca_key_pem = Hidden::from(ca_key.serialize_pem());
    let kept =
        existing.filter(|_| wanted.keeps_keys).and_then(|old| KeyPair::from_pem(old.key.reveal()).ok());
    let key = kept.map_or_else(KeyPair::generate, Ok)?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key)?;
    let chain = leaf_params(wanted, now)?.signed_by(&key, &issuer)?.pem();
    let mut ca_bundle = ca_pem;
    for old in older.iter().filter(|old| facts(old).is_some_and(|facts| facts.not_after > now)) {
        ca_bundle.push_str(&to_pem(old));
    }
    Ok(Material { ca_bundle, ca_key: ca_key_pem, chain, key: Hidden::from(key.serialize_pem()) })
}

/// A certificate of this CA for a name, for both ends of a connection, and its key.
///
/// # Errors
/// What the Secret holds does not sign.
pub(super) fn sign(
    material: &Material,
    name: &str,
    now: Timestamp,
    life: SignedDuration,
) -> Result<(CertificateDer<'static>, KeyPair), rcgen::Error> {
    let ca = signer(material).ok_or(rcgen::Error::CouldNotParseCertificate)?;
    let issuer = Issuer::from_ca_cert_pem(&to_pem(&ca), KeyPair::from_pem(material.ca_key.reveal())?)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, HUB_SERVICE);
    params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    live(&mut params, now, life);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((certificate.der().clone(), key))
}

/// Whether what `old` serves can still be verified by the bundle of `new`.
pub(super) fn outlives(wanted: &Wanted, now: Timestamp, old: &Material, new: &Material) -> bool {
    let leaf = certificates(&old.chain).into_iter().next();
    let Some((leaf, ca)) = leaf.as_ref().and_then(facts).zip(signer(old)) else { return false };
    let key = KeyPair::from_pem(old.key.reveal()).ok();
    let issued = facts(&ca).is_some_and(|ca| ca.subject == leaf.issuer);
    let own = key.is_some_and(|key| key.public_key_raw() == leaf.public_key);
    let named = wanted.names.iter().all(|name| leaf.names.contains(name));
    let valid = leaf.not_before <= now && now < leaf.not_after;
    issued && own && named && valid && certificates(&new.ca_bundle).contains(&ca)
}

/// The CA that signs.
pub(super) fn signer(material: &Material) -> Option<CertificateDer<'static>> {
    certificates(&material.ca_bundle).into_iter().next()
}

pub(super) fn from_secret(secret: &Secret) -> Option<Material> {
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    Some(Material {
        ca_bundle: text("ca.crt")?,
        ca_key: Hidden::from(text("ca.key")?),
        chain: text("tls.crt")?,
        key: Hidden::from(text("tls.key")?),
    })
}

pub(super) fn to_secret(name: &str, material: &Material, resource_version: Option<String>) -> Secret {
    let entry = |key: &str, text: &str| (key.to_owned(), ByteString(text.as_bytes().to_vec()));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(SYSTEM_NAMESPACE.to_owned()),
            labels: Some([(LABEL_CREATED_BY.to_owned(), CREATED_BY_HUB.to_owned())].into()),
            resource_version,
            ..ObjectMeta::default()
        },
        data: Some(
            [
                entry("ca.crt", &material.ca_bundle),
                entry("ca.key", material.ca_key.reveal()),
                entry("tls.crt", &material.chain),
                entry("tls.key", material.key.reveal()),
            ]
            .into(),
        ),
        ..Secret::default()
    }
}

fn ca_params(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    // The time makes two CAs of one hub tell apart; verifiers look issuers up by this name.
    params.distinguished_name.push(DnType::CommonName, format!("clusternet-hub-ca@{}", now.as_second()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    live(&mut params, now, CA_LIFE);
    params
}

/// Name and key of the CA that there is, for a later certificate of it: whoever holds the former one verifies with that
/// what this one signs.
fn ca_again(existing: &Material) -> Option<(DistinguishedName, KeyPair)> {
    let certificate = signer(existing)?;
    let key = KeyPair::from_pem(existing.ca_key.reveal()).ok()?;
    (facts(&certificate)?.public_key == key.public_key_raw()).then_some(())?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    Some((subject, key))
}

fn leaf_params(wanted: &Wanted, now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, HUB_SERVICE);
    for name in &wanted.names {
        let name = match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.clone().try_into()?),
        };
        params.subject_alt_names.push(name);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    live(&mut params, now, LEAF_LIFE);
    Ok(params)
}

fn live(params: &mut CertificateParams, now: Timestamp, life: SignedDuration) {
    let at = |time: Timestamp| {
        let seconds = u64::try_from(time.as_second()).unwrap_or_default();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    params.not_before = at(now - BACKDATE);
    params.not_after = at(now + life);
}

/// What is read of a certificate.
struct Facts {
    subject: Vec<u8>,
    issuer: Vec<u8>,
    public_key: Vec<u8>,
    names: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
}

pub(super) fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect()
}

fn facts(der: &CertificateDer<'_>) -> Option<Facts> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let validity = certificate.validity();
    let names = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|names| names.value.general_names.iter().filter_map(text).collect());
    Some(Facts {
        subject: certificate.subject().as_raw().to_vec(),
        issuer: certificate.issuer().as_raw().to_vec(),
        public_key: certificate.public_key().subject_public_key.data.to_vec(),
        names: names.unwrap_or_default(),
        not_before: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
        not_after: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
    })
}

/// A host name or an IP address.
fn text(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        return Some((*name).to_owned());
    }
    let GeneralName::IPAddress(bytes) = name else { return None };
    let address = <[u8; 4]>::try_from(*bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
    address.ok().map(|address| address.to_string())
}

/// Two thirds of its life are over, or it is not valid yet (the clock was wrong when it was made).
fn due(now: Timestamp, facts: &Facts) -> bool {
    let life = facts.not_after.duration_since(facts.not_before);
    now < facts.not_before || now.duration_since(facts.not_before) >= life * 2 / 3
}

fn to_pem(certificate: &CertificateDer<'_>) -> String {
    pem::block(pem::CERTIFICATE, certificate)
}
