//! NATS' JSON web tokens: Ed25519 over nkeys, as the Go library `jwt/v2` writes them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::rights::Rights;

/// The header that the library accepts.
const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;
/// The version of the claims' shape.
const VERSION: u8 = 2;

/// A token is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("it has not three parts")]
    Parts,
    #[error("it is signed in another way")]
    Algorithm,
    #[error("it is not readable")]
    Encoding(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("its signature is wrong")]
    Signature(#[source] nkeys::error::Error),
    #[error("it was not issued by a server")]
    Issuer,
}

/// What the server says about a client that wants to connect.
#[derive(Debug, Deserialize)]
pub(crate) struct AuthorizationRequest {
    pub(crate) server_id: ServerId,
    /// The public key that the answer has to name: a guard against replays.
    pub(crate) user_nkey: String,
    #[serde(default)]
    pub(crate) client_info: ClientInfo,
    #[serde(default)]
    pub(crate) client_tls: Option<ClientTls>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ServerId {
    pub(crate) id: String,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct ClientInfo {
    #[serde(default)]
    pub(crate) host: String,
}

/// Certificates of the client, PEM. Only verified chains count.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ClientTls {
    #[serde(default)]
    pub(crate) verified_chains: Vec<Vec<String>>,
}

impl AuthorizationRequest {
    /// Reads a request and verifies that the server that it names has signed it.
    pub(crate) fn decode(token: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Claims {
            iss: String,
            nats: AuthorizationRequest,
        }
        let claims: Claims = decode(token)?;
        if claims.iss != claims.nats.server_id.id {
            return Err(Error::Issuer);
        }
        Ok(claims.nats)
    }

    /// The certificate that the client has shown, PEM.
    pub(crate) fn certificate(&self) -> Option<&str> {
        let chain = self.client_tls.as_ref()?.verified_chains.first()?;
        chain.first().map(String::as_str)
    }
}

/// Decodes a token whose signature fits the public key that it names as issuer; servers sign with server keys.
fn decode<T: serde::de::DeserializeOwned>(token: &[u8]) -> Result<T, Error> {
    #[derive(Deserialize)]
    struct Issued {
        iss: String,
    }
    #[derive(Deserialize)]
    struct Header {
        alg: String,
    }
    let text = std::str::from_utf8(token).map_err(|error| Error::Encoding(error.into()))?;
    let parts: Vec<&str> = text.split('.').collect();
    let [header, payload, signature] = parts.as_slice() else {
        return Err(Error::Parts);
    };
    let header: Header = json_part(header)?;
    if header.alg != "ed25519-nkey" {
        return Err(Error::Algorithm);
    }
    let issued: Issued = json_part(payload)?;
    let issuer = KeyPair::from_public_key(&issued.iss).map_err(Error::Signature)?;
    if issuer.key_pair_type() != KeyPairType::Server {
        return Err(Error::Issuer);
    }
    let signed = &text[..text.len() - signature.len() - 1];
    issuer
        .verify(signed.as_bytes(), &part(signature)?)
        .map_err(Error::Signature)?;
    json_part(payload)
}

fn part(text: &str) -> Result<Vec<u8>, Error> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|error| Error::Encoding(error.into()))
}

fn json_part<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_slice(&part(text)?).map_err(|error| Error::Encoding(error.into()))
}

/// What is said about a connection.
pub(crate) enum Verdict<'a> {
    /// It may, in this account, under this name, with these rights.
    Admitted {
        account: &'a str,
        name: String,
        rights: Rights,
    },
    /// It may not. The text goes into the server's log; the client is told nothing.
    Rejected(String),
}

/// The signed answer to a request. `now` is in seconds since the Unix epoch.
pub(crate) fn answer(
    request: &AuthorizationRequest,
    verdict: Verdict<'_>,
    issuer: &KeyPair,
    now: i64,
) -> Result<String, nkeys::error::Error> {
    let mut nats = json!({"type": "authorization_response", "version": VERSION});
    match verdict {
        Verdict::Admitted {
            account,
            name,
            rights,
        } => {
            nats["jwt"] = user(request, account, &name, &rights, issuer, now)?.into();
        }
        Verdict::Rejected(reason) => nats["error"] = reason.into(),
    }
    sign(&request.user_nkey, &request.server_id.id, nats, None, issuer, now)
}

