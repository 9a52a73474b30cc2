//! Merging a cluster's credentials into the kubeconfig.
//!
//! Files and locks are those of kubectl: an entry is changed in the file of `$KUBECONFIG` that has it, a new one goes into kubectl's
//! default file, and kubectl's own lock files are held meanwhile. Contexts of other clusters stay as they are, unknown keys included
//! (comments do not, as with kubectl); each file is written whole or not at all, through symbolic links.

mod lock;

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};
use stolos_base::files;
use stolos_document::Duplicates;

use crate::failure::Failure;

/// What a kubeconfig lists by name.
const LISTS: [&str; 3] = ["clusters", "users", "contexts"];
/// kubectl's mode of a new kubeconfig: it holds credentials.
const NEW_MODE: u32 = 0o600;

/// The kubeconfig files of a person in kubectl's order: an entry of an earlier one hides those of later ones.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Files(Vec<Utf8PathBuf>);

impl Files {
    /// Those of `$KUBECONFIG`, else `~/.kube/config`.
    ///
    /// # Errors
    /// When neither `KUBECONFIG` nor `HOME` is set, or one of them is not UTF-8.
    pub(crate) fn of_environment() -> Result<Self, Failure> {
        let variable = |name: &str| match std::env::var(name) {
            Ok(text) => Ok(Some(text)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(Failure::user(format!("the variable {name} is not valid UTF-8")))
            }
        };
        Self::named(variable("KUBECONFIG")?.as_deref(), variable("HOME")?.as_deref())
    }

    fn named(list: Option<&str>, home: Option<&str>) -> Result<Self, Failure> {
        let mut files: Vec<Utf8PathBuf> = Vec::new();
        for path in list
            .unwrap_or_default()
            .split(':')
            .filter(|path| !path.is_empty())
        {
            if !files.iter().any(|known| known == path) {
                files.push(path.into());
            }
        }
        match home {
            _ if !files.is_empty() => Ok(Self(files)),
            Some(home) if !home.is_empty() => Ok(Self(vec![Utf8Path::new(home).join(".kube/config")])),
            _ => Err(Failure::user(
                "neither KUBECONFIG nor HOME is set, so there is no kubeconfig to write",
            )),
        }
    }

    /// Where kubectl puts new entries and the current context: the first file that is there, else the last.
    fn usual(&self) -> usize {
        let is_there = |path: &Utf8PathBuf| path.exists();
        self.0.iter().position(is_there).unwrap_or(self.0.len() - 1)
    }
}

/// Merges `new` into the files and makes its context the current one. kubectl's locks are held meanwhile.
///
/// # Errors
/// When a file is locked for long, cannot be read, is no kubeconfig, or cannot be written; no file has changed then, unless it
/// was the second of several that could not be written.
pub(crate) async fn merge(files: &Files, new: &Value) -> Result<(), Failure> {
    merge_within(lock::PATIENCE, files, new).await
}

async fn merge_within(patience: Duration, files: &Files, new: &Value) -> Result<(), Failure> {
    let usual = &files.0[files.usual()];
    if let Some(parent) = usual.parent() {
        fs_err::create_dir_all(parent)
            .map_err(|error| refused(usual, &format!("failed to make its directory: {error}")))?;
    }
    lock::holding(&files.0, patience, || merge_locked(files, new)).await
}

fn merge_locked(files: &Files, new: &Value) -> Result<(), Failure> {
    let mut documents = files
        .0
        .iter()
        .map(|path| read(path))
        .collect::<Result<Vec<_>, _>>()?;
    let usual = files.usual();
    let mut changed = vec![false; documents.len()];
    for list in LISTS {
        for entry in new[list].as_array().into_iter().flatten() {
            let place = documents
                .iter()
                .position(|document| has(document, list, &entry["name"]))
                .unwrap_or(usual);
            put(&mut documents[place], list, entry).map_err(|problem| refused(&files.0[place], &problem))?;
            changed[place] = true;
        }
    }
    documents[usual].insert("current-context".into(), new["current-context"].clone());
    changed[usual] = true;
    for ((path, document), _) in files
        .0
        .iter()
        .zip(documents)
        .zip(changed)
        .filter(|(_, changed)| *changed)
    {
        write(path, document)?;
    }
    Ok(())
}

fn has(document: &Map<String, Value>, list: &str, name: &Value) -> bool {
    let entries = document.get(list).and_then(Value::as_array);
    entries.into_iter().flatten().any(|entry| entry["name"] == *name)
}

/// Replaces the entry of the same name where it stands, or adds it at the end.
fn put(document: &mut Map<String, Value>, list: &str, entry: &Value) -> Result<(), String> {
    let entries = document.entry(list).or_insert(Value::Null);
    if entries.is_null() {
        *entries = json!([]);
    }
    let Value::Array(entries) = entries else {
        return Err(format!("`{list}` is not a list"));
    };
    match entries.iter().position(|other| other["name"] == entry["name"]) {
        Some(at) => entries[at] = entry.clone(),
        None => entries.push(entry.clone()),
    }
    Ok(())
}

/// A kubeconfig, that of nobody when there is no such file.
fn read(path: &Utf8Path) -> Result<Map<String, Value>, Failure> {
    let text = match fs_err::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(refused(path, &error.to_string())),
    };
    let document = if text.trim().is_empty() {
        Value::Null
    } else {
        from_yaml(&text).map_err(|problem| refused(path, &problem))?
    };
    match document {
        Value::Null => Ok(Map::from_iter([
            ("apiVersion".to_owned(), json!("v1")),
            ("kind".to_owned(), json!("Config")),
        ])),
        Value::Object(document) => Ok(document),
        _ => Err(refused(path, "it is not a mapping")),
    }
}

fn write(path: &Utf8Path, document: Map<String, Value>) -> Result<(), Failure> {
    let text = to_yaml(&Value::Object(document)).map_err(|problem| refused(path, &problem))?;
    files::write_through(path, text.as_bytes(), NEW_MODE).map_err(|error| refused(path, &error.to_string()))
}

fn from_yaml(text: &str) -> Result<Value, String> {
    // As kubectl reads it: the last of two equal keys counts.
    let document = stolos_document::parse_with(text, Duplicates::TakeLast);
    document
        .map(|node| node.to_json())
        .map_err(|error| format!("it cannot be read: {error}"))
}

fn to_yaml(document: &Value) -> Result<String, String> {
    stolos_document::to_yaml(document).map_err(|error| error.to_string())
}

fn refused(path: &Utf8Path, problem: &str) -> Failure {
    Failure::user(format!("failed to update the kubeconfig `{path}`: {problem}"))
}

#[cfg(test)]
mod tests;
