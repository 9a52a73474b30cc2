//! Certificates of a cluster.

use stolos_api::pks::Certificate;

use super::clusters::{confirm, known};
use super::login::pks_client;
use super::operations;
use crate::args::{Certificates, RotateCertificates};
use crate::failure::Failure;
use crate::{output, program_name};

/// `stolos certificates NAME`
pub(crate) async fn list(args: &Certificates) -> Result<(), Failure> {
    let mut certificates = pks_client()
        .await?
        .certificates(&args.name, args.days)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    let program = program_name();
    for certificate in &mut certificates {
        certificate.name = shown_name(&program, &certificate.name);
    }
    if args.json {
        return output::json(&certificates);
    }
    output::data(&table(&certificates));
    if certificates.is_empty() {
        let unit = if args.days == 1 { "day" } else { "days" };
        output::note(&format!(
            "No certificate of cluster {} ends within {} {unit}.",
            args.name, args.days
        ));
    }
    Ok(())
}

/// A certificate's name for who knows the program by a name. PKS's were paths in its CredHub, `/p-bosh/service-instance_UUID/tls-NAME`;
/// its scripts look for their beginning and cut them there.
pub(super) fn shown_name(program: &str, name: &str) -> String {
    let parts = name
        .strip_prefix('/')
        .map(|name| name.splitn(3, '/').collect::<Vec<_>>());
    match (program, parts.as_deref()) {
        ("pks" | "tkgi", Some([_, deployment, variable])) => {
            format!("/p-bosh/{deployment}/tls-{}", variable.replace('_', "-"))
        }
        _ => name.to_owned(),
    }
}

fn table(certificates: &[Certificate]) -> String {
    let rows: Vec<Vec<String>> = certificates
        .iter()
        .map(|certificate| {
            vec![
                certificate.name.clone(),
                certificate.kind.clone(),
                certificate.days_left.to_string(),
                certificate.valid_until.clone(),
            ]
        })
        .collect();
    output::table(&["NAME", "Type", "Days Left", "Valid until"], &rows)
}

/// `stolos rotate-certificates NAME`
pub(crate) async fn rotate(args: &RotateCertificates) -> Result<(), Failure> {
    if args.only_nsx {
        return Err(
            Failure::user("there are no certificates of NSX-T here").hint(format!(
                "Make all of the cluster's own anew with `{} rotate-certificates {} --all`.",
                program_name(),
                args.name
            )),
        );
    }
    let client = pks_client().await?;
    known(&client, &args.name).await?;
    let question = format!(
        "You are about to rotate certificates for cluster {}. This operation requires bosh deployment, and will take a significant time. Are you sure you want to continue? (y/n):",
        args.name
    );
    confirm(&question, args.going.non_interactive)?;
    let operation = client
        .rotate_certificates(&args.name)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    operations::conclude(&client, &args.name, operation, &args.going).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_listed_as_pks_listed_them() {
        let certificate = |name: &str, kind: &str, days_left| Certificate {
            name: format!("/stolos/service-instance_x/{name}"),
            kind: kind.into(),
            days_left,
            valid_until: "2030-11-20T18:00:00Z".into(),
        };
        insta::assert_snapshot!(table(&[certificate("kubernetes_ca", "Root", 3650), certificate("etcd_master-0", "Leaf", 9)]), @r"
        NAME                                      Type  Days Left  Valid until
        /stolos/service-instance_x/kubernetes_ca  Root  3650       2030-11-20T18:00:00Z
        /stolos/service-instance_x/etcd_master-0  Leaf  9          2030-11-20T18:00:00Z
        ");
    }

    #[test]
    fn scripts_of_pks_find_the_names_that_they_look_for() {
        let own = "/stolos/service-instance_x/etcd_master-0";
        assert_eq!(shown_name("stolos", own), own);
        assert_eq!(
            shown_name("tkgi", own),
            "/p-bosh/service-instance_x/tls-etcd-master-0"
        );
        assert_eq!(shown_name("pks", "odd"), "odd");
    }
}
