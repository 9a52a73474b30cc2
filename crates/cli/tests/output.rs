//! Whether what is printed arrives.

use std::io::Read as _;
use std::process::{Command, Stdio};

fn stolos(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stolos"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// `stolos clusters > /full/disk/list` ended with 0 and left half a list.
#[test]
fn a_full_disk_is_an_error() {
    for arguments in [
        &["completion", "bash"][..],
        &["--help"],
        &["--version"],
        &["help", "login"],
    ] {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("a full device");
        let output = stolos(arguments).stdout(full).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("failed to write to the standard output"), "{said}");
    }
}

/// `| head -1` is no error, and nobody wants to hear of it.
#[test]
fn a_reader_that_goes_away_is_none() {
    let mut child = stolos(&["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .expect("its words")
        .read_to_string(&mut said)
        .expect("its words");
    assert_eq!(
        (child.wait().expect("its end").code(), said.as_str()),
        (Some(0), "")
    );
}

/// Help is styled for terminals; in a file there are letters only, and no escaped styles either.
#[test]
fn help_in_a_file_is_plain() {
    for arguments in [&["--help"][..], &["help", "login"], &["clsters"]] {
        let output = stolos(arguments).output().expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("Usage:"), "{said}");
        assert!(!said.contains('\u{1b}') && !said.contains("u{1b}"), "{said}");
    }
}
