//! Logging in with a browser: what the pages say, and the codes that they give to command lines.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Response;
use stolos_base::Secret;
use stolos_store::testing::{Place, each};

use super::{PASSWORD, World, world};

const REDIRECT: &str = "http://127.0.0.1:4711/";
const VERIFIER: &str = "a-verifier-of-forty-three-letters-or-more-0123456789";

/// A browser: a cookie, and answers as they come.
struct Browser<'a> {
    world: &'a World,
    http: reqwest::Client,
    cookie: Option<String>,
}

impl<'a> Browser<'a> {
    /// One for each protocol: with HTTP/2 there is no `Host`, and each login of a browser was refused.
    fn of_each_protocol(world: &'a World) -> [Self; 2] {
        let with = |http| Self {
            world,
            http,
            cookie: None,
        };
        let http_2 = world.http_client(reqwest::ClientBuilder::http2_prior_knowledge);
        [
            with(world.http_client(reqwest::ClientBuilder::http1_only)),
            with(http_2),
        ]
    }
    async fn get(&self, path: &str) -> Response {
        let mut request = self
            .http
            .get(format!("{}{path}", self.world.base))
            .header("accept", "text/html,application/xhtml+xml");
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", format!("other=1; {cookie}"));
        }
        request.send().await.expect("an answer")
    }

    async fn submit(&mut self, origin: &str, password: &str, return_to: &str) -> Response {
        let form = [
            ("username", "admin"),
            ("password", password),
            ("return_to", return_to),
        ];
        let response = self
            .http
            .post(format!("{}/login", self.world.base))
            .header("origin", origin)
            .form(&form)
            .send()
            .await
            .expect("an answer");
        if let Some(cookie) = response.headers().get("set-cookie") {
            let cookie = cookie.to_str().expect("text");
            for attribute in ["Secure", "HttpOnly", "SameSite=Strict", "Path=/"] {
                assert!(cookie.contains(attribute), "{cookie}");
            }
            self.cookie = cookie.split(';').next().map(str::to_owned);
        }
        response
    }
}

fn location(response: &Response) -> &str {
    response
        .headers()
        .get("location")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn authorize(redirect: &str, challenge: &str) -> String {
    format!(
        "/oauth/authorize?response_type=code&client_id=pks_cli&redirect_uri={}&state=s%26t&code_challenge={challenge}&code_challenge_method=S256",
        redirect.replace(':', "%3A").replace('/', "%2F")
    )
}

fn challenge() -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, VERIFIER.as_bytes()))
}

/// The code on the page of `/passcode`.
async fn passcode(browser: &Browser<'_>) -> String {
    let page = browser.get("/passcode").await;
    assert_eq!(page.status(), 200);
    let headers = page.headers().clone();
    assert_eq!(headers["cache-control"], "no-store");
    assert!(
        headers["content-security-policy"]
            .to_str()
            .is_ok_and(|policy| policy.contains("default-src 'none'"))
    );
    let text = page.text().await.expect("a page");
    let (_, rest) = text.split_once("<code>").expect("a code");
    rest.split_once("</code>").expect("its end").0.to_owned()
}

#[tokio::test]
async fn a_code_of_the_page_logs_a_command_line_in_once() {
    each(async |place| {
        let world = world(place).await;
        for browser in Browser::of_each_protocol(&world) {
            logs_in_with_a_code(browser).await;
        }
    })
    .await;
}

