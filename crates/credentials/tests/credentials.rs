//! The handle over both databases.

use std::sync::Arc;

use serde_json::json;
use stolos_base::ids::IdSource;
use stolos_base::pki::Identity;
use stolos_base::tls;
use stolos_credentials::{
    Certificate, Credential, Credentials, Error, Mode, Parameters, RootKey, SCHEMA, Scope, Value,
};
use stolos_store::testing::{Place, each};

fn scope() -> Scope {
    Scope::deployment("director", "demo").expect("a scope")
}

fn parameters(kind: &str, options: serde_json::Value) -> Parameters {
    Parameters::parse(kind, &options, &scope()).expect("valid options")
}

async fn open(place: &Place, root: &RootKey) -> Credentials {
    let db = place.open(&SCHEMA).await;
    Credentials::open(db, root, IdSource::random())
        .await
        .expect("credentials")
}

async fn make(credentials: &Credentials, name: &str, kind: &str, options: serde_json::Value) -> Credential {
    let name = scope().name(name).expect("a name");
    let made = credentials
        .generate(&name, &parameters(kind, options), Mode::Converge)
        .await;
    made.unwrap_or_else(|error| panic!("{name}: {}", stolos_base::chain(&error)))
}

fn certificate(credential: &Credential) -> Certificate {
    credential.value.certificate().expect("a certificate").clone()
}

/// Both ends of a TLS connection in memory: proves that key and certificate fit, that the CA signed it and that it is
/// valid for the name.
fn handshake(server: &Certificate, client_trusts: &str, name: &str) -> Result<(), rustls::Error> {
    let identity = Identity {
        certificate: server.certificate.clone(),
        key: server.private_key.clone(),
    };
    let server = tls::server(&identity, tls::Clients::Any).expect("a server's configuration");
    let client = Arc::new(tls::client(client_trusts, None).expect("a client's configuration"));
    let name = name.to_owned().try_into().expect("a server name");
    let mut client = rustls::ClientConnection::new(client, name)?;
    let mut server = rustls::ServerConnection::new(server)?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory takes it");
        }
        server.read_tls(&mut wire.as_slice()).expect("memory gives it");
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory takes it");
        }
        client.read_tls(&mut wire.as_slice()).expect("memory gives it");
        client.process_new_packets()?;
    }
    Ok(())
}

#[tokio::test]
async fn modes_decide_when_there_is_a_new_version() {
    each(async |place| {
        let credentials = open(place, &RootKey::random()).await;
        let name = scope().name("password").expect("a name");
        let short = parameters("password", json!({"length": 12}));
        let long = parameters("password", json!({"length": 40}));
        let generate = async |parameters, mode| {
            credentials
                .generate(&name, parameters, mode)
                .await
                .expect("a password")
        };
        let first = generate(&short, Mode::NoOverwrite).await;
        assert_eq!(first.value.text().expect("a text").expose().len(), 12);
        assert_eq!(generate(&long, Mode::NoOverwrite).await, first);
        assert_eq!(generate(&short, Mode::Converge).await, first);
        let second = generate(&long, Mode::Converge).await;
        assert_ne!(second.id, first.id);
        let third = generate(&long, Mode::Overwrite).await;
        assert_ne!(third.value, second.value);
        let fourth = credentials.regenerate(&name).await.expect("regenerated");
        assert_eq!(fourth.value.text().expect("a text").expose().len(), 40);
        assert_eq!(credentials.get(&name).await.expect("the newest"), fourth);
        assert_eq!(
            credentials.get_by_id(first.id).await.expect("a pinned one"),
            first
        );

        let other_case = scope().name("PassWord").expect("a name");
        assert_eq!(credentials.get(&other_case).await.expect("the same"), fourth);
        let error = credentials
            .set(&name, Value::Value("x".into()))
            .await
            .expect_err("another type");
        assert!(matches!(error, Error::KindChange { .. }), "{error}");

        assert!(credentials.delete(&name).await.expect("deleted"));
        assert!(!credentials.delete(&name).await.expect("nothing to delete"));
        assert!(matches!(credentials.get(&name).await, Err(Error::NotFound(_))));
        assert!(matches!(
            credentials.get_by_id(first.id).await,
            Err(Error::NotFound(_))
        ));
    })
    .await;
}

