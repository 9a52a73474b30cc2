//! Logging in with a browser, to the end: the real command line, a real Chromium, the real service, over HTTP/2 and HTTP/1.1.
//!
//! Tests that spoke HTTP/1.1 themselves did not see that browsers, which speak HTTP/2 and send no `Host` there, were all refused.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use camino::Utf8Path;
use camino_tempfile::Utf8TempDir;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use stolos_base::poll;
use stolos_store::testing::Place;
use stolos_testbed::programs;
use stolos_testbed::simulated::Simulation;

/// A page of ours comes in milliseconds; a browser on a busy machine takes seconds to begin.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// A headless Chromium, by WebDriver (<https://www.w3.org/TR/webdriver2/>).
struct Browser {
    driver: Child,
    http: reqwest::Client,
    session: String,
    /// Removed after the browser has ended.
    profile: Utf8TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser's processes are in the driver's group; the driver alone would leave them behind.
        let group = i32::try_from(self.driver.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.driver.wait();
    }
}

impl Browser {
    async fn start(driver: &Utf8Path, more: &[&str]) -> Self {
        let profile = camino_tempfile::tempdir().expect("a directory");
        let mut child = Command::new(driver)
            .arg("--port=0")
            .env("HOME", profile.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("chromedriver runs");
        let said = BufReader::new(child.stdout.take().expect("its output"));
        let port = tokio::task::spawn_blocking(move || port(said))
            .await
            .expect("it ran");
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut browser = Self {
            driver: child,
            http,
            session: format!("http://127.0.0.1:{port}/session"),
            profile,
        };
        let profile = format!("--user-data-dir={}/profile", browser.profile.path());
        // Root has no sandbox, and containers have a small /dev/shm.
        let mut arguments = vec![
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-proxy-server",
            &profile,
        ];
        arguments.extend(more);
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": arguments},
        }}});
        let made = browser.ask("", wanted).await;
        let id = made["sessionId"].as_str().expect("a session").to_owned();
        browser.session = format!("{}/{id}", browser.session);
        browser
    }

    async fn ask(&self, path: &str, body: Value) -> Value {
        let request = self.http.post(format!("{}{path}", self.session)).json(&body);
        let answer = request
            .timeout(LIMIT)
            .send()
            .await
            .expect("an answer of chromedriver");
        let mut answer: Value = answer.json().await.expect("JSON");
        assert!(answer["value"]["error"].is_null(), "{path} {body}: {answer}");
        answer["value"].take()
    }

    async fn open(&self, address: &str) {
        self.ask("/url", json!({"url": address})).await;
    }

    async fn script(&self, script: &str) -> Value {
        self.ask("/execute/sync", json!({"script": script, "args": []}))
            .await
    }

    async fn element(&self, selector: &str) -> String {
        let wanted = json!({"using": "css selector", "value": selector});
        let found = self.ask("/element", wanted).await;
        let id = found.as_object().and_then(|found| found.values().next());
        let id = id
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no {selector}: {found}"));
        format!("/element/{id}")
    }

    /// Types and sends the login form, as a person does.
    async fn log_in(&self, password: &str) {
        for (name, text) in [("username", "admin"), ("password", password)] {
            let field = self.element(&format!("input[name={name}]")).await;
            // After a wrong password the name is there already.
            self.ask(&format!("{field}/clear"), json!({})).await;
            self.ask(&format!("{field}/value"), json!({"text": text})).await;
        }
        let button = self.element("button").await;
        self.ask(&format!("{button}/click"), json!({})).await;
    }

    /// Waits until the page has this in its text, and gives all of it.
    async fn reads(&self, what: &str) -> String {
        let page = poll::until(what, LOOK, LIMIT, || async {
            let text = self
                .script("return document.body ? document.body.innerText : ''")
                .await;
            let text = text.as_str().unwrap_or_default().to_owned();
            if text.contains(what) { Ok(text) } else { Err(text) }
        });
        page.await.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The port that chromedriver says it listens on.
fn port(said: impl BufRead + Send + 'static) -> u16 {
    let mut lines = said.lines().map_while(Result::ok);
    let port = lines.find_map(|line| {
        let (_, rest) = line.split_once("started successfully on port ")?;
        rest.trim_end_matches('.').parse().ok()
    });
    // What it says later nobody reads; a full pipe would stop it.
    std::thread::spawn(move || lines.for_each(drop));
    port.expect("chromedriver names its port")
}

/// A command line in a home of its own, on a desktop whose browser writes down what it is to open.
struct Desktop {
    home: Utf8TempDir,
    api: String,
}

impl Desktop {
    fn new(simulation: &Simulation) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let home = camino_tempfile::tempdir().expect("a home directory");
        fs_err::write(home.path().join("ca.pem"), &simulation.access().ca).expect("a file");
        let opener = home.path().join("xdg-open");
        let script =
            "#!/bin/sh\nprintf %s \"$1\" > \"$HOME/opening\" && mv \"$HOME/opening\" \"$HOME/opened\"\n";
        fs_err::write(&opener, script).expect("a file");
        fs_err::set_permissions(&opener, std::fs::Permissions::from_mode(0o755)).expect("a program");
        let api = simulation.access().api.trim_start_matches("https://").to_owned();
        Self { home, api }
    }

    fn begins(&self, line: &str) -> Child {
        let path = format!(
            "{}:{}",
            self.home.path(),
            std::env::var("PATH").unwrap_or_default()
        );
        Command::new(programs::ours("stolos"))
            .args(line.replace("API", &self.api).split_whitespace())
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env("PATH", path)
            .env_remove("PKS_HOME")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs")
    }

    /// What a command has said in the end; it has succeeded.
    async fn ends(&self, mut child: Child, answer: &str) -> String {
        use std::io::Write as _;
        let answer = answer.to_owned();
        let run = move || {
            let mut input = child.stdin.take().expect("its input");
            // One that asks nothing may have ended already.
            let _ = input.write_all(answer.as_bytes());
            drop(input);
            child.wait_with_output().expect("its output")
        };
        let output = tokio::task::spawn_blocking(run).await.expect("it ran");
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{said}");
        said
    }

    async fn runs(&self, line: &str, answer: &str) -> String {
        self.ends(self.begins(line), answer).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_log_in_with_chromium_over_both_protocols() {
    let Some(driver) = programs::on_path("chromedriver") else {
        eprintln!("skipped: there is no chromedriver (Debian: chromium-driver)");
        return;
    };
    let directory = camino_tempfile::tempdir().expect("a directory");
    let place = Place::sqlite();
    let simulation = Simulation::start(directory.path(), place.url().clone())
        .await
        .expect("an installation");
    let access = simulation.access();
    for (protocol, arguments) in [("h2", &[][..]), ("http/1.1", &["--disable-http2"][..])] {
        // The code of a page, typed: `--sso`.
        let browser = Browser::start(&driver, arguments).await;
        browser.open(&format!("{}/passcode", access.identity)).await;
        let used = browser
            .script("return performance.getEntriesByType('navigation')[0].nextHopProtocol")
            .await;
        assert_eq!(used, protocol);
        browser.log_in("wrong").await;
        browser.reads("User name or password is wrong.").await;
        browser.log_in(&access.password).await;
        browser.reads("admin").await;
        let code = browser
            .script("return document.querySelector('code').innerText")
            .await;
        let code = code.as_str().expect("a code").to_owned();
        let desktop = Desktop::new(&simulation);
        let said = desktop
            .runs("login -a API --sso --ca-cert ca.pem", &format!("{code}\n"))
            .await;
        assert!(
            said.contains("User: admin") && said.contains("/passcode"),
            "{protocol}: {said}"
        );
        desktop.runs("clusters", "").await;
        drop(browser);

        // A code that the browser brings: `--sso-auto`.
        let browser = Browser::start(&driver, arguments).await;
        let desktop = Desktop::new(&simulation);
        let login = desktop.begins("login -a API --sso-auto --ca-cert ca.pem");
        let opened = desktop.home.path().join("opened");
        let address = poll::until("the browser to be opened", LOOK, LIMIT, || async {
            fs_err::read_to_string(&opened).map_err(|error| error.to_string())
        });
        let address = address.await.unwrap_or_else(|error| panic!("{error}"));
        browser.open(&address).await;
        browser.log_in(&access.password).await;
        browser.reads("You are logged in. Go on in the terminal").await;
        let said = desktop.ends(login, "").await;
        assert!(said.contains("User: admin"), "{protocol}: {said}");
        desktop.runs("clusters", "").await;
        // One that has logged in already is asked nothing.
        let login = desktop.begins("login -a API --sso-auto --ca-cert ca.pem");
        let next = poll::until("the browser to be opened again", LOOK, LIMIT, || async {
            match fs_err::read_to_string(&opened) {
                Ok(next) if next != address => Ok(next),
                Ok(same) => Err(same),
                Err(error) => Err(error.to_string()),
            }
        });
        browser
            .open(&next.await.unwrap_or_else(|error| panic!("{error}")))
            .await;
        browser.reads("You are logged in. Go on in the terminal").await;
        desktop.ends(login, "").await;
    }
    simulation.stop().await;
}
