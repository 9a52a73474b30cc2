//! Jobs: their spec, their templates, the properties that they get.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use camino::{Utf8Component, Utf8Path};
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result, invalid, is_plain_name, yaml};
use crate::fingerprint::{Content, fingerprint};
use crate::tarball::{self, Kind, Level, Limits, Next, Packer};

/// A job's spec: `spec` in a release's source, `job.MF` in its archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobSpec {
    /// The job's name.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Source below `templates/` to destination below the job's directory.
    #[serde(default, deserialize_with = "null_as_default")]
    pub templates: IndexMap<String, String>,
    /// Packages that the job's programs come from.
    #[serde(default, deserialize_with = "null_as_default")]
    pub packages: Vec<String>,
    /// Dotted name to declaration.
    #[serde(default, deserialize_with = "null_as_default")]
    pub properties: IndexMap<String, Property>,
    /// Links that other jobs may consume.
    #[serde(default, deserialize_with = "null_as_default")]
    pub provides: Vec<ProvidedLink>,
    /// Links that this job wants.
    #[serde(default, deserialize_with = "null_as_default")]
    pub consumes: Vec<ConsumedLink>,
    /// Ours: whether the instances of a group have copies of what the job keeps on the persistent disk, so that one of them gets it back on an empty
    /// one. Then a lost disk is replaced without asking anybody, while a majority of the group is alive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replicated_disk: bool,
}

/// A declared property.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Property {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The value where the manifest has none.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub default: Value,
    /// For people.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub example: Value,
    /// A credential type, where the property is one.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// A link that a job provides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProvidedLink {
    /// Its name.
    pub name: String,
    /// Providers and consumers meet by type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Declared properties that consumers get to see.
    #[serde(default, deserialize_with = "null_as_default")]
    pub properties: Vec<String>,
    /// Whether other deployments may consume it.
    #[serde(default)]
    pub shared: bool,
}

/// A link that a job consumes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConsumedLink {
    /// Its name.
    pub name: String,
    /// Providers and consumers meet by type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether the job works without.
    #[serde(default)]
    pub optional: bool,
}

impl JobSpec {
    /// Parses and checks a spec. `job` names it in errors.
    ///
    /// # Errors
    /// [`Error::Yaml`], [`Error::Invalid`].
    pub fn parse(job: &str, bytes: &[u8]) -> Result<Self> {
        let spec: Self = yaml(&document(job), bytes)?;
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<()> {
        let refuse = |reason: String| Err(invalid(document(&self.name), reason));
        if !is_plain_name(&self.name) {
            return refuse(format!("`{}` cannot name a job", self.name));
        }
        let mut destinations = BTreeSet::new();
        for (source, destination) in &self.templates {
            for path in [source, destination] {
                if !is_inside(path) {
                    return refuse(format!("template path `{path}` leaves the job"));
                }
            }
            if !destinations.insert(destination) {
                return refuse(format!("two templates have the destination `{destination}`"));
            }
        }
        for package in &self.packages {
            if !is_plain_name(package) {
                return refuse(format!("`{package}` cannot name a package"));
            }
        }
        for name in self.properties.keys() {
            if name.is_empty() || name.split('.').any(str::is_empty) {
                return refuse(format!("`{name}` cannot name a property"));
            }
        }
        let mut provided = BTreeSet::new();
        for link in &self.provides {
            if !provided.insert(&link.name) {
                return refuse(format!("link `{}` is provided twice", link.name));
            }
            if let Some(property) = link.properties.iter().find(|p| !self.properties.contains_key(*p)) {
                return refuse(format!(
                    "link `{}` provides property `{property}`, which is not declared",
                    link.name
                ));
            }
        }
        let mut consumed = BTreeSet::new();
        if let Some(link) = self.consumes.iter().find(|link| !consumed.insert(&link.name)) {
            return refuse(format!("link `{}` is consumed twice", link.name));
        }
        Ok(())
    }

    /// The properties that the job's templates get: each declared one, with the value at its dotted path in
    /// `manifest` (the properties that the manifest gives the job), else its default, else null. Others are dropped.
    ///
    /// # Errors
    /// [`Error::PropertyShape`] when the manifest has something else where a hash has to be.
    pub fn properties_for(&self, manifest: &Value) -> Result<Value> {
        let mut filtered = Map::new();
        for (name, property) in &self.properties {
            let value = match look_up(name, manifest)? {
                Value::Null => &property.default,
                given => given,
            };
            insert(&mut filtered, name, value.clone());
        }
        Ok(Value::Object(filtered))
    }

    /// The properties that consumers of the job's link `link` get, from the result of [`JobSpec::properties_for`].
    ///
    /// # Errors
    /// As [`JobSpec::properties_for`].
    pub fn link_properties(&self, link: &ProvidedLink, filtered: &Value) -> Result<Value> {
        let mut shown = Map::new();
        for name in &link.properties {
            insert(&mut shown, name, look_up(name, filtered)?.clone());
        }
        Ok(Value::Object(shown))
    }
}

/// The value at a dotted path; null where it is missing.
fn look_up<'a>(name: &str, properties: &'a Value) -> Result<&'a Value> {
    let mut value = properties;
    for (i, key) in name.split('.').enumerate() {
        value = match value {
            Value::Null => return Ok(&Value::Null),
            Value::Object(map) => map.get(key).unwrap_or(&Value::Null),
            other => {
                let at: Vec<&str> = name.split('.').take(i).collect();
                return Err(Error::PropertyShape {
                    property: name.to_owned(),
                    at: at.join("."),
                    found: match other {
                        Value::Array(_) => "a list",
                        Value::String(_) => "a string",
                        Value::Number(_) => "a number",
                        _ => "a boolean",
                    },
                });
            }
        };
    }
    Ok(value)
}