async fn logs_in_with_a_code(mut browser: Browser<'_>) {
    let world = browser.world;
    let sent = browser.get("/passcode").await;
    assert_eq!(
        (sent.status().as_u16(), location(&sent)),
        (303, "/login?return_to=%2Fpasscode")
    );
    let form = browser.get(location(&sent)).await.text().await.expect("a page");
    assert!(
        form.contains(r#"name="return_to" value="&#x2F;passcode""#)
            || form.contains(r#"name="return_to" value="/passcode""#),
        "{form}"
    );
    let wrong = browser.submit(&world.base, "wrong", "/passcode").await;
    assert_eq!(wrong.status(), 401);
    assert!(
        wrong
            .text()
            .await
            .expect("a page")
            .contains("User name or password is wrong.")
    );
    let foreign = browser
        .submit("https://evil.example", PASSWORD, "/passcode")
        .await;
    assert_eq!((foreign.status().as_u16(), &browser.cookie), (400, &None));
    let done = browser
        .submit(&world.base, PASSWORD, "https://evil.example/")
        .await;
    assert_eq!((done.status().as_u16(), location(&done)), (303, "/passcode"));

    let code = passcode(&browser).await;
    assert_eq!(code.len(), 10);
    let form = [
        ("grant_type", "password"),
        ("passcode", &code.to_ascii_lowercase()),
    ];
    let (status, body) = world.post("/oauth/token", Some(("pks_cli", "")), &form).await;
    assert_eq!((status, &body["scope"].is_string()), (200, &true), "{body}");
    assert!(body["refresh_token"].is_string());
    let (status, body) = world.post("/oauth/token", Some(("pks_cli", "")), &form).await;
    assert_eq!(
        (status, body["error_description"].as_str()),
        (401, Some("Invalid passcode"))
    );

    let late = passcode(&browser).await;
    world.clock.advance(std::time::Duration::from_secs(301));
    let form = [("grant_type", "password"), ("passcode", late.as_str())];
    let (status, _) = world.post("/oauth/token", Some(("pks_cli", "")), &form).await;
    assert_eq!(status, 401, "five minutes are over");

    let out = browser.get("/logout.do").await;
    assert_eq!(location(&out), "/login");
    assert_eq!(browser.get("/passcode").await.status(), 303, "logged out");
}

#[tokio::test]
async fn a_browser_brings_a_code_back_to_the_command_line() {
    let place = Place::sqlite();
    let world = world(&place).await;
    for browser in Browser::of_each_protocol(&world) {
        brings_a_code_back(browser).await;
    }
}

async fn brings_a_code_back(mut browser: Browser<'_>) {
    let world = browser.world;
    let path = authorize(REDIRECT, &challenge());
    let sent = browser.get(&path).await;
    assert!(
        location(&sent).starts_with("/login?return_to=%2Foauth%2Fauthorize%3Fresponse_type%3Dcode"),
        "{}",
        location(&sent)
    );
    let done = browser.submit(&world.base, PASSWORD, &path).await;
    assert_eq!(location(&done), path);
    let code = async || {
        let back = browser.get(&path).await;
        let target = location(&back).to_owned();
        let (code, state) = target
            .strip_prefix("http://127.0.0.1:4711/?code=")
            .and_then(|rest| rest.split_once('&'))
            .unwrap_or_else(|| panic!("{target}"));
        assert_eq!(state, "state=s%26t");
        code.to_owned()
    };
    let exchange = async |client: &str, code: &str, redirect: &str, verifier: &str| {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect),
            ("code_verifier", verifier),
        ];
        world.post("/oauth/token", Some((client, "")), &form).await
    };
    let good = code().await;
    let (status, body) = exchange("pks_cli", &good, REDIRECT, VERIFIER).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        exchange("pks_cli", &good, REDIRECT, VERIFIER).await.0,
        400,
        "a code works once"
    );
    for (client, redirect, verifier) in [
        ("pks_cluster_client", REDIRECT, VERIFIER),
        ("pks_cli", "http://127.0.0.1:4712/", VERIFIER),
        ("pks_cli", REDIRECT, "another verifier"),
    ] {
        let stolen = code().await;
        let (status, body) = exchange(client, &stolen, redirect, verifier).await;
        assert_eq!(
            (status, body["error"].as_str()),
            (400, Some("invalid_grant")),
            "{client} {redirect} {verifier}"
        );
        assert_eq!(
            exchange("pks_cli", &stolen, REDIRECT, VERIFIER).await.0,
            400,
            "void after a wrong use"
        );
    }
    for bad in [
        authorize("https://evil.example/", &challenge()),
        authorize(REDIRECT, "short"),
        path.replace("response_type=code", "response_type=token"),
        path.replace("pks_cli", "clusters"),
        path.replace("S256", "plain"),
    ] {
        let refused = browser.get(&bad).await;
        assert_eq!(
            (refused.status().as_u16(), location(&refused)),
            (400, ""),
            "{bad}"
        );
    }
    // A new password ends what browsers have, too, even if it is the same one.
    world
        .identity
        .set_password("admin", Secret::from(PASSWORD))
        .await
        .expect("a password");
    assert_eq!(browser.get("/passcode").await.status(), 303);
}

#[tokio::test]
async fn programs_that_ask_for_the_login_page_get_json() {
    let place = Place::sqlite();
    let world = world(&place).await;
    let answer = world
        .http
        .get(format!("{}/login", world.base))
        .header("accept", "application/json")
        .send()
        .await
        .expect("an answer");
    let body: serde_json::Value = answer.json().await.expect("JSON");
    assert_eq!(body["prompts"]["username"][0], "text");
}
