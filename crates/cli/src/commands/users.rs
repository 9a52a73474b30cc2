//! Users and their groups. With PKS that was `uaac`.

use stolos_api::identity::{Client, User};
use stolos_base::{Class, Classify as _, Secret};

use super::clusters::confirm;
use super::login::{current, pks_client};
use super::sign_in::new_password;
use crate::args::{CreateUser, DeleteProfile, DeleteUser, Id, Json, Member};
use crate::failure::Failure;
use crate::output;

/// The token service, and the session's token.
pub(super) async fn service() -> Result<(Client, Secret<String>), Failure> {
    let (session, http) = current().await?;
    let token = Secret::from(session.access_token.as_str());
    Ok((Client::new(&session.identity, http), token))
}

/// A session that may not is told so in PKS's words.
pub(super) fn failed(error: stolos_api::Error) -> Failure {
    match error.class() {
        Class::Denied => Failure::user(
            "You do not have enough privileges to perform this action. Please contact the PKS administrator.",
        ),
        _ => Failure::of_api(&error),
    }
}

/// `stolos users`
pub(crate) async fn list(args: &Json) -> Result<(), Failure> {
    let (service, token) = service().await?;
    let users = service.users(&token).await.map_err(failed)?;
    if args.json {
        return output::json(&users);
    }
    output::data(&table(&users));
    Ok(())
}

fn table(users: &[User]) -> String {
    let rows: Vec<Vec<String>> = users
        .iter()
        .map(|user| {
            let groups: Vec<&str> = user.groups.iter().map(|group| group.display.as_str()).collect();
            vec![
                user.user_name.clone(),
                user.emails
                    .first()
                    .map(|email| email.value.clone())
                    .unwrap_or_default(),
                groups.join(" "),
            ]
        })
        .collect();
    output::table(&["Name", "Mail", "Groups"], &rows)
}

/// `stolos create-user NAME`
pub(crate) async fn create(args: &CreateUser) -> Result<(), Failure> {
    let (service, token) = service().await?;
    let password = new_password(args.password_file.as_deref())?;
    let made = service
        .create_user(&token, &args.name, args.email.as_deref(), &password)
        .await
        .map_err(failed)?;
    for group in &args.groups {
        service
            .set_member(&token, group, &made.id, true)
            .await
            .map_err(|error| {
                failed(error).hint(format!(
                    "The user is there; go on with `add-member {group} {}`.",
                    args.name
                ))
            })?;
    }
    output::data(&format!("User {} successfully created", args.name));
    Ok(())
}

/// `stolos delete-user NAME`
pub(crate) async fn delete(args: &DeleteUser) -> Result<(), Failure> {
    let (service, token) = service().await?;
    let user = known(&service, &token, &args.name).await?;
    let clusters = pks_client().await?;
    // Without the right to see everybody's clusters nobody can answer for them.
    let owned = match clusters.clusters_of(&user.id).await {
        Err(error) if error.class() == Class::Denied && args.keep_clusters => Ok(Vec::new()),
        other => other,
    };
    let owned: Vec<String> = owned
        .map_err(|error| Failure::of_api(&error))?
        .into_iter()
        .map(|cluster| cluster.name)
        .collect();
    let mut question = format!("Are you sure you want to delete the user {}? (y/n):", args.name);
    if !owned.is_empty() {
        let names = owned.join(", ");
        question = match &args.clusters_to {
            Some(other) => format!("{other} gets the clusters {names}. {question}"),
            None => format!("The clusters {names} stay, without an owner. {question}"),
        };
        if args.clusters_to.is_none() && !args.keep_clusters {
            if args.non_interactive {
                return Err(Failure::user(format!("{} owns clusters: {names}", args.name))
                    .hint("Give them to somebody with --clusters-to USER, or leave them without an owner with --keep-clusters."));
            }
            output::note(&format!(
                "{} owns clusters: {names}. To give them to somebody, say no and use --clusters-to USER.",
                args.name
            ));
        }
    }
    confirm(&question, args.non_interactive)?;
    if let Some(other) = &args.clusters_to {
        for name in &owned {
            let given = clusters.transfer_cluster(name, other).await;
            given.map_err(|error| Failure::of_api(&error))?;
            output::note(&format!("Cluster {name} belongs to {other}"));
        }
    }
    service.delete_user(&token, &user.id).await.map_err(failed)?;
    output::data(&format!("Deletion of {} completed", args.name));
    Ok(())
}

/// `stolos create-group NAME`
pub(crate) async fn create_group(args: &Id) -> Result<(), Failure> {
    let (service, token) = service().await?;
    service.create_group(&token, &args.id).await.map_err(failed)?;
    output::data(&format!("Group {} successfully created", args.id));
    Ok(())
}

/// `stolos delete-group NAME`
pub(crate) async fn delete_group(args: &DeleteProfile) -> Result<(), Failure> {
    let (service, token) = service().await?;
    confirm(
        &format!("Are you sure you want to delete the group {}? (y/n):", args.name),
        args.non_interactive,
    )?;
    service
        .delete_group(&token, &args.name)
        .await
        .map_err(|error| match error.class() {
            Class::NotFound => Failure::user(format!("there is no group `{}`", args.name)),
            _ => failed(error),
        })?;
    output::data(&format!("Deletion of {} completed", args.name));
    Ok(())
}

/// `stolos add-member GROUP USER` and `remove-member`
pub(crate) async fn set_member(args: &Member, is_member: bool) -> Result<(), Failure> {
    let (service, token) = service().await?;
    let user = known(&service, &token, &args.user).await?;
    service
        .set_member(&token, &args.group, &user.id, is_member)
        .await
        .map_err(|error| match error.class() {
            Class::NotFound => Failure::user(format!("there is no group `{}`", args.group))
                .hint("Roles are pks.clusters.admin, pks.clusters.manage and pks.clusters.admin.read; other groups are made with `create-group`."),
            _ => failed(error),
        })?;
    let verb = if is_member { "is in" } else { "is no longer in" };
    output::data(&format!("{} {verb} {}", args.user, args.group));
    if !is_member {
        output::note("In clusters, tokens that were given before last for up to ten minutes.");
    }
    Ok(())
}

/// The user of a name.
pub(super) async fn known(service: &Client, token: &Secret<String>, name: &str) -> Result<User, Failure> {
    service
        .user(token, name)
        .await
        .map_err(failed)?
        .ok_or_else(|| Failure::user(format!("there is no user `{name}`")))
}
