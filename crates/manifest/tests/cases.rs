//! Literate cases: `tests/cases/*.md` say in prose, YAML and expected output how documents are read, resolved,
//! changed and compared.
//!
//! A case is a second-level heading with fenced blocks. The first line of a fence says what it is. Inputs are `yaml manifest`,
//! `yaml cloud`, `yaml second cloud`, `yaml before` and `yaml ops`; inputs above the first case are defaults for all of
//! them. Outputs are `errors`, `resolved` (YAML), `diff`, `changed` (the document after ops) and `unknown variables`.
//! With `UPDATE_CASES=1` outputs are written instead of compared; read them before you commit them.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::collections::BTreeMap;
use std::path::Path;

use stolos_manifest::{
    CloudConfig, CloudDocument, Known, Manifest, Node, Problems, StemcellOffer, diff, ops, resolve, yaml,
};

#[derive(Clone, Debug)]
struct Block {
    kind: String,
    text: String,
}

#[derive(Debug)]
struct Case {
    name: String,
    blocks: Vec<Block>,
}

const INPUTS: [&str; 5] = [
    "yaml manifest",
    "yaml cloud",
    "yaml second cloud",
    "yaml before",
    "yaml ops",
];

#[test]
fn cases() {
    let update = std::env::var_os("UPDATE_CASES").is_some();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut failures = Vec::new();
    let mut n = 0;
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut written = text.clone();
        let (defaults, cases) = read(&text);
        for case in &cases {
            let inputs = defaults
                .iter()
                .chain(&case.blocks)
                .filter(|block| INPUTS.contains(&block.kind.as_str()));
            let inputs: BTreeMap<&str, &str> = inputs
                .map(|block| (block.kind.as_str(), block.text.as_str()))
                .collect();
            let outputs: Vec<_> = case
                .blocks
                .iter()
                .filter(|block| !INPUTS.contains(&block.kind.as_str()))
                .collect();
            assert!(!outputs.is_empty(), "case '{}' expects nothing", case.name);
            for block in outputs {
                n += 1;
                let actual = run(&block.kind, &inputs);
                if actual.trim_end() == block.text.trim_end() {
                    continue;
                }
                let name = format!(
                    "{}: {} ({})",
                    file.file_name().unwrap().display(),
                    case.name,
                    block.kind
                );
                failures.push(format!("{name}\nexpected:\n{}\nactual:\n{actual}\n", block.text));
                let heading = written.find(&format!("\n## {}\n", case.name)).unwrap();
                let fence = format!("```{}\n", block.kind);
                let start = heading + written[heading..].find(&fence).unwrap() + fence.len();
                written.replace_range(
                    start..start + block.text.len(),
                    &(actual.trim_end().to_owned() + "\n"),
                );
            }
        }
        if update {
            std::fs::write(&file, written).unwrap();
        }
    }
    assert!(n >= 25, "only {n} expectations were found");
    assert!(update || failures.is_empty(), "{}", failures.join("\n"));
}

fn read(text: &str) -> (Vec<Block>, Vec<Case>) {
    let mut defaults = Vec::new();
    let mut cases: Vec<Case> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("## ") {
            cases.push(Case {
                name: name.to_owned(),
                blocks: Vec::new(),
            });
        } else if let Some(kind) = line.strip_prefix("```") {
            let mut text = String::new();
            for line in lines.by_ref().take_while(|line| *line != "```") {
                text.push_str(line);
                text.push('\n');
            }
            let block = Block {
                kind: kind.to_owned(),
                text,
            };
            match cases.last_mut() {
                Some(case) => case.blocks.push(block),
                None => defaults.push(block),
            }
        }
    }
    (defaults, cases)
}

fn run(kind: &str, inputs: &BTreeMap<&str, &str>) -> String {
    let input = |kind: &str| inputs.get(format!("yaml {kind}").as_str()).copied();
    let outcome: Result<String, Problems> = match kind {
        "errors" => check(&input).map(|_| "no errors\n".to_owned()),
        "resolved" => {
            check(&input).map(|resolved| yaml::write(&Node::from(serde_json::to_value(resolved).unwrap())))
        }
        "diff" => {
            let before = input("before").map(|text| yaml::parse("before", text).unwrap());
            let after = yaml::parse("manifest", input("manifest").unwrap()).unwrap();
            Ok(diff::to_text(&diff::diff(
                before.as_ref(),
                &after,
                diff::Redaction::Redacted,
            )))
        }
        "changed" => changed(&input).map(|node| yaml::write(&node)),
        "unknown variables" => Manifest::parse(input("manifest").unwrap())
            .and_then(|manifest| manifest.check_variables(|name| name == "/global"))
            .map(|()| "none\n".to_owned()),
        other => panic!("unknown kind of block '{other}'"),
    };
    outcome.unwrap_or_else(|problems| format!("{problems}\n"))
}

fn changed<'t>(input: &dyn Fn(&str) -> Option<&'t str>) -> Result<Node, Problems> {
    let mut node = yaml::parse("manifest", input("manifest").unwrap())?;
    if let Some(text) = input("ops") {
        ops::apply(&mut node, &ops::parse(text)?)?;
    }
    Ok(node)
}

fn check<'t>(
    input: &dyn Fn(&str) -> Option<&'t str>,
) -> Result<stolos_manifest::ResolvedDeployment, Problems> {
    let first = input("cloud").expect("a cloud config");
    let cloud = match input("second cloud") {
        None => CloudConfig::parse(first)?,
        Some(second) => CloudConfig::of(&[
            CloudDocument::parse("first", first)?,
            CloudDocument::parse("second", second)?,
        ])?,
    };
    let manifest = match input("ops") {
        None => Manifest::parse(input("manifest").expect("a manifest"))?,
        Some(_) => Manifest::read(changed(input)?)?,
    };
    resolve(&manifest, &cloud, &known())
}

fn known() -> Known {
    let offer = |name: &str, os: &str, version: &str| StemcellOffer {
        name: name.into(),
        os: os.into(),
        version: version.into(),
    };
    Known {
        releases: [
            (
                "etcd".to_owned(),
                vec!["3.6.9".to_owned(), "3.6.10".to_owned(), "3.5.1".to_owned()],
            ),
            ("tools".to_owned(), vec!["1".to_owned()]),
        ]
        .into_iter()
        .collect(),
        stemcells: vec![
            offer("stolos-trixie", "debian-trixie", "1.2"),
            offer("stolos-trixie", "debian-trixie", "1.10"),
            offer("stolos-bookworm", "debian-bookworm", "1.30"),
        ],
    }
}
