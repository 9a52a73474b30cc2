//! Server-side apply of YAML documents.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::Value;
use stolos_base::{Class, Classify as _, retry};

use crate::client::Cluster;
use crate::error::Error;

/// The owner of the fields that we apply.
pub const FIELD_MANAGER: &str = "stolos";

/// The annotation of a document that is not ours any more once it is there: with [`IF_ABSENT`] as its value, an object that exists is left as it is.
const APPLY: &str = "stolos.dev/apply";
/// See [`APPLY`].
const IF_ABSENT: &str = "if-absent";

/// One Kubernetes object to be applied. What others changed of it is put back, unless its annotation `stolos.dev/apply` is `if-absent`.
#[derive(Clone, Debug)]
pub struct Document {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    name: String,
    body: Value,
    /// The same as an object, where it is only made and never changed.
    made_once: Option<Box<DynamicObject>>,
}

impl Document {
    /// Reads a text with one or more documents; empty ones are passed over, and lists (`kind: List`, `ConfigMapList`, lists in
    /// lists) are the objects in them, as `kubectl` has it.
    ///
    /// # Errors
    /// When the text is not YAML or an object has no `apiVersion`, `kind` or `metadata.name`.
    pub fn parse(yaml: &str) -> Result<Vec<Self>, Error> {
        let nodes = stolos_document::documents(yaml).map_err(Error::Yaml)?;
        let mut documents = Vec::new();
        for (at, node) in nodes.iter().enumerate().filter(|(_, node)| !node.is_null()) {
            let place = Position {
                document: at + 1,
                items: Vec::new(),
            };
            Self::collect(&place, node.to_json(), &mut documents)?;
        }
        Ok(documents)
    }

    fn collect(place: &Position, mut body: Value, documents: &mut Vec<Self>) -> Result<(), Error> {
        if !is_list(&body) {
            documents.push(Self::from_value(place, body)?);
            return Ok(());
        }
        let items = match body["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        };
        let version = body["apiVersion"].take();
        let kind = body["kind"].as_str().and_then(|kind| kind.strip_suffix("List"));
        for (at, mut item) in items.into_iter().enumerate() {
            let mut place = place.clone();
            place.items.push(at + 1);
            // An API server leaves both out in lists of one kind.
            if let (Some(object), Some(kind)) = (item.as_object_mut(), kind.filter(|kind| !kind.is_empty()))
                && !object.contains_key("kind")
                && !object.contains_key("apiVersion")
            {
                object.insert("kind".to_owned(), kind.into());
                object.insert("apiVersion".to_owned(), version.clone());
            }
            Self::collect(&place, item, documents)?;
        }
        Ok(())
    }

    fn from_value(place: &Position, body: Value) -> Result<Self, Error> {
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let needed = |pointer: &str| {
            text(pointer).ok_or_else(|| {
                place.wrong(format!(
                    "`{}` is missing or no text",
                    pointer[1..].replace('/', ".")
                ))
            })
        };
        let made_once = if body["metadata"]["annotations"][APPLY] == IF_ABSENT {
            let object =
                stolos_document::from_value(body.clone()).map_err(|error| place.wrong(error.to_string()))?;
            Some(Box::new(object))
        } else {
            None
        };
        Ok(Self {
            api_version: needed("/apiVersion")?,
            kind: needed("/kind")?,
            namespace: text("/metadata/namespace"),
            name: needed("/metadata/name")?,
            made_once,
            body,
        })
    }

    /// Whether it is the definition of the other's kind.
    fn defines(&self, other: &Self) -> bool {
        let is = |pointer: &str, value: &str| self.body.pointer(pointer).is_some_and(|found| found == value);
        let (group, _) = other.api_version.split_once('/').unwrap_or_default();
        self.kind == "CustomResourceDefinition"
            && is("/spec/group", group)
            && is("/spec/names/kind", &other.kind)
    }

    /// Kind and name, as people write it: `Service kube-system/kube-dns`.
    #[must_use]
    pub fn title(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{} {namespace}/{}", self.kind, self.name),
            None => format!("{} {}", self.kind, self.name),
        }
    }
}

/// Where an object stands in a text.
#[derive(Clone)]
struct Position {
    /// Counted from 1.
    document: usize,
    /// In which items of lists, each counted from 1.
    items: Vec<usize>,
}

impl Position {
    fn wrong(&self, problem: String) -> Error {
        let items: String = self.items.iter().map(|item| format!("item {item}: ")).collect();
        Error::Document {
            position: self.document,
            problem: format!("{items}{problem}"),
        }
    }
}

/// What `kubectl` takes for a list of objects: whatever has `items`.
fn is_list(body: &Value) -> bool {
    match body.get("items") {
        Some(Value::Array(_)) => true,
        Some(Value::Null) | None => body["kind"] == "List",
        Some(_) => false,
    }
}

impl Cluster {
    /// Applies documents in order, each until it is taken or `limit` is over.
    ///
    /// Meant for a cluster that is just starting: an API server that does not answer yet, lacks its roles or its namespaces is asked
    /// again, and so is one that has not taken up the definition of a kind from among the former documents. An object that is wrong in
    /// itself fails at once. One that should have a namespace but names none goes to `default`. `done` hears of each applied document.
    ///
    /// # Errors
    /// The last error of the first document that could not be applied.
    pub async fn apply(
        &self,
        documents: &[Document],
        limit: Duration,
        mut done: impl FnMut(&Document),
    ) -> Result<(), Error> {
        let policy = retry::Policy {
            first: Duration::from_millis(25),
            longest: Duration::from_millis(200),
            deadline: limit,
        };
        let mut kinds: HashMap<&str, Kinds> = HashMap::new();
        for (at, document) in documents.iter().enumerate() {
            let known = kinds.entry(&document.api_version).or_default();
            if !known.contains_key(&document.kind) {
                let is_defined = documents[..at].iter().any(|former| former.defines(document));
                let may_come = |error: &Error| {
                    may_come(error) || (is_defined && matches!(error, Error::UnknownKind { .. }))
                };
                *known = retry::run(policy, may_come, || self.kinds_with(document)).await?;
            }
            let resource = &known[&document.kind];
            retry::run(policy, may_come, || self.apply_one(document, resource)).await?;
            done(document);
        }
        Ok(())
    }

