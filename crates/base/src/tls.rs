//! TLS over the one crypto provider, aws-lc-rs.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::pki::Identity;

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A PEM text is not what it should be.
    #[error("failed to read the {what}")]
    Pem {
        /// Which text.
        what: &'static str,
        /// The cause.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Key and certificate do not make a configuration.
    #[error("failed to set up TLS")]
    Configure(#[source] rustls::Error),
    /// The trusted certificates cannot be used to verify clients.
    #[error("failed to set up the verification of client certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// The crypto provider of every TLS end in the workspace.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Makes the provider the process's default, for libraries that ask for one. A second call does nothing.
pub fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Who may connect to a server.
#[derive(Clone, Copy, Debug)]
pub enum Clients<'a> {
    /// Anybody; the protocol above authenticates.
    Any,
    /// Those with a certificate of this CA (PEM); others may connect without one.
    Optional(&'a str),
    /// Only those with a certificate of this CA (PEM).
    Required(&'a str),
}

/// A server's configuration. `identity.certificate` may hold a chain.
///
/// # Errors
/// When a PEM text cannot be used.
pub fn server(identity: &Identity, clients: Clients<'_>) -> Result<Arc<rustls::ServerConfig>, Error> {
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Configure)?;
    let verifier = |ca: &str| -> Result<_, Error> {
        Ok(rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots(ca)?),
            provider(),
        ))
    };
    let builder = match clients {
        Clients::Any => builder.with_no_client_auth(),
        Clients::Optional(ca) => builder.with_client_cert_verifier(
            verifier(ca)?
                .allow_unauthenticated()
                .build()
                .map_err(Error::Verifier)?,
        ),
        Clients::Required(ca) => {
            builder.with_client_cert_verifier(verifier(ca)?.build().map_err(Error::Verifier)?)
        }
    };
    let mut config = builder
        .with_single_cert(certificates(&identity.certificate)?, key(identity.key.expose())?)
        .map_err(Error::Configure)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client's configuration that trusts only `ca` (PEM, may hold several certificates).
///
/// # Errors
/// When a PEM text cannot be used.
pub fn client(ca: &str, identity: Option<&Identity>) -> Result<rustls::ClientConfig, Error> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Configure)?
        .with_root_certificates(roots(ca)?);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some(identity) => builder
            .with_client_auth_cert(certificates(&identity.certificate)?, key(identity.key.expose())?)
            .map_err(Error::Configure),
    }
}

/// A client's configuration that verifies nothing: for `--skip-ssl-validation`, which a person has to ask for.
///
/// # Errors
/// When the provider refuses its own defaults.
pub fn client_without_verification() -> Result<rustls::ClientConfig, Error> {
    Ok(rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Configure)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NoVerification(provider())))
        .with_no_client_auth())
}

/// The certificates of a PEM text.
///
/// # Errors
/// When the text holds something else.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| Error::Pem {
            what: "certificate",
            source,
        })
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|source| Error::Pem {
        what: "private key",
        source,
    })
}

fn roots(pem: &str) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem)? {
        store.add(certificate).map_err(Error::Configure)?;
    }
    Ok(store)
}

#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
