//! Which managers and servers of the bus an installation on this host has, and their processes.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use stolos_base::process::Process;
use stolos_base::range::HostNetwork;
use stolos_base::{Instance, MemberName};

use crate::failure::Failure;
use crate::output;

/// The port of the first server of the bus; the others have the ports after it.
const BUS_PORT: usize = 4222;
/// `stolosd` gives open requests five seconds and running steps ten.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the operator's file says of them. Whether it makes sense, `stolosd` says.
pub(crate) struct Managers {
    /// By name; one without a name when there is only one.
    pub(crate) members: Vec<Option<MemberName>>,
    /// How many servers the bus has.
    pub(crate) bus_servers: usize,
}

impl Managers {
    /// Reads the operator's file.
    pub(crate) fn configured(instance: &Instance) -> Result<Self, Failure> {
        let path = instance.config_file();
        let config = read_config(&path)?;
        let names = config["members"].as_array().into_iter().flatten();
        let members = names
            .map(|name| {
                let text = name.as_str().unwrap_or_default();
                let name = text.parse::<MemberName>();
                name.map(Some).map_err(|error| {
                    Failure::user(format!("the configuration `{path}` is not valid: {error}"))
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let servers = config["bus"]["servers"].as_u64().unwrap_or(1);
        Ok(Self {
            members: if members.is_empty() { vec![None] } else { members },
            // More than there can be are refused by `stolosd`.
            bus_servers: usize::try_from(servers.clamp(1, 3)).unwrap_or(1),
        })
    }

    /// Where machines reach the bus.
    pub(crate) fn bus_urls(&self, network: &HostNetwork) -> Vec<String> {
        let ports = BUS_PORT..BUS_PORT + self.bus_servers;
        ports
            .map(|port| format!("nats://{}:{port}", network.host()))
            .collect()
    }

    /// Where each manager itself listens.
    pub(crate) fn hosts(&self, network: &HostNetwork) -> Vec<String> {
        let each = self.members.iter().zip(0_u8..);
        each.map(|(member, number)| match member {
            None => network.host().to_string(),
            Some(_) => network.manager(number).to_string(),
        })
        .collect()
    }
}

/// The operator's file, or an empty one.
pub(crate) fn read_config(path: &Utf8Path) -> Result<Value, Failure> {
    let failed =
        |problem: String| Failure::user(format!("failed to read the configuration `{path}`: {problem}"));
    match fs_err::read_to_string(path) {
        Ok(text) => stolos_document::from_yaml(&text).map_err(|error| failed(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(json!({})),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The records of all managers that run on this host, configured or not.
pub(crate) fn recorded(instance: &Instance) -> Result<Vec<(Utf8PathBuf, Process)>, Failure> {
    let failed =
        |error: std::io::Error| Failure::ours(format!("failed to look for running managers: {error}"));
    instance.running_managers().map_err(failed)
}

/// Ends managers in order, all at the same time. `why` is for people.
pub(crate) fn end(
    instance: &Instance,
    managers: Vec<(Utf8PathBuf, Process)>,
    why: &str,
) -> Result<(), Failure> {
    let ends: Vec<_> = managers
        .into_iter()
        .map(|(record, process)| {
            let name = record.file_stem().unwrap_or_default().to_owned();
            output::note(&format!("stopping {name}{why}"));
            let ended = std::thread::spawn(move || process.end(PATIENCE));
            (name, record, ended)
        })
        .collect();
    for (name, record, ended) in ends {
        let failed = |error: std::io::Error| {
            Failure::ours(format!("failed to stop {name} of {}: {error}", instance.name))
        };
        match ended.join() {
            Ok(ended) => ended.map_err(failed)?,
            Err(_) => return Err(failed(std::io::Error::other("it panicked"))),
        }
        stolos_base::files::remove_if_there(&record).map_err(failed)?;
    }
    Ok(())
}

/// The record of a server of the bus.
pub(crate) fn bus_record(instance: &Instance, number: usize) -> Utf8PathBuf {
    instance.nats_server(number).join("nats-server.pid.json")
}

/// The records of all servers of the bus that there may be.
pub(crate) fn bus_records(instance: &Instance) -> Vec<Utf8PathBuf> {
    (0..3).map(|number| bus_record(instance, number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(text: &str) -> Result<Managers, Failure> {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let instance = Instance {
            name: "m".parse().expect("a name"),
            root: dir.path().to_owned(),
        };
        fs_err::write(instance.config_file(), text).expect("a file");
        Managers::configured(&instance)
    }

    #[test]
    fn one_manager_is_where_everybody_looks_for_it_and_several_are_beside_it() {
        let network = HostNetwork {
            range: "10.117.0.0/16".parse().expect("a range"),
        };
        let one = configured("{}").expect("valid");
        assert_eq!(one.hosts(&network), ["10.117.0.1"]);
        assert_eq!(one.bus_urls(&network), ["nats://10.117.0.1:4222"]);
        let two = configured("members: [a, b]\nbus: {servers: 3}\n").expect("valid");
        assert_eq!(two.hosts(&network), ["10.117.0.2", "10.117.0.3"]);
        assert_eq!(two.bus_urls(&network).len(), 3);
        assert_eq!(two.bus_urls(&network)[2], "nats://10.117.0.1:4224");
        let Err(failure) = configured("members: [Nobody]\n") else {
            panic!("no name");
        };
        assert!(failure.to_string().contains("member name `Nobody`"), "{failure}");
    }

    #[test]
    fn managers_are_found_by_their_records() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let instance = Instance {
            name: "m".parse().expect("a name"),
            root: dir.path().to_owned(),
        };
        assert!(recorded(&instance).expect("nothing").is_empty());
        fs_err::create_dir_all(instance.run()).expect("a directory");
        let me = Process::of(i32::try_from(std::process::id()).expect("a pid")).expect("this process");
        let name = "a".parse().expect("a name");
        me.record(&instance.manager(Some(&name)).record)
            .expect("a record");
        me.record(&instance.run().join("hostd.pid")).expect("a record");
        let gone = Process {
            started: me.started + 1,
            ..me
        };
        gone.record(&instance.manager(None).record).expect("a record");
        let found = recorded(&instance).expect("records");
        assert_eq!(found, [(instance.manager(Some(&name)).record, me)]);
    }
}
