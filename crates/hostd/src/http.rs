//! The socket's paths (ARCHITECTURE.md, hostd socket).

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use serde::Deserialize;
use stolos_base::input::{Json, Query, Unreadable};
use stolos_network::hostd_client::{
    ErrorBody, HostNetwork, MachineEvent, MachineStatus, Managers, ManagersStatus, VirtualAddress,
    VirtualAddressStatus,
};

use crate::machines;
use crate::virtual_addresses::{self, Refusal};

#[derive(Clone)]
struct App {
    machines: machines::Service,
    addresses: virtual_addresses::Service,
}

pub(crate) fn router(machines: machines::Service, addresses: virtual_addresses::Service) -> Router {
    Router::new()
        .route("/host-network", put(host_network_put))
        .route("/virtual-addresses", get(virtual_address_list))
        .route(
            "/virtual-addresses/{address}",
            put(virtual_address_put).delete(virtual_address_delete),
        )
        .route(
            "/managers",
            get(managers_view).put(managers_put).delete(managers_delete),
        )
        .route("/machines", get(machine_list))
        .route("/events", get(event_list))
        .with_state(App { machines, addresses })
}

type Body<T> = Result<Json<T>, Unreadable>;

async fn host_network_put(State(app): State<App>, body: Body<HostNetwork>) -> Result<StatusCode, Refusal> {
    app.addresses
        .put_host_network(checked(body)?)
        .await
        .map(|()| StatusCode::NO_CONTENT)
}

async fn virtual_address_list(State(app): State<App>) -> Json<Vec<VirtualAddressStatus>> {
    Json(app.addresses.list())
}

async fn virtual_address_put(
    State(app): State<App>,
    Path(address): Path<Ipv4Addr>,
    body: Body<VirtualAddress>,
) -> Result<StatusCode, Refusal> {
    app.addresses
        .put(address, checked(body)?)
        .await
        .map(|()| StatusCode::NO_CONTENT)
}

async fn virtual_address_delete(
    State(app): State<App>,
    Path(address): Path<Ipv4Addr>,
) -> Result<StatusCode, Refusal> {
    app.addresses
        .delete(address)
        .await
        .map(|()| StatusCode::NO_CONTENT)
}

async fn managers_view(State(app): State<App>) -> Json<ManagersStatus> {
    Json(app.addresses.managers())
}

async fn managers_put(State(app): State<App>, body: Body<Managers>) -> Result<StatusCode, Refusal> {
    app.addresses
        .put_managers(checked(body)?)
        .await
        .map(|()| StatusCode::NO_CONTENT)
}

async fn managers_delete(State(app): State<App>) -> Result<StatusCode, Refusal> {
    app.addresses
        .delete_managers()
        .await
        .map(|()| StatusCode::NO_CONTENT)
}

async fn machine_list(State(app): State<App>) -> Result<Json<Vec<MachineStatus>>, Refusal> {
    app.machines.status().map(Json).map_err(Refusal::Failed)
}

#[derive(Debug, Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
    /// How long the answer may wait for news.
    #[serde(default)]
    wait_ms: u64,
}

/// Longer waits end with an empty answer, and are asked again.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

async fn event_list(State(app): State<App>, Query(query): Query<After>) -> Json<Vec<MachineEvent>> {
    let wait = Duration::from_millis(query.wait_ms).min(LONGEST_WAIT);
    Json(app.machines.events(query.after, wait).await)
}

fn checked<T>(body: Body<T>) -> Result<T, Refusal> {
    body.map(|Json(value)| value)
        .map_err(|rejection| Refusal::Wrong(rejection.body_text()))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, message) = match self {
            Self::Wrong(message) => (StatusCode::BAD_REQUEST, message),
            Self::Failed(message) => (StatusCode::INTERNAL_SERVER_ERROR, message),
        };
        (status, Json(ErrorBody { message })).into_response()
    }
}
