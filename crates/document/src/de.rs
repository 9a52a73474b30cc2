//! A node as a value of any type.

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, IntoDeserializer as _, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use crate::error::{Error, either, mismatch};
use crate::node::{At, Entry, Node, Value, Written};

/// Which format a document has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A scalar may be written with or without quotes where the type says what it is; nothing is an empty list or map.
    Yaml,
    /// As `serde_json` has it.
    Json,
}

pub(crate) fn read<T: DeserializeOwned>(node: &Node, form: Form) -> Result<T, Error> {
    T::deserialize(Reader { node, form }).map_err(|error| error.or_at(node.at))
}

#[derive(Clone, Copy)]
struct Reader<'n> {
    node: &'n Node,
    form: Form,
}

type Read<T> = Result<T, Error>;

impl<'n> Reader<'n> {
    fn wrong(self, wanted: &str) -> Error {
        let found = match &self.node.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(flag) => format!("`{flag}`"),
            Value::Number(number) => number.to_string(),
            Value::Text(_) => "a string".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        };
        Error::new(self.node.at, mismatch(Some(&found), wanted))
    }

    /// The number that is here, or that a string is where YAML has it.
    fn number(self) -> Option<serde_json::Number> {
        match &self.node.value {
            Value::Number(_) if matches!(self.node.written, Some(Written::Wide(_))) => None,
            Value::Number(number) => Some(number.clone()),
            Value::Text(text) if self.form == Form::Yaml => match crate::scalar::resolve(text) {
                crate::scalar::Plain::Integer(number) | crate::scalar::Plain::Float(number) => Some(number),
                _ => None,
            },
            _ => None,
        }
    }

    fn signed<V: Visitor<'n>, N: TryFrom<i128>>(
        self,
        wanted: &str,
        visit: impl FnOnce(N) -> Read<V::Value>,
    ) -> Read<V::Value> {
        let number = self.number();
        let value = number.and_then(|number| {
            let signed = number.as_i64().map(i128::from);
            signed.or_else(|| number.as_u64().map(i128::from))
        });
        match value.and_then(|value| N::try_from(value).ok()) {
            Some(value) => visit(value).map_err(|error| error.or_at(self.node.at)),
            None => Err(self.wrong(wanted)),
        }
    }

    /// The text of a scalar, where a string is wanted.
    fn text(self) -> Option<String> {
        match (&self.node.value, self.form) {
            (Value::Text(text), _) => Some(text.clone()),
            (Value::Number(number), Form::Yaml) => Some(match &self.node.written {
                Some(written) => written.text().to_owned(),
                None => number.to_string(),
            }),
            (Value::Bool(flag), Form::Yaml) => Some(match &self.node.written {
                Some(written) => written.text().to_owned(),
                None => flag.to_string(),
            }),
            _ => None,
        }
    }

    fn is_empty(self) -> bool {
        self.form == Form::Yaml && self.node.is_null()
    }

    fn list<V: Visitor<'n>>(self, visitor: V) -> Read<V::Value> {
        let items: &[Node] = match &self.node.value {
            Value::List(list) => list,
            Value::Null if self.is_empty() => &[],
            _ => return Err(self.wrong("a list")),
        };
        let mut list = List {
            items: items.iter(),
            index: 0,
            form: self.form,
        };
        let value = visitor
            .visit_seq(&mut list)
            .map_err(|error| error.or_at(self.node.at))?;
        match list.items.len() {
            0 => Ok(value),
            more => Err(Error::new(
                self.node.at,
                format!("the list has {more} entries more than can stand here"),
            )),
        }
    }

    fn map<V: Visitor<'n>>(self, visitor: V) -> Read<V::Value> {
        static NOTHING: std::sync::LazyLock<crate::node::Map> =
            std::sync::LazyLock::new(crate::node::Map::new);
        let map = match &self.node.value {
            Value::Map(map) => map,
            Value::Null if self.is_empty() => &NOTHING,
            _ => return Err(self.wrong("a map")),
        };
        visitor
            .visit_map(Entries {
                entries: map.iter(),
                value: None,
                form: self.form,
            })
            .map_err(|error| error.or_at(self.node.at))
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
            self.signed::<V, $type>(stringify!($type), |value| visitor.$visit(value))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        let at = self.node.at;
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Number(_) if matches!(self.node.written, Some(Written::Wide(_))) => Err(Error::custom(
                "an integer does not fit into 64 bits; write it in quotes to make it a string",
            )),
            Value::Number(number) => {
                if let Some(value) = number.as_u64() {
                    visitor.visit_u64(value)
                } else if let Some(value) = number.as_i64() {
                    visitor.visit_i64(value)
                } else {
                    visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN))
                }
            }
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(_) => return self.list(visitor),
            Value::Map(_) => return self.map(visitor),
        }
        .map_err(|error| error.or_at(at))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        let flag = match &self.node.value {
            Value::Bool(flag) => Some(*flag),
            Value::Text(text) if self.form == Form::Yaml => match crate::scalar::resolve(text) {
                crate::scalar::Plain::Bool(flag) => Some(flag),
                _ => None,
            },
            _ => None,
        };
        match flag {
            Some(flag) => visitor
                .visit_bool(flag)
                .map_err(|error: Error| error.or_at(self.node.at)),
            None => Err(self.wrong("a boolean")),
        }
    }

    integers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64,
        deserialize_i128 visit_i128 i128, deserialize_u128 visit_u128 u128
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        match self.number().and_then(|number| number.as_f64()) {
            Some(value) => visitor
                .visit_f64(value)
                .map_err(|error: Error| error.or_at(self.node.at)),
            None => Err(self.wrong("f64")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        let read = match (&self.node.value, self.text()) {
            (Value::Text(text), _) => visitor.visit_borrowed_str(text),
            (_, Some(text)) => visitor.visit_string(text),
            (_, None) => return Err(self.wrong("a string")),
        };
        read.map_err(|error: Error| error.or_at(self.node.at))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        if self.node.is_null() {
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        if self.node.is_null() {
            return visitor.visit_unit();
        }
        Err(self.wrong("unit"))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Read<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Read<V::Value> {
        visitor
            .visit_newtype_struct(self)
            .map_err(|error| error.or_at(self.node.at))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.list(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Read<V::Value> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Read<V::Value> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.map(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Read<V::Value> {
        // A struct may be written as a list of its fields in JSON as serde has it; nobody means it.
        self.map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Read<V::Value> {
        let at = self.node.at;
        let read = match &self.node.value {
            Value::Map(map) => match map.first() {
                Some((name, entry)) if map.len() == 1 => visitor.visit_enum(Variant {
                    name: name.clone(),
                    content: Some(Reader {
                        node: &entry.node,
                        form: self.form,
                    }),
                }),
                _ => Err(Error::custom(format!(
                    "one key of {} is needed here",
                    either(variants)
                ))),
            },
            _ => match self.text() {
                Some(name) => visitor.visit_enum(Variant { name, content: None }),
                None => return Err(self.wrong("enum")),
            },
        };
        read.map_err(|error| error.or_at(at))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { bytes byte_buf }
}

struct List<'n> {
    items: std::slice::Iter<'n, Node>,
    index: usize,
    form: Form,
}

impl<'de> SeqAccess<'de> for &mut List<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Read<Option<T::Value>> {
        let Some(node) = self.items.next() else {
            return Ok(None);
        };
        let index = self.index;
        self.index += 1;
        seed.deserialize(Reader {
            node,
            form: self.form,
        })
        .map(Some)
        .map_err(|error| error.or_at(node.at).within(index))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'n> {
    entries: indexmap::map::Iter<'n, String, Entry>,
    value: Option<(&'n str, &'n Entry)>,
    form: Form,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Read<Option<K::Value>> {
        let Some((key, entry)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some((key, entry));
        seed.deserialize(Key {
            key,
            at: entry.key_at,
        })
        .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Read<V::Value> {
        let Some((key, entry)) = self.value.take() else {
            return Err(Error::custom("a value stands here without its key"));
        };
        seed.deserialize(Reader {
            node: &entry.node,
            form: self.form,
        })
        .map_err(|error| error.or_at(entry.node.at).or_at(entry.key_at).below(key))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

/// A key of a map, which may be a number or a boolean to its type.
struct Key<'n> {
    key: &'n str,
    at: At,
}

impl<'n> Key<'n> {
    fn parsed<V, N: std::str::FromStr>(self, wanted: &str, visit: impl FnOnce(N) -> Read<V>) -> Read<V> {
        match self.key.parse() {
            Ok(value) => visit(value).map_err(|error| error.or_at(self.at)),
            Err(_) => Err(Error::new(self.at, mismatch(Some("a string"), wanted)).below(self.key)),
        }
    }
}

macro_rules! keys {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
            self.parsed::<_, $type>(stringify!($type), |value| visitor.$visit(value))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Key<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        visitor
            .visit_borrowed_str(self.key)
            .map_err(|error: Error| error.or_at(self.at))
    }

    keys! {
        deserialize_bool visit_bool bool,
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Read<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Read<V::Value> {
        let at = self.at;
        visitor
            .visit_enum(Variant {
                name: self.key.to_owned(),
                content: None,
            })
            .map_err(|error| error.or_at(at))
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// The name of a variant, and what stands below it.
struct Variant<'n> {
    name: String,
    content: Option<Reader<'n>>,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Read<(V::Value, Self)> {
        let name: StrDeserializer<'_, Error> = self.name.as_str().into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> Variant<'de> {
    fn content(&self) -> Read<Reader<'de>> {
        self.content
            .ok_or_else(|| Error::custom(format!("`{}` needs a value", crate::error::shown(&self.name))))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Error;

    fn unit_variant(self) -> Read<()> {
        match self.content {
            Some(content) if !content.node.is_null() => Err(content.wrong("unit").below(&self.name)),
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Read<T::Value> {
        seed.deserialize(self.content()?)
            .map_err(|error| error.below(&self.name))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Read<V::Value> {
        self.content()?
            .list(visitor)
            .map_err(|error| error.below(&self.name))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Read<V::Value> {
        self.content()?
            .map(visitor)
            .map_err(|error| error.below(&self.name))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use serde::Deserialize;
    use serde_json::json;

    use crate::from_yaml;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Plan {
        name: String,
        #[serde(default)]
        workers: u8,
        #[serde(default)]
        zones: Vec<String>,
        #[serde(default)]
        kind: Kind,
        #[serde(default)]
        address: Option<Ipv4Addr>,
        #[serde(default)]
        on: bool,
        #[serde(default)]
        more: BTreeMap<String, serde_json::Value>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        #[default]
        Small,
        Sized {
            cpu: u32,
        },
    }

    #[test]
    fn values_are_what_their_types_say() {
        let plan: Plan = from_yaml(
            "name: 1.30\nworkers: 010\nzones:\nkind: {sized: {cpu: \"2\"}}\naddress: 10.0.0.1\n\"on\": yes\nmore: {mode: 0755, y: [1_000]}\n",
        )
        .expect("a plan");
        assert_eq!(
            plan,
            Plan {
                name: "1.30".to_owned(),
                workers: 8,
                zones: Vec::new(),
                kind: Kind::Sized { cpu: 2 },
                address: Some(Ipv4Addr::new(10, 0, 0, 1)),
                on: true,
                more: [
                    ("mode".to_owned(), json!(493)),
                    ("true".to_owned(), json!([1000]))
                ]
                .into(),
            }
        );
        let digits: Plan = from_yaml("name: 123456789012345678901234567890\n").expect("a plan");
        assert_eq!(digits.name, "123456789012345678901234567890");
        assert_eq!(from_yaml::<Plan>("name: no\n").expect("a plan").name, "no");
    }

    #[test]
    fn errors_say_place_and_path_and_quote_no_value() {
        for (text, expect) in [
            (
                "name: [a]\n",
                "line 1, column 7: name: a string is needed here, not a list",
            ),
            (
                "name: a\nworkers: 300\n",
                "line 2, column 10: workers: an integer from 0 to 255 is needed here, not 300",
            ),
            (
                "name: a\nworkers: s3cret\n",
                "line 2, column 10: workers: an integer from 0 to 255 is needed here, not a string",
            ),
            (
                "name: a\nworker: 3\n",
                "line 2, column 1: `worker` is not known here; known are ",
            ),
            ("workers: 3\n", "line 1, column 1: `name` is missing"),
            (
                "name: a\nzones: [a, {b: c}]\n",
                "line 2, column 12: zones[1]: a string is needed here, not a map",
            ),
            (
                "name: a\nkind: large\n",
                "line 2, column 7: kind: `large` is not known here; it can be `small` or `sized`",
            ),
            (
                "name: a\nkind: {sized: {cpu: x}}\n",
                "line 2, column 21: kind.sized.cpu: an integer from 0 to 4294967295 is needed here",
            ),
            (
                "name: a\nkind: sized\n",
                "line 2, column 7: kind: `sized` needs a value",
            ),
            ("name: a\naddress: here\n", "line 2, column 10: address: "),
            ("- a\n", "line 1, column 1: a map is needed here, not a list"),
            (
                "name: ~\n",
                "line 1, column 7: name: a string is needed here, not nothing",
            ),
            (
                "name: a\nmore: {a: 123456789012345678901234567890}\n",
                "line 2, column 11: more.a: an integer does not fit into 64 bits",
            ),
        ] {
            let error = from_yaml::<Plan>(text).expect_err(text).to_string();
            assert!(error.starts_with(expect), "{text:?}: {error}");
        }
    }
}
