//! The description of port 9021 in OpenAPI, made from the types and the table, and compared with what is committed.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{ENDPOINTS, Endpoint};

/// Where it lies, from this crate.
const FILE: &str = "../../docs/openapi/pks-v1.json";

/// The schema of a type by the name that the table has for it.
fn schema(name: &str, generator: &mut SchemaGenerator) -> Value {
    fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
        generator.subschema_for::<T>().to_value()
    }
    if let Some(item) = name.strip_prefix('[') {
        let item = schema(item.trim_end_matches(']'), generator);
        return json!({"type": "array", "items": item});
    }
    match name {
        "Cluster" => of::<super::Cluster>(generator),
        "ClusterRequest" => of::<super::ClusterRequest>(generator),
        "UpdateParameters" => of::<super::UpdateParameters>(generator),
        "UpgradeClusters" => of::<super::UpgradeClusters>(generator),
        "TaskInfo" => of::<super::TaskInfo>(generator),
        "Room" => of::<super::Room>(generator),
        "Plan" => of::<super::Plan>(generator),
        "Profile" => of::<super::Profile>(generator),
        "ProfileRequest" => of::<super::ProfileRequest>(generator),
        "KubernetesProfile" => of::<super::KubernetesProfile>(generator),
        "KubernetesProfileRequest" => of::<super::KubernetesProfileRequest>(generator),
        "Quota" => of::<super::Quota>(generator),
        "QuotaChange" => of::<super::QuotaChange>(generator),
        "Usage" => of::<super::Usage>(generator),
        "Operation" => of::<super::Operation>(generator),
        "Info" => of::<super::Info>(generator),
        "Preview" => of::<super::Preview>(generator),
        "PreCheck" => of::<super::PreCheck>(generator),
        "BackupRun" => of::<super::BackupRun>(generator),
        "ClusterBackup" => of::<super::ClusterBackup>(generator),
        "ClusterBackups" => of::<super::ClusterBackups>(generator),
        "RestoreRequest" => of::<super::RestoreRequest>(generator),
        "TransferRequest" => of::<super::TransferRequest>(generator),
        "Certificate" => of::<super::Certificate>(generator),
        "Metered" => of::<super::Metered>(generator),
        "ErrorBody" => of::<super::ErrorBody>(generator),
        "Kubeconfig" => json!({"type": "object", "description": "A kubeconfig, as kubectl reads it"}),
        "ClusterPage" => of::<super::Page<super::Cluster>>(generator),
        "OperationPage" => of::<super::Page<super::Operation>>(generator),
        "Version" => json!({"type": "string"}),
        other => panic!("the table names `{other}`, which is no type here"),
    }
}

fn content(schema: Value) -> Value {
    json!({"application/json": {"schema": schema}})
}

fn operation(endpoint: &Endpoint, generator: &mut SchemaGenerator) -> Value {
    let in_path = endpoint
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    for name in endpoint.query {
        let kind = match *name {
            "dry_run" => "boolean",
            "limit" | "wait_ms" | "days" => "integer",
            _ => "string",
        };
        parameters.push(json!({"name": name, "in": "query", "required": false, "schema": {"type": kind}}));
    }
    let mut success = json!({"description": "Done, or accepted"});
    if let Some(name) = endpoint.response {
        success["content"] = content(schema(name, generator));
    }
    let mut responses = Map::new();
    responses.insert(endpoint.status.to_string(), success);
    if endpoint.query.contains(&"dry_run") {
        let preview = json!({"description": "What would be done; with `dry_run` only", "content": content(schema("Preview", generator))});
        responses.insert("200".to_owned(), preview);
    }
    responses.insert(
        "default".to_owned(),
        json!({"description": "Refused or failed", "content": content(schema("ErrorBody", generator))}),
    );
    let mut operation =
        json!({"summary": endpoint.summary, "parameters": parameters, "responses": responses});
    if let Some(name) = endpoint.request {
        operation["requestBody"] = json!({"required": true, "content": content(schema(name, generator))});
    }
    operation
}

fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let item = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        item[endpoint.method] = operation(endpoint, &mut generator);
    }
    let info = json!({"summary": "What the server says about itself; needs no token", "security": [],
                      "responses": {"200": {"description": "Done", "content": content(schema("Info", &mut generator))}}});
    paths.insert("/stolos/v1/info".to_owned(), json!({"get": info}));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "PKS API, version 1, with the resources of Stolos",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"uaa": []}],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {"uaa": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    })
}

/// `STOLOS_UPDATE=1 cargo test -p stolos-api openapi` writes it anew.
#[test]
fn the_committed_description_is_what_the_types_say() {
    let made = format!("{}\n", serde_json::to_string_pretty(&document()).expect("JSON"));
    let path = camino::Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    if std::env::var_os("STOLOS_UPDATE").is_some() {
        fs_err::create_dir_all(path.parent().expect("a directory")).expect("the directory");
        fs_err::write(&path, &made).expect("the file");
        return;
    }
    let committed = fs_err::read_to_string(&path).expect("the committed description");
    assert!(
        committed == made,
        "the API has changed: look at the difference that `STOLOS_UPDATE=1 cargo test -p stolos-api openapi` makes in docs/openapi"
    );
}

#[test]
fn the_table_names_each_method_once() {
    let mut seen = std::collections::BTreeSet::new();
    for endpoint in ENDPOINTS {
        assert!(
            seen.insert((endpoint.method, endpoint.path)),
            "{endpoint:?} is there twice"
        );
    }
}
