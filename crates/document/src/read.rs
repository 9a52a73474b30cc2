//! YAML text to nodes.

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use granit_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};

use crate::error::Error;
use crate::limits;
use crate::node::{At, Entry, Map, Node, Value, Written};
use crate::scalar::{Plain, resolve};

/// What a key means that stands twice in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplicates {
    /// It is a mistake.
    Refuse,
    /// The last one counts: so `kubectl` reads kubeconfigs.
    TakeLast,
}

/// Reads one YAML document. Documents without content, a final `---` for one, are passed over; a text without any is `null`. Aliases
/// and merge keys are expanded; a key that stands twice in a map is refused.
///
/// # Errors
/// The text is not one YAML document, or larger than it may be.
pub fn parse(text: &str) -> Result<Node, Error> {
    single(text, Duplicates::Refuse, false)
}

/// As [`parse`], with a rule for keys that stand twice.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(text: &str, duplicates: Duplicates) -> Result<Node, Error> {
    single(text, duplicates, false)
}

/// Reads all documents of a text in order, those without content as `null`.
///
/// # Errors
/// The text is not YAML, or larger than it may be. The limits are for all documents together.
pub fn documents(text: &str) -> Result<Vec<Node>, Error> {
    let mut reader = Reader::new(text, Duplicates::Refuse, false)?;
    let mut all = Vec::new();
    while let Some(node) = reader.document()? {
        all.push(node);
    }
    Ok(all)
}

/// One document; `wide` integers are for whoever can take their text.
pub(crate) fn single(text: &str, duplicates: Duplicates, wide: bool) -> Result<Node, Error> {
    let mut reader = Reader::new(text, duplicates, wide)?;
    let mut only: Option<Node> = None;
    while let Some(node) = reader.document()? {
        if node.is_null() {
            continue;
        }
        if only.is_some() {
            return Err(Error::new(
                node.at,
                "a second document begins here, where there can be only one; remove it, or the `---` before it",
            ));
        }
        only = Some(node);
    }
    let nothing = Node {
        at: At { line: 1, column: 1 },
        ..Node::default()
    };
    Ok(only.unwrap_or(nothing))
}

pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|error| {
        Error::new(
            At::default(),
            format!("the text is not UTF-8 (at byte {})", error.valid_up_to() + 1),
        )
    })
}

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    /// What an alias may name; `None` while it is read.
    anchors: HashMap<usize, Option<Anchored>>,
    duplicates: Duplicates,
    wide: bool,
    /// The text itself is wrong: where it is read to has no name.
    broken: bool,
    /// Nodes that are written, and all with those that aliases make.
    written: usize,
    nodes: usize,
    /// Bytes of strings.
    strings: usize,
}

/// A node that an alias can stand for, and what it costs.
struct Anchored {
    node: Node,
    nodes: usize,
    strings: usize,
    height: usize,
}

type Read<T> = Result<T, Error>;

/// The namespace of YAML's own tags: `!!int`.
const YAML: &str = "tag:yaml.org,2002:";

