//! Members of etcd that give snapshots of nothing.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aws_lc_rs::digest;
use futures::future::{BoxFuture, ready};
use stolos_base::{Class, Classify};
use stolos_clusters::deps::AdminCredential;
use stolos_clusters::{Error, Result};
use stolos_kubernetes::snapshot::MemberStatus;
use stolos_server::cluster_backups::{Begun, Etcd};
use tokio::io::AsyncRead;

/// The size of a snapshot before its digest.
const SIZE: usize = 64 * 1024;

/// All members of all clusters.
#[derive(Debug, Default)]
pub struct SimulatedEtcd {
    /// While this is set, no member has a majority.
    pub broken: AtomicBool,
    taken: AtomicU64,
}

/// What a member says that has no majority.
#[derive(Debug, thiserror::Error)]
#[error("etcdserver: no leader")]
struct NoLeader;

impl Classify for NoLeader {
    fn class(&self) -> Class {
        Class::Unavailable
    }
}

impl Etcd for SimulatedEtcd {
    fn snapshot<'a>(&'a self, _: Ipv4Addr, _: &'a AdminCredential) -> BoxFuture<'a, Result<Begun>> {
        if self.broken.load(Ordering::Relaxed) {
            return Box::pin(ready(Err(Error::service("back the cluster's etcd up", NoLeader))));
        }
        let n = self.taken.fetch_add(1, Ordering::Relaxed);
        let mut bytes = vec![u8::try_from(n % 251).unwrap_or_default(); SIZE];
        // As a bolt file begins.
        bytes[16..20].copy_from_slice(&0xED0C_DAED_u32.to_le_bytes());
        let trailer = digest::digest(&digest::SHA256, &bytes);
        bytes.extend_from_slice(trailer.as_ref());
        let status = MemberStatus {
            revision: i64::try_from(n).unwrap_or_default() + 100,
            version: "3.6.16".to_owned(),
            voters: 1,
            size: bytes.len() as u64,
        };
        let reader: Box<dyn AsyncRead + Send + Unpin> = Box::new(std::io::Cursor::new(bytes));
        Box::pin(ready(Ok((status, reader))))
    }
}
