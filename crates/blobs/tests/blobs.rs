//! The store on a real directory and the router on a real socket.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::collections::HashSet;
use std::time::Duration;

use camino_tempfile::Utf8TempDir;
use stolos_base::{Clock, Secret};
use stolos_blobs::{BlobId, Blobs, Error, Options, SealKey, Signer, Verb, signed};
use tokio::io::AsyncReadExt as _;

fn open() -> (Utf8TempDir, Blobs) {
    let directory = camino_tempfile::tempdir().unwrap();
    let blobs = Blobs::open(directory.path().join("blobs"), Options { reserve: 0 }).unwrap();
    (directory, blobs)
}

/// All files below the store that are not `uploads/`.
fn files(blobs: &Blobs) -> usize {
    fn count(path: &camino::Utf8Path) -> usize {
        path.read_dir_utf8()
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                if entry.file_type().unwrap().is_dir() {
                    count(entry.path())
                } else {
                    1
                }
            })
            .sum()
    }
    count(blobs.root())
}

#[tokio::test]
async fn a_blob_is_named_by_its_bytes_and_stored_once() {
    let (_directory, blobs) = open();
    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let stored = blobs.put(&bytes[..], u64::MAX).await.unwrap();
    assert_eq!(
        (stored.id.clone(), stored.size),
        (BlobId::of(&bytes), bytes.len() as u64)
    );
    assert_eq!(blobs.put_bytes(&bytes).await.unwrap(), stored);
    assert_eq!(files(&blobs), 1);
    let mut read = Vec::new();
    blobs
        .get(&stored.id)
        .await
        .unwrap()
        .read_to_end(&mut read)
        .await
        .unwrap();
    assert!(read == bytes);
    assert_eq!(blobs.list().unwrap(), std::slice::from_ref(&stored));
    blobs.delete(&stored.id).unwrap();
    blobs.delete(&stored.id).unwrap();
    assert!(matches!(blobs.get(&stored.id).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    let (_directory, blobs) = open();
    assert!(matches!(
        blobs.put(&b"12345"[..], 4).await,
        Err(Error::TooLarge { limit: 4 })
    ));
    let mut writer = blobs.writer(None, 100).unwrap();
    writer.write(b"one").await.unwrap();
    let error = writer.finish(Some(&BlobId::of(b"another"))).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    drop(blobs.writer(None, 100).unwrap());
    assert_eq!(files(&blobs), 0);

    let greedy = Blobs::open(blobs.root(), Options { reserve: u64::MAX }).unwrap();
    assert!(matches!(greedy.put_bytes(b"x").await, Err(Error::Full { .. })));
    assert_eq!(files(&blobs), 0);
}

#[tokio::test]
async fn damage_is_noticed() {
    let (_directory, blobs) = open();
    for size in [10, 600_000] {
        let stored = blobs.put_bytes(&vec![7; size]).await.unwrap();
        let path = blobs.path(&stored.id).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let mut read = Vec::new();
        blobs
            .get(&stored.id)
            .await
            .unwrap()
            .read_to_end(&mut read)
            .await
            .unwrap_err();
        assert!(read.len() < size, "the last bytes are withheld");
        assert!(matches!(
            blobs.read(&stored.id, u64::MAX).await,
            Err(Error::Damaged { .. })
        ));
        std::fs::write(&path, &bytes[..size - 1]).unwrap();
        blobs
            .get(&stored.id)
            .await
            .unwrap()
            .read_to_end(&mut read)
            .await
            .unwrap_err();
    }
}

#[tokio::test]
async fn sealed_blobs_open_with_their_key_only() {
    let (_directory, blobs) = open();
    let key = SealKey::new([1; 32]);
    let stored = blobs.put_sealed(&key, b"password: hunter2").await.unwrap();
    assert_eq!(
        blobs.read_sealed(&key, &stored.id, 100).await.unwrap(),
        b"password: hunter2"
    );
    assert!(matches!(
        blobs.read_sealed(&SealKey::new([2; 32]), &stored.id, 100).await,
        Err(Error::Unseal(_))
    ));
    assert!(matches!(
        blobs.read(&stored.id, 100).await,
        Err(Error::Form { .. })
    ));
    assert!(blobs.path(&stored.id).is_none());
    let sealed = blobs
        .root()
        .join(&stored.id.as_str()[..2])
        .join(&stored.id.as_str()[2..4]);
    let file = sealed.read_dir_utf8().unwrap().next().unwrap().unwrap();
    let on_disk = std::fs::read(file.path()).unwrap();
    assert!(!on_disk.windows(7).any(|bytes| bytes == b"hunter2"));
}

#[tokio::test]
async fn garbage_is_what_is_neither_marked_nor_young() {
    let (_directory, blobs) = open();
    let kept = blobs.put_bytes(b"kept").await.unwrap().id;
    let garbage = blobs.put_bytes(b"garbage").await.unwrap().id;
    let again = blobs.put_bytes(b"stored again").await.unwrap().id;
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for id in [&kept, &garbage, &again] {
        let file = std::fs::File::options()
            .write(true)
            .open(blobs.path(id).unwrap())
            .unwrap();
        file.set_modified(old).unwrap();
    }
    let young = blobs.put_bytes(b"young").await.unwrap().id;
    blobs.put_bytes(b"stored again").await.unwrap();
    let keep = HashSet::from([kept.clone()]);
    let swept = blobs.sweep(&keep, Duration::from_secs(3600)).unwrap();
    assert_eq!((swept.removed, swept.bytes, swept.kept), (1, 7, 3));
    for (id, there) in [(&kept, true), (&garbage, false), (&again, true), (&young, true)] {
        assert_eq!(blobs.contains(id), there);
    }
}

#[tokio::test]
async fn a_start_clears_what_was_left_long_ago_and_nothing_that_is_being_written() {
    let (_directory, blobs) = open();
    let left = std::fs::File::create(blobs.root().join("tmp/left")).unwrap();
    let long_ago = left.metadata().unwrap().modified().unwrap() - Duration::from_secs(2 * 3600);
    left.set_modified(long_ago).unwrap();
    std::fs::write(blobs.root().join("tmp/half"), "by another member").unwrap();
    let blobs = Blobs::open(blobs.root(), Options::default()).unwrap();
    assert!(!blobs.root().join("tmp/left").exists());
    assert!(blobs.root().join("tmp/half").exists());
}

struct Server {
    _directory: Utf8TempDir,
    blobs: Blobs,
    signer: Signer,
    clock: Clock,
    url: String,
    client: reqwest::Client,
}

async fn serve() -> Server {
    let (directory, blobs) = open();
    let signer = Signer::new(&Secret::new(vec![9; 32]));
    let clock = Clock::manual("2026-11-21T00:00:00Z".parse().unwrap());
    let router = signed::router(signed::Config {
        blobs: blobs.clone(),
        signer: signer.clone(),
        clock: clock.clone(),
        max_upload: 1_000_000,
        seal_key: Some(SealKey::new([1; 32])),
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    stolos_base::task::spawn(stolos_base::task::Kind::Service, "blobs", async move {
        axum::serve(listener, router).await
    });
    stolos_base::tls::install_provider();
    Server {
        _directory: directory,
        blobs,
        signer,
        clock,
        url,
        client: reqwest::Client::new(),
    }
}

impl Server {
    fn sign(&self, verb: Verb, id: &str) -> String {
        let now = self.clock.now().as_second();
        format!(
            "{}{}",
            self.url,
            self.signer.sign(verb, id, now, Duration::from_secs(60))
        )
    }

    async fn get(&self, url: &str) -> (u16, Vec<u8>) {
        let response = self.client.get(url).send().await.unwrap();
        (
            response.status().as_u16(),
            response.bytes().await.unwrap().to_vec(),
        )
    }

    async fn put(&self, url: &str, bytes: Vec<u8>) -> u16 {
        self.client
            .put(url)
            .body(bytes)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    }
}

#[tokio::test]
async fn signed_urls_read_and_write_one_blob_for_a_while() {
    let server = serve().await;
    let id = BlobId::of(b"hello");
    let put = server.sign(Verb::Put, id.as_str());
    assert_eq!(server.put(&put, b"not hello".to_vec()).await, 400);
    assert_eq!(server.put(&put, b"hello".to_vec()).await, 201);
    assert_eq!(server.put(&put, b"hello".to_vec()).await, 201);
    let get = server.sign(Verb::Get, id.as_str());
    assert_eq!(server.get(&get).await, (200, b"hello".to_vec()));
    assert_eq!(server.get(&put).await.0, 403, "one verb only");
    let other = get.replace(id.as_str(), BlobId::of(b"other").as_str());
    assert_eq!(server.get(&other).await.0, 403, "one blob only");
    assert_eq!(server.get(&get.replace("&e=60", "&e=6000")).await.0, 403);
    let missing = server.sign(Verb::Get, BlobId::of(b"missing").as_str());
    assert_eq!(server.get(&missing).await.0, 404);
    server.clock.advance(Duration::from_secs(61));
    assert_eq!(server.get(&get).await.0, 403, "expired");
}

#[tokio::test]
async fn an_upload_of_unknown_digest_is_found_by_its_name() {
    let server = serve().await;
    let name = "3f0c9a2e-logs".parse().unwrap();
    assert!(matches!(server.blobs.uploaded(&name), Err(Error::NoUpload(_))));
    let put = server.sign(Verb::Put, "3f0c9a2e-logs");
    assert_eq!(server.put(&put, b"logs".to_vec()).await, 201);
    assert_eq!(server.blobs.uploaded(&name).unwrap(), BlobId::of(b"logs"));
    let large = server.sign(Verb::Put, "large");
    assert_eq!(server.put(&large, vec![0; 1_000_001]).await, 413);
    // Without a length announced, too.
    let chunks = futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 100_000])));
    let response = server
        .client
        .put(&large)
        .body(reqwest::Body::wrap_stream(chunks))
        .send()
        .await;
    assert!(response.map_or(true, |response| response.status() == 413));
    assert!(server.blobs.uploaded(&"large".parse().unwrap()).is_err());
}

