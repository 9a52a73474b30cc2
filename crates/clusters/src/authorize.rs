//! Who may do what. The table is that of PKS (reference: scopes `pks.clusters.admin`, `.manage`, `.admin.read`).

use stolos_api::token::Actor;

use crate::db::Whose;
use crate::error::{Error, Result};
use crate::who::Who;

/// All clusters, reading and writing.
pub(crate) const ADMIN: &str = "pks.clusters.admin";
/// Own clusters, reading and writing.
pub(crate) const MANAGE: &str = "pks.clusters.manage";
/// All clusters, reading.
pub(crate) const ADMIN_READ: &str = "pks.clusters.admin.read";

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// See plans.
    Plans,
    /// See clusters, at least one's own.
    Read,
    /// Change clusters, at least one's own.
    Manage,
    /// See everybody's clusters.
    ReadAll,
    /// Change everybody's clusters.
    ManageAll,
    /// See and change quotas.
    Quotas,
    /// Make and delete network and compute profiles.
    Profiles,
}

/// Somebody with a verified token.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    who: Who,
    actor: Actor,
}

impl Caller {
    /// Takes a verified actor.
    #[must_use]
    pub(crate) fn new(actor: Actor) -> Self {
        Self {
            who: Who::of(&actor),
            actor,
        }
    }

    /// The user or client: the owner of what it makes.
    #[must_use]
    pub(crate) fn who(&self) -> &Who {
        &self.who
    }

    /// The user's or client's name.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.who.name
    }

    /// Whether it is a person, not a client on its own.
    #[must_use]
    pub(crate) fn is_person(&self) -> bool {
        self.actor.user_id.is_some()
    }

    /// Whether the caller has the right.
    ///
    /// # Errors
    /// [`Error::Denied`].
    pub(crate) fn may(&self, right: Right) -> Result<()> {
        if self.has(right) {
            Ok(())
        } else {
            Err(Error::Denied)
        }
    }

    /// Everybody's clusters with the right, else one's own.
    #[must_use]
    pub(crate) fn own(&self, right: Right) -> Whose<'_> {
        if self.has(right) {
            Whose::All
        } else {
            Whose::Of(&self.who.key)
        }
    }

    /// Whether the caller has the right.
    pub(crate) fn has(&self, right: Right) -> bool {
        let any = |scopes: &[&str]| {
            scopes
                .iter()
                .any(|scope| self.actor.scopes.iter().any(|own| own == scope))
        };
        match right {
            Right::Plans | Right::Read => any(&[ADMIN, MANAGE, ADMIN_READ]),
            Right::Manage => any(&[ADMIN, MANAGE]),
            Right::ReadAll => any(&[ADMIN, ADMIN_READ]),
            Right::ManageAll | Right::Quotas | Right::Profiles => any(&[ADMIN]),
        }
    }
}