impl<'t> Reader<'t> {
    fn new(text: &'t str, duplicates: Duplicates, wide: bool) -> Read<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.len() > limits::TEXT {
            return Err(Error::new(
                At::default(),
                format!("the text is longer than {} MiB", limits::TEXT >> 20),
            ));
        }
        check_characters(text)?;
        let options = granit_parser::options! {
            emit_comments: false,
            flow_nesting_limit: limits::DEPTH + 1,
            block_nesting_limit: limits::DEPTH + 1,
        };
        Ok(Self {
            parser: Parser::new_from_str_with_options(text, options),
            anchors: HashMap::new(),
            duplicates,
            wide,
            broken: false,
            written: 0,
            nodes: 0,
            strings: 0,
        })
    }

    /// The next document, `None` after the last one.
    fn document(&mut self) -> Read<Option<Node>> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(None),
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                event => {
                    let (node, _) = self.node(event, &span, 1).map_err(|mut error| {
                        if self.broken {
                            error.place.path.clear();
                        }
                        error
                    })?;
                    self.anchors.clear();
                    return Ok(Some(node));
                }
            }
        }
    }

    fn next(&mut self) -> Read<(Event<'t>, Span)> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => {
                self.broken = true;
                Err(syntax(&error))
            }
            None => Err(Error::new(At::default(), "the text ends too early")),
        }
    }

    /// The node that begins with an event, and its height.
    fn node(&mut self, event: Event<'t>, span: &Span, depth: usize) -> Read<(Node, usize)> {
        let at = place(span);
        if let Event::Alias(id) = event {
            return self.alias(id, at, depth);
        }
        self.written += 1;
        self.take(1, 0, depth, at)?;
        let (nodes, strings) = (self.nodes - 1, self.strings);
        let anchor = event.anchor_id();
        if let Some(id) = anchor {
            self.anchors.insert(id, None);
        }
        let (value, written, height) = match event {
            Event::Scalar(text, style, _, tag) => {
                self.take(0, text.len(), depth, at)?;
                let (value, written) = self
                    .scalar(&text, style, tag.as_deref())
                    .map_err(|text| Error::new(at, text))?;
                (value, written, 1)
            }
            Event::SequenceStart(..) => {
                let (list, height) = self.list(depth)?;
                (Value::List(list), None, height)
            }
            Event::MappingStart(..) => {
                let (map, height) = self.map(depth)?;
                (Value::Map(map), None, height)
            }
            _ => return Err(Error::new(at, "this cannot stand here")),
        };
        let node = Node { value, at, written };
        if let Some(id) = anchor {
            let anchored = Anchored {
                node: node.clone(),
                nodes: self.nodes - nodes,
                strings: self.strings - strings,
                height,
            };
            self.anchors.insert(id, Some(anchored));
        }
        Ok((node, height))
    }

    /// The node that an alias stands for, at the place where it is written.
    fn alias(&mut self, id: usize, at: At, depth: usize) -> Read<(Node, usize)> {
        let (nodes, strings, height) = match self.anchors.get(&id) {
            Some(Some(anchored)) => (anchored.nodes, anchored.strings, anchored.height),
            Some(None) => return Err(Error::new(at, "what this alias names contains itself")),
            None => return Err(Error::new(at, "this alias names no anchor of the document")),
        };
        self.written += 1;
        self.take(nodes, strings, depth + height - 1, at)?;
        let Some(Some(anchored)) = self.anchors.get(&id) else {
            return Err(Error::new(at, "this alias names no anchor of the document"));
        };
        let mut node = anchored.node.clone();
        node.at = at;
        Ok((node, height))
    }

    /// Counts what is about to be made.
    fn take(&mut self, nodes: usize, strings: usize, depth: usize, at: At) -> Read<()> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.strings = self.strings.saturating_add(strings);
        let expansion = limits::EXPANDED.max(self.written.saturating_mul(limits::EXPANSION));
        let text = if depth > limits::DEPTH {
            format!(
                "lists and maps are nested more than {} levels deep",
                limits::DEPTH
            )
        } else if self.nodes > limits::NODES {
            format!("the document has more than {} values", limits::NODES)
        } else if self.nodes > expansion {
            format!("aliases make more than {expansion} values of the document")
        } else if self.strings > limits::STRINGS {
            format!(
                "aliases make more than {} MiB of text of the document",
                limits::STRINGS >> 20
            )
        } else {
            return Ok(());
        };
        Err(Error::new(at, text))
    }

    fn list(&mut self, depth: usize) -> Read<(Vec<Node>, usize)> {
        let (mut list, mut tallest) = (Vec::new(), 0);
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok((list, tallest + 1));
            }
            let (node, height) = self
                .node(event, &span, depth + 1)
                .map_err(|error| error.within(list.len()))?;
            tallest = tallest.max(height);
            list.push(node);
        }
    }

    fn map(&mut self, depth: usize) -> Read<(Map, usize)> {
        let (mut map, mut tallest) = (Map::new(), 0);
        // Keys that came from a merge may be written after it.
        let mut merged: HashSet<String> = HashSet::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok((map, tallest + 1));
            }
            let key_at = place(&span);
            let is_merge = is_merge(&event);
            let key = self.key(event, &span, depth)?;
            let (event, span) = self.next()?;
            let (node, height) = self
                .node(event, &span, depth + 1)
                .map_err(|error| error.below(&key))?;
            tallest = tallest.max(height);
            if is_merge {
                merge(&mut map, &mut merged, node)?;
                continue;
            }
            let is_there = map.contains_key(&key) && !merged.remove(&key);
            if is_there && self.duplicates == Duplicates::Refuse {
                return Err(Error::new(key_at, "this key is there twice").below(&key));
            }
            map.insert(key, Entry { key_at, node });
        }
    }

    /// A key as text: `sigs.k8s.io/yaml` makes JSON of it in the same way.
    fn key(&mut self, event: Event<'t>, span: &Span, depth: usize) -> Read<String> {
        let at = place(span);
        let (node, _) = self.node(event, span, depth + 1)?;
        match node.value {
            Value::Text(text) => Ok(text),
            Value::Bool(flag) => Ok(flag.to_string()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Null => Err(Error::new(
                at,
                "a key is empty; write it in quotes if it is a word",
            )),
            Value::List(_) => Err(Error::new(at, "a key is a list, where a word is needed")),
            Value::Map(_) => Err(Error::new(
                at,
                "a key is a map, where a word is needed; `{{…}}` and `{…}` have to be in quotes",
            )),
        }
    }

    fn scalar(
        &self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
    ) -> Result<(Value, Option<Written>), String> {
        let plain = style == ScalarStyle::Plain;
        let Some(tag) = tag else {
            return if plain {
                self.plain(text)
            } else {
                Ok((Value::Text(text.to_owned()), None))
            };
        };
        // The parser writes an empty node with a tag as `~` or nothing.
        let text = if plain && text == "~" { "" } else { text };
        let kind = tag.suffix_in_namespace(YAML);
        let kind = kind.as_deref();
        let misfit = |value: &Value| {
            let fits = match kind {
                Some("bool") => matches!(value, Value::Bool(_)),
                Some("int") => matches!(value, Value::Number(number) if !number.is_f64()),
                Some("float") => matches!(value, Value::Number(_)),
                Some("null") => *value == Value::Null,
                _ => true,
            };
            !fits
        };
        match kind {
            Some(name @ ("bool" | "int" | "float" | "null")) => {
                let (value, written) = self.plain(text)?;
                if misfit(&value) {
                    return Err(format!("the tag `!!{name}` does not fit to its value"));
                }
                Ok((value, written))
            }
            Some("binary") => {
                let packed: String = text.split_whitespace().collect();
                let bytes = base64::engine::general_purpose::STANDARD.decode(packed).ok();
                let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
                let text = text.ok_or("what `!!binary` holds is not base64 of a UTF-8 text")?;
                Ok((Value::Text(text), None))
            }
            _ => Ok((Value::Text(text.to_owned()), None)),
        }
    }

    fn plain(&self, text: &str) -> Result<(Value, Option<Written>), String> {
        let kept = |canonical: &str| (text != canonical).then(|| Written::Plain(text.into()));
        Ok(match resolve(text) {
            Plain::Null => (Value::Null, None),
            Plain::Bool(flag) => (Value::Bool(flag), kept(if flag { "true" } else { "false" })),
            Plain::Integer(number) => {
                let written = kept(&number.to_string());
                (Value::Number(number), written)
            }
            Plain::Float(number) => (Value::Number(number), Some(Written::Float(text.into()))),
            Plain::Wide if self.wide => {
                let near = text
                    .replace('_', "")
                    .parse()
                    .ok()
                    .and_then(serde_json::Number::from_f64);
                let near = near
                    .ok_or("an integer does not fit into 64 bits; write it in quotes to make it a string")?;
                (Value::Number(near), Some(Written::Wide(text.into())))
            }
            Plain::Wide => {
                return Err(
                    "an integer does not fit into 64 bits; write it in quotes to make it a string".to_owned(),
                );
            }
            Plain::NotFinite => return Err("neither infinity nor not-a-number can be used".to_owned()),
            Plain::Text => (Value::Text(text.to_owned()), None),
        })
    }
}

