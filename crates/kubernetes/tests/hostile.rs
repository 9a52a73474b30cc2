//! Every property of every job of `releases/kubernetes` with values that try to get out of where they are printed.
//!
//! A value of a property reaches what reads the rendered file as it is, or the rendering is refused. Each file is rendered once with a
//! harmless word and once with the value; what is parsed of the second has to be what is parsed of the first with the word exchanged.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use stolos_release::JobArchive;
use stolos_release::render::{InstanceContext, JobInput, Link, LinkInstance, render_instance};

const PEM: &str = "-----BEGIN X-----\nMA==\n-----END X-----\n";
/// The harmless word.
const WORD: &str = "Qharmless7";

/// Quotes, line ends of YAML 1.1 and 1.2, words of other languages, what YAML reads as something else.
const HOSTILE: &[&str] = &[
    "a'b",
    "a\"b",
    "a\\b\\",
    "a\nb",
    "a\n- b: c",
    "\n---\nkind: Pod\n",
    "a\r\nb",
    "a\tb",
    " a ",
    "((x))",
    "((/stolos/token_key.private_key))",
    "{{ x }}",
    "{% raw %}",
    "{# x",
    "<%= x %>",
    "$(touch /tmp/x)",
    "`id`",
    "${HOME}",
    "a; id",
    "a && id #",
    "a #b",
    "a: b",
    "a, b]",
    "}, {x: y",
    "-x",
    "--x=y",
    "@x",
    "!x",
    "&x",
    "*x",
    "%x",
    "yes",
    "No",
    "~",
    "null",
    "0755",
    "1_000",
    "1e3",
    "0x1F",
    "1:30",
    "2001-12-14",
    "<<",
    "=",
    "END",
    "a\nEND\nid",
    "../../x",
    "a\u{85}b",
    "a\u{2028}b\u{2029}c",
    "\u{feff}a",
    "a\u{1b}[31mb",
    "a\u{7f}b",
    "a\u{0}b",
    "ä 💥 \u{202e}b",
    "a\u{fffe}b",
];

fn release() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../../releases/kubernetes")
}

fn jobs() -> Vec<JobArchive> {
    let text = fs_err::read_to_string(release().join("release.yml")).expect("the release");
    let manifest: Value = stolos_document::from_yaml(&text).expect("YAML");
    let names = manifest["jobs"].as_array().expect("a list of jobs");
    names
        .iter()
        .map(|name| {
            let directory = release().join("jobs").join(name.as_str().expect("a name"));
            JobArchive::from_source(&directory).unwrap_or_else(|error| panic!("{directory}: {error}"))
        })
        .collect()
}

/// The files of one job with a value of one property; the rest is usual. `Err` says why it is refused.
fn rendered(job: &JobArchive, property: &str, value: &Value) -> Result<BTreeMap<String, String>, String> {
    let mut manifest = json!({});
    for (name, spec) in &job.spec.properties {
        let value = match (name == property, name.as_str(), &spec.default) {
            (true, ..) => value.clone(),
            (_, "api_server", _) => json!("https://10.117.0.10:8443"),
            (_, _, Value::Null) => json!(PEM),
            _ => continue,
        };
        let mut place = &mut manifest;
        for part in name.split('.') {
            place = &mut place[part];
        }
        *place = value;
    }
    let members: Vec<LinkInstance> = (0..3)
        .map(|index| LinkInstance {
            name: "master".to_owned(),
            index,
            id: format!("id-{index}"),
            az: Some("z1".to_owned()),
            address: format!("10.117.1.{}", 2 + index),
            bootstrap: index == 0,
        })
        .collect();
    let link = || Link {
        instances: members.clone(),
        properties: json!({}),
    };
    let links = BTreeMap::from(["etcd", "kube-apiserver"].map(|name| (name.to_owned(), link())));
    let properties = job.spec.properties_for(&manifest).expect("properties");
    let input = JobInput {
        job,
        properties: &properties,
        links: &links,
    };
    let context = InstanceContext {
        deployment: "service-instance_1".to_owned(),
        name: "master".to_owned(),
        index: 0,
        id: "id-0".to_owned(),
        az: Some("z1".to_owned()),
        bootstrap: true,
        ip: "10.117.1.2".to_owned(),
        address: "10.117.1.2".to_owned(),
        networks: json!({}),
    };
    let rendered = render_instance(&[input], &context).map_err(|error| error.to_string())?;
    Ok(rendered.jobs[&job.spec.name]
        .files
        .iter()
        .map(|(path, file)| {
            let text = String::from_utf8(file.bytes.expose().clone()).expect("UTF-8");
            (path.to_string(), text)
        })
        .collect())
}

