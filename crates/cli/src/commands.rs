//! The verbs.

mod clusters;
mod deployments;
mod doctor;
mod down;
mod images;
mod login;
mod operations;
mod up;
mod update;

use clap::CommandFactory as _;

use crate::args::{Cli, Command};
use crate::failure::Failure;

/// Runs one verb.
pub(crate) async fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Login(args) => login::login(&args).await,
        Command::Logout => login::logout(),
        Command::Plans(args) => clusters::plans(&args).await,
        Command::Clusters(args) => clusters::list(&args).await,
        Command::Cluster(args) => clusters::show(&args).await,
        Command::CreateCluster(args) => clusters::create(&args).await,
        Command::UpdateCluster(args) => update::update(&args).await,
        Command::Resize(args) => update::resize(&args).await,
        Command::DeleteCluster(args) => clusters::delete(&args).await,
        Command::GetCredentials(args) => clusters::credentials(&args).await,
        Command::LoadImage(args) => images::load(&args).await,
        Command::Operations(args) => operations::run(&args).await,
        Command::Deploy(args) => deployments::deploy(&args).await,
        Command::Deployments(args) => deployments::list(&args).await,
        Command::Instances(args) => deployments::instances(&args).await,
        Command::DeleteDeployment(args) => deployments::delete(&args).await,
        Command::Tasks(args) => deployments::tasks(&args).await,
        Command::Doctor(args) => doctor::run(&args),
        Command::Up(args) => up::run(&args).await,
        Command::Down(args) => down::run(&args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "stolos", &mut std::io::stdout());
            Ok(())
        }
    }
}
