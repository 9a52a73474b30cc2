//! How a person shows who they are: with a password, with the one-time code of a page, or with a browser that fetches a code for us.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use camino::Utf8Path;
use stolos_api::identity::{Challenge, Client, LOCKED, Tokens};
use stolos_base::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::args::{Person, Sso};
use crate::failure::Failure;
use crate::output;

/// How long a person may take in the browser.
const BROWSER_LIMIT: Duration = Duration::from_secs(300);
/// The largest request of a browser that is looked at; ours is a line and a few headers.
const REQUEST_LIMIT: u64 = 16 * 1024;
/// Where scripts of PKS and of TKGI put the password for `get-credentials`.
const PASSWORD_VARIABLES: [&str; 2] = ["PKS_USER_PASSWORD", "TKGI_USER_PASSWORD"];
const DONE: &str = "You are logged in. Go on in the terminal; this page can be closed.\n";

/// Tokens for `client`, and whose they are. `usual` is taken for who names nobody.
///
/// # Errors
/// When the person is refused, or does not say who it is.
pub(crate) async fn sign_in(
    service: &Client,
    client: &str,
    person: &Person,
    usual: Option<&str>,
) -> Result<(String, Tokens), Failure> {
    if let Some(tokens) = by_browser(service, client, &person.sso).await? {
        return Ok(tokens);
    }
    let user = match (person.username.as_deref(), usual) {
        (Some(name), _) | (None, Some(name)) => name.to_owned(),
        (None, None) => ask("Username: ", "no user name was given", "Use -u NAME.")?,
    };
    let password = password(person)?;
    let tokens = service
        .password(client, &user, &password)
        .await
        .map_err(refused)?;
    Ok((user, tokens))
}

/// The same without a password; `None` when nobody wants that.
///
/// # Errors
/// As [`sign_in`].
pub(crate) async fn by_browser(
    service: &Client,
    client: &str,
    sso: &Sso,
) -> Result<Option<(String, Tokens)>, Failure> {
    let tokens = if let Some(code) = &sso.sso_passcode {
        service.passcode(client, &Secret::from(code.as_str())).await
    } else if sso.sso {
        let question = format!(
            "Temporary Authentication Code ( Get one at {} ): ",
            service.passcode_url()
        );
        let code = ask(
            &question,
            "no code was given",
            "Use --sso-passcode CODE in scripts.",
        )?;
        service.passcode(client, &Secret::from(code)).await
    } else if sso.sso_auto {
        fetched(service, client).await?
    } else {
        return Ok(None);
    };
    let tokens = tokens.map_err(refused)?;
    let user = stolos_api::token::peek(tokens.access_token.expose())
        .ok()
        .and_then(|claims| Some(claims.get("user_name")?.as_str()?.to_owned()))
        .ok_or_else(|| Failure::ours("the token service does not say whose token it gave"))?;
    Ok(Some((user, tokens)))
}

/// Has the browser of this machine fetch a code.
async fn fetched(service: &Client, client: &str) -> Result<Result<Tokens, stolos_api::Error>, Failure> {
    let listen = async || {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        Ok::<_, std::io::Error>((listener, port))
    };
    let (listener, port) = listen()
        .await
        .map_err(|error| Failure::user(format!("failed to listen for the browser: {error}")))?;
    let redirect = format!("http://127.0.0.1:{port}/");
    let challenge = Challenge::random();
    let address = service.authorize_url(client, &redirect, &challenge);
    output::note(&format!("Opening a browser. If none opens, go to:\n{address}"));
    if let Err(error) = open::that_detached(&address) {
        tracing::debug!(%error, "no browser could be opened");
    }
    let code = tokio::time::timeout(BROWSER_LIMIT, code(&listener, challenge.state()))
        .await
        .map_err(|_| {
            Failure::user("the browser brought no code within five minutes")
                .hint("On a machine without a browser use --sso.")
        })?;
    Ok(service
        .authorization_code(client, &code, &redirect, &challenge)
        .await)
}

/// Waits for the request that has the code and our state; answers others with 404.
async fn code(listener: &TcpListener, state: &str) -> Secret<String> {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, for a moment.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        match one_request(stream, state).await {
            Ok(Some(code)) => return code,
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "a browser's request was cut off"),
        }
    }
}

