//! A member of etcd whose cluster is restored from a backup. Two members' parts: the seed makes its data from the backup, as the only member; all
//! others put theirs aside, and join it later as members do that have lost theirs (`member`).
//!
//! Each is done once for each restore, whose id is noted beside the data when all is done. Killed at any moment, it is begun again and does what is
//! left: the old data is put aside only when the new one lies ready beside it, and moving is one rename.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use aws_lc_rs::digest;
use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use serde::Deserialize;

use crate::https::{Target, client_config};
use crate::member::{Ensemble, peer_url};
use crate::note;

/// Pause before it is asked for again.
const FETCH_PAUSE: Duration = Duration::from_secs(2);
/// How long nothing may come while it is read.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest head of an answer.
const LONGEST_HEAD: usize = 16 * 1024;

#[derive(Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    ensemble: Ensemble,
    /// What is restored, and from where (JSON)
    #[arg(long)]
    from: Utf8PathBuf,
    /// etcdutl
    #[arg(long)]
    etcdutl: Utf8PathBuf,
    /// Seconds for which the backup is asked for: the manager may be starting
    #[arg(long, default_value_t = 300)]
    patience: u64,
    /// Only lay the new data beside the old
    #[arg(long)]
    prepare: bool,
}

/// What the manager says about a restore.
#[derive(Deserialize)]
struct Wish {
    /// Of this restore; another one of the same backup has another.
    id: String,
    /// Name of the member that makes its data from the backup.
    seed: String,
    /// Where the snapshot is, for whoever has the URL.
    url: String,
    /// Authority (PEM) of the server there.
    ca: String,
    /// SHA-256 of the snapshot in hex.
    sha256: String,
    /// Its size in bytes.
    size: u64,
    /// By how much revisions grow, so that whoever has seen later ones sees none again.
    bump_revision: u64,
}

/// Where things lie.
struct Places {
    /// etcd's own.
    member: Utf8PathBuf,
    /// What it was before the restore.
    before: Utf8PathBuf,
    /// What is being made.
    staging: Utf8PathBuf,
    /// Says for which restore new data is complete, and in which attempt's directory of `staging` it lies.
    complete: Utf8PathBuf,
    /// Says which restore the member's data comes from.
    done: Utf8PathBuf,
}

impl Places {
    fn new(data_dir: &Utf8Path) -> Self {
        let beside = |suffix: &str| {
            let name = data_dir.file_name().unwrap_or("etcd");
            data_dir.with_file_name(format!("{name}.{suffix}"))
        };
        let staging = beside("restoring");
        Self {
            member: data_dir.join("member"),
            before: data_dir.join("member.before-restore"),
            complete: staging.join("complete"),
            done: beside("restored"),
            staging,
        }
    }

    fn is_done(&self, id: &str) -> anyhow::Result<bool> {
        Ok(read_if_there(&self.done)?.trim() == id)
    }

    /// Where the new data lies, or lay before it was moved to its place; none when it is not complete.
    fn made(&self, id: &str) -> anyhow::Result<Option<Utf8PathBuf>> {
        let text = read_if_there(&self.complete)?;
        Ok(match text.trim().split_once(' ') {
            Some((of, attempt)) if of == id => Some(self.new_data(attempt)),
            _ => None,
        })
    }

    fn new_data(&self, attempt: &str) -> Utf8PathBuf {
        self.staging.join(attempt).join("data/member")
    }

    /// Removes what earlier attempts left. An `etcdutl` that outlived its parent may still write there: then it goes next time.
    fn tidy(&self) {
        if let Err(error) = stolos_base::files::remove_tree_if_there(&self.staging) {
            note(&format!("some of `{}` is left: {error}", self.staging));
        }
    }
}

/// Nothing where there is no file.
fn read_if_there(path: &Utf8Path) -> anyhow::Result<String> {
    match fs_err::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => Ok(other?),
    }
}