/// A user's token. An empty list of rights would mean all of them, so nothing allowed is said as everything denied.
fn user(
    request: &AuthorizationRequest,
    account: &str,
    name: &str,
    rights: &Rights,
    issuer: &KeyPair,
    now: i64,
) -> Result<String, nkeys::error::Error> {
    let permission = |allowed: &[String]| {
        if allowed.is_empty() {
            json!({"deny": [">"]})
        } else {
            json!({"allow": allowed})
        }
    };
    let nats = json!({
        "pub": permission(&rights.publish),
        "sub": permission(&rights.subscribe),
        "subs": -1,
        "data": -1,
        "payload": -1,
        "type": "user",
        "version": VERSION,
    });
    sign(&request.user_nkey, account, nats, Some(name), issuer, now)
}

fn sign(
    subject: &str,
    audience: &str,
    nats: Value,
    name: Option<&str>,
    issuer: &KeyPair,
    now: i64,
) -> Result<String, nkeys::error::Error> {
    #[derive(Serialize)]
    struct Claims<'a> {
        jti: String,
        iat: i64,
        iss: String,
        sub: &'a str,
        aud: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a str>,
        nats: Value,
    }
    let claims = Claims {
        jti: stolos_base::ids::random_hex(16),
        iat: now,
        iss: issuer.public_key(),
        sub: subject,
        aud: audience,
        name,
        nats,
    };
    let payload = serde_json::to_vec(&claims).expect("claims have text keys only");
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(HEADER),
        URL_SAFE_NO_PAD.encode(payload)
    );
    let signature = issuer.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(server: &KeyPair) -> String {
        let nats = json!({
            "server_id": {"name": "n", "host": "h", "id": server.public_key()},
            "user_nkey": KeyPair::new_user().public_key(),
            "client_tls": {"verified_chains": [["LEAF", "CA"]]},
            "type": "authorization_request",
        });
        sign("subject", "nats-authorization-request", nats, None, server, 7).expect("a token")
    }

    #[test]
    fn only_what_the_server_itself_has_signed_is_read() {
        let server = KeyPair::new_server();
        let token = request(&server);
        let read = AuthorizationRequest::decode(token.as_bytes()).expect("a request");
        assert_eq!(read.certificate(), Some("LEAF"));

        let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        let other = request(&KeyPair::new_server());
        parts[1] = other.split('.').nth(1).expect("a payload").to_owned();
        let mixed = parts.join(".");
        assert!(matches!(
            AuthorizationRequest::decode(mixed.as_bytes()),
            Err(Error::Signature(_))
        ));

        let user = KeyPair::new_user();
        let nats = json!({"server_id": {"id": user.public_key()}, "user_nkey": "u"});
        let forged = sign("s", "a", nats, None, &user, 7).expect("a token");
        assert!(matches!(
            AuthorizationRequest::decode(forged.as_bytes()),
            Err(Error::Issuer)
        ));
        assert!(AuthorizationRequest::decode(b"a.b").is_err());
    }

    #[test]
    fn no_rights_are_not_all_rights() {
        let server = KeyPair::new_server();
        let request = AuthorizationRequest::decode(request(&server).as_bytes()).expect("a request");
        let verdict = Verdict::Admitted {
            account: "BOSH",
            name: "n".into(),
            rights: Rights {
                publish: vec![],
                subscribe: vec!["a".into()],
            },
        };
        let answer = answer(&request, verdict, &KeyPair::new_account(), 7).expect("an answer");
        let outer: Value = json_part(answer.split('.').nth(1).expect("a payload")).expect("JSON");
        let inner = outer["nats"]["jwt"].as_str().expect("a user's token");
        let inner: Value = json_part(inner.split('.').nth(1).expect("a payload")).expect("JSON");
        assert_eq!(inner["nats"]["pub"], json!({"deny": [">"]}));
        assert_eq!(inner["nats"]["sub"], json!({"allow": ["a"]}));
        assert_eq!(inner["aud"], "BOSH");
    }
}