#[tokio::test]
async fn sealed_blobs_are_served_in_clear_to_those_with_a_url() {
    let server = serve().await;
    let stored = server
        .blobs
        .put_sealed(&SealKey::new([1; 32]), b"secret")
        .await
        .unwrap();
    let get = server.sign(Verb::Get, stored.id.as_str());
    assert_eq!(server.get(&get).await, (200, b"secret".to_vec()));
}

/// Of a URL: path segments and query.
fn parts(url: &str) -> (String, String, signed::Shown) {
    let (path, query) = url.split_once('?').unwrap();
    let mut segments = path.rsplit('/');
    let (id, prefix) = (segments.next().unwrap(), segments.next().unwrap());
    let query: std::collections::HashMap<&str, &str> = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap())
        .collect();
    let shown = signed::Shown {
        st: query["st"].to_owned(),
        ts: query["ts"].parse().unwrap(),
        e: query["e"].parse().unwrap(),
        v: query.get("v").map(|v| v.parse().unwrap()),
    };
    (prefix.to_owned(), id.to_owned(), shown)
}

/// Every way of putting a border between the digits of `ts` and `e` elsewhere.
fn moved(ts: i64, e: u64) -> Vec<(i64, u64)> {
    let digits = format!("{ts}{e}");
    (1..digits.len())
        .filter_map(|at| Some((digits[..at].parse().ok()?, digits[at..].parse().ok()?)))
        .filter(|other| *other != (ts, e))
        .collect()
}