/// Puts a value at a dotted path. A property below another one that is no hash (`a` and `a.b` both declared) wins.
fn insert(into: &mut Map<String, Value>, name: &str, value: Value) {
    match name.split_once('.') {
        None => {
            // `a.b` may have been put there before `a`: what `a` says is kept, and `a.b` in it.
            match (into.get_mut(name), value) {
                (Some(Value::Object(there)), Value::Object(more)) => {
                    for (key, value) in more {
                        there.entry(key).or_insert(value);
                    }
                }
                (Some(Value::Object(_)), Value::Null) => {}
                (_, value) => {
                    into.insert(name.to_owned(), value);
                }
            }
        }
        Some((key, rest)) => {
            let below = into.entry(key).or_insert(Value::Null);
            if !below.is_object() {
                *below = Value::Object(Map::new());
            }
            if let Value::Object(below) = below {
                insert(below, rest, value);
            }
        }
    }
}

/// A job as its archive has it: spec, templates, and `monit` where there is one.
#[derive(Clone, Debug)]
pub struct JobArchive {
    /// The spec.
    pub spec: JobSpec,
    /// The spec as it was written.
    spec_text: Vec<u8>,
    /// Sources by their path below `templates/`.
    templates: BTreeMap<String, Vec<u8>>,
    /// For agents with monit. Copied as it is; ours reads `config/processes.yml` instead.
    monit: Option<Vec<u8>>,
}

impl JobArchive {
    /// Reads `jobs/NAME.tgz`.
    ///
    /// # Errors
    /// As [`tarball::walk`], and what [`JobArchive::from_parts`] refuses.
    pub fn read(name: &str, compressed: impl Read) -> Result<Self> {
        let archive = format!("archive of job `{name}`");
        let mut files = BTreeMap::new();
        tarball::walk(&archive, compressed, Limits::JOB, |entry| {
            if entry.kind == Kind::File {
                let mut bytes = Vec::new();
                entry
                    .data
                    .read_to_end(&mut bytes)
                    .map_err(|source| Error::Archive {
                        archive: archive.clone(),
                        source,
                    })?;
                files.insert(entry.path.into_string(), bytes);
            }
            Ok::<_, Error>(Next::Continue)
        })?;
        let spec = files.remove("job.MF").ok_or_else(|| Error::Missing {
            file: "job.MF".to_owned(),
            archive,
        })?;
        let monit = files.remove("monit");
        let templates = files
            .into_iter()
            .filter_map(|(path, bytes)| Some((path.strip_prefix("templates/")?.to_owned(), bytes)))
            .collect();
        Self::from_parts(name, spec, templates, monit)
    }