impl Restore {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let text = fs_err::read_to_string(&self.from)?;
        // The text holds a URL that is a right: it is in no message.
        let wish: Wish = serde_json::from_str(&text)
            .map_err(|_| anyhow!("`{}` does not say what is restored", self.from))?;
        let places = Places::new(self.ensemble.data_dir());
        if places.is_done(&wish.id)? {
            note(&format!("restore {} is done already", wish.id));
            return Ok(());
        }
        let is_seed = wish.seed == self.ensemble.name();
        if self.prepare {
            return if is_seed {
                self.make_once(&wish, &places)
            } else {
                Ok(())
            };
        }
        // Nobody ran when this began, so those who run have what this restore brought: a seed that lost its disk since then joins them.
        let makes = is_seed && (places.made(&wish.id)?.is_some() || !self.ensemble.others_agree()?);
        if makes {
            self.make_once(&wish, &places)?;
            let made = places.made(&wish.id)?.context("the new data is gone")?;
            take_over(&places, &made)?;
        } else {
            put_aside(&places)?;
        }
        stolos_base::files::write_atomic(&places.done, wish.id.as_bytes(), 0o600)?;
        places.tidy();
        note(&format!("restore {}: the member's part is done", wish.id));
        Ok(())
    }

    fn make_once(&self, wish: &Wish, places: &Places) -> anyhow::Result<()> {
        if places.made(&wish.id)?.is_some() {
            return Ok(());
        }
        self.make(wish, places)
    }

    /// Makes the new data beside the old.
    fn make(&self, wish: &Wish, places: &Places) -> anyhow::Result<()> {
        places.tidy();
        // A directory of its own: an `etcdutl` of an attempt that was killed may still be at work.
        let attempt = stolos_base::ids::random_hex(4);
        let directory = places.staging.join(&attempt);
        fs_err::create_dir_all(&directory)?;
        let snapshot = directory.join("snapshot.db");
        fetch_patiently(wish, &snapshot, Duration::from_secs(self.patience))?;
        note(&format!("the backup is here, {} bytes", wish.size));
        let url = peer_url(self.ensemble.address());
        let name = self.ensemble.name();
        let output = Command::new(&self.etcdutl)
            .args(["snapshot", "restore", snapshot.as_str()])
            .arg(format!("--data-dir={}", directory.join("data")))
            .arg(format!("--name={name}"))
            .arg(format!("--initial-cluster={name}={url}"))
            .arg(format!("--initial-cluster-token={}", wish.id))
            .arg(format!("--initial-advertise-peer-urls={url}"))
            .arg(format!("--bump-revision={}", wish.bump_revision))
            .arg("--mark-compacted")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("failed to start `{}`", self.etcdutl))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last: Vec<&str> = said.lines().rev().take(5).collect();
            bail!("etcdutl did not restore the backup: {}", last.join(" | "));
        }
        fs_err::remove_file(&snapshot)?;
        sync_tree(&directory)?;
        let complete = format!("{} {attempt}", wish.id);
        stolos_base::files::write_atomic(&places.complete, complete.as_bytes(), 0o600)?;
        note("the data of the backup lies ready");
        Ok(())
    }
}

/// Puts the new data in the old one's place. Done before, the new one lies there no more.
fn take_over(places: &Places, made: &Utf8Path) -> anyhow::Result<()> {
    if !made.exists() {
        if places.member.exists() {
            return Ok(());
        }
        bail!("neither new nor old data is in `{}`", places.staging);
    }
    put_aside(places)?;
    let parent = places.member.parent().context("data has a directory")?;
    fs_err::create_dir_all(parent)?;
    std::fs::set_permissions(parent, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    fs_err::rename(made, &places.member)?;
    sync(parent)
}

fn put_aside(places: &Places) -> anyhow::Result<()> {
    if !places.member.exists() {
        return Ok(());
    }
    stolos_base::files::remove_tree_if_there(&places.before)?;
    fs_err::rename(&places.member, &places.before)?;
    note(&format!(
        "what the member had before is put aside as `{}`",
        places.before
    ));
    sync(places.member.parent().context("data has a directory")?)
}

fn sync(path: &Utf8Path) -> anyhow::Result<()> {
    fs_err::File::open(path)?.sync_all()?;
    Ok(())
}

fn sync_tree(path: &Utf8Path) -> anyhow::Result<()> {
    for entry in path.read_dir_utf8()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(entry.path())?;
        } else {
            sync(entry.path())?;
        }
    }
    sync(path)
}

