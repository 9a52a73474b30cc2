//! The file as it is: properties by name, each with its line.
//!
//! Keeps count of what was looked at, so that nothing is passed over in silence.

use std::collections::HashSet;

use stolos_manifest::{At, Map, Node, Value, yaml};

use super::Error;

/// The name of PKS's tile; TKGI's is the same.
const PRODUCT: &str = "pivotal-container-service";
/// Where all properties are.
const PROPERTIES: &str = "product-properties";

/// A staged configuration.
pub(super) struct Staged {
    root: Map,
    properties: Map,
    seen: HashSet<String>,
}

/// The value of a property.
pub(super) struct Given {
    /// Where it stands.
    pub(super) line: u32,
    node: Node,
}

impl Staged {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is no YAML or not of this tile; both with the place.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let node =
            yaml::parse("staged configuration", text).map_err(|problem| Error::Syntax(Box::new(problem)))?;
        let wrong = |at: At, problem: String| Error::NotStaged {
            line: at.line,
            column: at.column,
            problem,
        };
        let Value::Map(root) = node.value else {
            return Err(wrong(node.at, format!("it is {}, not a map", node.kind())));
        };
        if let Some(product) = root.get("product-name") {
            // Anything may stand there in a file of something else, so it is only shown as a name of a product.
            let name = product.node.scalar_text().unwrap_or_default();
            if name != PRODUCT {
                let shown = if is_word(&name) {
                    name.as_str()
                } else {
                    "something else"
                };
                return Err(wrong(
                    product.node.at,
                    format!("`product-name` is {shown}, not {PRODUCT}"),
                ));
            }
        }
        let Some(entry) = root.get(PROPERTIES) else {
            return Err(wrong(At::default(), format!("`{PROPERTIES}` is missing")));
        };
        let Value::Map(properties) = entry.node.value.clone() else {
            return Err(wrong(
                entry.node.at,
                format!("`{PROPERTIES}` is {}, not a map", entry.node.kind()),
            ));
        };
        // Files written by hand for `om configure-product` may lack the name of the product; these properties say what they are.
        if !root.contains_key("product-name") && !properties.contains_key(".properties.plan1_selector") {
            return Err(wrong(
                At::default(),
                "neither `product-name` nor `.properties.plan1_selector` is there".to_owned(),
            ));
        }
        Ok(Self {
            root,
            properties,
            seen: HashSet::new(),
        })
    }

    /// A part of the file beside the properties, such as `network-properties`.
    pub(super) fn part(&self, name: &str) -> Option<&Node> {
        self.root.get(name).map(|entry| &entry.node)
    }

    /// The parts of the file beside the properties: name, line and what is there.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&str, u32, &Node)> {
        let parts = self
            .root
            .iter()
            .filter(|(name, _)| *name != "product-name" && *name != PROPERTIES);
        parts.map(|(name, entry)| (name.as_str(), entry.key_at.line, &entry.node))
    }

    /// The value of a property, `None` when it is missing or null. It counts as seen.
    pub(super) fn take(&mut self, key: &str) -> Option<Given> {
        let entry = self.properties.get(key)?;
        self.seen.insert(key.to_owned());
        let node = match &entry.node.value {
            Value::Map(map) => map.get("value").map(|entry| &entry.node)?,
            _ => &entry.node,
        };
        (!node.is_null()).then(|| Given {
            line: entry.key_at.line,
            node: node.clone(),
        })
    }

    /// What a selector is set to, in lower case, and where. `selected_option` is the machine's word for it, older files have the label only.
    pub(super) fn selected(&mut self, key: &str) -> Option<(String, u32)> {
        let option = match self.properties.get(key)?.node.get("selected_option") {
            Some(node) => node.scalar_text(),
            None => None,
        };
        let label = self.take(key);
        let line = self.properties.get(key)?.key_at.line;
        let text = option.or_else(|| label.and_then(|given| given.text()))?;
        Some((text.trim().to_ascii_lowercase(), line))
    }

    /// Names of properties that were not looked at yet, in the file's order, with their lines.
    pub(super) fn unseen(&self) -> Vec<(String, u32)> {
        let unseen = self
            .properties
            .iter()
            .filter(|(key, _)| !self.seen.contains(*key));
        unseen
            .map(|(key, entry)| (key.clone(), entry.key_at.line))
            .collect()
    }

    /// Names of properties that begin so and were not looked at yet.
    pub(super) fn below(&self, prefix: &str) -> Vec<(String, u32)> {
        let mut keys = self.unseen();
        keys.retain(|(key, _)| key.starts_with(prefix));
        keys
    }

    /// Whether a property that decides about others is missing with a value, or says one of the words.
    pub(super) fn says_nothing(&self, key: &str, words: &[&str]) -> bool {
        let Some(entry) = self.properties.get(key) else {
            return false;
        };
        let node = &entry.node;
        let said = node
            .get("selected_option")
            .or_else(|| node.get("value"))
            .or_else(|| node.as_map().is_none().then_some(node));
        said.is_none_or(|said| match &said.value {
            Value::Null => true,
            Value::List(list) => list.is_empty(),
            Value::Map(map) => map.is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::Text(_) => said
                .scalar_text()
                .is_some_and(|text| words.contains(&text.trim().to_ascii_lowercase().as_str())),
        })
    }

    /// Counts a property as seen.
    pub(super) fn pass(&mut self, key: &str) {
        self.seen.insert(key.to_owned());
    }
}

impl Given {
    /// As text without the blanks at its ends, which break deployments of PKS too.
    pub(super) fn text(&self) -> Option<String> {
        self.node.scalar_text().map(|text| text.trim().to_owned())
    }

    /// The text as it stands.
    pub(super) fn whole_text(&self) -> Option<String> {
        self.node.scalar_text()
    }

    /// A number, which may be written as a text.
    pub(super) fn number<T: std::str::FromStr>(&self) -> Option<T> {
        self.text()?.parse().ok()
    }

    /// A switch, which may be written as a text.
    pub(super) fn switch(&self) -> Option<bool> {
        match self.text()?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "enabled" | "enable" | "1" => Some(true),
            "false" | "no" | "off" | "disabled" | "disable" | "0" => Some(false),
            _ => None,
        }
    }

    /// A list; one text is a list too, separated by commas.
    pub(super) fn list(&self) -> Vec<String> {
        match self.node.as_list() {
            Some(list) => list
                .iter()
                .filter_map(Node::scalar_text)
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
                .collect(),
            None => self
                .text()
                .unwrap_or_default()
                .split(',')
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty())
                .collect(),
        }
    }

    /// Whether a value was left out on purpose: a `((placeholder))`, or the `***` of a hidden one.
    pub(super) fn is_placeholder(&self) -> bool {
        self.text().is_some_and(|text| {
            (text.starts_with("((") && text.ends_with("))"))
                || (!text.is_empty() && text.trim_matches('*').is_empty())
        })
    }

    /// Whether there is nothing but blanks.
    pub(super) fn is_empty(&self) -> bool {
        self.text().is_some_and(|text| text.is_empty())
    }
}

/// A property's name without what all of them share: `.properties.plan1_selector.active.name` is `plan1.name`.
pub(super) fn short(key: &str) -> String {
    key.strip_prefix(".properties.")
        .unwrap_or(key)
        .replace("_selector.active.", ".")
}

/// Whether a text can be shown as the name of something.
pub(super) fn is_word(text: &str) -> bool {
    (1..=40).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