async fn one_request(mut stream: TcpStream, state: &str) -> std::io::Result<Option<Secret<String>>> {
    let mut request = Vec::new();
    let mut limited = (&mut stream).take(REQUEST_LIMIT);
    let read = async {
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            if limited.read_buf(&mut request).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // Browsers open connections ahead of need and leave them idle.
    tokio::time::timeout(Duration::from_secs(2), read).await.ok();
    let code = code_of(&String::from_utf8_lossy(&request), state);
    let (status, text) = match &code {
        Some(_) => ("200 OK", DONE),
        None => ("404 Not Found", "Nothing is here.\n"),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(code)
}

/// The code of a request that somebody asked for here. Code and state have no letters that are encoded.
fn code_of(request: &str, state: &str) -> Option<Secret<String>> {
    let path = request.strip_prefix("GET ")?.split(' ').next()?;
    let (_, query) = path.split_once('?')?;
    let value = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    };
    (value("state")? == state).then(|| value("code").map(Secret::from))?
}

/// PKS's words; scripts match them.
pub(crate) fn refused(error: stolos_api::Error) -> Failure {
    if let Some(locked) = locked(&error) {
        return locked;
    }
    match error
        .refusal()
        .map(|refusal| (refusal.status, refusal.code.as_deref()))
    {
        // The password was right.
        Some((400, Some("invalid_scope"))) => Failure::user(
            "You do not have enough privileges to perform this action. Please contact the PKS administrator.",
        )
        .hint("You are in no role; kubeconfigs are to be had without one, with `get-kubeconfig`."),
        Some((400 | 401, _)) => Failure::user("Credentials were rejected, please try again."),
        _ => Failure::from_error(&error),
    }
}

/// The refusal of a name that wrong passwords have locked: PKS said what UAA says.
pub(crate) fn locked(error: &stolos_api::Error) -> Option<Failure> {
    let refusal = error.refusal()?;
    let is_locked = refusal.status == 401 && refusal.message.starts_with(LOCKED);
    is_locked.then(|| {
        Failure::user(refusal.message.clone())
            .hint("Only logins from this address are refused. An administrator can unlock the account sooner, with `unlock-user NAME`.")
    })
}

fn ask(question: &str, missing: &str, hint: &str) -> Result<String, Failure> {
    let mut err = anstream::stderr().lock();
    let _ = write!(err, "{question}");
    let _ = err.flush();
    let mut answer = String::new();
    let read = std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::user(format!("failed to read the answer: {error}")))?;
    let answer = answer.trim();
    if read == 0 || answer.is_empty() {
        let _ = writeln!(err);
        return Err(Failure::user(missing).hint(hint));
    }
    Ok(answer.to_owned())
}

fn password(person: &Person) -> Result<Secret<String>, Failure> {
    if let Some(password) = &person.password {
        return Ok(Secret::from(password.as_str()));
    }
    own_password(person.password_file.as_deref(), "Password: ")
}

/// The password that somebody has: from a file, from a variable, or typed.
///
/// # Errors
/// When there is none.
pub(crate) fn own_password(file: Option<&Utf8Path>, question: &str) -> Result<Secret<String>, Failure> {
    if let Some(path) = file {
        return password_of(path);
    }
    if let Some(password) = PASSWORD_VARIABLES
        .iter()
        .find_map(|name| std::env::var(name).ok())
    {
        return Ok(Secret::from(password));
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::user("no password was given").hint(
            "Put it into the variable PKS_USER_PASSWORD, or into a file for the verbs that have --password-file.",
        ));
    }
    rpassword::prompt_password(question)
        .map(Secret::from)
        .map_err(|error| Failure::user(format!("failed to read the password: {error}")))
}

/// A password for somebody who is new: from a file, or typed twice.
///
/// # Errors
/// When there is none, or the two are not the same.
pub(crate) fn new_password(file: Option<&Utf8Path>) -> Result<Secret<String>, Failure> {
    if let Some(path) = file {
        return password_of(path);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::user("no password was given")
            .hint("Use --password-file FILE, or `-` for standard input."));
    }
    let ask = |question: &str| {
        rpassword::prompt_password(question)
            .map_err(|error| Failure::user(format!("failed to read the password: {error}")))
    };
    let (first, second) = (ask("New password: ")?, ask("New password again: ")?);
    if first == second {
        Ok(Secret::from(first))
    } else {
        Err(Failure::user("the two passwords are not the same"))
    }
}

fn password_of(path: &Utf8Path) -> Result<Secret<String>, Failure> {
    let text = if path == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs_err::read_to_string(path)
    };
    let text = text.map_err(|error| Failure::user(format!("failed to read the password: {error}")))?;
    Ok(Secret::from(text.trim_end_matches(['\r', '\n'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_counts_with_our_state_alone() {
        let code = |request: &str| code_of(request, "abc").map(|code| code.expose().clone());
        let good = "GET /?code=x-_9&state=abc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
        assert_eq!(code(good).as_deref(), Some("x-_9"));
        for other in [
            "GET /?code=x&state=abd HTTP/1.1\r\n\r\n",
            "GET /?code=x HTTP/1.1\r\n\r\n",
            "GET /?state=abc HTTP/1.1\r\n\r\n",
            "GET /favicon.ico HTTP/1.1\r\n\r\n",
            "POST /?code=x&state=abc HTTP/1.1\r\n\r\n",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn the_listener_waits_for_the_right_request() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let browser = async move {
            let mut answers = Vec::new();
            for path in ["/favicon.ico", "/?code=k&state=wrong", "/?code=k&state=right"] {
                let mut stream = TcpStream::connect(address).await.expect("a connection");
                let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
                stream.write_all(request.as_bytes()).await.expect("a request");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.expect("an answer");
                answers.push(answer.split(' ').nth(1).unwrap_or_default().to_owned());
            }
            answers
        };
        let (code, answers) = futures::join!(code(&listener, "right"), browser);
        assert_eq!(
            (code.expose().as_str(), answers),
            ("k", vec!["404".to_owned(), "404".to_owned(), "200".to_owned()])
        );
    }
}
