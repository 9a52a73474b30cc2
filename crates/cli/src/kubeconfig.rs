//! Merging a cluster's credentials into the kubeconfig.
//!
//! Contexts of other clusters stay as they are, unknown keys included; entries of the same name are replaced; the file is
//! written whole or not at all.

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};
use stolos_base::{files, lock::FileLock};
use stolos_document::Duplicates;

use crate::failure::Failure;

/// The kubeconfig to write: the first of `$KUBECONFIG`, else `~/.kube/config`, as kubectl has it.
///
/// # Errors
/// When neither `KUBECONFIG` nor `HOME` is set.
pub(crate) fn path() -> Result<Utf8PathBuf, Failure> {
    if let Ok(list) = std::env::var("KUBECONFIG")
        && let Some(first) = list.split(':').find(|part| !part.is_empty())
    {
        return Ok(Utf8PathBuf::from(first));
    }
    match std::env::var("HOME") {
        Ok(home) if !home.is_empty() => Ok(Utf8PathBuf::from(home).join(".kube/config")),
        _ => Err(Failure::user(
            "neither KUBECONFIG nor HOME is set, so there is no kubeconfig to write",
        )),
    }
}

/// Merges `new` into the file and makes its context the current one.
///
/// # Errors
/// When the file cannot be read, is no kubeconfig, or cannot be written; it is untouched then.
pub(crate) fn merge_into_file(path: &Utf8Path, new: &Value) -> Result<(), Failure> {
    let run = || -> Result<(), String> {
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent).map_err(|error| error.to_string())?;
        }
        // Two at once must not lose each other's context. kubectl's own lock is a file of this name too, but made with
        // O_EXCL; ours lives beside it so that a crash of ours never blocks kubectl.
        let _lock = FileLock::acquire(&Utf8PathBuf::from(format!("{path}.stolos-lock")))
            .map_err(|error| error.to_string())?;
        let old: Value = match fs_err::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => Value::Null,
            // As kubectl reads it: the last of two equal keys counts.
            Ok(text) => stolos_document::parse_with(&text, Duplicates::TakeLast)
                .map_err(|error| format!("it cannot be read: {error}"))?
                .to_json(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(error.to_string()),
        };
        let merged = merge(old, new)?;
        let text = stolos_document::to_yaml(&merged).map_err(|error| error.to_string())?;
        files::write_atomic(path, text.as_bytes(), 0o600).map_err(|error| error.to_string())
    };
    run().map_err(|problem| Failure::user(format!("failed to update the kubeconfig `{path}`: {problem}")))
}

fn merge(old: Value, new: &Value) -> Result<Value, String> {
    let mut config = match old {
        Value::Null => {
            let mut fresh = Map::new();
            fresh.insert("apiVersion".into(), json!("v1"));
            fresh.insert("kind".into(), json!("Config"));
            fresh
        }
        Value::Object(object) => object,
        _ => return Err("it is not a mapping".to_owned()),
    };
    for list in ["clusters", "users", "contexts"] {
        let entries = match config.entry(list).or_insert_with(|| json!([])) {
            Value::Array(entries) => entries,
            slot @ Value::Null => {
                *slot = json!([]);
                match slot {
                    Value::Array(entries) => entries,
                    _ => continue,
                }
            }
            _ => return Err(format!("`{list}` is not a list")),
        };
        for entry in new[list].as_array().into_iter().flatten() {
            entries.retain(|other| other["name"] != entry["name"]);
            entries.push(entry.clone());
        }
    }
    config.insert("current-context".into(), new["current-context"].clone());
    Ok(Value::Object(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, token: &str) -> Value {
        json!({
            "clusters": [{"name": name, "cluster": {"server": "https://x:8443"}}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        })
    }

    #[test]
    fn other_contexts_and_unknown_keys_stay() {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("sub/config");
        merge_into_file(&path, &config("a", "1")).expect("the first merge");
        let text = fs_err::read_to_string(&path).expect("the file");
        fs_err::write(
            &path,
            format!("{text}\nextensions: [{{name: mine, extension: 1}}]\n"),
        )
        .expect("an edit");
        merge_into_file(&path, &config("b", "2")).expect("the second merge");
        merge_into_file(&path, &config("a", "3")).expect("the third merge");
        let merged: Value =
            stolos_document::from_yaml(&fs_err::read_to_string(&path).expect("the file")).expect("YAML");
        assert_eq!(merged["contexts"].as_array().map(Vec::len), Some(2));
        assert_eq!(merged["users"][1]["user"]["token"], "3");
        assert_eq!(merged["current-context"], "a");
        assert_eq!(merged["extensions"][0]["name"], "mine");
    }

    /// kubectl reads these, so nobody knows that anything is odd about them; they were refused with advice for programmers.
    #[test]
    fn what_kubectl_reads_is_read() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: []\ncurrent-context: y\n\
                    preferences: {colors: yes}\n---\n";
        fs_err::write(&path, text).expect("a file");
        merge_into_file(&path, &config("a", "1")).expect("merged");
        let merged: Value =
            stolos_document::from_yaml(&fs_err::read_to_string(&path).expect("the file")).expect("YAML");
        assert_eq!(merged["current-context"], "a");
        assert_eq!(merged["preferences"]["colors"], true);
        // kubectl passes over a second document in silence and loses it when it writes.
        fs_err::write(&path, "kind: Config\n---\nkind: Config\n").expect("a file");
        let error = merge_into_file(&path, &config("a", "1"))
            .expect_err("two documents")
            .to_string();
        assert!(
            error.contains("line 3, column 1: a second document begins here"),
            "{error}"
        );
    }

    /// Scripts take certificates out of it with `grep` and `awk`; they were folded over several lines.
    #[test]
    fn each_value_is_on_the_line_of_its_key() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config");
        let certificate = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==".repeat(50);
        let mut new = config("a", "1");
        new["clusters"][0]["cluster"]["certificate-authority-data"] = certificate.clone().into();
        merge_into_file(&path, &new).expect("merged");
        let text = fs_err::read_to_string(&path).expect("the file");
        assert!(
            text.contains(&format!("    certificate-authority-data: {certificate}\n")),
            "{text}"
        );
    }

    #[test]
    fn a_broken_file_is_left_alone() {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config");
        fs_err::write(&path, "clusters: 7\n").expect("a broken file");
        let error = merge_into_file(&path, &config("a", "1")).expect_err("no kubeconfig");
        assert!(error.to_string().contains("`clusters` is not a list"), "{error}");
        assert_eq!(fs_err::read_to_string(&path).expect("the file"), "clusters: 7\n");
    }
}