#[tokio::test]
async fn many_at_once_get_one_value() {
    each(async |place| {
        let root = RootKey::random();
        // Two handles over two pools, as two processes would have.
        let handles = [open(place, &root).await, open(place, &root).await];
        let name = scope().name("shared").expect("a name");
        let wish = parameters("password", json!({}));
        let all =
            futures::future::join_all((0..16).map(|n| handles[n % 2].generate(&name, &wish, Mode::Converge)))
                .await;
        let ids: std::collections::HashSet<_> =
            all.into_iter().map(|made| made.expect("a password").id).collect();
        assert_eq!(ids.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn certificates_are_good_for_tls_and_follow_their_authority() {
    each(async |place| {
        let credentials = open(place, &RootKey::random()).await;
        for algorithm in ["ecdsa", "rsa"] {
            let ca_name = format!("{algorithm}_ca");
            let ca = json!({"is_ca": true, "common_name": "test", "key_algorithm": algorithm, "duration": 30});
            let ca = make(&credentials, &ca_name, "certificate", ca).await;
            let options = json!({
                "ca": ca_name, "common_name": "api", "organization": "system:masters", "key_algorithm": algorithm,
                "alternative_names": ["api.example", "10.1.2.3"], "extended_key_usage": ["server_auth"], "duration": 365,
            });
            let leaf_name = format!("{algorithm}_leaf");
            let leaf = make(&credentials, &leaf_name, "certificate", options.clone()).await;
            let (ca_pem, issued) = (certificate(&ca).certificate, certificate(&leaf));
            assert_eq!(issued.ca, ca_pem);
            assert_eq!(certificate(&ca).ca, ca_pem, "a root is its own CA");
            handshake(&issued, &ca_pem, "api.example").expect("a name of the certificate");
            handshake(&issued, &ca_pem, "10.1.2.3").expect("an address of the certificate");
            handshake(&issued, &ca_pem, "other.example").expect_err("not a name of it");
            assert_eq!(leaf.expires_at, ca.expires_at, "no leaf outlives its CA");
            let expected = if algorithm == "rsa" { "RSA PRIVATE KEY" } else { "BEGIN PRIVATE KEY" };
            assert!(issued.private_key.expose().contains(expected));

            // Nothing has changed, so nothing is made; with a new CA, the leaf is.
            let again = make(&credentials, &leaf_name, "certificate", options.clone()).await;
            assert_eq!(again.id, leaf.id);
            let renewed = credentials.regenerate(&scope().name(&ca_name).expect("a name")).await.expect("a new CA");
            let renewed = certificate(&renewed).certificate;
            let reissued = make(&credentials, &leaf_name, "certificate", options).await;
            assert_ne!(reissued.id, leaf.id);
            handshake(&certificate(&reissued), &renewed, "api.example").expect("signed by the new CA");
            handshake(&issued, &renewed, "api.example").expect_err("signed by the old CA");
        }
        let orphan = scope().name("orphan").expect("a name");
        let wish = parameters("certificate", json!({"ca": "nobody", "common_name": "x"}));
        let error = credentials.generate(&orphan, &wish, Mode::Converge).await.expect_err("no CA");
        assert!(matches!(error, Error::NoAuthority { .. }), "{error}");
        let wish = parameters("certificate", json!({"ca": "ecdsa_leaf", "common_name": "x"}));
        let error = credentials.generate(&orphan, &wish, Mode::Converge).await.expect_err("a leaf signs nothing");
        assert!(matches!(error, Error::NotAnAuthority { .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn keys_have_the_forms_that_others_read() {
    let place = Place::sqlite();
    let credentials = open(&place, &RootKey::random()).await;
    let rsa = make(&credentials, "rsa", "rsa", json!({})).await.value.expose();
    assert!(
        rsa["public_key"]
            .as_str()
            .expect("PEM")
            .starts_with("-----BEGIN PUBLIC KEY-----")
    );
    let private = rsa["private_key"].as_str().expect("PEM");
    assert!(private.starts_with("-----BEGIN RSA PRIVATE KEY-----"));

    let ssh = make(&credentials, "ssh", "ssh", json!({"ssh_comment": "me@here"}))
        .await
        .value
        .expose();
    let directory = camino_tempfile::tempdir().expect("a temporary directory");
    let key = directory.path().join("key");
    stolos_base::files::write_atomic(&key, ssh["private_key"].as_str().expect("PEM").as_bytes(), 0o600)
        .expect("the key file");
    let output = std::process::Command::new("ssh-keygen")
        .args(["-y", "-f", key.as_str()])
        .output();
    match output {
        Ok(output) => {
            let text = String::from_utf8(output.stdout).expect("text");
            let public = ssh["public_key"].as_str().expect("a line");
            assert_eq!(
                text.split_whitespace().nth(1),
                public.split_whitespace().nth(1),
                "{output:?}",
                output = output.stderr
            );
            let pub_file = directory.path().join("key.pub");
            fs_err::write(&pub_file, public).expect("the public key file");
            let shown = std::process::Command::new("ssh-keygen")
                .args(["-l", "-f", pub_file.as_str()])
                .output();
            let shown = String::from_utf8(shown.expect("it ran before").stdout).expect("text");
            let fingerprint = ssh["public_key_fingerprint"].as_str().expect("a fingerprint");
            assert!(shown.contains(&format!("SHA256:{fingerprint}")), "{shown}");
        }
        Err(error) => eprintln!("skipped against OpenSSH: ssh-keygen: {error}"),
    }
}

#[tokio::test]
async fn secrets_lie_encrypted_and_bound_to_their_row() {
    const PLANTED: &str = "planted-secret-7f3a";
    each(async |place| {
        let root = RootKey::random();
        let credentials = open(place, &root).await;
        let name = scope().name("planted").expect("a name");
        let kept = credentials.set(&name, Value::Password(PLANTED.into())).await.expect("kept");
        let json_name = scope().name("json").expect("a name");
        let json = Value::Json(json!({"k": PLANTED}).to_string().into());
        let json = credentials.set(&json_name, json).await.expect("kept");
        assert_eq!(json.value.expose()["k"], PLANTED);
        assert!(!format!("{kept:?} {credentials:?}").contains(PLANTED));
        assert!(matches!(credentials.regenerate(&name).await, Err(Error::Static(_))));
        drop(credentials);

        let db = place.open(&SCHEMA).await;
        if let stolos_store::DatabaseUrl::Sqlite { directory } = place.url() {
            for entry in directory.read_dir_utf8().expect("the directory") {
                let path = entry.expect("an entry").path().to_owned();
                if path.is_file() {
                    let bytes = fs_err::read(&path).expect("a file");
                    let found = bytes.windows(PLANTED.len()).any(|window| window == PLANTED.as_bytes());
                    assert!(!found, "{path} holds the secret");
                }
            }
        }

        let error = Credentials::open(db.clone(), &RootKey::random(), IdSource::random()).await;
        let error = error.expect_err("another root key");
        assert!(matches!(error, Error::WrongRootKey), "{error}");

        // A row that somebody moves to another name does not decrypt.
        let mut tx = db.begin("tamper").await.expect("a transaction");
        stolos_store::query("UPDATE credentials_names SET name = '/director/demo/moved' WHERE kind = 'json'")
            .execute(tx.conn())
            .await
            .expect("renamed");
        stolos_store::query(
            "UPDATE credentials_versions SET ciphertext = (SELECT ciphertext FROM credentials_versions WHERE key LIKE '%json'),
                nonce = (SELECT nonce FROM credentials_versions WHERE key LIKE '%json') WHERE key LIKE '%planted'",
        )
        .execute(tx.conn())
        .await
        .expect("copied");
        tx.commit().await.expect("committed");
        let credentials = Credentials::open(db, &root, IdSource::random()).await.expect("the right root key");
        assert!(matches!(credentials.get(&name).await, Err(Error::Corrupt(_))));
    })
    .await;
}

#[tokio::test]
async fn a_deployment_is_listed_and_forgotten_as_a_whole() {
    each(async |place| {
        let credentials = open(place, &RootKey::random()).await;
        let other = Scope::deployment("director", "demo_2").expect("a scope");
        let wish = parameters("password", json!({}));
        for name in ["b", "a", "a_1"] {
            let name = scope().name(name).expect("a name");
            credentials
                .generate(&name, &wish, Mode::Converge)
                .await
                .expect("a password");
        }
        let kept = other.name("a").expect("a name");
        credentials
            .generate(&kept, &wish, Mode::Converge)
            .await
            .expect("a password");
        let names = async |prefix: &str| -> Vec<String> {
            let list = credentials.list(prefix).await.expect("a list");
            list.into_iter().map(|one| one.name.to_string()).collect()
        };
        assert_eq!(names("/").await.len(), 4);
        let mut own = names(&scope().prefix()).await;
        own.sort();
        assert_eq!(
            own,
            ["/director/demo/a", "/director/demo/a_1", "/director/demo/b"]
        );
        assert_eq!(
            credentials
                .delete_below(&scope().prefix())
                .await
                .expect("deleted"),
            3
        );
        assert_eq!(names("/").await, ["/director/demo_2/a"]);
    })
    .await;
}

/// Steps of flows and handlers of requests move between threads.
#[tokio::test]
async fn calls_can_be_made_from_any_task() {
    fn sendable<T: Send>(future: T) -> T {
        future
    }
    let credentials = open(&Place::sqlite(), &RootKey::random()).await;
    let name = scope().name("x").expect("a name");
    let wish = parameters("password", json!({}));
    let made = sendable(credentials.generate(&name, &wish, Mode::Converge))
        .await
        .expect("a password");
    sendable(credentials.set(&name, made.value)).await.expect("set");
    sendable(credentials.delete_below("/")).await.expect("deleted");
}