/// `ts=1&e=796100000060` under the signature of `ts=1796100000&e=60` was a URL without an end: nothing was between the fields
/// that were signed.
#[test]
fn no_border_between_signed_fields_can_be_moved() {
    let signer = Signer::new(&Secret::new(b"key".to_vec()));
    let (now, id) = (1_796_100_000, BlobId::of(b"hello").to_string());
    let url = signer.sign(Verb::Get, &id, now, Duration::from_secs(60));
    let (prefix, _, shown) = parts(&url);
    let check =
        |prefix: &str, id: &str, shown: &signed::Shown, now| signer.check(Verb::Get, prefix, id, shown, now);
    check(&prefix, &id, &shown, now + 60).unwrap();
    check(&prefix, &id, &shown, now + 61).unwrap_err();
    for form in [Some(2), None, Some(1)] {
        for (ts, e) in moved(shown.ts, shown.e) {
            let other = signed::Shown {
                ts,
                e,
                v: form,
                ..shown.clone()
            };
            check(&prefix, &id, &other, now).expect_err("digits of `ts` in `e`, or the other way round");
        }
    }
    for n in 1..id.len() {
        let (other_prefix, other_id) = (format!("{prefix}/{}", &id[..n]), &id[n..]);
        check(&other_prefix, other_id, &shown, now).expect_err("a part of the name in another field");
    }
    let other = signed::Shown {
        ts: shown.ts / 10,
        ..shown.clone()
    };
    check(&prefix, &format!("{id}{}", shown.ts % 10), &other, now).expect_err("a digit in the name");
}