/// Why the backup is not here.
enum Missing {
    /// Asking again may help.
    Yet(anyhow::Error),
    /// What came is not what was meant.
    Wrong(String),
}

impl<E: Into<anyhow::Error>> From<E> for Missing {
    fn from(error: E) -> Self {
        Self::Yet(error.into())
    }
}

fn fetch_patiently(wish: &Wish, to: &Utf8Path, limit: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match fetch(wish, to) {
            Ok(()) => return Ok(()),
            Err(Missing::Wrong(why)) => bail!("what came is not the backup: {why}"),
            Err(Missing::Yet(error)) if start.elapsed() > limit => {
                return Err(error.context("the backup cannot be had"));
            }
            Err(Missing::Yet(error)) => note(&format!("waiting for the backup: {error:#}")),
        }
        sleep(FETCH_PAUSE);
    }
}

/// Reads the snapshot into a file, as long as it is the one that is meant.
fn fetch(wish: &Wish, to: &Utf8Path) -> Result<(), Missing> {
    let target = Target::parse(&wish.url).map_err(|_| anyhow!("the backup's address is no URL"))?;
    let tls = client_config(&wish.ca, None)?;
    let mut stream = target.handshake(&tls, SILENCE)?;
    let request = format!("GET {} HTTP/1.0\r\nHost: {}\r\n\r\n", target.path, target.address);
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut byte = [0_u8; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 || head.len() > LONGEST_HEAD {
            return Err(anyhow!("the manager did not answer HTTP").into());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let line = head.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) != Some("200") {
        return Err(anyhow!("the manager answered `{line}`").into());
    }
    let mut file = fs_err::File::create(to)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut size = 0_u64;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            // A server that closes without a farewell; the digest says whether something is missing.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error.into()),
        };
        size += n as u64;
        if size > wish.size {
            return Err(Missing::Wrong(format!("it is longer than {} bytes", wish.size)));
        }
        context.update(&buffer[..n]);
        file.write_all(&buffer[..n])?;
    }
    if size < wish.size {
        return Err(anyhow!("it was cut off after {size} of {} bytes", wish.size).into());
    }
    if hex::encode(context.finish()) != wish.sha256 {
        return Err(Missing::Wrong("it has another digest".to_owned()));
    }
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> (camino_tempfile::Utf8TempDir, Places) {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let places = Places::new(&directory.path().join("etcd"));
        (directory, places)
    }

    fn put(path: &Utf8Path, text: &str) {
        fs_err::create_dir_all(path).expect("a directory");
        fs_err::write(path.join("what"), text).expect("a file");
    }

    fn get(path: &Utf8Path) -> Option<String> {
        fs_err::read_to_string(path.join("what")).ok()
    }

    #[test]
    fn taking_over_is_repeatable_wherever_it_was_cut_off() {
        // Nothing done; the old one aside; both done: the same end.
        for cut in 0..3 {
            let (_directory, places) = world();
            put(&places.member, "old");
            put(&places.new_data("a"), "new");
            if cut > 0 {
                put_aside(&places).expect("aside");
            }
            if cut > 1 {
                take_over(&places, &places.new_data("a")).expect("taken over");
            }
            take_over(&places, &places.new_data("a")).expect("taken over");
            take_over(&places, &places.new_data("a")).expect("again");
            assert_eq!(get(&places.member).as_deref(), Some("new"), "cut {cut}");
            assert_eq!(get(&places.before).as_deref(), Some("old"), "cut {cut}");
        }
        let (_directory, places) = world();
        assert!(
            take_over(&places, &places.new_data("a")).is_err(),
            "there is nothing"
        );
    }

    #[test]
    fn a_second_restore_keeps_what_the_first_one_brought() {
        let (_directory, places) = world();
        put(&places.before, "older");
        put(&places.member, "old");
        put(&places.new_data("a"), "new");
        take_over(&places, &places.new_data("a")).expect("taken over");
        assert_eq!(get(&places.before).as_deref(), Some("old"));
        stolos_base::files::write_atomic(&places.done, b"id-1\n", 0o600).expect("a mark");
        assert!(places.is_done("id-1").expect("read"));
        assert!(!places.is_done("id-2").expect("read"));
    }
}
