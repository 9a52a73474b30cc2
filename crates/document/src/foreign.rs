//! Words of libraries, for the tests of everything that answers people.

/// What only a library or a type of ours says: no answer to a person has it.
const WORDS: &[&str] = &[
    "struct ",
    "enum ",
    "invalid type",
    "invalid value",
    "invalid length",
    "missing field",
    "unknown field",
    "unknown variant",
    "duplicate field",
    "untagged",
    "variant identifier",
    "a sequence",
    "serde",
    "saphyr",
    "granit",
    "deserialize",
    "from_str",
    "from_multiple",
    "EOF while",
    " at line ",
    "invalid digit found",
    "Option<",
    "Vec<",
    " u8",
    " u16",
    " u32",
    " u64",
    " i32",
    " i64",
    " f64",
    "usize",
    "`String`",
];

/// The first word of a library in a text, if there is one.
#[must_use]
pub fn foreign_word(text: &str) -> Option<&'static str> {
    WORDS.iter().copied().find(|word| text.contains(word))
}

/// A JSON value with each part of it exchanged for values of other kinds, and with a key that nobody knows in each object.
#[must_use]
pub fn spoiled(value: &serde_json::Value) -> Vec<serde_json::Value> {
    use serde_json::{Value, json};
    let mut all = vec![
        Value::Null,
        json!(true),
        json!(-7),
        json!(1e300),
        json!(u64::MAX),
        json!("text"),
        json!([]),
        json!([{}]),
        json!({}),
        json!({"nobody": "knows"}),
    ];
    match value {
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                for spoiled in spoiled(item) {
                    let mut items = items.clone();
                    items[at] = spoiled;
                    all.push(Value::Array(items));
                }
            }
        }
        Value::Object(map) => {
            let mut more = map.clone();
            more.insert("nobody_knows".to_owned(), json!(1));
            all.push(Value::Object(more));
            for (key, item) in map {
                let mut less = map.clone();
                less.remove(key);
                all.push(Value::Object(less));
                for spoiled in spoiled(item) {
                    let mut map = map.clone();
                    map.insert(key.clone(), spoiled);
                    all.push(Value::Object(map));
                }
            }
        }
        _ => {}
    }
    all
}
