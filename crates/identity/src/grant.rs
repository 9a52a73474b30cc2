//! `/oauth/token` by grant. Pure decisions over what the database says; the wire is in `http`.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use stolos_api::token::Claims;
use stolos_base::Secret;
use stolos_base::ids::random_hex;

use crate::Inner;
use crate::audiences;
use crate::db::{self, Client, RefreshToken, User};
use crate::error::{Error, OAuthError};
use crate::lockout::{Kind as SubjectKind, Subject, Verdict};
use crate::names::shortened;
use crate::source::Source;
use crate::tickets::{Kind, random_text};

/// A refresh token that was used is accepted once more for so long (milliseconds): two commands may refresh at once, and
/// an answer may be lost. After that, its use ends the login, because somebody has copied it.
const REUSE_GRACE: i64 = 60 * 1000;

/// The form of `/oauth/token`. What others send besides (`response_type`, `login_hint`) is tolerated.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Form {
    pub(crate) grant_type: String,
    pub(crate) client_id: Option<String>,
    pub(crate) client_secret: Option<Secret<String>>,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret<String>>,
    pub(crate) refresh_token: Option<Secret<String>>,
    /// In place of name and password: the one-time code of `/passcode`.
    pub(crate) passcode: Option<Secret<String>>,
    /// The code of `/oauth/authorize`, with where it went and what its challenge was made of.
    pub(crate) code: Option<Secret<String>>,
    pub(crate) redirect_uri: Option<String>,
    pub(crate) code_verifier: Option<Secret<String>>,
    pub(crate) scope: Option<String>,
    pub(crate) token_format: Option<String>,
    /// The one cluster that a log-in is for from now on; with a refresh token.
    pub(crate) audience: Option<String>,
}

/// The answer.
#[derive(Serialize)]
pub(crate) struct TokenReply {
    pub(crate) access_token: String,
    pub(crate) token_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refresh_token: Option<String>,
    pub(crate) expires_in: i64,
    pub(crate) scope: String,
    pub(crate) jti: String,
}

/// Who gets a token, and what it allows.
struct Grant<'a> {
    client: &'a Client,
    user: Option<&'a User>,
    scopes: Vec<String>,
    grant_type: &'a str,
    /// Seconds.
    auth_time: i64,
    /// The cluster that identity tokens are for; none for those of all clusters.
    audience: Option<String>,
}

impl Inner {
    /// Issues tokens to a client that has shown who it is.
    pub(crate) async fn token(
        &self,
        client: &Client,
        form: Form,
        source: &Source,
    ) -> Result<TokenReply, OAuthError> {
        if form.grant_type.is_empty() {
            return Err(OAuthError::InvalidRequest("Missing grant type".to_owned()));
        }
        if form.token_format.as_deref().is_some_and(|format| format != "jwt") {
            return Err(OAuthError::InvalidRequest(
                "Tokens are issued in the format jwt only".to_owned(),
            ));
        }
        let grant = form.grant_type.as_str();
        if !matches!(
            grant,
            "password" | "client_credentials" | "refresh_token" | "authorization_code"
        ) {
            return Err(OAuthError::UnsupportedGrant(grant.to_owned()));
        }
        if !client.grants.iter().any(|own| own == grant) {
            return Err(OAuthError::UnauthorizedGrant(grant.to_owned()));
        }
        match grant {
            "password" => self.password(client, form, source).await,
            "client_credentials" => self.client_credentials(client, &form),
            "authorization_code" => self.authorization_code(client, form).await,
            _ => self.refresh(client, form).await,
        }
    }

    fn client_credentials(&self, client: &Client, form: &Form) -> Result<TokenReply, OAuthError> {
        let scopes = choose(&client.authorities, None, form.scope.as_deref())?;
        let grant = Grant {
            client,
            user: None,
            scopes,
            grant_type: "client_credentials",
            auth_time: self.now(),
            audience: None,
        };
        Ok(self.issue(&grant)?)
    }

