//! Import of PKS's tile.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::down::sibling;
use crate::args::Import;
use crate::failure::Failure;

/// `stolos import FILE`
///
/// Plans are `stolosd`'s, so that program does it, in the place of this one: what it prints and its exit code are ours.
pub(crate) fn run(args: &Import) -> Result<(), Failure> {
    let error = Command::new(sibling("stolosd")?).args(words(args)).exec();
    Err(Failure::ours(format!("failed to run stolosd: {error}")))
}

/// The words for `stolosd`.
fn words(args: &Import) -> Vec<String> {
    let instance = args.local.instance();
    let mut words = vec![
        format!("--instance={}", instance.name),
        format!("--root={}", instance.root),
        "import".to_owned(),
    ];
    let switches = [
        ("--write", args.write),
        ("--replace", args.replace),
        ("--json", args.json),
    ];
    words.extend(
        switches
            .into_iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(switch, _)| switch.to_owned()),
    );
    words.extend(args.vm_types.iter().map(|named| format!("--vm-type={named}")));
    words.extend(
        args.kubernetes_version
            .iter()
            .map(|version| format!("--kubernetes-version={version}")),
    );
    // A file may be named like an option.
    words.extend(["--".to_owned(), args.file.to_string()]);
    words
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;
    use crate::args::Local;

    #[test]
    fn all_words_are_handed_on() {
        let args = Import {
            file: Utf8PathBuf::from("-"),
            write: true,
            replace: true,
            vm_types: vec!["a=1:2:3".to_owned(), "b=4:5:6".to_owned()],
            kubernetes_version: Some("1.37.1".to_owned()),
            local: Local {
                instance: "mine".parse().expect("a name"),
                root: Some(Utf8PathBuf::from("/srv/mine")),
            },
            json: true,
        };
        insta::assert_snapshot!(words(&args).join(" "), @"--instance=mine --root=/srv/mine import --write --replace --json --vm-type=a=1:2:3 --vm-type=b=4:5:6 --kubernetes-version=1.37.1 -- -");
    }
}