    /// The kinds of a document's group and version, its own among them.
    async fn kinds_with(&self, document: &Document) -> Result<Kinds, Error> {
        let kinds = self.kinds(&document.api_version).await?;
        if kinds.contains_key(&document.kind) {
            return Ok(kinds);
        }
        Err(Error::UnknownKind {
            kind: document.kind.clone(),
            api_version: document.api_version.clone(),
        })
    }

    /// The kinds of one group and version, as the server knows them.
    async fn kinds(&self, api_version: &str) -> Result<Kinds, Error> {
        let list = if api_version.contains('/') {
            self.client.list_api_group_resources(api_version).await
        } else {
            self.client.list_core_api_resources(api_version).await
        }
        .map_err(Error::request(format!("ask for the kinds of `{api_version}`")))?;
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = |resource: APIResource| {
            let api = ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version: api_version.to_owned(),
                kind: resource.kind.clone(),
                plural: resource.name,
            };
            (
                resource.kind,
                Resource {
                    api,
                    namespaced: resource.namespaced,
                },
            )
        };
        // Names with a slash are subresources, which share the kind of their owner.
        Ok(list
            .resources
            .into_iter()
            .filter(|resource| !resource.name.contains('/'))
            .map(kind)
            .collect())
    }

    async fn apply_one(&self, document: &Document, resource: &Resource) -> Result<(), Error> {
        let what = format!("apply {}", document.title());
        let api: Api<DynamicObject> = if resource.namespaced {
            let namespace = document.namespace.as_deref().unwrap_or("default");
            Api::namespaced_with(self.client.clone(), namespace, &resource.api)
        } else {
            Api::all_with(self.client.clone(), &resource.api)
        };
        if let Some(object) = &document.made_once {
            let params = PostParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PostParams::default()
            };
            return match api.create(&params, object).await.map_err(Error::request(what)) {
                Err(error) if error.status() != Some(409) => Err(error),
                _ => Ok(()),
            };
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(&document.name, &params, &Patch::Apply(&document.body))
            .await
            .map_err(Error::request(what))?;
        Ok(())
    }
}

/// Whether a cluster that is just starting may take it later: no answer, no roles yet, no namespace yet.
fn may_come(error: &Error) -> bool {
    matches!(
        error.class(),
        Class::Unavailable | Class::Denied | Class::NotFound | Class::Conflict
    )
}

struct Resource {
    api: ApiResource,
    namespaced: bool,
}

/// By kind.
type Kinds = HashMap<String, Resource>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read_in_order_and_empty_ones_passed_over() {
        let text = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\napiVersion: apps/v1\nkind: Deployment\n\
                    metadata: {name: b, namespace: a}\nspec: {replicas: 2}\n";
        let documents = Document::parse(text).expect("two documents");
        let titles: Vec<String> = documents.iter().map(Document::title).collect();
        assert_eq!(titles, ["Namespace a", "Deployment a/b"]);
        assert_eq!(documents[1].body["spec"]["replicas"], 2);
    }

    /// `kubectl get -o yaml` writes lists, and add-ons that are made so were dropped.
    #[test]
    fn lists_are_the_objects_in_them() {
        let text = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: \"\"}\nitems:\n\
                    - {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n\
                    - apiVersion: v1\n  kind: List\n  items:\n  - {apiVersion: v1, kind: Secret, metadata: {name: b, namespace: a}}\n\
                    - {apiVersion: v1, kind: List, items: []}\n\
                    ---\napiVersion: v1\nkind: ConfigMapList\nitems: [{metadata: {name: c}}]\n\
                    ---\napiVersion: v1\nkind: List\n---\n";
        let documents = Document::parse(text).expect("lists");
        let titles: Vec<String> = documents.iter().map(Document::title).collect();
        assert_eq!(titles, ["Namespace a", "Secret a/b", "ConfigMap c"]);
        assert_eq!(documents[2].api_version, "v1");
        let error = Document::parse("kind: A\napiVersion: v1\nmetadata: {name: a}\n---\nkind: List\nitems: [{kind: List, items: [{kind: B}]}]\n")
            .expect_err("no version");
        assert_eq!(
            error.to_string(),
            "document 2 is no Kubernetes object: item 1: item 1: `apiVersion` is missing or no text"
        );
    }

    /// With the rules of YAML 1.2, `0755` was 755, which an API server refuses as a mode.
    #[test]
    fn objects_are_read_as_kubectl_reads_them() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {ok: \"yes\"}}\n\
                    spec: {hostNetwork: yes, volumes: [{configMap: {defaultMode: 0755}}]}\n";
        let body = &Document::parse(text).expect("a pod")[0].body;
        assert_eq!(body["spec"]["volumes"][0]["configMap"]["defaultMode"], 0o755);
        assert_eq!(body["spec"]["hostNetwork"], true);
        assert_eq!(body["metadata"]["annotations"]["ok"], "yes");
    }

    #[test]
    fn a_document_without_a_name_is_told_by_its_position() {
        let error =
            Document::parse("kind: A\n---\napiVersion: v1\nkind: A\n").expect_err("two bad documents");
        assert_eq!(
            error.to_string(),
            "document 1 is no Kubernetes object: `apiVersion` is missing or no text"
        );
    }
}
