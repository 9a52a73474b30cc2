//! The service over its HTTP API, on both databases.

mod audiences;
mod browser;
mod lockout;
mod revocation;
mod scim;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Value, json};
use stolos_api::token::{self, KeySet, Verifier};
use stolos_api::{http, identity};
use stolos_base::error::{Class, Classify as _};
use stolos_base::ids::IdSource;
use stolos_base::pki::{Authority, Leaf, Usage};
use stolos_base::{Clock, Secret, task, tls};
use stolos_credentials::{Credentials, Mode, Name, Parameters, RootKey, Scope};
use stolos_identity::{Administrator, ClientConfig, Config, Identity, SCHEMA, SigningKey};
use stolos_store::testing::{Place, each};
use tokio_util::sync::CancellationToken;

const PASSWORD: &str = "planted-password-91c";
const SECRET: &str = "planted secret+/%&:é";

/// The service on a free port, with TLS, a clock of the test's and real keys from `credentials`.
struct World {
    identity: Identity,
    client: identity::Client,
    http: reqwest::Client,
    base: String,
    clock: Clock,
    private_key: Secret<String>,
    ca: String,
    _stop: tokio_util::sync::DropGuard,
}

fn config(external_url: &str) -> Config {
    Config {
        external_url: external_url.to_owned(),
        administrator: Administrator {
            name: "admin".to_owned(),
            password: Some(PASSWORD.into()),
        },
        clients: vec![
            ClientConfig {
                id: "clusters".to_owned(),
                secret: SECRET.into(),
                authorities: vec!["bosh.admin".to_owned(), "uaa.resource".to_owned()],
            },
            ClientConfig {
                id: "plain".to_owned(),
                secret: "other-secret".into(),
                authorities: vec!["bosh.read".to_owned()],
            },
        ],
    }
}

/// A key pair from `credentials`, once for the whole test process: RSA keys take a while.
async fn key_pair() -> &'static (String, Secret<String>) {
    static KEY: tokio::sync::OnceCell<(String, Secret<String>)> = tokio::sync::OnceCell::const_new();
    KEY.get_or_init(|| async {
        let place = Place::sqlite();
        let db = place.open(&stolos_credentials::SCHEMA).await;
        let credentials = Credentials::open(db, &RootKey::random(), IdSource::random())
            .await
            .expect("credentials");
        let scope = Scope::deployment("a", "b").expect("a scope");
        let wish = Parameters::parse("rsa", &Value::Null, &scope).expect("parameters");
        let name = Name::absolute("/signing").expect("a name");
        let made = credentials
            .generate(&name, &wish, Mode::Converge)
            .await
            .expect("a key")
            .value
            .expose();
        let text = |key: &str| made[key].as_str().expect("a text").to_owned();
        (text("public_key"), text("private_key").into())
    })
    .await
}

async fn world(place: &Place) -> World {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let base = format!("https://{}", listener.local_addr().expect("an address"));
    let clock = Clock::manual(jiff::Timestamp::now());
    let (public_key, private_key) = key_pair().await;
    let signing = SigningKey::from_pem(public_key, private_key).expect("a signing key");
    let db = place.open_at(&SCHEMA, clock.clone()).await;
    // A final slash, as people write it, must not get into the issuer.
    let identity = Identity::start(db, &config(&format!("{base}/")), signing, &IdSource::random()).await;
    let identity = identity.unwrap_or_else(|error| panic!("{}", stolos_base::chain(&error)));

    let ca = Authority::root("test", Duration::from_secs(3600), jiff::Timestamp::now()).expect("a CA");
    let mut leaf = Leaf::new("identity", Usage::Server);
    leaf.addresses = vec![[127, 0, 0, 1].into()];
    let leaf = ca.issue(&leaf, jiff::Timestamp::now()).expect("a certificate");
    let tls = tls::server(&leaf, tls::Clients::Any).expect("a TLS configuration");
    let (stop, router) = (CancellationToken::new(), identity.router());
    let serving = stolos_base::http::serve_tls(listener, tls, router, stop.clone());
    task::spawn(task::Kind::Service, "identity", async move {
        serving.await;
        Ok::<(), &str>(())
    });
    let http = http::client(&http::Trust::Authorities(ca.certificate().to_owned()), None).expect("a client");
    World {
        client: identity::Client::new(&base, http.clone()),
        identity,
        http,
        base,
        clock,
        private_key: private_key.clone(),
        ca: ca.certificate().to_owned(),
        _stop: stop.drop_guard(),
    }
}

