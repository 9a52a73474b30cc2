//! What a browser gets after a login: a session for its pages, and from there one-time codes for command lines.
//!
//! A ticket is a random text; the database has its digest. Sessions are looked at again and again, codes work once.

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::Inner;
use crate::db::{self, TicketRow, User};
use crate::error::{Error, Result};
use crate::grant::digest;

/// Letters and digits that nobody mixes up; 31 of them, so a passcode of ten has 49 bits.
const PASSCODE_LETTERS: &[u8; 31] = b"ABCDEFGHJKMNPQRSTUVWXYZ23456789";
const PASSCODE_LENGTH: usize = 10;

/// What a ticket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A browser that has logged in.
    Session,
    /// A code that a person types into a command line.
    Passcode,
    /// A code that a browser hands to a command line (RFC 6749, section 4.1).
    Code,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Passcode => "passcode",
            Self::Code => "code",
        }
    }

    /// Seconds. That of sessions is UAA's; codes are used at once.
    pub(crate) fn lives(self) -> i64 {
        match self {
            Self::Session => 1800,
            Self::Passcode | Self::Code => 300,
        }
    }
}

/// To whom a [`Kind::Code`] was given; empty for the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Detail {
    pub(crate) client: String,
    pub(crate) redirect_uri: String,
    /// `BASE64URL(SHA256(verifier))` (RFC 7636).
    pub(crate) challenge: String,
    pub(crate) scope: Option<String>,
}

/// A ticket that was shown.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) user: User,
    pub(crate) detail: Detail,
    /// When the person typed the password, in seconds.
    pub(crate) auth_time: i64,
}

impl Inner {
    /// Makes a ticket for a person; `None` when that one has gone or has another password since the login was checked.
    pub(crate) async fn give_ticket(
        &self,
        kind: Kind,
        user: &User,
        auth_time: i64,
        detail: &Detail,
    ) -> Result<Option<String>> {
        let text = match kind {
            Kind::Session | Kind::Code => random_text(),
            Kind::Passcode => passcode(),
        };
        let row = TicketRow {
            digest: digest(&text),
            kind: kind.name(),
            user: user.id,
            detail: serde_json::to_string(detail).expect("texts serialize"),
            auth_time,
            expires_at: self.clock.now_millis() + kind.lives() * 1000,
            password: user.password.clone(),
        };
        let mut tx = self.db.begin("give a ticket").await?;
        if !db::has_password(&mut tx, user).await? {
            return Ok(None);
        }
        db::insert_ticket(&mut tx, &row).await?;
        tx.commit().await?;
        Ok(Some(text))
    }

    /// Whose ticket it is, if it is valid.
    pub(crate) async fn look_at_ticket(&self, kind: Kind, text: &str) -> Result<Option<Shown>> {
        let now = self.clock.now_millis();
        let Some(row) = db::ticket(&self.db, kind.name(), &digest(text), now).await? else {
            return Ok(None);
        };
        let user = db::user_by_id(&self.db, row.user).await?;
        let Some(user) = user.filter(|user| user.password == row.password && user.active) else {
            return Ok(None);
        };
        Ok(Some(Shown {
            user,
            detail: serde_json::from_str(&row.detail).map_err(|_| Error::Corrupt("a ticket"))?,
            auth_time: row.auth_time,
        }))
    }

    /// The same, and it is void from then on.
    pub(crate) async fn use_ticket(&self, kind: Kind, text: &str) -> Result<Option<Shown>> {
        let Some(shown) = self.look_at_ticket(kind, text).await? else {
            return Ok(None);
        };
        let mut tx = self.db.begin("use a ticket").await?;
        let was_there = db::delete_ticket(&mut tx, &digest(text)).await?;
        tx.commit().await?;
        Ok(was_there.then_some(shown))
    }
}

/// 32 random bytes.
pub(crate) fn random_text() -> String {
    let mut bytes = [0_u8; 32];
    rand::fill(&mut bytes).expect("the operating system gives random bytes");
    URL_SAFE_NO_PAD.encode(bytes)
}

fn passcode() -> String {
    let mut code = String::with_capacity(PASSCODE_LENGTH);
    // 248 is the largest multiple of 31 in a byte: what is above would make some letters likelier.
    let fair = 248;
    while code.len() < PASSCODE_LENGTH {
        let mut byte = [0_u8];
        rand::fill(&mut byte).expect("the operating system gives random bytes");
        if byte[0] < fair {
            code.push(char::from(
                PASSCODE_LETTERS[usize::from(byte[0]) % PASSCODE_LETTERS.len()],
            ));
        }
    }
    code
}