fn is_merge(event: &Event<'_>) -> bool {
    match event {
        Event::Scalar(text, style, _, tag) if *style == ScalarStyle::Plain && text == "<<" => tag
            .as_ref()
            .is_none_or(|tag| tag.suffix_in_namespace(YAML).as_deref() == Some("merge")),
        _ => false,
    }
}

/// Puts the keys of a map, or of each map of a list, the first of which counts most, over those that stand before.
fn merge(map: &mut Map, merged: &mut HashSet<String>, node: Node) -> Read<()> {
    let at = node.at;
    let wrong = || Error::new(at, "only a map or a list of maps can be merged with `<<`").below("<<");
    let mut put = |node: Node| {
        let Value::Map(from) = node.value else {
            return Err(wrong());
        };
        for (key, entry) in from {
            merged.insert(key.clone());
            map.insert(key, entry);
        }
        Ok(())
    };
    match node.value {
        Value::List(list) => list.into_iter().rev().try_for_each(put),
        value => put(Node { value, ..node }),
    }
}

fn place(span: &Span) -> At {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    At {
        line: number(span.start.line()),
        column: number(span.start.col() + 1),
    }
}

/// The parser speaks of the text only, so its words can stand; they are put on one line.
fn syntax(error: &granit_parser::ScanError) -> Error {
    use granit_parser::ErrorKind as Kind;
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mark = error.marker();
    let at = At {
        line: number(mark.line()),
        column: number(mark.col() + 1),
    };
    let text = match error.kind() {
        Kind::UnknownAnchor => "this alias names no anchor of the document".to_owned(),
        Kind::RecursionLimitExceeded => {
            format!(
                "lists and maps are nested more than {} levels deep",
                limits::DEPTH
            )
        }
        Kind::UnexpectedCharacter { character } => {
            format!(
                "the character `{}` cannot stand here without quotes",
                character.escape_default()
            )
        }
        Kind::TabInBlockIndentation | Kind::TabInIndentation | Kind::TabNotAllowed => {
            "a tab stands where only spaces indent".to_owned()
        }
        Kind::MappingValueNotAllowed => {
            "a `:` stands where no key can be; a value with `: ` in it has to be in quotes".to_owned()
        }
        kind => {
            let text = kind.to_string();
            let text = text.strip_prefix("while parsing ").unwrap_or(&text);
            text.chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect()
        }
    };
    Error::new(at, text)
}

