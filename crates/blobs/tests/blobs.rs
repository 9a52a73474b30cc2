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
    // The signature covers the numbers without a separator: a digit moved to the other side must not give more time.
    let moved = get.replacen("&e=60", "&e=0", 1).replacen("&e=", "6&e=", 1);
    assert_eq!(server.get(&moved).await.0, 403, "{moved}");
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

/// The signature as BOSH's nginx module computes it, put together by hand here.
#[test]
fn the_signature_is_bosh_s() {
    use base64::Engine as _;
    let id = "b2c3d1aa-0000-4000-8000-000000000001";
    let url =
        Signer::new(&Secret::new(b"key".to_vec())).sign(Verb::Get, id, 1_700_000_000, signed::USUAL_VALIDITY);
    let sha1 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, id.as_bytes());
    let prefix = hex::encode(sha1)[..2].to_owned();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"key");
    let tag = aws_lc_rs::hmac::sign(&key, format!("GET{prefix}/{id}170000000086400").as_bytes());
    let tag = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(tag);
    assert_eq!(
        url,
        format!("/signed/{prefix}/{id}?st={tag}&ts=1700000000&e=86400")
    );
}
