//! The client of `stolos-hostd`'s socket, and what goes over it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use camino::Utf8Path;
use ipnet::Ipv4Net;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stolos_base::{Class, Classify};

/// Everything is answered at once; netlink and nft take milliseconds.
const LIMIT: Duration = Duration::from_secs(15);

/// A virtual address as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualAddress {
    /// The cluster, for people.
    pub cluster: String,
    /// The port that is balanced; backends listen on the same one.
    pub port: u16,
    /// Where connections go.
    pub backends: Vec<SocketAddrV4>,
    /// The CA of the backends' certificates (PEM). Without it a probe asks whether somebody answers, not who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// A virtual address as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualAddressStatus {
    /// The address.
    pub address: Ipv4Addr,
    /// As it should be.
    #[serde(flatten)]
    pub wanted: VirtualAddress,
    /// The backends that new connections go to.
    pub active: Vec<SocketAddrV4>,
}

/// The host's own network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNetwork {
    /// The host's address in it, with the prefix: `X.Y.0.1/24`.
    pub address: Ipv4Net,
}

/// Several managers behind the host's own address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Managers {
    /// The ports that are balanced; all managers listen on all of them. On the first one it is asked whether a manager answers.
    pub ports: Vec<u16>,
    /// Where they listen: free addresses of the host's network.
    pub addresses: Vec<Ipv4Addr>,
}

/// The managers as they stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagersStatus {
    /// As it should be; absent where one manager listens at the host's own address.
    pub wanted: Option<Managers>,
    /// Those that new connections go to.
    pub active: Vec<Ipv4Addr>,
}

/// A machine of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// CID.
    pub cid: String,
    /// Whether it should run.
    pub wanted: bool,
    /// Its first process, while it runs.
    pub pid: Option<i32>,
    /// How often it was started again without anybody asking.
    pub restarts: u64,
}

/// Something happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineEvent {
    /// Counts from 1 since `stolos-hostd` was started.
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub at: i64,
    /// CID.
    pub cid: String,
    /// `exited`, `started`, `failed to start`, `gone`.
    pub what: String,
    /// More, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A call to `stolos-hostd` failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not answer.
    #[error("failed to reach stolos-hostd at `{socket}`")]
    Unreachable {
        /// Its socket.
        socket: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// It refused or failed; its words.
    #[error("stolos-hostd: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// In its words.
        message: String,
    },
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. } => Class::Unavailable,
            Self::Refused { status: 400..500, .. } => Class::User,
            Self::Refused { .. } => Class::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unreachable { .. } => vec!["Start it with `stolos up`.".to_owned()],
            Self::Refused { .. } => Vec::new(),
        }
    }
}

/// The body of an error.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For people.
    pub message: String,
}

/// A client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HostdClient {
    http: reqwest::Client,
    socket: String,
}

impl HostdClient {
    /// A client of the socket; whether somebody listens shows with the first call.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(socket: &Utf8Path) -> Result<Self, Error> {
        stolos_base::tls::install_provider();
        let http = reqwest::Client::builder()
            .unix_socket(socket.as_std_path())
            .timeout(LIMIT)
            .no_proxy()
            .build();
        let http = http.map_err(|source| Error::Unreachable {
            socket: socket.to_string(),
            source,
        })?;
        Ok(Self {
            http,
            socket: socket.to_string(),
        })
    }

    /// Makes the host reachable for machines at an address of the instance.
    ///
    /// # Errors
    /// See [`Error`]; so for all.
    pub async fn put_host_network(&self, network: &HostNetwork) -> Result<(), Error> {
        self.send(self.http.put(self.url("/host-network")).json(network))
            .await
            .map(drop)
    }

    /// Has an address balanced from now on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put_virtual_address(&self, address: Ipv4Addr, wanted: &VirtualAddress) -> Result<(), Error> {
        self.send(
            self.http
                .put(self.url(&format!("/virtual-addresses/{address}")))
                .json(wanted),
        )
        .await
        .map(drop)
    }

    /// Ends that; fine when it is not there.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_virtual_address(&self, address: Ipv4Addr) -> Result<(), Error> {
        self.send(
            self.http
                .delete(self.url(&format!("/virtual-addresses/{address}"))),
        )
        .await
        .map(drop)
    }

    /// All virtual addresses.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn virtual_addresses(&self) -> Result<Vec<VirtualAddressStatus>, Error> {
        self.get("/virtual-addresses").await
    }

    /// Has the host's own address balanced over several managers from now on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put_managers(&self, wanted: &Managers) -> Result<(), Error> {
        self.send(self.http.put(self.url("/managers")).json(wanted))
            .await
            .map(drop)
    }

    /// Ends that; fine when it is not so.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_managers(&self) -> Result<(), Error> {
        self.send(self.http.delete(self.url("/managers"))).await.map(drop)
    }

    /// The managers, and which of them answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn managers(&self) -> Result<ManagersStatus, Error> {
        self.get("/managers").await
    }

    /// All machines.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn machines(&self) -> Result<Vec<MachineStatus>, Error> {
        self.get("/machines").await
    }

    /// What happened after event `after`, the last thousand at most. Where nothing did, the answer waits up to `wait` (10 s at most) for it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn events(&self, after: u64, wait: Duration) -> Result<Vec<MachineEvent>, Error> {
        let wait = wait.as_millis();
        self.get(&format!("/events?after={after}&wait_ms={wait}")).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let response = self.send(self.http.get(self.url(path))).await?;
        response.json().await.map_err(|source| self.unreachable(source))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Error> {
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let message = match response.json::<ErrorBody>().await {
            Ok(body) => body.message,
            Err(_) => format!("it answered {status}"),
        };
        Err(Error::Refused {
            status: status.as_u16(),
            message,
        })
    }

    fn unreachable(&self, source: reqwest::Error) -> Error {
        Error::Unreachable {
            socket: self.socket.clone(),
            source: source.without_url(),
        }
    }

    /// The host in the URL is not looked at: the connection goes to the socket.
    fn url(&self, path: &str) -> String {
        format!("http://hostd{path}")
    }
}
