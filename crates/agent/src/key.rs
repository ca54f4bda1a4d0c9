//! The agent's key: ECDSA P-256, made in the child, never leaving it. It binds an invitation to this
//! cluster; people compare its fingerprint before they approve.

use std::fmt;

use api::pem;
use api::registration::signed_message;
use api::secret::Secret;
use aws_lc_rs::digest;
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;

/// The key pair. `Debug` shows the fingerprint only.
pub struct Key {
    pair: EcdsaKeyPair,
    spki: Vec<u8>,
}

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The random source or the library failed.
    #[error("the cryptographic library could not make or use a key")]
    Library,
    /// The stored text is no key. Says nothing of the content.
    #[error("the stored key is not PEM with one PKCS #8 ECDSA P-256 private key")]
    Stored,
}

impl Key {
    /// A fresh one.
    ///
    /// # Errors
    /// The library failed.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| KeyError::Library)?;
        Self::of(pair)
    }

    /// Reads what [`Key::to_pem`] wrote.
    ///
    /// # Errors
    /// It is no such key.
    pub fn from_pem(pem: &Secret) -> Result<Self, KeyError> {
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(pem.reveal().as_bytes()).map_err(|_| KeyError::Stored)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der())
            .map_err(|_| KeyError::Stored)?;
        Self::of(pair)
    }

    fn of(pair: EcdsaKeyPair) -> Result<Self, KeyError> {
        let spki = pair.public_key().as_der().map_err(|_| KeyError::Library)?.as_ref().to_vec();
        Ok(Self { pair, spki })
    }

    /// The private key as PKCS #8 PEM.
    ///
    /// # Errors
    /// The library failed.
    pub fn to_pem(&self) -> Result<Secret, KeyError> {
        let document = self.pair.to_pkcs8v1().map_err(|_| KeyError::Library)?;
        Ok(Secret::from(pem::block(pem::PRIVATE_KEY, document.as_ref())))
    }

    /// The public key: base64 of the DER SubjectPublicKeyInfo.
    pub fn public(&self) -> String {
        STANDARD.encode(&self.spki)
    }

    /// What people compare.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(digest::digest(&digest::SHA256, &self.spki)))
    }

    /// The proof for a registration: base64 of the ASN.1 signature over [`signed_message`].
    ///
    /// # Errors
    /// The library failed.
    pub fn prove(&self, invitation: &str, cluster_id: &str) -> Result<String, KeyError> {
        let message = signed_message(invitation, cluster_id, &self.public());
        let signature = self.pair.sign(&SystemRandom::new(), &message).map_err(|_| KeyError::Library)?;
        Ok(STANDARD.encode(signature))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};

    use super::*;

    #[test]
    fn a_stored_key_is_the_same_key_and_its_proof_holds() {
        let key = Key::generate().unwrap();
        let again = Key::from_pem(&key.to_pem().unwrap()).unwrap();
        assert_eq!(key.fingerprint(), again.fingerprint());
        assert_eq!(key.public(), again.public());

        let proof = STANDARD.decode(again.prove("inv-1", "cluster-1").unwrap()).unwrap();
        let public = STANDARD.decode(key.public()).unwrap();
        let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &public).unwrap();
        assert!(parsed.verify_sig(&signed_message("inv-1", "cluster-1", &key.public()), &proof).is_ok());
        assert!(parsed.verify_sig(&signed_message("inv-2", "cluster-1", &key.public()), &proof).is_err());
    }

    #[test]
    fn the_public_key_is_a_subject_public_key_info() {
        let der = STANDARD.decode(Key::generate().unwrap().public()).unwrap();
        // SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING } of RFC 5480 is 91 bytes.
        assert_eq!((der.len(), &der[..4]), (91, &[0x30, 0x59, 0x30, 0x13][..]));
    }

    #[test]
    fn a_fingerprint_has_the_form_that_ssh_users_know() {
        let fingerprint = Key::generate().unwrap().fingerprint();
        assert_eq!(fingerprint.len(), "SHA256:".len() + 43);
        assert!(!fingerprint.ends_with('='));
    }

    #[test]
    fn debug_shows_no_key_and_rubbish_is_none() {
        let key = Key::generate().unwrap();
        assert!(!format!("{key:?}").contains("PRIVATE"));
        for bad in ["", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert_eq!(Key::from_pem(&Secret::from(bad.to_owned())).unwrap_err(), KeyError::Stored);
        }
    }
}
