//! JSON on standard input and output (bosh.md 4.1).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Cpi;
use crate::error::{Error, Kind, Result};
use crate::types::CreateVm;

/// The version that we speak.
pub const API_VERSION: u32 = 2;

/// The key in a request's context under which our runner passes the id of a journalled call. BOSH's own `request_id` is no
/// such key: it is short and comes again.
pub const CALL_ID: &str = "stolos_call_id";

/// The id of the journalled call that a request is, if it is one.
#[must_use]
pub fn call_id(input: &[u8]) -> Option<String> {
    let request: Request = serde_json::from_slice(input).ok()?;
    request.context.get(CALL_ID)?.as_str().map(str::to_owned)
}

/// One call.
#[derive(Clone, Serialize, Deserialize)]
pub struct Request {
    /// Name of the method.
    pub method: String,
    /// Positional arguments. They may hold secrets: there is no `Debug`.
    pub arguments: Vec<Value>,
    /// The director, the request's id and what the CPI config says.
    #[serde(default)]
    pub context: Value,
    /// Version that the caller speaks.
    #[serde(default)]
    pub api_version: u32,
}

/// One answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    /// The result, null for none.
    pub result: Value,
    /// Why there is none.
    pub error: Option<ErrorBody>,
    /// For the task's log.
    #[serde(default)]
    pub log: String,
}

/// An error on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// See [`Kind`].
    #[serde(rename = "type")]
    pub kind: String,
    /// For people.
    pub message: String,
    /// Whether asking again may help.
    #[serde(default)]
    pub ok_to_retry: bool,
}

impl Response {
    /// An answer from a result.
    #[must_use]
    pub fn from_result(result: Result<Value>) -> Self {
        match result {
            Ok(result) => Self {
                result,
                error: None,
                log: String::new(),
            },
            Err(error) => {
                let ok_to_retry = stolos_base::Classify::retryable(&error);
                let kind = error.kind().unwrap_or(Kind::CpiError).as_str().to_owned();
                let error = ErrorBody {
                    kind,
                    message: stolos_base::chain(&error),
                    ok_to_retry,
                };
                Self {
                    result: Value::Null,
                    error: Some(error),
                    log: String::new(),
                }
            }
        }
    }

    /// The result that an answer stands for.
    ///
    /// # Errors
    /// The CPI's own.
    pub fn into_result(self) -> Result<Value> {
        match self.error {
            None => Ok(self.result),
            Some(body) => {
                let unknown_method =
                    body.message.contains("Invalid Method") || body.message.contains("Method is not known");
                let kind = if unknown_method {
                    Kind::NotImplemented
                } else {
                    Kind::parse(&body.kind)
                };
                Err(Error::Cloud {
                    kind,
                    message: body.message,
                    ok_to_retry: body.ok_to_retry,
                })
            }
        }
    }
}

/// Answers one request: what a CPI executable does with its standard input.
pub async fn answer(cpi: &dyn Cpi, input: &[u8]) -> Response {
    let result = match serde_json::from_slice::<Request>(input) {
        Ok(request) => dispatch(cpi, &request).await,
        Err(error) => Err(Error::new(
            Kind::CpiError,
            format!("the request is no CPI request: {error}"),
        )),
    };
    Response::from_result(result)
}

async fn dispatch(cpi: &dyn Cpi, request: &Request) -> Result<Value> {
    let a = Arguments(request);
    Ok(match request.method.as_str() {
        "info" => to_json(&cpi.info().await?)?,
        "create_stemcell" => to_json(
            &cpi.create_stemcell(&a.get::<String>(0)?, &a.or_default(1)?)
                .await?,
        )?,
        "delete_stemcell" => to_json(&cpi.delete_stemcell(&a.get(0)?).await?)?,
        "create_vm" => {
            let create = CreateVm {
                agent_id: a.get(0)?,
                stemcell: a.get(1)?,
                cloud_properties: a.or_default(2)?,
                networks: a.or_default(3)?,
                disks: a.or_default(4)?,
                env: a.or_default(5)?,
            };
            let (vm, networks) = cpi.create_vm(&create).await?;
            json!([vm, networks])
        }
        "delete_vm" => to_json(&cpi.delete_vm(&a.get(0)?).await?)?,
        "has_vm" => to_json(&cpi.has_vm(&a.get(0)?).await?)?,
        "reboot_vm" => to_json(&cpi.reboot_vm(&a.get(0)?).await?)?,
        "set_vm_metadata" => to_json(&cpi.set_vm_metadata(&a.get(0)?, &a.or_default(1)?).await?)?,
        "calculate_vm_cloud_properties" => to_json(&cpi.calculate_vm_cloud_properties(&a.get(0)?).await?)?,
        "create_disk" => {
            let vm = a.or_default::<Option<_>>(2)?;
            to_json(&cpi.create_disk(a.get(0)?, &a.or_default(1)?, vm.as_ref()).await?)?
        }
        "delete_disk" => to_json(&cpi.delete_disk(&a.get(0)?).await?)?,
        "has_disk" => to_json(&cpi.has_disk(&a.get(0)?).await?)?,
        "attach_disk" => cpi.attach_disk(&a.get(0)?, &a.get(1)?).await?,
        "detach_disk" => to_json(&cpi.detach_disk(&a.get(0)?, &a.get(1)?).await?)?,
        "get_disks" => to_json(&cpi.get_disks(&a.get(0)?).await?)?,
        "set_disk_metadata" => to_json(&cpi.set_disk_metadata(&a.get(0)?, &a.or_default(1)?).await?)?,
        "resize_disk" => to_json(&cpi.resize_disk(&a.get(0)?, a.get(1)?).await?)?,
        "snapshot_disk" => to_json(&cpi.snapshot_disk(&a.get(0)?, &a.or_default(1)?).await?)?,
        "delete_snapshot" => to_json(&cpi.delete_snapshot(&a.get(0)?).await?)?,
        other => {
            return Err(Error::new(
                Kind::NotImplemented,
                format!("Method is not known, got {other}"),
            ));
        }
    })
}

struct Arguments<'a>(&'a Request);

impl Arguments<'_> {
    fn get<T: DeserializeOwned>(&self, index: usize) -> Result<T> {
        let Some(value) = self.0.arguments.get(index) else {
            return Err(self.wrong(index, "it is missing"));
        };
        T::deserialize(value).map_err(|error| self.wrong(index, &error.to_string()))
    }

    fn or_default<T: DeserializeOwned + Default>(&self, index: usize) -> Result<T> {
        match self.0.arguments.get(index) {
            None | Some(Value::Null) => Ok(T::default()),
            Some(_) => self.get(index),
        }
    }

    /// Says which argument, never its value: it may be a secret.
    fn wrong(&self, index: usize, problem: &str) -> Error {
        Error::new(
            Kind::CpiError,
            format!(
                "argument {} of `{}` is not valid: {problem}",
                index + 1,
                self.0.method
            ),
        )
    }
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::new(Kind::CpiError, error.to_string()))
}
