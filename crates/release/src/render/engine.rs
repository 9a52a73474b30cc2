//! The Jinja engine with the functions and filters that job templates have.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use base64::Engine as _;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde::Serialize as _;
use serde_json::Value as Json;

use super::errors::TemplateError;
use super::{InstanceContext, JobInput, Link};

/// Renders the templates of one job for one instance.
pub(super) struct Engine<'a> {
    environment: Environment<'static>,
    context: Value,
    input: &'a JobInput<'a>,
}

/// Checks the syntax of a template: line and reason where it is wrong.
pub(super) fn check(source: &str, text: &str) -> Result<(), (usize, String)> {
    environment()
        .template_from_named_str(source, text)
        .map(drop)
        .map_err(|error| (error.line().unwrap_or(1), reason(&error)))
}

/// What all templates have, whatever they are rendered for.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_debug(false);
    let mut syntax = minijinja::syntax::SyntaxConfig::builder();
    syntax.keep_trailing_newline(true);
    environment.set_syntax(syntax.build().expect("the default delimiters are valid"));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // A null in a configuration file is nearly always a mistake; printed, it would become the word `None`. Booleans
    // are written as YAML, JSON, TOML and flags have them; the engine would write `True`.
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::None => Err(Error::new(ErrorKind::InvalidOperation, "the value is null")),
        ValueKind::Bool => out
            .write_str(if value.is_true() { "true" } else { "false" })
            .map_err(|_| Error::from(ErrorKind::WriteFailure)),
        _ => minijinja::escape_formatter(out, state, value),
    });

    environment.add_filter("tojson", tojson);
    environment.add_filter("b64encode", b64encode);
    environment.add_filter("shquote", shquote);
    environment.add_filter("word", word);
    environment
}

/// What our own functions say is complete; the engine's own errors need their kind.
fn reason(error: &Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}

impl<'a> Engine<'a> {
    pub(super) fn new(input: &'a JobInput<'a>, context: &InstanceContext) -> Self {
        let mut environment = environment();
        let properties = value_of(input.properties);
        let of_has = properties.clone();
        environment.add_function("p", move |args: Rest<Value>| p(&properties, &args.0));
        environment.add_function("has_p", move |name: Value| {
            Ok::<_, Error>(first_of(&of_has, &names(&name)?).is_some())
        });
        let links: Arc<BTreeMap<String, Value>> = Arc::new(
            input
                .links
                .iter()
                .map(|(name, link)| (name.clone(), link_value(link)))
                .collect(),
        );
        let of_has = Arc::clone(&links);
        environment.add_function("link", move |name: String| {
            links
                .get(&name)
                .cloned()
                .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("Can't find link '{name}'")))
        });
        environment.add_function("has_link", move |name: String| of_has.contains_key(&name));

        Self {
            environment,
            context: context_value(context, &input.job.spec.name),
            input,
        }
    }

    pub(super) fn render(&self, source: &str, text: &[u8]) -> Result<Vec<u8>, TemplateError> {
        let text = std::str::from_utf8(text).map_err(|_| TemplateError {
            template: source.to_owned(),
            line: None,
            message: "the template is not UTF-8".to_owned(),
        })?;
        self.environment
            .template_from_named_str(source, text)
            .and_then(|template| template.render(self.context.clone()))
            .map(String::into_bytes)
            .map_err(|error| self.describe(source, &error))
    }

    fn describe(&self, source: &str, error: &Error) -> TemplateError {
        TemplateError {
            template: source.to_owned(),
            line: error.line(),
            message: self.redact(reason(error)),
        }
    }

    /// The engine may quote a value that it could not work with, and the value may be a secret.
    fn redact(&self, mut message: String) -> String {
        let mut texts = Vec::new();
        collect_texts(self.input.properties, &mut texts);
        for link in self.input.links.values() {
            collect_texts(&link.properties, &mut texts);
        }
        // Longest first, so that no rest of a longer one stays.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        for text in texts {
            if text.len() >= 4 && message.contains(text) {
                message = message.replace(text, "<redacted>");
            }
        }
        message
    }
}

fn collect_texts<'a>(value: &'a Json, into: &mut Vec<&'a str>) {
    match value {
        Json::String(text) => into.push(text),
        Json::Array(items) => items.iter().for_each(|item| collect_texts(item, into)),
        Json::Object(map) => map.values().for_each(|item| collect_texts(item, into)),
        _ => {}
    }
}

/// `p("a.b")`, `p(["a", "b"])`, each with an optional default: the first that is there and not null.
fn p(properties: &Value, args: &[Value]) -> Result<Value, Error> {
    let (name, default) = match args {
        [name] => (name, None),
        [name, default] => (name, Some(default)),
        [] => {
            return Err(Error::new(
                ErrorKind::MissingArgument,
                "p() needs the name of a property",
            ));
        }
        _ => {
            return Err(Error::new(
                ErrorKind::TooManyArguments,
                "p() takes the name of a property and a default",
            ));
        }
    };
    let names = names(name)?;
    match (first_of(properties, &names), default) {
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.clone()),
        (None, None) => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("Can't find property '{names:?}'"),
        )),
    }
}

