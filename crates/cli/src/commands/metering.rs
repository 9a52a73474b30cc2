//! How large clusters were for how long.

use super::login::pks_client;
use crate::args::Metering;
use crate::failure::Failure;
use crate::output;

/// `stolos metering`
pub(crate) async fn run(args: &Metering) -> Result<(), Failure> {
    let metered = pks_client()
        .await?
        .metering(args.from.as_deref(), args.to.as_deref())
        .await
        .map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&metered);
    }
    let hours = |seconds: i64| format!("{:.2}", seconds as f64 / 3600.0);
    let rows: Vec<Vec<String>> = metered
        .into_iter()
        .map(|one| {
            vec![
                one.owner,
                one.cluster,
                one.uuid,
                hours(one.machine_seconds),
                hours(one.cpu_seconds),
                hours(one.memory_mib_seconds / 1024),
                hours(one.pod_seconds),
            ]
        })
        .collect();
    let header = [
        "Owner",
        "Cluster",
        "UUID",
        "Machine hours",
        "CPU hours",
        "GiB hours",
        "Pod hours",
    ];
    output::data(&output::table(&header, &rows));
    Ok(())
}