/// Whoever asks for more gets the longest; numbers at their ends do not wrap.
#[test]
fn no_url_holds_longer_than_the_longest() {
    let signer = Signer::new(&Secret::new(b"key".to_vec()));
    let now = 1_796_100_000;
    let longest = i64::try_from(signed::LONGEST_VALIDITY.as_secs()).unwrap();
    let url = signer.sign(Verb::Put, "logs", now, Duration::MAX);
    let (prefix, id, shown) = parts(&url);
    signer
        .check(Verb::Put, &prefix, &id, &shown, now + longest)
        .unwrap();
    let late = signer.check(Verb::Put, &prefix, &id, &shown, now + longest + 1);
    assert_eq!(late, Err(signed::Refused::Expired));
    for signed_at in [i64::MAX, i64::MIN, -1] {
        let (prefix, id, shown) = parts(&signer.sign(Verb::Put, "logs", signed_at, Duration::MAX));
        signer.check(Verb::Put, &prefix, &id, &shown, now).unwrap_err();
    }
}

/// A manager before the change has signed with nothing between the fields, as BOSH's nginx module does (put together by hand
/// here). Machines that have such a URL get their blob, and nobody gets more out of it.
#[test]
fn urls_of_bosh_s_form_are_read_to_their_end_in_one_way_only() {
    use base64::Engine as _;
    let signer = Signer::new(&Secret::new(b"key".to_vec()));
    let (now, e, id) = (1_700_000_000, 86_400, BlobId::of(b"hello").to_string());
    let sha1 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, id.as_bytes());
    let prefix = hex::encode(sha1)[..2].to_owned();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"key");
    let shown = |verb: &str, ts: i64, e: u64| {
        let tag = aws_lc_rs::hmac::sign(&key, format!("{verb}{prefix}/{id}{now}86400").as_bytes());
        let st = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(tag);
        signed::Shown { st, ts, e, v: None }
    };
    let check = |verb, shown: &signed::Shown, at| signer.check(verb, &prefix, &id, shown, at);
    check(Verb::Get, &shown("GET", now, e), now + 86_400).unwrap();
    check(Verb::Get, &shown("GET", now, e), now + 86_401).unwrap_err();
    check(Verb::Put, &shown("PUT", now, e), now).unwrap_err();
    for (ts, e) in moved(now, e) {
        for at in [ts, now, now + 86_401, i64::MAX] {
            let result = check(Verb::Get, &shown("GET", ts, e), at);
            assert!(result.is_err(), "ts={ts}&e={e} at {at}");
        }
    }
}
