//! Passwords and locked accounts.

use stolos_api::identity::{self, Client, WRONG_PASSWORD};
use stolos_base::Secret;

use super::login::current;
use super::sign_in::{locked, new_password, own_password};
use super::users::{failed, known, service};
use crate::args::{ChangePassword, Id, ResetPassword};
use crate::failure::Failure;
use crate::output;
use crate::session;

/// `stolos change-password`
pub(crate) async fn change(args: &ChangePassword) -> Result<(), Failure> {
    let both = [&args.old_password_file, &args.password_file];
    if both
        .iter()
        .all(|file| file.as_ref().is_some_and(|path| path == "-"))
    {
        return Err(Failure::user("both passwords are to come from standard input")
            .hint("Put one of them into a file."));
    }
    let (mut session, http) = current().await?;
    let service = Client::new(&session.identity, http);
    let token = Secret::from(session.access_token.as_str());
    let id = user_of(&token)?;
    let old = own_password(args.old_password_file.as_deref(), "Present password: ")?;
    let new = new_password(args.password_file.as_deref())?;
    service
        .set_password(&token, &id, Some(&old), &new)
        .await
        .map_err(refused)?;
    // The session has ended with the password that began it.
    let tokens = service
        .password(identity::PKS_CLI, &session.username, &new)
        .await
        .map_err(|error| {
            Failure::from_error(&error).hint(format!(
                "The password has been changed. Log in with it: `{} login`.",
                crate::program_name()
            ))
        })?;
    session.access_token = tokens.access_token.expose().clone();
    session.refresh_token = tokens
        .refresh_token
        .map(|token| token.expose().clone())
        .unwrap_or_default();
    session::save(&session)?;
    output::data("Password successfully changed");
    output::note("Sessions elsewhere have ended; kubeconfigs of `get-kubeconfig` need a new one.");
    Ok(())
}

/// `stolos reset-password NAME`
pub(crate) async fn reset(args: &ResetPassword) -> Result<(), Failure> {
    let (service, token) = service().await?;
    let user = known(&service, &token, &args.name).await?;
    if user_of(&token).is_ok_and(|own| own == user.id) {
        return Err(Failure::user(format!("`{}` is you", args.name))
            .hint("Your own password is changed with `change-password`."));
    }
    let password = new_password(args.password_file.as_deref())?;
    service
        .set_password(&token, &user.id, None, &password)
        .await
        .map_err(failed)?;
    output::data(&format!("Password of {} successfully reset", args.name));
    output::note("The user's sessions have ended, and the account is not locked any more.");
    Ok(())
}

/// `stolos unlock-user NAME`
pub(crate) async fn unlock(args: &Id) -> Result<(), Failure> {
    let (service, token) = service().await?;
    let user = known(&service, &token, &args.id).await?;
    service.unlock_user(&token, &user.id).await.map_err(failed)?;
    output::data(&format!("User {} successfully unlocked", args.id));
    Ok(())
}

/// Whose token it is.
fn user_of(token: &Secret<String>) -> Result<String, Failure> {
    stolos_api::token::peek(token.expose())
        .ok()
        .and_then(|claims| Some(claims.get("user_id")?.as_str()?.to_owned()))
        .ok_or_else(|| {
            Failure::user("this session is a client's, which has no password").hint("Log in as a user.")
        })
}

/// A wrong password is not the end of the session, although the status is the same.
fn refused(error: stolos_api::Error) -> Failure {
    if let Some(locked) = locked(&error) {
        return locked;
    }
    match error.refusal() {
        Some(refusal) if refusal.status == 401 && refusal.message == WRONG_PASSWORD => {
            Failure::user("the present password is wrong; nothing was changed")
        }
        _ => failed(error),
    }
}