/// YAML allows no control characters, and neither do the parsers of `kubectl` and BOSH.
fn check_characters(text: &str) -> Read<()> {
    let is_refused = |c: char| {
        (c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}'))
            || matches!(c, '\u{fffe}' | '\u{ffff}')
    };
    let Some(offset) = text.find(is_refused) else {
        return Ok(());
    };
    let before = &text[..offset];
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let found = text[offset..].chars().next().map_or(0, u32::from);
    Err(Error::new(
        At {
            line: number(line),
            column: number(column),
        },
        format!(
            "the control character U+{found:04X} cannot stand in a text; write it as an escape in double quotes"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_aliases_and_merges() {
        let node = parse("a: &x\n  k: 1\nb:\n  <<: *x\n  l: [1, two]\n").unwrap();
        let two = &node.get("b").unwrap().get("l").unwrap().as_list().unwrap()[1];
        assert_eq!((two.at.line, two.at.column), (5, 10));
        assert_eq!(node.get("b").unwrap().get("k").unwrap().to_json(), 1);
    }

    #[test]
    fn bad_yaml_says_where() {
        for (text, line) in [
            ("a: [1\nb: 2\n", 2),
            ("a: 1\na: 2\n", 2),
            ("a: *nobody\n", 1),
            ("x: 1\n---\ny: 2\n", 3),
            ("x: 1\ny: \u{1b}[31m\n", 2),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.place.at.line, line, "{error}");
        }
        let error = parse("a:\n- b: {c: 1, c: 2}\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 2, column 13: a[0].b.c: this key is there twice"
        );
    }

    #[test]
    fn the_last_of_two_keys_counts_where_kubectl_has_it_so() {
        let node = parse_with("a: 1\nb: 2\na: 3\n", Duplicates::TakeLast).unwrap();
        assert_eq!(node.to_json(), serde_json::json!({"a": 3, "b": 2}));
    }

    #[test]
    fn documents_are_told_apart() {
        let all = documents("---\na: 1\n---\n---\nb: 2\n---\n").unwrap();
        let all: Vec<_> = all.iter().map(Node::to_json).collect();
        assert_eq!(
            all,
            [
                serde_json::json!({"a": 1}),
                serde_json::Value::Null,
                serde_json::json!({"b": 2}),
                serde_json::Value::Null
            ]
        );
    }

    /// A text costs what it is long: nine aliases of nine aliases are 400 million values in 400 bytes.
    #[test]
    fn a_short_text_cannot_become_a_large_document() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..9 {
            let former = level - 1;
            let list = vec![format!("*a{former}"); 9].join(",");
            bomb += &format!("a{level}: &a{level} [{list}]\n");
        }
        let merges = {
            let mut text = "a0: &a0 {k: 1}\n".to_owned();
            for level in 1..40 {
                let former = level - 1;
                text += &format!("a{level}: &a{level} {{x{level}: *a{former}, y{level}: *a{former}}}\n");
            }
            text
        };
        let long = format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(100_000),
            vec!["*a"; 1000].join(",")
        );
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let deep_blocks: String = (0..200)
            .map(|level| format!("{}a:\n", " ".repeat(level)))
            .collect();
        let stacked = {
            let mut text = "a0: &a0 [[[[[[[[[[x]]]]]]]]]]\n".to_owned();
            for level in 1..20 {
                text += &format!("a{level}: &a{level} [[[[[[[[[[*a{}]]]]]]]]]]\n", level - 1);
            }
            text
        };
        for (what, text, words) in [
            ("a bomb of lists", &bomb, "aliases make more than"),
            ("a bomb of maps", &merges, "aliases make more than"),
            ("long strings", &long, "MiB of text"),
            ("a deep list", &deep, "levels deep"),
            ("deep maps", &deep_blocks, "levels deep"),
            ("depth by aliases", &stacked, "levels deep"),
            ("a long text", &" ".repeat(limits::TEXT + 1), "longer than 16 MiB"),
        ] {
            let error = parse(text).expect_err(what).to_string();
            assert!(error.contains(words), "{what}: {error}");
            assert!(documents(text).is_err(), "{what}");
            assert!(crate::from_yaml::<serde_json::Value>(text).is_err(), "{what}");
        }
        // What people write is far from it.
        let many: String = (0..20_000)
            .map(|n| format!("- {{name: g{n}, size: 1}}\n"))
            .collect();
        assert_eq!(parse(&many).unwrap().as_list().unwrap().len(), 20_000);
    }
}