    /// By name and password, or by the code of `/passcode`, which stands for both.
    async fn password(&self, client: &Client, form: Form, source: &Source) -> Result<TokenReply, OAuthError> {
        let (user, auth_time) = match (form.passcode, form.username, form.password) {
            (Some(code), ..) => {
                let code = code.expose().trim().to_ascii_uppercase();
                let shown = self.use_ticket(Kind::Passcode, &code).await?;
                let shown = shown.ok_or(OAuthError::InvalidPasscode)?;
                (shown.user, shown.auth_time)
            }
            (None, Some(name), Some(password)) => {
                (self.check_user(&name, password, source).await?, self.now())
            }
            _ => {
                return Err(OAuthError::InvalidRequest(
                    "No username or password in the request".to_owned(),
                ));
            }
        };
        self.log_in(client, &user, form.scope.as_deref(), "password", auth_time)
            .await
    }

    /// By the code that a browser brought back. A code that is shown with anything wrong is void.
    async fn authorization_code(&self, client: &Client, form: Form) -> Result<TokenReply, OAuthError> {
        let (Some(code), Some(verifier)) = (form.code, form.code_verifier) else {
            return Err(OAuthError::InvalidRequest(
                "No code or code_verifier in the request".to_owned(),
            ));
        };
        let shown = self.use_ticket(Kind::Code, code.expose()).await?;
        let shown = shown.ok_or(OAuthError::InvalidCode)?;
        let made_of = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.expose().as_bytes());
        let detail = &shown.detail;
        let fits = detail.client == client.id
            && form.redirect_uri.as_deref() == Some(detail.redirect_uri.as_str())
            && detail.challenge == URL_SAFE_NO_PAD.encode(made_of.as_ref());
        if !fits {
            return Err(OAuthError::InvalidCode);
        }
        let scope = detail.scope.as_deref();
        self.log_in(client, &shown.user, scope, "authorization_code", shown.auth_time)
            .await
    }

    /// Tokens of somebody who has shown who it is.
    async fn log_in(
        &self,
        client: &Client,
        user: &User,
        scope: Option<&str>,
        grant_type: &str,
        auth_time: i64,
    ) -> Result<TokenReply, OAuthError> {
        let scopes = choose(&client.scopes, Some(&user.scopes), scope)?;
        let grant = Grant {
            client,
            user: Some(user),
            scopes,
            grant_type,
            auth_time,
            audience: None,
        };
        let mut reply = self.issue(&grant)?;
        if client.grants.iter().any(|own| own == "refresh_token") {
            let expires_at = self.clock.now_millis() + client.refresh_validity * 1000;
            let (token, row) = new_refresh_token(&grant, user, random_hex(16), expires_at);
            if !self.keep(&row, user).await? {
                return Err(OAuthError::BadCredentials);
            }
            reply.refresh_token = Some(token);
        }
        tracing::info!(user = %user.name, client = %client.id, "logged in");
        Ok(reply)
    }

    /// The user, if the password is right. An unknown name takes the same way and the same time as a wrong password.
    pub(crate) async fn check_user(
        &self,
        name: &str,
        password: Secret<String>,
        source: &Source,
    ) -> Result<User, OAuthError> {
        let user = db::user_by_name(&self.db, name).await?;
        let hash = user.as_ref().map(|user| user.password.clone());
        let subject = Subject::new(SubjectKind::User, name, source);
        let checked = self.attempt(&subject, password, hash).await;
        match (user, checked) {
            (Some(user), Ok(true)) if user.active => Ok(user),
            (_, Ok(_)) => {
                tracing::warn!(user = ?shortened(name), %source, "refused a login: bad credentials");
                Err(OAuthError::BadCredentials)
            }
            (_, Err(error)) => Err(error),
        }
    }

    /// Whether a secret has this hash. The attempt is counted first, and not forgotten before it has succeeded; without a hash it takes as long.
    pub(crate) async fn attempt(
        &self,
        subject: &Subject,
        secret: Secret<String>,
        hash: Option<String>,
    ) -> Result<bool, OAuthError> {
        // Nobody waits in line at a closed door.
        if let Some(until) = self.lockout.locked(subject).await? {
            return Err(OAuthError::Locked { until });
        }
        let turn = self.passwords.turn(subject.source()).await?;
        if let Verdict::Locked(until) = self.lockout.begin(subject).await? {
            return Err(OAuthError::Locked { until });
        }
        let fits = turn.fits(secret, hash).await?;
        if fits {
            self.lockout.succeeded(subject).await?;
        }
        Ok(fits)
    }

    async fn refresh(&self, client: &Client, form: Form) -> Result<TokenReply, OAuthError> {
        let Some(token) = form.refresh_token else {
            return Err(OAuthError::InvalidRequest(
                "No refresh token in the request".to_owned(),
            ));
        };
        let digest = digest(token.expose());
        let found = self.use_refresh_token(client, &digest).await?;
        let row = found.ok_or(OAuthError::InvalidRefreshToken)?;
        let user = db::user_by_id(&self.db, row.user)
            .await?
            .filter(|user| user.password == row.password && user.active)
            .ok_or(OAuthError::InvalidRefreshToken)?;
        // What the user has lost since the login is lost; what was gained needs a new login.
        let kept: Vec<String> = row
            .scopes
            .iter()
            .filter(|scope| client.scopes.contains(scope))
            .cloned()
            .collect();
        let scopes = choose(&kept, Some(&user.scopes), form.scope.as_deref())?;
        let grant = Grant {
            client,
            user: Some(&user),
            scopes,
            grant_type: "refresh_token",
            auth_time: row.auth_time,
            audience: audiences::of_login(&self.db, client, &row, form.audience.as_deref()).await?,
        };
        let mut reply = self.issue(&grant)?;
        let (token, next) = new_refresh_token(&grant, &user, row.login.clone(), row.expires_at);
        // The login's own scopes stay, so that a narrower request is not for ever.
        let next = RefreshToken {
            scopes: row.scopes,
            ..next
        };
        if !self.keep(&next, &user).await? {
            return Err(OAuthError::InvalidRefreshToken);
        }
        reply.refresh_token = Some(token);
        Ok(reply)
    }

    /// Keeps a token of a user as it was when the login was checked; whether that user is still so. A new password ends all logins, those that are
    /// under way among them.
    async fn keep(&self, token: &RefreshToken, user: &User) -> Result<bool, Error> {
        let mut tx = self.db.begin("keep a refresh token").await?;
        if !db::has_password(&mut tx, user).await? {
            return Ok(false);
        }
        db::insert_refresh_token(&mut tx, token).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// The token, if this client may use it now. The use of one that was used long ago ends its login.
    async fn use_refresh_token(&self, client: &Client, digest: &str) -> Result<Option<RefreshToken>, Error> {
        let mut tx = self.db.begin("use a refresh token").await?;
        let now = tx.now_millis();
        let found = db::refresh_token(&mut tx, digest).await?;
        let Some(row) = found.filter(|row| row.client == client.id && row.expires_at > now) else {
            return Ok(None);
        };
        let is_copied = row.used_at.is_some_and(|used_at| now - used_at > REUSE_GRACE);
        if is_copied {
            tracing::warn!(user = %row.user, "a refresh token was used again: its login is ended");
            db::end_login(&mut tx, &row.login).await?;
        } else {
            db::use_refresh_token(&mut tx, &row.digest).await?;
        }
        tx.commit().await?;
        Ok((!is_copied).then_some(row))
    }

    /// Seconds.
    pub(crate) fn now(&self) -> i64 {
        self.clock.now().as_second()
    }

    /// Access token and, with the scope `openid`, identity token.
    fn issue(&self, grant: &Grant<'_>) -> Result<TokenReply, Error> {
        let jti = random_hex(16);
        let claims = self.claims(grant, jti.clone());
        let id_token = match grant.user {
            Some(user) if grant.scopes.iter().any(|scope| scope == "openid") => {
                let claims = Claims {
                    jti: random_hex(16),
                    aud: vec![grant.audience.clone().unwrap_or_else(|| grant.client.id.clone())],
                    roles: grant
                        .scopes
                        .iter()
                        .any(|scope| scope == "roles")
                        .then(|| roles(user, grant.audience.is_some())),
                    ..claims.clone()
                };
                Some(self.signing.sign(&claims, &self.jku)?)
            }
            _ => None,
        };
        Ok(TokenReply {
            access_token: self.signing.sign(&claims, &self.jku)?,
            token_type: "bearer",
            id_token,
            refresh_token: None,
            expires_in: grant.client.access_validity,
            scope: grant.scopes.join(" "),
            jti,
        })
    }

    fn claims(&self, grant: &Grant<'_>, jti: String) -> Claims {
        let client = &grant.client.id;
        let now = self.now();
        Claims {
            jti,
            sub: grant
                .user
                .map_or_else(|| client.clone(), |user| user.id.to_string()),
            authorities: if grant.user.is_none() {
                grant.scopes.clone()
            } else {
                Vec::new()
            },
            aud: audience(client, &grant.scopes),
            scope: grant.scopes.clone(),
            client_id: client.clone(),
            cid: client.clone(),
            azp: client.clone(),
            grant_type: grant.grant_type.to_owned(),
            user_id: grant.user.map(|user| user.id.to_string()),
            origin: grant.user.map(|_| "uaa".to_owned()),
            user_name: grant.user.map(|user| user.name.clone()),
            email: grant.user.map(|user| user.email.clone()),
            auth_time: grant.user.map(|_| grant.auth_time),
            rev_sig: revocation_signature(grant.client, grant.user),
            iat: now,
            exp: now + grant.client.access_validity,
            nbf: None,
            iss: self.issuer.clone(),
            zid: "uaa".to_owned(),
            roles: None,
        }
    }
}

