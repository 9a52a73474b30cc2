//! Typed ids, all kinds in one list, and the source that makes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// Declares one id type per kind: a UUID that cannot be mistaken for another kind's.
macro_rules! id_kinds {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id from the given source.
            #[must_use]
            pub fn new(ids: &IdSource) -> Self {
                Self(ids.next())
            }

            /// The UUID below.
            #[must_use]
            pub fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )*};
}

id_kinds! {
    /// The agent of one machine; also the key that makes `create_vm` repeatable.
    AgentId,
    /// The taking of a cluster's backup.
    BackupRunId,
    /// A Kubernetes cluster of ours; PKS calls it the service instance.
    ClusterId,
    /// A credential; one per version.
    CredentialId,
    /// A director installation; `director_uuid` on BOSH's wires.
    DirectorId,
    /// One run of a flow.
    FlowId,
    /// A BOSH instance: it outlives the machines that play it.
    InstanceId,
    /// What a person asked of a cluster.
    OperationId,
    /// A network, compute or Kubernetes profile.
    ProfileId,
    /// An upgrade of several clusters; PKS calls it a task.
    UpgradeId,
    /// A person who can log in.
    UserId,
    // new kinds go above this line, in alphabetical order
}

/// Where ids come from: random on a real system, counted in tests.
#[derive(Clone, Debug, Default)]
pub struct IdSource(Kind);

#[derive(Clone, Debug, Default)]
enum Kind {
    #[default]
    Random,
    Counted(Arc<AtomicU64>),
}

impl IdSource {
    /// Random ids, ordered by time of making (UUID version 7).
    #[must_use]
    pub fn random() -> Self {
        Self(Kind::Random)
    }

    /// 00000000-0000-7000-8000-000000000001, …2 and so on; for tests.
    #[must_use]
    pub fn counted() -> Self {
        Self(Kind::Counted(Arc::new(AtomicU64::new(1))))
    }

    /// The next id.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that makes random ids"
    )]
    pub fn next(&self) -> Uuid {
        match &self.0 {
            Kind::Random => Uuid::now_v7(),
            Kind::Counted(n) => {
                let n = u128::from(n.fetch_add(1, Ordering::SeqCst));
                Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0000 | n)
            }
        }
    }
}

/// `n` random bytes from the operating system, as lower-case hex: for nonces, host object names and the like.
///
/// # Panics
/// When the operating system has no randomness to give; nothing can go on safely then.
#[must_use]
pub fn random_hex(n: usize) -> String {
    let mut bytes = vec![0_u8; n];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    hex::encode(bytes)
}
