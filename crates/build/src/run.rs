//! Running programs of the host.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// How many of a program's last lines an error shows.
const LINES: usize = 30;

/// Starts from nothing of our own settings that could change what a program makes: only these are handed on.
const KEPT: &[&str] = &[
    "PATH",
    "HOME",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "GOPROXY",
    "GOSUMDB",
    "GONOSUMDB",
    "GONOSUMCHECK",
    "GOPRIVATE",
    "GONOPROXY",
    "GOMODCACHE",
    "GOCACHE",
    "GOPATH",
    "GOENV",
    "GOTOOLCHAIN",
    "GOTMPDIR",
];

/// A command with a small, known environment.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// A command that does not outlive this process, however this ends: for what runs long or for ever. The thread that starts
/// it has to wait for it too.
pub(crate) fn bound(program: &str, hint: &'static str) -> Result<Command> {
    which(program, hint)?;
    which(BINDER, "Install the distribution's package `util-linux`.")?;
    let mut command = command(BINDER);
    command.args(BINDER_ARGUMENTS).arg(program);
    Ok(command)
}

const BINDER: &str = "setpriv";
const BINDER_ARGUMENTS: [&str; 2] = ["--pdeathsig", "KILL"];

/// Says which program is missing before one that would call it fails in its own words.
pub(crate) fn which(program: &str, hint: &'static str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if program.contains('/')
        || std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    {
        return Ok(());
    }
    Err(Error::MissingProgram {
        program: program.to_owned(),
        hint,
    })
}

/// Runs to the end, hands each line of stderr (and of stdout) to `line`, fails unless the status is 0.
pub(crate) fn run(command: &mut Command, hint: &'static str, mut line: impl FnMut(&str)) -> Result<()> {
    let shown = shown(command);
    let (reader, writer) = std::io::pipe().map_err(|source| Error::Start {
        program: shown.clone(),
        source,
    })?;
    let second = writer.try_clone().map_err(|source| Error::Start {
        program: shown.clone(),
        source,
    })?;
    let mut child = start(command.stdout(writer).stderr(second), hint)?;
    // The command holds our copies of the pipe's end: as long as they are open, the pipe has none.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut last = VecDeque::new();
    let mut lines = BufReader::new(reader);
    let mut bytes = Vec::new();
    // Lines are bounded: a progress bar without an end is no reason to eat memory.
    while lines
        .by_ref()
        .take(64 * 1024)
        .read_until(b'\n', &mut bytes)
        .is_ok_and(|n| n > 0)
    {
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end();
        line(text);
        if last.len() == LINES {
            last.pop_front();
        }
        last.push_back(text.to_owned());
        bytes.clear();
    }
    let status = child.wait().map_err(|source| Error::Start {
        program: shown.clone(),
        source,
    })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Program {
        command: shown,
        status: status.to_string(),
        output: last.into_iter().collect::<Vec<_>>().join("\n"),
    })
}

/// Runs to the end and returns stdout.
pub(crate) fn output(command: &mut Command, hint: &'static str) -> Result<String> {
    let shown = shown(command);
    let child = start(command.stdout(Stdio::piped()).stderr(Stdio::piped()), hint)?;
    let output = child.wait_with_output().map_err(|source| Error::Start {
        program: shown.clone(),
        source,
    })?;
    if !output.status.success() {
        return Err(Error::Program {
            command: shown,
            status: output.status.to_string(),
            output: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts a program; says which one is missing and where it comes from.
pub(crate) fn start(command: &mut Command, hint: &'static str) -> Result<std::process::Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.spawn().map_err(|source| {
        if source.kind() == std::io::ErrorKind::NotFound {
            Error::MissingProgram { program, hint }
        } else {
            Error::Start { program, source }
        }
    })
}

fn shown(command: &Command) -> String {
    let mut words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .collect();
    if words[0] == BINDER {
        words.drain(..=BINDER_ARGUMENTS.len());
    }
    let mut text = String::new();
    for word in words {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&word.to_string_lossy());
        if text.len() > 120 {
            text.truncate(text.floor_char_boundary(120));
            text.push('…');
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_last_words() {
        let mut lines = Vec::new();
        let script = "echo one; echo two >&2; exit 3";
        let error = run(command("sh").args(["-c", script]), "", |line| {
            lines.push(line.to_owned())
        })
        .expect_err("it ends with 3");
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(
            error.to_string(),
            format!("`sh -c {script}` failed (exit status: 3):\none\ntwo")
        );
    }

    #[test]
    fn a_bound_command_is_shown_as_itself_and_works() {
        let mut lines = Vec::new();
        let mut command = bound("sh", "").expect("a shell is there");
        command.args(["-c", "echo it runs; exit 1"]);
        let error = run(&mut command, "", |line| lines.push(line.to_owned())).expect_err("it ends with 1");
        assert_eq!(lines, ["it runs"]);
        assert!(
            error
                .to_string()
                .starts_with("`sh -c echo it runs; exit 1` failed"),
            "{error}"
        );
        assert!(matches!(
            bound("no-such-program-here", ""),
            Err(Error::MissingProgram { .. })
        ));
    }

    #[test]
    fn a_missing_program_comes_with_a_hint() {
        use stolos_base::Classify as _;
        let error = run(&mut command("no-such-program-here"), "Get it.", |_| {}).expect_err("it is missing");
        assert_eq!(error.to_string(), "the program `no-such-program-here` is missing");
        assert_eq!(error.hints(), ["Get it."]);
    }
}