fn names(name: &Value) -> Result<Vec<String>, Error> {
    let wrong = || Error::new(ErrorKind::InvalidOperation, "the name of a property is a string");
    match name.kind() {
        ValueKind::String => Ok(vec![name.as_str().ok_or_else(wrong)?.to_owned()]),
        ValueKind::Seq => name
            .try_iter()?
            .map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect(),
        _ => Err(wrong()),
    }
}

fn first_of(properties: &Value, names: &[String]) -> Option<Value> {
    names.iter().find_map(|name| {
        name.split('.')
            .try_fold(properties.clone(), |value, key| value.get_attr(key).ok())
            .filter(|value| !value.is_undefined() && !value.is_none())
    })
}

fn context_value(context: &InstanceContext, job: &str) -> Value {
    Value::from_pairs([
        ("deployment", Value::from(&context.deployment)),
        ("name", Value::from(&context.name)),
        ("index", Value::from(context.index)),
        ("id", Value::from(&context.id)),
        ("az", Value::from(context.az.clone())),
        ("bootstrap", Value::from(context.bootstrap)),
        ("address", Value::from(&context.address)),
        ("ip", Value::from(&context.ip)),
        ("job", Value::from(job)),
        ("networks", value_of(&context.networks)),
    ])
}

fn link_value(link: &Link) -> Value {
    let instances: Vec<Value> = link
        .instances
        .iter()
        .map(|instance| {
            Value::from_pairs([
                ("name", Value::from(&instance.name)),
                ("index", Value::from(instance.index)),
                ("id", Value::from(&instance.id)),
                ("az", Value::from(instance.az.clone())),
                ("address", Value::from(&instance.address)),
                ("bootstrap", Value::from(instance.bootstrap)),
            ])
        })
        .collect();
    Value::from_pairs([
        ("instances", Value::from(instances)),
        ("properties", value_of(&link.properties)),
    ])
}

fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(n), _, _) => Value::from(n),
            (None, Some(n), _) => Value::from(n),
            (None, None, n) => Value::from(n.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => items.iter().map(value_of).collect(),
        Json::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), value_of(value))))
        }
    }
}

fn json_of(value: &Value) -> Result<Json, Error> {
    Ok(match value.kind() {
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number => number_of(value)?,
        ValueKind::String => Json::String(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Seq | ValueKind::Iterable => Json::Array(
            value
                .try_iter()?
                .map(|item| json_of(&item))
                .collect::<Result<_, _>>()?,
        ),
        ValueKind::Map => {
            let mut map = serde_json::Map::new();
            for key in value.try_iter()? {
                let text = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                map.insert(text, json_of(&value.get_item(&key)?)?);
            }
            Json::Object(map)
        }
        other => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("cannot write a value of kind {other} as JSON"),
            ));
        }
    })
}

fn number_of(value: &Value) -> Result<Json, Error> {
    if let Some(n) = value.as_i64().filter(|_| value.is_integer()) {
        return Ok(n.into());
    }
    if value.is_integer() {
        return u64::try_from(value.clone()).map(Json::from);
    }
    serde_json::Number::from_f64(f64::try_from(value.clone())?)
        .map(Json::Number)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "JSON has no such number"))
}

/// JSON on one line, with a blank after `:` and `,` so that it is YAML for every parser, and TOML where it is a string. The engine's
/// own filter escapes for HTML.
///
/// What a parser of YAML 1.1 takes for the end of a line (U+0085, U+2028, U+2029), what YAML and TOML allow in no text (other control
/// characters, U+FFFE, U+FFFF) and the byte order mark are escaped.
fn tojson(value: Value) -> Result<String, Error> {
    struct Spaced;
    impl serde_json::ser::Formatter for Spaced {
        fn begin_array_value<W: ?Sized + io::Write>(
            &mut self,
            writer: &mut W,
            first: bool,
        ) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
            writer.write_all(b": ")
        }
    }
    let mut text = Vec::new();
    json_of(&value)?
        .serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced))
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let text = String::from_utf8(text)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let is_odd = |c: char| {
        c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    if !text.contains(is_odd) {
        return Ok(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_odd(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    Ok(escaped)
}

fn b64encode(value: String) -> String {
    base64::engine::general_purpose::STANDARD.encode(value)
}

/// A word for formats that have no quotes: letters, digits and `._:/+@-`, and no way out of a directory. Anything else is refused.
fn word(value: Value) -> Result<String, Error> {
    let text = match value.kind() {
        ValueKind::String | ValueKind::Number => value.to_string(),
        other => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("a value of kind {other} is no word"),
            ));
        }
    };
    let is_word = !text.is_empty()
        && !text.starts_with('-')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._:/+@-".contains(c))
        && text.split('/').all(|part| !matches!(part, "." | ".."));
    if is_word {
        return Ok(text);
    }
    Err(Error::new(
        ErrorKind::InvalidOperation,
        "the value is no plain word: only letters, digits and `._:/+@-` can stand here",
    ))
}

/// One word for a POSIX shell, whatever is in it.
fn shquote(value: Value) -> Result<String, Error> {
    let text = match value.kind() {
        ValueKind::Bool => if value.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::String | ValueKind::Number => value.to_string(),
        other => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("cannot quote a value of kind {other} for a shell"),
            ));
        }
    };
    if text.contains('\0') {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "a shell word cannot hold a zero byte",
        ));
    }
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}