/// What a property can hold, with `text` wherever a text can stand.
fn values(name: &str, default: &Value, text: &str) -> Vec<Value> {
    match (name, default) {
        (_, Value::Bool(_)) => Vec::new(),
        ("registries", _) => {
            let place = |url: &str, ca: &str, capability: &str| json!({"url": url, "ca": ca, "capabilities": [capability], "skip_verify": true});
            vec![
                json!([{"host": text, "places": [place("https://a", PEM, "pull")]}]),
                json!([{"host": "a:5000", "places": [place(text, PEM, "pull")]}]),
                json!([{"host": "a:5000", "places": [place("https://a", text, "pull")]}]),
                json!([{"host": "a:5000", "places": [place("https://a", PEM, text)]}]),
            ]
        }
        ("taints", _) => vec![json!([{"key": text, "value": text, "effect": text}])],
        (_, Value::Array(_)) => vec![json!([text]), json!(["x", text])],
        (_, Value::Object(_)) => vec![json!({"key": text}), json!({text: "value"})],
        ("api_server", _) => vec![json!(format!("https://{text}"))],
        _ => vec![json!(text)],
    }
}

/// Exchanges the word in every key and value.
fn exchanged(value: &Value, text: &str) -> Value {
    match value {
        Value::String(old) => old.replace(WORD, text).into(),
        Value::Array(items) => items.iter().map(|item| exchanged(item, text)).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.replace(WORD, text), exchanged(value, text)))
            .collect(),
        other => other.clone(),
    }
}

fn documents(text: &str) -> Result<Value, String> {
    let nodes = stolos_document::documents(text).map_err(|error| error.to_string())?;
    Ok(nodes.iter().map(stolos_document::Node::to_json).collect())
}

/// What stands in a place of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shell {
    Plain,
    Single,
    Double,
    Comment,
    /// A here-document whose delimiter is quoted: nothing in it is looked at.
    Here,
}

/// The state of the shell at each byte of a script: enough of its grammar for our templates.
fn states(script: &str) -> Vec<Shell> {
    let mut states = Vec::with_capacity(script.len());
    let mut state = Shell::Plain;
    let mut here = false;
    let mut escaped = false;
    let mut before = '\n';
    for (at, c) in script.char_indices() {
        if before == '\n' {
            if state == Shell::Here && script[at..].starts_with("END\n") {
                (state, here) = (Shell::Plain, false);
            } else if here && state == Shell::Plain {
                state = Shell::Here;
            }
        }
        states.extend(std::iter::repeat_n(state, c.len_utf8()));
        state = match (state, c) {
            _ if escaped => {
                escaped = false;
                state
            }
            (Shell::Plain | Shell::Double, '\\') => {
                escaped = true;
                state
            }
            (Shell::Plain, '\'') => Shell::Single,
            (Shell::Single, '\'') => Shell::Plain,
            (Shell::Plain, '"') => Shell::Double,
            (Shell::Double, '"') => Shell::Plain,
            (Shell::Plain, '#') if before.is_whitespace() => Shell::Comment,
            (Shell::Comment, '\n') => Shell::Plain,
            _ => state,
        };
        if state == Shell::Single && c == '\'' && script[..at].ends_with("<<") {
            here = true;
        }
        before = c;
    }
    states
}

/// A script in which the word stands in single quotes, or within a JSON string of a here-document, is right when each is escaped so.
fn check_script(harmless: &str, hostile: &str, text: &str) -> Result<(), String> {
    let states = states(harmless);
    let mut expect = String::new();
    let mut rest = 0;
    for (at, _) in harmless.match_indices(WORD) {
        expect.push_str(&harmless[rest..at]);
        rest = at + WORD.len();
        match states[at] {
            Shell::Single => expect.push_str(&text.replace('\'', r"'\''")),
            Shell::Here => expect.push_str(&json_text(text)),
            state => return Err(format!("the value stands in {state:?} of\n{harmless}")),
        }
    }
    expect.push_str(&harmless[rest..]);
    if expect == hostile {
        Ok(())
    } else {
        Err(format!("expected\n{expect}\nbut it is\n{hostile}"))
    }
}

