//! The process-wide TLS provider (aws-lc-rs, the only one) and a serving certificate that can be replaced
//! while connections are open.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a certificate and key cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not PEM, or no certificate in it.
    #[error("the certificate chain is not PEM with at least one CERTIFICATE block")]
    NoCertificate,
    /// Not PEM, or no key in it. Says nothing of the content.
    #[error("the private key is not PEM with one unencrypted PRIVATE KEY block")]
    NoKey,
    /// Key type unknown, or the key is not the certificate's.
    #[error("the private key does not fit the certificate: {0}")]
    Mismatch(rustls::Error),
}

/// Makes aws-lc-rs the provider of this process. Harmless when called again.
pub fn provider() {
    // Err means that it is installed already, which is what is wanted.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// A serving certificate that whoever rotates it can replace; new handshakes use the new one.
#[derive(Debug, Clone)]
pub struct ServingCert {
    current: Arc<ArcSwap<CertifiedKey>>,
}

impl ServingCert {
    /// From PEM.
    ///
    /// # Errors
    /// Either is no PEM, or they do not belong together.
    pub fn new(chain_pem: &str, key_pem: &str) -> Result<Self, CertificateError> {
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(certified(chain_pem, key_pem)?)) })
    }

    /// Puts another one in its place.
    ///
    /// # Errors
    /// As [`ServingCert::new`]; the old one stays.
    pub fn replace(&self, chain_pem: &str, key_pem: &str) -> Result<(), CertificateError> {
        self.current.store(Arc::new(certified(chain_pem, key_pem)?));
        Ok(())
    }
}

impl ResolvesServerCert for ServingCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn certified(chain_pem: &str, key_pem: &str) -> Result<CertifiedKey, CertificateError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| CertificateError::NoCertificate)?;
    if chain.is_empty() {
        return Err(CertificateError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| CertificateError::NoKey)?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(CertificateError::Mismatch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_another_certificate_is_refused_and_errors_show_no_key() {
        let one = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let two = rcgen::generate_simple_self_signed(["b".to_owned()]).unwrap();
        let serving = ServingCert::new(&one.cert.pem(), &one.signing_key.serialize_pem()).unwrap();
        let error = serving.replace(&one.cert.pem(), &two.signing_key.serialize_pem()).unwrap_err();
        assert!(matches!(error, CertificateError::Mismatch(_)));
        assert!(matches!(serving.replace("", "").unwrap_err(), CertificateError::NoCertificate));
        assert!(matches!(serving.replace(&one.cert.pem(), "x").unwrap_err(), CertificateError::NoKey));
        assert!(serving.replace(&two.cert.pem(), &two.signing_key.serialize_pem()).is_ok());
    }
}
