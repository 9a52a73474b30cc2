//! Who has what. Decided is by a key that nobody else ever gets; the name beside it is for people to read.
//!
//! A name goes on to another person once its owner is deleted, so nothing is ever decided by one. Rows of before there were keys have the
//! key `name:NAME`, which is nobody's, until `owners` has found out who that was.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stolos_api::token::Actor;
use stolos_base::ids::UserId;

/// A person: followed by the id.
const PERSON: &str = "user:";
/// A client that acts on its own: followed by its id, which belongs to the configuration.
const CLIENT: &str = "client:";
/// A name of which it is not known whose it is.
const NAME: &str = "name:";
/// A name whose owner is gone: nobody's for good.
const GONE: &str = "gone:";
/// This service itself.
const OURSELVES: &str = "stolos:";

/// What decides whose something is. `user:ID`, `client:ID`, or something that nobody is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// The key of a person.
    #[must_use]
    pub fn person(id: &str) -> Self {
        Self(format!("{PERSON}{id}"))
    }

    /// The key of a client.
    #[must_use]
    pub fn client(id: &str) -> Self {
        Self(format!("{CLIENT}{id}"))
    }

    /// The key of a name of which it is not known whose it is.
    #[must_use]
    pub fn unknown(name: &str) -> Self {
        Self(format!("{NAME}{name}"))
    }

    /// The key of a name whose owner is gone.
    #[must_use]
    pub fn gone(name: &str) -> Self {
        Self(format!("{GONE}{name}"))
    }

    /// A key as it was kept.
    #[must_use]
    pub fn kept(text: String) -> Self {
        Self(text)
    }

    /// As it is kept.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The person's id, where it is a person.
    #[must_use]
    pub fn person_id(&self) -> Option<&str> {
        self.0.strip_prefix(PERSON)
    }

    /// Whether it is known that nobody is meant.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.starts_with(GONE)
    }

    /// Whether it is a client.
    #[must_use]
    pub fn is_client(&self) -> bool {
        self.0.starts_with(CLIENT)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Somebody: the key that decides, the name that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// What the person types to log in, or the client's id.
    pub name: String,
    /// Who it is.
    pub key: Key,
}

impl Who {
    /// Somebody with a verified token.
    #[must_use]
    pub fn of(actor: &Actor) -> Self {
        Self {
            name: actor.name.clone(),
            key: match &actor.user_id {
                Some(id) => Key::person(id),
                None => Key::client(&actor.client),
            },
        }
    }

    /// A person.
    #[must_use]
    pub fn person(person: &Person) -> Self {
        Self {
            name: person.name.clone(),
            key: Key::person(&person.id),
        }
    }

    /// This service, under the name of what it does.
    #[must_use]
    pub fn ourselves(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            key: Key(format!("{OURSELVES}{name}")),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A person as the token service knows them now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The id, which nobody else ever gets.
    pub id: String,
    /// What the person types to log in.
    pub name: String,
    /// The groups; scopes are among them.
    pub groups: Vec<String>,
}

impl Person {
    /// When the person was made, which ids of ours say; none for an id of another kind.
    #[must_use]
    pub fn made_at(&self) -> Option<Timestamp> {
        let id: UserId = self.id.parse().ok()?;
        let (seconds, nanos) = id.as_uuid().get_timestamp()?.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanos).ok()?).ok()
    }

    /// Whether the person can have done something at a time. One of whom that is not known cannot: better nobody's than a stranger's.
    #[must_use]
    pub fn was_there(&self, at: Timestamp) -> bool {
        self.made_at().is_some_and(|made| made <= at)
    }

    /// Whether the person is in the group.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_cannot_have_done_what_is_older() {
        let person = |id: &str| Person {
            id: id.to_owned(),
            name: "alana".to_owned(),
            groups: Vec::new(),
        };
        // 2024-01-01T00:00:00Z in an id of version 7.
        let alana = person("018cc251-f400-7000-8000-000000000000");
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert_eq!(alana.made_at(), Some(at("2024-01-01T00:00:00Z")));
        assert!(alana.was_there(at("2024-01-01T00:00:01Z")));
        assert!(!alana.was_there(at("2023-12-31T23:59:59Z")));
        // An id that says nothing of its age gives nothing away.
        assert!(!person("6b1c2f0e-5a0f-4e8f-9d39-0b3a6f9f4a11").was_there(at("2030-01-01T00:00:00Z")));
        assert!(!person("alana").was_there(at("2030-01-01T00:00:00Z")));
    }

    #[test]
    fn a_client_is_nobody_of_the_same_name() {
        let actor = |user_id: Option<&str>| Actor {
            name: "ci".to_owned(),
            user_id: user_id.map(str::to_owned),
            client: "ci".to_owned(),
            scopes: Vec::new(),
        };
        let (client, person) = (Who::of(&actor(None)), Who::of(&actor(Some("ci"))));
        assert_eq!(client.name, person.name);
        assert_ne!(client.key, person.key);
        assert_ne!(client.key, Key::unknown("ci"));
    }
}