/// Of what is allowed (and, for a user, of the user's own) what was asked for, or all.
fn choose(
    allowed: &[String],
    own: Option<&[String]>,
    asked: Option<&str>,
) -> Result<Vec<String>, OAuthError> {
    let asked: BTreeSet<&str> = asked.unwrap_or_default().split_whitespace().collect();
    let chosen: Vec<String> = allowed
        .iter()
        .filter(|scope| own.is_none_or(|own| own.contains(scope)))
        .filter(|scope| asked.is_empty() || asked.contains(scope.as_str()))
        .cloned()
        .collect();
    if chosen.is_empty() {
        let text = if asked.is_empty() {
            "None of the client's scopes may be had".to_owned()
        } else {
            format!("{asked:?} is invalid. None of the requested scopes may be had")
        };
        return Err(OAuthError::InvalidScope(text));
    }
    Ok(chosen)
}

/// The groups that clusters hear of. One cluster alone hears nothing of what its user may do in the installation.
fn roles(user: &User, of_cluster: bool) -> Vec<String> {
    let is_ours = |scope: &String| crate::ADMINISTRATOR_SCOPES.contains(&scope.as_str());
    let scopes = user.scopes.iter().filter(|scope| !of_cluster || !is_ours(scope));
    scopes.cloned().collect()
}

