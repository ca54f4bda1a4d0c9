//! Throw-away certificates and keys for one test cluster: authorities, serving and client certificates, and the
//! key that signs service-account tokens. Nothing here outlives the run, and no private key shows in `Debug`.

use std::fmt;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SigningKey as _,
};

/// A certificate authority that lives in memory only.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl Authority {
    /// Makes a new authority with the given common name.
    ///
    /// # Errors
    /// When the key cannot be made or used.
    pub fn new(common_name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate_pem })
    }

    /// The authority's own certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a serving certificate for DNS names and IP addresses.
    ///
    /// # Errors
    /// When a name is not a valid DNS name or address.
    pub fn server(&self, common_name: &str, names: &[String]) -> Result<KeyAndCertificate> {
        let mut params =
            CertificateParams::new(names.to_vec()).with_context(|| format!("names {names:?}"))?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        self.issue(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Issues one certificate for both directions, as etcd's own members need.
    ///
    /// # Errors
    /// When a name is not a valid DNS name or address.
    pub fn peer(&self, common_name: &str, names: &[String]) -> Result<KeyAndCertificate> {
        let mut params =
            CertificateParams::new(names.to_vec()).with_context(|| format!("names {names:?}"))?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        self.issue(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Issues a client certificate: the user is the common name, each group one organization.
    ///
    /// # Errors
    /// When the certificate cannot be signed.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<KeyAndCertificate> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, user);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let made = params.signed_by(&key, &self.issuer)?;
        // rcgen keeps one value per attribute type, and groups are many values of one type.
        let der = der::with_subject(made.der(), &der::subject(user, groups), |tbs| {
            self.issuer.key().sign(tbs).map_err(Into::into)
        })?;
        Ok(KeyAndCertificate { certificate_pem: pem("CERTIFICATE", &der), key_pem: key.serialize_pem() })
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<KeyAndCertificate> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages.push(usage);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(KeyAndCertificate { certificate_pem, key_pem: key.serialize_pem() })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A private key (PKCS#8) with its certificate, both PEM.
pub struct KeyAndCertificate {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key.
    pub key_pem: String,
}

impl fmt::Debug for KeyAndCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyAndCertificate").finish_non_exhaustive()
    }
}

/// Makes the key pair that signs service-account tokens (ECDSA P-256, which every kube-apiserver since 1.9 takes).
///
/// # Errors
/// When the key cannot be made.
pub fn service_account_key() -> Result<ServiceAccountKey> {
    let key = KeyPair::generate()?;
    Ok(ServiceAccountKey { private_pem: key.serialize_pem(), public_pem: key.public_key_pem() })
}

/// The key pair for service-account tokens.
pub struct ServiceAccountKey {
    /// PKCS#8, for `--service-account-signing-key-file` and the controller manager.
    pub private_pem: String,
    /// `PUBLIC KEY`, for `--service-account-key-file`.
    pub public_pem: String,
}

impl fmt::Debug for ServiceAccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountKey").finish_non_exhaustive()
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

/// The little DER that a subject with several organizations takes.
mod der {
    use anyhow::{Context as _, Result, bail};

    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const UTF8_STRING: u8 = 0x0c;
    const BIT_STRING: u8 = 0x03;
    /// `2.5.4.10`, organizationName, as an encoded OBJECT IDENTIFIER.
    const ORGANIZATION: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x0a];
    /// `2.5.4.3`, commonName.
    const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
    /// Place of `subject` in `TBSCertificate` when the version is present (RFC 5280 section 4.1).
    const SUBJECT_FIELD: usize = 5;

    pub(super) fn subject(user: &str, groups: &[&str]) -> Vec<u8> {
        let organizations = groups.iter().map(|group| attribute(ORGANIZATION, group));
        element(SEQUENCE, &organizations.chain([attribute(COMMON_NAME, user)]).flatten().collect::<Vec<u8>>())
    }

    /// Puts another subject into a certificate and signs it again.
    pub(super) fn with_subject(
        certificate: &[u8],
        subject: &[u8],
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let [tbs, algorithm, _signature] = &fields(certificate)?[..] else {
            bail!("a certificate has three parts")
        };
        let mut tbs_fields = fields(tbs)?;
        *tbs_fields.get_mut(SUBJECT_FIELD).context("the certificate has no subject")? = subject.to_vec();
        let tbs = element(SEQUENCE, &tbs_fields.concat());
        let signature = [vec![0], sign(&tbs)?].concat();
        Ok(element(SEQUENCE, &[tbs, algorithm.clone(), element(BIT_STRING, &signature)].concat()))
    }

    fn attribute(kind: [u8; 5], value: &str) -> Vec<u8> {
        let pair = [kind.to_vec(), element(UTF8_STRING, value.as_bytes())].concat();
        element(SET, &element(SEQUENCE, &pair))
    }

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        let length = content.len();
        if let Ok(short) = u8::try_from(length)
            && short < 0x80
        {
            out.push(short);
        } else {
            let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
            out.push(0x80 | u8::try_from(bytes.len()).unwrap_or(u8::MAX));
            out.extend(bytes);
        }
        out.extend_from_slice(content);
        out
    }

    /// The elements inside a constructed element, each with its own header.
    fn fields(element: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (header, length) = extent(element)?;
        let mut rest = element.get(header..header + length).context("cut off")?;
        let mut out = Vec::new();
        while !rest.is_empty() {
            let (header, length) = extent(rest)?;
            let (one, others) = rest.split_at_checked(header + length).context("cut off")?;
            out.push(one.to_vec());
            rest = others;
        }
        Ok(out)
    }

    fn extent(element: &[u8]) -> Result<(usize, usize)> {
        let first = *element.get(1).context("cut off")?;
        if first < 0x80 {
            return Ok((2, usize::from(first)));
        }
        let count = usize::from(first & 0x7f);
        let bytes = element.get(2..2 + count).context("cut off")?;
        Ok((2 + count, bytes.iter().fold(0, |sum, b| (sum << 8) | usize::from(*b))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_certificate_carries_every_group() {
        let authority = Authority::new("test").unwrap();
        let long = "g".repeat(200);
        let made = authority.client("jane", &["dev", "ops", &long]).unwrap();
        let der = pem_body(&made.certificate_pem);
        for (name, value) in [("group", "dev"), ("group", "ops"), ("group", long.as_str()), ("user", "jane")]
        {
            let found = der.windows(value.len()).any(|w| w == value.as_bytes());
            assert!(found, "{name} {value} is missing");
        }
        // The resigned certificate must still verify: rustls checks chain and signature.
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from(pem_body(authority.certificate_pem()))).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(std::sync::Arc::new(roots), provider)
                .build()
                .unwrap();
        verifier
            .verify_client_cert(
                &rustls_pki_types::CertificateDer::from(der),
                &[],
                rustls_pki_types::UnixTime::now(),
            )
            .unwrap();
    }

    fn pem_body(pem: &str) -> Vec<u8> {
        use base64::Engine as _;
        let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    }
}