impl World {
    /// An HTTP client that trusts the service, set up further by `with`.
    fn http_client(
        &self,
        with: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> reqwest::Client {
        let builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(tls::client(&self.ca, None).expect("a TLS configuration"));
        with(builder).build().expect("a client")
    }

    /// A client of the service whose connections come from another address.
    fn client_at(&self, address: [u8; 4]) -> identity::Client {
        let http = self.http_client(|builder| builder.local_address(std::net::IpAddr::from(address)));
        identity::Client::new(&self.base, http)
    }

    /// The rest of a service that another manager runs on the same database.
    async fn second_manager(&self, place: &Place) -> Identity {
        let (public_key, private_key) = key_pair().await;
        let signing = SigningKey::from_pem(public_key, private_key).expect("a signing key");
        let db = place.open_at(&SCHEMA, self.clock.clone()).await;
        Identity::start(db, &config(&self.base), signing, &IdSource::random())
            .await
            .expect("a service")
    }

    async fn login(&self) -> identity::Tokens {
        let tokens = self
            .client
            .password(identity::PKS_CLI, "admin", &PASSWORD.into())
            .await;
        tokens.unwrap_or_else(|error| panic!("{}", stolos_base::chain(&error)))
    }

    /// Status, code and description of the answer to a form.
    async fn post(&self, path: &str, basic: Option<(&str, &str)>, form: &[(&str, &str)]) -> (u16, Value) {
        let mut request = self.http.post(format!("{}{path}", self.base)).form(form);
        if let Some((name, secret)) = basic {
            request = request.basic_auth(name, Some(secret));
        }
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        (status, response.json().await.expect("JSON"))
    }
}

#[tokio::test]
async fn every_grant_gives_tokens_that_verify() {
    each(async |place| {
        let world = world(place).await;
        let remote = Verifier::remote(&world.base, world.http.clone(), world.clock.clone());
        let keys: KeySet = world.client.token_keys().await.expect("keys");

        let tokens = world.login().await;
        assert_eq!((tokens.token_type.as_str(), tokens.expires_in), ("bearer", 600));
        for verifier in [world.identity.verifier(), remote.clone()] {
            let claims = verifier
                .verify(tokens.access_token.expose())
                .await
                .expect("valid");
            let actor = claims.actor();
            assert_eq!((actor.name.as_str(), actor.client.as_str()), ("admin", "pks_cli"));
            assert!(actor.has("pks.clusters.admin") && actor.has("bosh.admin") && !actor.has("uaa.admin"));
            assert_eq!(claims.iss, format!("{}/oauth/token", world.base));
            assert!(
                ["pks_cli", "pks.clusters", "bosh"]
                    .iter()
                    .all(|one| claims.aud.iter().any(|aud| aud == one))
            );
            assert_eq!(claims.exp - claims.iat, 600);
            assert_eq!(claims.jti, tokens.jti);
            assert_eq!(
                (claims.zid.as_str(), claims.origin.as_deref()),
                ("uaa", Some("uaa"))
            );
            assert_eq!(claims.user_id.as_deref(), Some(claims.sub.as_str()));
        }

        // By the library alone, with the PEM text that others read, and with the numbers.
        let key = &keys.keys[0];
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_issuer(&[format!("{}/oauth/token", world.base)]);
        validation.set_audience(&["pks.clusters"]);
        for decoding in [
            DecodingKey::from_rsa_pem(key.value.as_bytes()).expect("PEM"),
            DecodingKey::from_rsa_components(&key.n, &key.e).expect("numbers"),
        ] {
            let data = jsonwebtoken::decode::<Value>(tokens.access_token.expose(), &decoding, &validation);
            assert_eq!(data.expect("valid").header.kid.as_deref(), Some(key.kid.as_str()));
        }

        let refreshed = world
            .client
            .refresh("pks_cli", tokens.refresh_token.as_ref().expect("one"))
            .await
            .expect("new ones");
        let claims = remote
            .verify(refreshed.access_token.expose())
            .await
            .expect("valid");
        assert_eq!(
            (claims.grant_type.as_str(), claims.user_name.as_deref()),
            ("refresh_token", Some("admin"))
        );
        assert_ne!(refreshed.refresh_token, tokens.refresh_token);

        let own = world
            .client
            .client_credentials("clusters", &SECRET.into())
            .await
            .expect("a token");
        assert!(own.refresh_token.is_none());
        let claims = remote.verify(own.access_token.expose()).await.expect("valid");
        assert_eq!((claims.sub.as_str(), claims.user_id.as_ref()), ("clusters", None));
        assert_eq!(claims.authorities, claims.scope);
        assert_eq!(claims.actor().name, "clusters");

        // kube-apiserver reads identity tokens: the audience is the client, the groups are in `roles`.
        let form = [
            ("grant_type", "password"),
            ("username", "Admin"),
            ("password", PASSWORD),
            ("response_type", "id_token"),
        ];
        let (status, body) = world
            .post("/oauth/token", Some(("pks_cluster_client", "")), &form)
            .await;
        assert_eq!(status, 200, "{body}");
        let claims = remote
            .verify(body["id_token"].as_str().expect("one"))
            .await
            .expect("valid");
        assert_eq!(claims.aud, ["pks_cluster_client"]);
        assert!(
            claims
                .roles
                .expect("groups")
                .iter()
                .any(|role| role == "pks.clusters.admin")
        );
    })
    .await;
}

#[tokio::test]
async fn what_is_not_a_valid_token_of_ours_is_refused() {
    let place = Place::sqlite();
    let world = world(&place).await;
    let token = world.login().await.access_token.expose().clone();
    let verifier = Verifier::remote(&world.base, world.http.clone(), world.clock.clone());
    let claims = token::peek(&token).expect("claims");
    let kid = world.client.token_keys().await.expect("keys").keys[0].kid.clone();
    let key = EncodingKey::from_rsa_pem(world.private_key.expose().as_bytes()).expect("a key");
    let signed = |algorithm, kid: &str, change: &[(&str, Value)], key: &EncodingKey| {
        let mut claims = claims.clone();
        for (name, value) in change {
            claims.insert((*name).to_owned(), value.clone());
        }
        let header = Header {
            kid: Some(kid.to_owned()),
            ..Header::new(algorithm)
        };
        jsonwebtoken::encode(&header, &claims, key).expect("a token")
    };
    let refused = async |token: String, class: Class, words: &str| {
        let error = verifier.verify(&token).await.expect_err(words);
        let text = stolos_base::chain(&error);
        assert!(error.class() == class && text.contains(words), "{text}");
        assert!(
            token.len() < 20 || !text.contains(&token),
            "the token is in the error"
        );
    };
    let same = signed(Algorithm::RS256, &kid, &[], &key);
    verifier
        .verify(&same)
        .await
        .expect("the test signs as the service does");

    let parts: Vec<&str> = token.split('.').collect();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut other = Value::Object(claims.clone());
    other["scope"] = json!(["uaa.admin"]);
    refused(
        format!("{}.{}.{}", parts[0], part(&other), parts[2]),
        Class::Unauthenticated,
        "not valid",
    )
    .await;
    let none = part(&json!({"alg": "none", "typ": "JWT", "kid": kid}));
    refused(
        format!("{none}.{}.", parts[1]),
        Class::Unauthenticated,
        "not valid",
    )
    .await;
    refused(
        format!("{none}.{}.{}", parts[1], parts[2]),
        Class::Unauthenticated,
        "not valid",
    )
    .await;
    // The public key as the secret of a symmetric signature.
    let public = EncodingKey::from_secret(key_pair().await.0.as_bytes());
    refused(
        signed(Algorithm::HS256, &kid, &[], &public),
        Class::Unauthenticated,
        "not signed with RS256",
    )
    .await;
    refused(
        signed(Algorithm::RS512, &kid, &[], &key),
        Class::Unauthenticated,
        "not signed with RS256",
    )
    .await;
    refused(
        signed(Algorithm::RS256, "other", &[], &key),
        Class::Unauthenticated,
        "key is not known",
    )
    .await;
    let now = world.clock.now().as_second();
    let change = [("iss", json!("https://evil/oauth/token"))];
    refused(
        signed(Algorithm::RS256, &kid, &change, &key),
        Class::Unauthenticated,
        "issued by `https://evil",
    )
    .await;
    refused(
        signed(Algorithm::RS256, &kid, &[("exp", json!(now - 5))], &key),
        Class::Unauthenticated,
        "expired",
    )
    .await;
    refused(
        signed(Algorithm::RS256, &kid, &[("nbf", json!(now + 60))], &key),
        Class::Unauthenticated,
        "not valid yet",
    )
    .await;
    for garbage in ["", "a", "a.b.c", &"x".repeat(100_000)] {
        refused(garbage.to_owned(), Class::Unauthenticated, "not valid").await;
    }
    let leeway = signed(Algorithm::RS256, &kid, &[("exp", json!(now - 4))], &key);
    verifier
        .verify(&leeway)
        .await
        .expect("clocks may differ a little");

    world.clock.advance(Duration::from_secs(606));
    refused(token, Class::Unauthenticated, "expired").await;

    let mut headers = reqwest::header::HeaderMap::new();
    assert!(matches!(
        verifier.actor(&headers).await,
        Err(token::Error::Missing)
    ));
    headers.insert("authorization", "Basic YTpi".parse().expect("a value"));
    assert!(matches!(
        verifier.actor(&headers).await,
        Err(token::Error::Missing)
    ));
    let bearer = format!("bearer {}", world.login().await.access_token.expose());
    headers.insert("authorization", bearer.parse().expect("a value"));
    let actor = verifier.actor(&headers).await.expect("an actor");
    assert!(matches!(
        actor.require_any(&["uaa.admin"]),
        Err(token::Error::Scope { .. })
    ));
    actor
        .require_any(&["uaa.admin", "bosh.admin"])
        .expect("one of them");

    // Nobody there to give keys: that is not the caller's fault.
    let nowhere = Verifier::remote("https://127.0.0.1:1", world.http.clone(), world.clock.clone());
    let error = nowhere.verify(&same).await.expect_err("no keys");
    assert_eq!(error.class(), Class::Unavailable);
}

#[tokio::test]
async fn errors_have_the_words_and_statuses_of_uaa() {
    let place = Place::sqlite();
    let world = world(&place).await;
    let check = async |basic, form: &[(&str, &str)], status, code: &str| {
        let (got, body) = world.post("/oauth/token", basic, form).await;
        assert_eq!(
            (got, body["error"].as_str()),
            (status, Some(code)),
            "{form:?} {body}"
        );
        body["error_description"]
            .as_str()
            .expect("a description")
            .to_owned()
    };
    let cli = Some(("pks_cli", ""));
    let password = ("grant_type", "password");
    let wrong = check(
        cli,
        &[password, ("username", "admin"), ("password", "wrong")],
        401,
        "unauthorized",
    )
    .await;
    let unknown = check(
        cli,
        &[password, ("username", "nobody"), ("password", PASSWORD)],
        401,
        "unauthorized",
    )
    .await;
    assert_eq!((wrong.as_str(), wrong == unknown), ("Bad credentials", true));
    check(cli, &[password, ("username", "admin")], 400, "invalid_request").await;
    check(cli, &[], 400, "invalid_request").await;
    check(None, &[password], 401, "invalid_client").await;
    check(Some(("nobody", "x")), &[password], 401, "invalid_client").await;
    check(Some(("pks_cli", "x")), &[password], 401, "invalid_client").await;
    check(
        Some(("clusters", "x")),
        &[("grant_type", "client_credentials")],
        401,
        "invalid_client",
    )
    .await;
    check(
        Some(("clusters", "")),
        &[("grant_type", "client_credentials")],
        401,
        "invalid_client",
    )
    .await;
    check(
        cli,
        &[("grant_type", "client_credentials")],
        401,
        "unauthorized_client",
    )
    .await;
    check(cli, &[("grant_type", "magic")], 400, "unsupported_grant_type").await;
    check(
        cli,
        &[("grant_type", "refresh_token"), ("refresh_token", "x-r")],
        401,
        "invalid_token",
    )
    .await;
    let asked = [
        password,
        ("username", "admin"),
        ("password", PASSWORD),
        ("scope", "uaa.admin"),
    ];
    check(cli, &asked, 400, "invalid_scope").await;
    let asked = [
        password,
        ("username", "admin"),
        ("password", PASSWORD),
        ("client_id", "clusters"),
    ];
    check(cli, &asked, 401, "invalid_client").await;

    // Credentials in the address do not count.
    let url = format!(
        "{}/oauth/token?grant_type=password&username=admin&password={PASSWORD}",
        world.base
    );
    let response = world
        .http
        .post(url)
        .basic_auth("pks_cli", Some(""))
        .form(&[("x", "y")])
        .send()
        .await;
    assert_eq!(response.expect("an answer").status(), 400);
    let response = world
        .http
        .get(format!("{}/oauth/token", world.base))
        .send()
        .await
        .expect("an answer");
    assert_eq!(response.status(), 405);

    // Name and secret in every form that clients have: raw, encoded and said so, raw and said to be encoded, in the form.
    let grant = ("grant_type", "client_credentials");
    let encoded = "planted%20secret%2B%2F%25%26%3A%C3%A9";
    for (secret, says_encoded) in [(SECRET, false), (encoded, true), (SECRET, true)] {
        let mut request = world
            .http
            .post(format!("{}/oauth/token?token_format=jwt", world.base))
            .form(&[grant]);
        request = request.basic_auth("clusters", Some(secret));
        if says_encoded {
            request = request.header("X-CF-ENCODED-CREDENTIALS", "true");
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{secret} {says_encoded}");
        assert_eq!(response.headers()["cache-control"], "no-store");
    }
    let form = [grant, ("client_id", "clusters"), ("client_secret", SECRET)];
    assert_eq!(world.post("/oauth/token", None, &form).await.0, 200);
}

#[tokio::test]
async fn refresh_tokens_rotate_and_end() {
    each(async |place| {
        let world = world(place).await;
        let refresh = async |token: &Secret<String>| world.client.refresh("pks_cli", token).await;
        let first = world.login().await.refresh_token.expect("one");
        assert!(first.expose().ends_with("-r"));
        let second = refresh(&first)
            .await
            .expect("new ones")
            .refresh_token
            .expect("one");
        // Two commands at once both come through.
        let third = refresh(&first)
            .await
            .expect("within the grace")
            .refresh_token
            .expect("one");
        assert!(refresh(&second).await.is_ok());
        // Later, the use of an old one ends the whole login.
        world.clock.advance(Duration::from_secs(120));
        let error = refresh(&first).await.expect_err("used");
        assert_eq!(
            error.refusal().expect("an answer").code.as_deref(),
            Some("invalid_token")
        );
        assert!(refresh(&third).await.is_err());

        // Another client's, and one that has lived six hours since the login, however often it was refreshed.
        let token = world.login().await.refresh_token.expect("one");
        assert!(world.client.refresh("pks_cluster_client", &token).await.is_err());
        world.clock.advance(Duration::from_secs(21_590));
        let token = refresh(&token)
            .await
            .expect("just in time")
            .refresh_token
            .expect("one");
        world.clock.advance(Duration::from_secs(20));
        assert!(refresh(&token).await.is_err());

        // A new password ends all logins.
        let token = world.login().await.refresh_token.expect("one");
        let too_short = world.identity.set_password("admin", "short".into()).await;
        assert_eq!(too_short.expect_err("too short").class(), Class::User);
        world
            .identity
            .set_password("ADMIN", "another-password".into())
            .await
            .expect("changed");
        assert!(refresh(&token).await.is_err());
        let error = world
            .client
            .password("pks_cli", "admin", &PASSWORD.into())
            .await
            .expect_err("the old one");
        assert_eq!(error.class(), Class::Unauthenticated);
        world
            .client
            .password("pks_cli", "admin", &"another-password".into())
            .await
            .expect("the new one");
        let missing = world
            .identity
            .set_password("nobody", "another-password".into())
            .await;
        assert_eq!(missing.expect_err("nobody").class(), Class::NotFound);
    })
    .await;
}

#[tokio::test]
async fn others_find_what_they_read_first() {
    let place = Place::sqlite();
    let world = world(&place).await;
    let get = async |path: &str| {
        let response = world
            .http
            .get(format!("{}{path}", world.base))
            .send()
            .await
            .expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        response.json::<Value>().await.expect("JSON")
    };
    for path in [
        "/.well-known/openid-configuration",
        "/oauth/token/.well-known/openid-configuration",
    ] {
        let discovery = get(path).await;
        assert_eq!(discovery["issuer"], format!("{}/oauth/token", world.base));
        assert_eq!(discovery["jwks_uri"], format!("{}/token_keys", world.base));
    }
    assert_eq!(get("/token_keys").await["keys"][0], get("/token_key").await);
    let info = world.client.info().await.expect("information");
    assert_eq!(info.links["uaa"], world.base);
    assert_eq!(info.prompts["password"].0, "password");
    let keys = world
        .http
        .get(format!("{}/token_keys", world.base))
        .send()
        .await
        .expect("an answer");
    assert!(keys.headers().contains_key("etag"));
    let health = world
        .http
        .get(format!("{}/healthz", world.base))
        .send()
        .await
        .expect("an answer");
    assert_eq!(health.text().await.expect("text"), "ok\n");

    let token = world.login().await.access_token;
    let checker = Some(("clusters", SECRET));
    let (status, claims) = world
        .post("/check_token", checker, &[("token", token.expose())])
        .await;
    assert_eq!((status, claims["user_name"].as_str()), (200, Some("admin")));
    let (status, body) = world
        .post(
            "/check_token",
            checker,
            &[("token", token.expose()), ("scopes", "a.b")],
        )
        .await;
    assert_eq!((status, body["error"].as_str()), (400, Some("invalid_scope")));
    let (status, body) = world.post("/check_token", checker, &[("token", "x")]).await;
    assert_eq!((status, body["error"].as_str()), (400, Some("invalid_token")));
    let (status, _) = world
        .post(
            "/check_token",
            Some(("plain", "other-secret")),
            &[("token", token.expose())],
        )
        .await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn a_second_start_changes_nothing_and_nothing_is_in_clear() {
    each(async |place| {
        let (public_key, private_key) = key_pair().await;
        let signing = || SigningKey::from_pem(public_key, private_key).expect("a key");
        let start = async |config: &Config| {
            let db = place.open(&SCHEMA).await;
            Identity::start(db, config, signing(), &IdSource::random())
                .await
                .expect("a service")
        };
        let mut config = config("https://x:8443");
        let rows = async || {
            let db = place.open(&SCHEMA).await;
            let rows =
                stolos_store::query("SELECT id, secret, authorities FROM identity_clients ORDER BY id");
            let rows = rows.fetch_all(db.read()).await.expect("rows");
            let text = |row: &stolos_store::AnyRow, column: &str| {
                stolos_store::Row::try_get::<Option<String>, _>(row, column).expect("a text")
            };
            rows.iter()
                .map(|row| (text(row, "id"), text(row, "secret"), text(row, "authorities")))
                .collect::<Vec<_>>()
        };
        let first = start(&config).await;
        assert!(first.first_password().is_none());
        let before = rows().await;
        start(&config).await;
        assert_eq!(rows().await, before);

        // Clients follow the configuration; the administrator's password does not.
        config.clients.remove(1);
        config.clients[0].secret = "a-new-secret".into();
        config.administrator.password = Some("another-password".into());
        start(&config).await;
        let after = rows().await;
        assert_eq!(after.len() + 1, before.len());
        assert_ne!(after[0].1, before[0].1);

        // A random password is told once.
        config.administrator = Administrator {
            name: "second".to_owned(),
            password: None,
        };
        let second = start(&config).await;
        let password = second.first_password().expect("a password").expose().clone();
        assert!(start(&config).await.first_password().is_none());

        let shown = format!("{second:?} {config:?} {:?}", signing());
        for secret in [PASSWORD, SECRET, password.as_str(), "a-new-secret"] {
            assert!(!shown.contains(secret), "{shown}");
            if let stolos_store::DatabaseUrl::Sqlite { directory } = place.url() {
                for entry in directory
                    .read_dir_utf8()
                    .expect("the directory")
                    .flatten()
                    .filter(|e| e.path().is_file())
                {
                    let bytes = fs_err::read(entry.path()).expect("a file");
                    let found = bytes
                        .windows(secret.len())
                        .any(|window| window == secret.as_bytes());
                    assert!(!found, "{} holds a secret", entry.path());
                }
            }
        }
    })
    .await;
}