    /// Opens an archive that lies in a file.
    ///
    /// # Errors
    /// As [`JobArchive::read`]; [`Error::Read`] when there is no such file.
    pub fn open(name: &str, path: &Utf8Path) -> Result<Self> {
        let file = fs_err::File::open(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::read(name, file)
    }

    /// Reads a job of a release's source: `DIRECTORY/spec`, `DIRECTORY/templates/…`, `DIRECTORY/monit` where it is there.
    /// The directory's name is the job's.
    ///
    /// # Errors
    /// As [`JobArchive::from_parts`]; [`Error::Read`] for files that cannot be read.
    pub fn from_source(directory: &Utf8Path) -> Result<Self> {
        let read = |path: &Utf8Path| {
            fs_err::read(path).map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })
        };
        let name = directory.file_name().unwrap_or_default();
        let spec = read(&directory.join("spec"))?;
        let monit = directory.join("monit");
        let monit = if monit.exists() { Some(read(&monit)?) } else { None };
        let sources = JobSpec::parse(name, &spec)?;
        let mut templates = BTreeMap::new();
        for source in sources.templates.keys() {
            templates.insert(source.clone(), read(&directory.join("templates").join(source))?);
        }
        Self::from_parts(name, spec, templates, monit)
    }

    /// Puts a job together and checks it: the spec's rules, that all templates are there, that their syntax is right and none
    /// needs Ruby.
    ///
    /// # Errors
    /// [`Error::Yaml`], [`Error::Invalid`], [`Error::Missing`], [`Error::Erb`], [`Error::Template`].
    pub fn from_parts(
        name: &str,
        spec_text: Vec<u8>,
        mut templates: BTreeMap<String, Vec<u8>>,
        monit: Option<Vec<u8>>,
    ) -> Result<Self> {
        let spec = JobSpec::parse(name, &spec_text)?;
        if spec.name != name {
            return Err(invalid(
                document(name),
                format!("it names the job `{}`", spec.name),
            ));
        }
        templates.retain(|source, _| spec.templates.contains_key(source));
        for source in spec.templates.keys() {
            let Some(text) = templates.get(source) else {
                return Err(Error::Missing {
                    file: format!("templates/{source}"),
                    archive: format!("archive of job `{name}`"),
                });
            };
            if is_erb(source, text) {
                return Err(Error::Erb {
                    job: name.to_owned(),
                    template: source.clone(),
                });
            }
            if let Err((line, reason)) = crate::render::check_template(source, text) {
                return Err(Error::Template {
                    job: name.to_owned(),
                    template: source.clone(),
                    line,
                    reason,
                });
            }
        }
        if monit.as_ref().is_some_and(|text| is_erb("monit", text)) {
            return Err(Error::Erb {
                job: name.to_owned(),
                template: "monit".to_owned(),
            });
        }
        Ok(Self {
            spec,
            spec_text,
            templates,
            monit,
        })
    }

    /// A template's source by its path below `templates/`.
    #[must_use]
    pub fn template(&self, source: &str) -> Option<&[u8]> {
        self.templates.get(source).map(Vec::as_slice)
    }

    /// The `monit` file, where the job has one.
    #[must_use]
    pub fn monit(&self) -> Option<&[u8]> {
        self.monit.as_deref()
    }

    /// What the content is compared by.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let plain = |bytes| Content::File {
            bytes,
            executable: false,
        };
        let templates: Vec<(String, &str, &[u8])> = self
            .templates
            .iter()
            .map(|(source, bytes)| {
                let base = source.rsplit('/').next().unwrap_or(source);
                (format!("templates/{source}"), base, bytes.as_slice())
            })
            .collect();
        let mut files = vec![("job.MF", "spec", plain(&self.spec_text))];
        files.extend(
            self.monit
                .as_deref()
                .map(|bytes| ("monit", "monit", plain(bytes))),
        );
        files.extend(
            templates
                .iter()
                .map(|(path, base, bytes)| (path.as_str(), *base, plain(bytes))),
        );
        fingerprint(files, [])
    }

    /// Packs the job as `jobs/NAME.tgz`; the same job always gives the same bytes.
    #[must_use]
    pub fn pack(&self) -> Vec<u8> {
        let pack = || -> std::io::Result<Vec<u8>> {
            let mut packer = Packer::new(Vec::new(), Level::Fast);
            packer.bytes("./job.MF", 0o644, &self.spec_text)?;
            if let Some(monit) = &self.monit {
                packer.bytes("./monit", 0o644, monit)?;
            }
            for (source, bytes) in &self.templates {
                packer.bytes(&format!("./templates/{source}"), 0o644, bytes)?;
            }
            packer.finish()
        };
        pack().expect("writing into memory cannot fail")
    }
}

/// Whether a template is one of Ruby's. BOSH takes every template for one; without its tags it is plain text.
fn is_erb(source: &str, text: &[u8]) -> bool {
    source.ends_with(".erb") || (!source.ends_with(".j2") && text.windows(2).any(|pair| pair == b"<%"))
}

/// Whether a path is relative and consists of names only.
fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\0')
        && Utf8Path::new(path)
            .components()
            .all(|component| matches!(component, Utf8Component::Normal(_)))
}

fn document(job: &str) -> String {
    format!("spec of job `{job}`")
}

fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(yaml: &str) -> Result<JobSpec> {
        JobSpec::parse("web", yaml.as_bytes())
    }

    #[test]
    fn templates_get_declared_properties_only() {
        let spec = spec(
            "name: web\nproperties:\n  tls.ca: {description: a CA}\n  port: {default: 80}\n  tls.ciphers: {default: [a]}\n  flag: {default: false}\n  none: {}\n",
        )
        .expect("a spec");
        let manifest =
            json!({"tls": {"ca": "CA", "key": "dropped", "ciphers": null}, "flag": true, "other": 1});
        assert_eq!(
            spec.properties_for(&manifest).expect("properties"),
            json!({"tls": {"ca": "CA", "ciphers": ["a"]}, "port": 80, "flag": true, "none": null})
        );
        assert_eq!(
            spec.properties_for(&Value::Null).expect("defaults"),
            json!({"tls": {"ca": null, "ciphers": ["a"]}, "port": 80, "flag": false, "none": null})
        );
        let error = spec
            .properties_for(&json!({"tls": "secret"}))
            .expect_err("tls is no hash");
        assert_eq!(
            error.to_string(),
            "property `tls.ca` expects a hash at `tls`, but received a string"
        );
    }

    #[test]
    fn a_link_shows_what_it_names() {
        let spec = spec(
            "name: web\nproperties: {a.port: {default: 80}, secret: {}}\nprovides: [{name: web, type: http, properties: [a.port]}]\n",
        )
        .expect("a spec");
        let filtered = spec.properties_for(&json!({"secret": "s"})).expect("properties");
        assert_eq!(
            spec.link_properties(&spec.provides[0], &filtered)
                .expect("link properties"),
            json!({"a": {"port": 80}})
        );
    }

    #[test]
    fn contradictions_in_a_spec_are_refused() {
        for (yaml, reason) in [
            (
                "name: web\ntemplates: {a: ../b}",
                "template path `../b` leaves the job",
            ),
            (
                "name: web\ntemplates: {a: /b}",
                "template path `/b` leaves the job",
            ),
            (
                "name: web\ntemplates: {a: c, b: c}",
                "two templates have the destination `c`",
            ),
            (
                "name: web\nprovides: [{name: l, type: t, properties: [p]}]",
                "link `l` provides property `p`, which is not declared",
            ),
            (
                "name: web\nconsumes: [{name: l, type: t}, {name: l, type: u}]",
                "link `l` is consumed twice",
            ),
            ("name: a/b", "`a/b` cannot name a job"),
        ] {
            let error = spec(yaml).expect_err(yaml).to_string();
            assert!(error.ends_with(reason), "{error}");
        }
        let old = spec("name: web\ntemplates: {}\npackages:\nproperties:\n").expect("empty sections");
        assert!(old.packages.is_empty() && old.properties.is_empty());
    }

    #[test]
    fn ruby_templates_are_refused_with_a_way_out() {
        use stolos_base::Classify as _;
        for (source, text) in [("a.erb", "plain"), ("a.sh", "x <%= p('a') %>")] {
            let spec = format!("name: web\ntemplates: {{{source}: bin/a}}\n");
            let templates = BTreeMap::from([(source.to_owned(), text.as_bytes().to_vec())]);
            let error = JobArchive::from_parts("web", spec.into_bytes(), templates, None).expect_err(source);
            assert_eq!(
                error.to_string(),
                format!(
                    "template `{source}` of job `web` is an ERB template, which this version cannot render"
                )
            );
            assert_eq!(error.hints().len(), 1);
        }
    }

    #[test]
    fn a_template_s_syntax_is_checked_when_the_job_comes_in() {
        let spec = b"name: web\ntemplates: {a.j2: bin/a}\n".to_vec();
        let templates = BTreeMap::from([("a.j2".to_owned(), b"x\n{% if %}".to_vec())]);
        let error = JobArchive::from_parts("web", spec, templates, None).expect_err("a mistake in line 2");
        let text = error.to_string();
        assert!(
            text.starts_with("template `a.j2` of job `web` is not valid (line 2: syntax error"),
            "{text}"
        );
    }

    #[test]
    fn a_job_packs_to_the_same_bytes_and_reads_back() {
        let spec = b"name: web\ntemplates: {a.j2: bin/a, sub/b: config/b}\n".to_vec();
        let templates = BTreeMap::from([
            ("a.j2".to_owned(), b"<% is fine here".to_vec()),
            ("sub/b".to_owned(), b"plain".to_vec()),
            ("unused".to_owned(), b"x".to_vec()),
        ]);
        let job = JobArchive::from_parts("web", spec, templates, None).expect("a job");
        let packed = job.pack();
        assert_eq!(packed, job.clone().pack());
        let again = JobArchive::read("web", packed.as_slice()).expect("it reads back");
        assert_eq!(again.pack(), packed);
        assert_eq!(again.fingerprint(), job.fingerprint());
        assert_eq!(again.template("sub/b"), Some(&b"plain"[..]));
        assert_eq!(again.template("unused"), None);
    }
}
