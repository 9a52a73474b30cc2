//! Properties by dotted name.

use serde_json::{Map, Value};

use super::catalog::JobSpec;

/// The value at a dotted name; `None` when a part is missing.
#[must_use]
pub fn lookup<'v>(properties: &'v Value, dotted: &str) -> Option<&'v Value> {
    dotted
        .split('.')
        .try_fold(properties, |value, key| value.get(key))
}

/// What a job gets to see: for every property that it declares, what the manifest says, else the default. As in BOSH
/// a null in the manifest means that the default holds; what has no value is not there.
pub(super) fn effective(spec: &JobSpec, given: &Value) -> Value {
    let mut result = Value::Object(Map::new());
    for (name, property) in &spec.properties {
        let value = lookup(given, name)
            .filter(|value| !value.is_null())
            .or(property.default.as_ref());
        if let Some(value) = value.filter(|value| !value.is_null()) {
            insert(&mut result, name, value);
        }
    }
    result
}

/// The part of `properties` that the dotted names select, in the same nesting.
pub(super) fn select(properties: &Value, names: &[String]) -> Value {
    let mut result = Value::Object(Map::new());
    for name in names {
        if let Some(value) = lookup(properties, name) {
            insert(&mut result, name, value);
        }
    }
    result
}

/// Puts a value at a dotted name. Where `a` and `a.b` are both declared, the maps are united.
fn insert(into: &mut Value, dotted: &str, value: &Value) {
    let mut place = into;
    for key in dotted.split('.') {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[key];
    }
    match (place, value) {
        (Value::Object(place), Value::Object(value)) => {
            for (key, value) in value {
                place.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        (place, value) => *place = value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::catalog::PropertySpec;
    use super::*;

    #[test]
    fn only_declared_properties_are_seen_and_defaults_fill_gaps() {
        let property = |default: Option<Value>| PropertySpec { default };
        let spec = JobSpec {
            properties: [
                ("port".to_owned(), property(Some(json!(2379)))),
                ("tls.ca".to_owned(), property(None)),
                ("tls.cert".to_owned(), property(None)),
                ("limits".to_owned(), property(Some(json!({"nofile": 1})))),
                ("limits.nproc".to_owned(), property(Some(json!(2)))),
                ("quota".to_owned(), property(Some(json!(8)))),
            ]
            .into_iter()
            .collect(),
            ..JobSpec::default()
        };
        let given = json!({"tls": {"ca": "((ca.certificate))", "other": 1}, "undeclared": true, "quota": null, "port": 2});
        assert_eq!(
            effective(&spec, &given),
            json!({"port": 2, "tls": {"ca": "((ca.certificate))"}, "limits": {"nofile": 1, "nproc": 2}, "quota": 8})
        );
        assert_eq!(lookup(&given, "tls.ca"), Some(&json!("((ca.certificate))")));
        assert_eq!(lookup(&given, "tls.ca.x"), None);
    }
}
