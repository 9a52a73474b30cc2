//! The verbs.

mod backups;
mod certificates;
mod clusters;
mod create;
mod deployments;
mod director;
mod doctor;
mod down;
mod health;
mod images;
mod import;
mod kubeconfigs;
mod login;
mod managers;
mod metering;
mod operations;
mod passwords;
mod patience;
mod profiles;
mod quotas;
mod sign_in;
mod up;
mod update;
mod upgrade;
mod users;

use stolos_api::pks::ProfileKind::{Compute, Kubernetes, Network};

use crate::args::Command;
use crate::failure::Failure;
use crate::{output, program_name, usage};

/// Runs one verb.
pub(crate) async fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Login(args) => login::login(&args).await,
        Command::Logout => login::logout(),
        Command::Plans(args) => clusters::plans(&args).await,
        Command::Clusters(args) => clusters::list(&args).await,
        Command::Cluster(args) => clusters::show(&args).await,
        Command::CreateCluster(args) => create::create(&args).await,
        Command::UpdateCluster(args) => update::update(&args).await,
        Command::Resize(args) => update::resize(&args).await,
        Command::StopCluster(args) => update::stop(&args).await,
        Command::StartCluster(args) => update::start(&args).await,
        Command::TransferCluster(args) => clusters::transfer(&args).await,
        Command::DeleteCluster(args) => clusters::delete(&args).await,
        Command::UpgradeCluster(args) => upgrade::one(&args).await,
        Command::UpgradeClusters(args) => upgrade::many(&args).await,
        Command::Task(args) => upgrade::show(&args).await,
        Command::Tasks(args) => upgrade::list(&args).await,
        Command::Certificates(args) => certificates::list(&args).await,
        Command::RotateCertificates(args) => certificates::rotate(&args).await,
        Command::CancelTask(args) => upgrade::cancel(&args).await,
        Command::CreateNetworkProfile(args) => profiles::create(Network, &args).await,
        Command::NetworkProfiles(args) => profiles::list(Network, &args).await,
        Command::NetworkProfile(args) => profiles::show(Network, &args).await,
        Command::DeleteNetworkProfile(args) => profiles::delete(Network, &args).await,
        Command::CreateComputeProfile(args) => profiles::create(Compute, &args).await,
        Command::ComputeProfiles(args) => profiles::list(Compute, &args).await,
        Command::ComputeProfile(args) => profiles::show(Compute, &args).await,
        Command::DeleteComputeProfile(args) => profiles::delete(Compute, &args).await,
        Command::CreateKubernetesProfile(args) => profiles::create(Kubernetes, &args).await,
        Command::KubernetesProfiles(args) => profiles::list(Kubernetes, &args).await,
        Command::KubernetesProfile(args) => profiles::show(Kubernetes, &args).await,
        Command::DeleteKubernetesProfile(args) => profiles::delete(Kubernetes, &args).await,
        Command::BackUpCluster(args) => backups::take(&args).await,
        Command::ClusterBackups(args) => backups::list(&args).await,
        Command::VerifyClusterBackup(args) => backups::verify(&args).await,
        Command::RestoreCluster(args) => backups::restore(&args).await,
        Command::GetCredentials(args) => kubeconfigs::credentials(&args).await,
        Command::GetKubeconfig(args) => kubeconfigs::personal(&args).await,
        Command::LoadImage(args) => images::load(&args).await,
        Command::Users(args) => users::list(&args).await,
        Command::CreateUser(args) => users::create(&args).await,
        Command::DeleteUser(args) => users::delete(&args).await,
        Command::CreateGroup(args) => users::create_group(&args).await,
        Command::DeleteGroup(args) => users::delete_group(&args).await,
        Command::ChangePassword(args) => passwords::change(&args).await,
        Command::ResetPassword(args) => passwords::reset(&args).await,
        Command::UnlockUser(args) => passwords::unlock(&args).await,
        Command::AddMember(args) => users::set_member(&args, true).await,
        Command::RemoveMember(args) => users::set_member(&args, false).await,
        Command::Quotas(args) => quotas::list(&args).await,
        Command::CreateQuota(args) => quotas::create(&args).await,
        Command::UpdateQuota(args) => quotas::update(&args).await,
        Command::DeleteQuota(args) => quotas::delete(&args).await,
        Command::Usages(args) => quotas::usages(&args).await,
        Command::Metering(args) => metering::run(&args).await,
        Command::Operations(args) => operations::run(&args).await,
        Command::Deploy(args) => deployments::deploy(&args).await,
        Command::Deployments(args) => deployments::list(&args).await,
        Command::Instances(args) => deployments::instances(&args).await,
        Command::DeleteDeployment(args) => deployments::delete(&args).await,
        Command::DirectorTasks(args) => deployments::tasks(&args).await,
        Command::CancelDirectorTask(args) => director::cancel(&args).await,
        Command::Configs(args) => director::configs(&args).await,
        Command::DeleteConfig(args) => director::delete_config(&args).await,
        Command::OrphanedDisks(args) => director::orphaned_disks(&args).await,
        Command::DeleteDisk(args) => director::delete_disk(&args).await,
        Command::Health(args) => health::problems(&args).await,
        Command::Events(args) => health::events(&args).await,
        Command::Resurrection(args) => health::resurrection(&args).await,
        Command::Doctor(args) => doctor::run(&args).await,
        Command::Up(args) => up::run(&args).await,
        Command::Down(args) => down::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Sinks(_) => Err(Failure::user("there are no sinks here yet")
            .hint("The verbs went from PKS's command line with version 1.6. Until sinks come back, run a collector such as fluent-bit as a daemon set of the cluster.")),
        Command::PromoteToPolicy(_) => {
            Err(Failure::user("there is no NSX-T here, so no cluster has anything to promote to its Policy API"))
        }
        Command::Completion { shell } => {
            let name = program_name();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut usage::command(&name), name, &mut script);
            output::data(String::from_utf8_lossy(&script).trim_end());
            Ok(())
        }
    }
}