/// How a text stands in a JSON string that is TOML and YAML 1.1 too.
fn json_text(text: &str) -> String {
    let quoted = serde_json::to_string(text).expect("JSON");
    let mut plain = String::new();
    for c in quoted[1..quoted.len() - 1].chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}') {
            plain.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Whether a file is nothing but the value of one property, as certificates are.
fn is_whole(harmless: &str) -> bool {
    harmless.trim_end_matches('\n') == WORD
}

fn check(path: &str, harmless: &str, hostile: &str, text: &str) -> Result<(), String> {
    use base64::Engine as _;
    let packed = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let harmless = &harmless.replace(&packed(WORD), &packed(text));
    if !harmless.contains(WORD) {
        return if harmless == hostile {
            Ok(())
        } else {
            Err(format!("expected\n{harmless}\nbut it is\n{hostile}"))
        };
    }
    if is_whole(harmless) {
        return if hostile == harmless.replace(WORD, text) {
            Ok(())
        } else {
            Err("the file is not the value".to_owned())
        };
    }
    if path.starts_with("bin/") || path.ends_with(".sh") {
        return check_script(harmless, hostile, text);
    }
    // These have no quotes, so only words come so far; TOML has those of JSON.
    let unquoted = path.ends_with("routes") || path.ends_with(".nft");
    if unquoted || path.ends_with(".toml") {
        return if hostile == harmless.replace(WORD, &json_text(text)) {
            Ok(())
        } else {
            Err(format!("the value is not escaped:\n{hostile}"))
        };
    }
    let odd = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    if hostile.contains(odd) {
        return Err("a parser of YAML 1.1 ends a line where there is none, or refuses the file".to_owned());
    }
    let parse = |content: &str| -> Result<Value, String> {
        if path.ends_with("conflist") {
            return serde_json::from_str(content).map_err(|error| error.to_string());
        }
        documents(content)
    };
    let (before, after) = (parse(harmless)?, parse(hostile)?);
    let before = exchanged(&before, text);
    if before == after {
        Ok(())
    } else {
        Err(format!("expected\n{before:#}\nbut it is\n{after:#}"))
    }
}

#[test]
fn every_property_reaches_its_reader_as_it_is_or_is_refused() {
    let (mut wrong, mut checked, mut refused) = (Vec::new(), 0, 0);
    for job in jobs() {
        for (name, spec) in &job.spec.properties {
            let words = values(name, &spec.default, WORD);
            for (nth, word) in words.iter().enumerate() {
                let harmless = match rendered(&job, name, word) {
                    Ok(files) => files,
                    Err(error) => {
                        wrong.push(format!(
                            "{}: {name} takes not even a word: {error}",
                            job.spec.name
                        ));
                        continue;
                    }
                };
                for text in HOSTILE {
                    let value = &values(name, &spec.default, text)[nth];
                    match rendered(&job, name, value) {
                        Err(error) if error.contains("is no plain word") || error.contains("a zero byte") => {
                            refused += 1;
                        }
                        Err(error) => wrong.push(format!("{}: {name}: {text:?}: {error}", job.spec.name)),
                        Ok(files) => {
                            for (path, hostile) in &files {
                                checked += 1;
                                if let Err(why) = check(path, &harmless[path], hostile, text) {
                                    wrong.push(format!("{}/{path}: {name}: {text:?}: {why}", job.spec.name));
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {checked}:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(12)].join("\n\n")
    );
    assert!(
        checked > 5000 && refused > 100,
        "{checked} checked, {refused} refused"
    );
}

/// What `shquote` makes is one word to a real shell.
#[test]
fn a_shell_reads_what_is_quoted_as_one_word() {
    let words: Vec<&str> = HOSTILE
        .iter()
        .copied()
        .filter(|text| !text.contains('\0'))
        .collect();
    let script: String = words
        .iter()
        .map(|text| format!("printf '%s\\0' '{}'\n", text.replace('\'', r"'\''")))
        .collect();
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .output()
        .expect("a shell");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    let said: Vec<&str> = said.split_terminator('\0').collect();
    assert_eq!(said, words);
}
