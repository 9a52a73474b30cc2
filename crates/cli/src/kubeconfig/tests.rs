use std::process::Command;

use super::*;

fn config(name: &str, token: &str) -> Value {
    json!({
        "clusters": [{"name": name, "cluster": {"server": "https://x:8443"}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    })
}

fn one(path: &Utf8Path) -> Files {
    Files(vec![path.to_owned()])
}

fn parsed(path: &Utf8Path) -> Value {
    from_yaml(&fs_err::read_to_string(path).expect("the file")).expect("YAML")
}

fn names(document: &Value, list: &str) -> Vec<String> {
    let entries = document[list].as_array().into_iter().flatten();
    entries
        .filter_map(|entry| entry["name"].as_str().map(str::to_owned))
        .collect()
}

#[tokio::test]
async fn other_contexts_and_unknown_keys_stay() {
    let dir = camino_tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("sub/config");
    merge(&one(&path), &config("a", "1"))
        .await
        .expect("the first merge");
    let text = fs_err::read_to_string(&path).expect("the file");
    fs_err::write(
        &path,
        format!("{text}\nextensions: [{{name: mine, extension: 1}}]\n"),
    )
    .expect("an edit");
    merge(&one(&path), &config("b", "2"))
        .await
        .expect("the second merge");
    merge(&one(&path), &config("a", "3"))
        .await
        .expect("the third merge");
    let merged = parsed(&path);
    assert_eq!(names(&merged, "contexts"), ["a", "b"]);
    assert_eq!(merged["users"][0]["user"]["token"], "3");
    assert_eq!(merged["current-context"], "a");
    assert_eq!(merged["extensions"][0]["name"], "mine");
    let left: Vec<_> = path
        .parent()
        .expect("a directory")
        .read_dir_utf8()
        .expect("a directory")
        .collect();
    assert_eq!(left.len(), 1, "no lock and no temporary file stays");
}

#[tokio::test]
async fn a_broken_file_is_left_alone() {
    let dir = camino_tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config");
    fs_err::write(&path, "clusters: 7\n").expect("a broken file");
    let error = merge(&one(&path), &config("a", "1"))
        .await
        .expect_err("no kubeconfig");
    assert!(error.to_string().contains("`clusters` is not a list"), "{error}");
    assert_eq!(fs_err::read_to_string(&path).expect("the file"), "clusters: 7\n");
}

/// kubectl changes an entry where it found it, and adds to the first file that is there.
#[tokio::test]
async fn of_several_files_the_one_changes_that_kubectl_would_change() {
    let dir = camino_tempfile::tempdir().expect("a temporary directory");
    let [missing, usual, other] = ["missing", "usual", "other"].map(|name| dir.path().join(name));
    merge(&one(&usual), &config("a", "1"))
        .await
        .expect("a kubeconfig");
    merge(&one(&other), &config("b", "1"))
        .await
        .expect("a kubeconfig");
    let files = Files(vec![missing.clone(), usual.clone(), other.clone()]);
    merge(&files, &config("b", "2")).await.expect("a known cluster");
    merge(&files, &config("c", "1")).await.expect("a new cluster");
    assert!(!missing.exists());
    assert_eq!(names(&parsed(&usual), "users"), ["a", "c"]);
    assert_eq!(parsed(&usual)["current-context"], "c");
    assert_eq!(parsed(&other)["users"][0]["user"]["token"], "2");

    let named = |list| Files::named(list, Some("/home/me")).expect("a file").0;
    assert_eq!(named(Some("a::b:a")), ["a", "b"]);
    assert_eq!(named(Some("")), ["/home/me/.kube/config"]);
    assert!(Files::named(None, None).is_err());
}

/// A lock that kubectl holds was ignored; one that is left behind has to be named.
#[tokio::test]
async fn a_lock_of_kubectl_is_waited_for_and_never_removed() {
    let dir = camino_tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config");
    let (files, new) = (one(&path), config("a", "1"));
    let lock = dir.path().join("config.lock");
    fs_err::write(&lock, "").expect("a lock");
    let error = merge_within(Duration::ZERO, &files, &new)
        .await
        .expect_err("a lock")
        .to_string();
    assert!(
        error.contains(lock.as_str()) && error.contains("remove it"),
        "{error}"
    );
    assert!(lock.exists() && !path.exists());

    let mut merging = std::pin::pin!(merge(&files, &new));
    assert!(futures::poll!(&mut merging).is_pending());
    assert!(!path.exists());
    fs_err::remove_file(&lock).expect("the lock");
    merging.await.expect("the lock is free");
    assert!(path.exists() && !lock.exists());
}

/// Somebody who calls kubectl with the link and somebody who calls it with the file both have to see our lock.
#[tokio::test]
async fn a_link_is_locked_under_both_names_and_stays_a_link() {
    let dir = camino_tempfile::tempdir().expect("a temporary directory");
    let (link, real) = (dir.path().join("config"), dir.path().join("real"));
    fs_err::os::unix::fs::symlink("real", &link).expect("a link");
    let seen = lock::holding(std::slice::from_ref(&link), Duration::ZERO, || {
        Ok([&link, &real].map(|path| Utf8PathBuf::from(format!("{path}.lock")).exists()))
    });
    assert_eq!(seen.await.expect("the locks"), [true, true]);
    merge(&one(&link), &config("a", "1")).await.expect("a merge");
    assert!(fs_err::symlink_metadata(&link).expect("metadata").is_symlink());
    assert_eq!(names(&parsed(&real), "contexts"), ["a"]);
}

/// kubectl as this repository builds it, else that of `PATH`.
fn kubectl() -> Option<Utf8PathBuf> {
    let variable = |name: &str| std::env::var(name).ok();
    let cache = variable("STOLOS_CACHE")
        .or_else(|| Some(format!("{}/stolos", variable("XDG_CACHE_HOME")?)))
        .or_else(|| Some(format!("{}/.cache/stolos", variable("HOME")?)))?;
    let artefacts = Utf8PathBuf::from(cache).join("artefacts");
    let built = artefacts.read_dir_utf8().into_iter().flatten().flatten();
    let built = built
        .filter(|entry| entry.file_name().starts_with("upstream-kubernetes-"))
        .flat_map(|entry| entry.path().read_dir_utf8().into_iter().flatten().flatten())
        .map(|entry| entry.path().join("content/bin/kubectl"));
    let path = variable("PATH").unwrap_or_default();
    let on_path = path
        .split(':')
        .map(|directory| Utf8Path::new(directory).join("kubectl"));
    built.chain(on_path).find(|program| program.is_file())
}

/// Of 15 contexts that `kubectl config` set beside 15 `get-credentials`, 12 were lost: kubectl's lock was ignored.
#[tokio::test(flavor = "multi_thread")]
async fn kubectl_beside_us_loses_nothing() {
    const EACH: usize = 15;
    let Some(kubectl) = kubectl() else {
        eprintln!("skipped: there is no kubectl; run `stolos-build upstream kubernetes-1.37`");
        return;
    };
    let dir = camino_tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config");
    let theirs = {
        let path = path.clone();
        move || {
            for number in 0..EACH {
                // kubectl does not wait for its lock, so that who calls it has to.
                loop {
                    let output = Command::new(&kubectl)
                        .args([
                            "config",
                            "set-context",
                            &format!("theirs-{number}"),
                            "--cluster=x",
                        ])
                        .env("KUBECONFIG", &path)
                        .output()
                        .expect("kubectl runs");
                    if output.status.success() {
                        break;
                    }
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert!(
                        said.contains("config.lock") && said.contains("file exists"),
                        "{said}"
                    );
                }
            }
        }
    };
    let theirs = tokio::task::spawn_blocking(theirs);
    let files = one(&path);
    let ours: Vec<Value> = (0..EACH)
        .map(|number| config(&format!("ours-{number}"), "1"))
        .collect();
    // For as long as kubectl is at work, and once after it: what it reads before it takes its lock may lack one of ours, and then it drops that
    // one. That is between kubectl and itself (docs/design/0026-beside-kubectl-and-scripts.md); what we may never do is drop one of its.
    loop {
        let was_last = theirs.is_finished();
        futures::future::try_join_all(ours.iter().map(|new| merge(&files, new)))
            .await
            .expect("we have merged ours");
        if was_last {
            break;
        }
    }
    theirs.await.expect("kubectl has set its contexts");
    let found = names(&parsed(&path), "contexts");
    let of = |whose: &str| found.iter().filter(|name| name.starts_with(whose)).count();
    assert_eq!((of("theirs"), of("ours")), (EACH, EACH), "{found:?}");
}

/// kubectl reads these, so nobody knows that anything is odd about them; they were refused with advice for programmers. What is written
/// has each value on the line of its key: certificates were folded, and scripts with `grep` and `awk` got `>-`.
#[test]
fn what_kubectl_reads_is_read_and_written_without_folds() {
    let read = from_yaml("current-context: x\npreferences: {colors: yes}\ncurrent-context: z\n---\n")
        .expect("a kubeconfig");
    assert_eq!(
        read,
        json!({"current-context": "z", "preferences": {"colors": true}})
    );
    let error = from_yaml("kind: Config\n---\nkind: Config\n").expect_err("two documents");
    assert!(
        error.contains("line 3, column 1: a second document begins here"),
        "{error}"
    );
    let certificate = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==".repeat(50);
    let written = to_yaml(&json!({"certificate-authority-data": certificate})).expect("YAML");
    assert_eq!(written, format!("certificate-authority-data: {certificate}\n"));
}