/// Of each scope what is before its last dot, and the client.
fn audience(client: &str, scopes: &[String]) -> Vec<String> {
    let mut audience: BTreeSet<&str> = scopes
        .iter()
        .filter_map(|scope| scope.rsplit_once('.').map(|(resource, _)| resource))
        .collect();
    audience.insert(client);
    audience.into_iter().map(str::to_owned).collect()
}

/// Changes with the client's secret and the user's password: tokens with an older one are void ([`crate::standing`]).
pub(crate) fn revocation_signature(client: &Client, user: Option<&User>) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    context.update(client.id.as_bytes());
    context.update(client.secret.as_deref().unwrap_or_default().as_bytes());
    if let Some(user) = user {
        context.update(user.password.as_bytes());
        context.update(user.name.as_bytes());
    }
    hex::encode(&context.finish().as_ref()[..4])
}

/// Refresh tokens are random and end with `-r`, as UAA's opaque ones do.
fn new_refresh_token(
    grant: &Grant<'_>,
    user: &User,
    login: String,
    expires_at: i64,
) -> (String, RefreshToken) {
    let token = format!("{}-r", random_text());
    let row = RefreshToken {
        digest: digest(&token),
        login,
        user: user.id,
        client: grant.client.id.clone(),
        scopes: grant.scopes.clone(),
        auth_time: grant.auth_time,
        expires_at,
        used_at: None,
        password: user.password.clone(),
    };
    (token, row)
}

/// The token is random, so a plain digest keeps it secret.
pub(crate) fn digest(token: &str) -> String {
    hex::encode(aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA256,
        token.as_bytes(),
    ))
}
