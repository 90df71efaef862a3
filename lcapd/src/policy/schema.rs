//! The part of JSON Schema that modules describe their options with.
//!
//! A module's configuration is checked here before the module sees it, so that a typing error is
//! reported the same way for every module. Keywords that are not known here (`description`,
//! `default`, `examples`, …) are annotations.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use serde_json::Value;

use super::config::{parse_duration, parse_size};

/// Checks `value` against `schema`.
///
/// # Errors
/// A sentence that names the option and what it may be.
pub(super) fn check(schema: &Value, value: &Value) -> Result<(), String> {
    check_at(schema, value, "")
}

fn check_at(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let wrong = |expected: &str| Err(format!("{}expected {expected}, got {value}", here(at)));
    if schema == &Value::Bool(false) {
        return Err(format!("{}not allowed", here(at)));
    }
    if let Some(types) = schema.get("type") {
        let types: Vec<&str> = match types {
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        if !types.iter().any(|name| has_type(value, name)) {
            return wrong(&types.join(" or "));
        }
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
        return wrong(&format!("one of {}", list.join(", ")));
    }
    if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
        let tries: Vec<_> = choices.iter().map(|choice| check_at(choice, value, at)).collect();
        if let Some(Err(first)) = tries.first()
            && tries.iter().all(Result::is_err)
        {
            return Err(first.clone());
        }
    }
    if let Some(number) = value.as_f64() {
        let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
        if bound("minimum").is_some_and(|minimum| number < minimum) {
            return wrong(&format!("at least {}", schema["minimum"]));
        }
        if bound("maximum").is_some_and(|maximum| number > maximum) {
            return wrong(&format!("at most {}", schema["maximum"]));
        }
    }
    if let Some(text) = value.as_str() {
        if least(schema, "minLength").is_some_and(|least| text.chars().count() < least) {
            return wrong("a longer text");
        }
        match schema.get("format").and_then(Value::as_str) {
            Some("duration") if parse_duration(text).is_none() => {
                return wrong("a duration such as \"500ms\", \"2s\" or \"5m\"");
            }
            Some("size") if parse_size(text).is_none() => {
                return wrong("a size such as \"64KiB\" or \"1MiB\"");
            }
            _ => {}
        }
    }
    if let Some(list) = value.as_array() {
        if least(schema, "minItems").is_some_and(|least| list.len() < least) {
            return wrong("a longer list");
        }
        if let Some(each) = schema.get("items") {
            for (nth, item) in list.iter().enumerate() {
                check_at(each, item, &format!("{at}[{nth}]"))?;
            }
        }
    }
    if let Some(table) = value.as_object() {
        let known = schema.get("properties").and_then(Value::as_object);
        for (key, item) in table {
            let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            match (known.and_then(|known| known.get(key)), schema.get("additionalProperties")) {
                (Some(sub), _) => check_at(sub, item, &path)?,
                (None, None | Some(Value::Bool(true))) => {}
                (None, Some(Value::Bool(false))) => return Err(unknown(&path, known)),
                (None, Some(sub)) => check_at(sub, item, &path)?,
            }
        }
        let required = schema.get("required").and_then(Value::as_array);
        for key in required.into_iter().flatten().filter_map(Value::as_str) {
            if !table.contains_key(key) {
                let path = if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
                return Err(format!("option `{path}` is missing"));
            }
        }
    }
    Ok(())
}

fn here(at: &str) -> String {
    if at.is_empty() { String::new() } else { format!("option `{at}`: ") }
}

fn unknown(path: &str, known: Option<&serde_json::Map<String, Value>>) -> String {
    let mut text = format!("unknown option `{path}`");
    let names: Vec<&str> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    if names.is_empty() {
        text.push_str("; there are none");
    } else {
        // Writing to a String cannot fail.
        let _ = write!(text, "; known: {}", names.join(", "));
    }
    text
}

fn least(schema: &Value, key: &str) -> Option<usize> {
    usize::try_from(schema.get(key)?.as_u64()?).ok()
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_checked_and_the_answer_names_the_option() {
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["window"],
            "properties": {
                "window": {"type": "string", "format": "duration"},
                "memory": {"type": ["string", "integer"], "format": "size"},
                "by": {"enum": ["tfid", "pfid"]},
                "count": {"type": "integer", "minimum": 1, "maximum": 10},
                "types": {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
                "ratio": {"type": "number"},
                "sub": {"type": "object", "additionalProperties": {"type": "boolean"}},
                "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            },
        });
        let cases = [
            (json!({"window": "2s", "by": "tfid", "count": 10, "types": ["a"]}), None),
            (json!({"window": "2s", "memory": 5, "ratio": 1, "either": 7}), None),
            (json!({"window": "2s", "memory": "5MiB", "sub": {"x": true}}), None),
            (json!({}), Some("option `window` is missing")),
            (json!([]), Some("expected object, got []")),
            (json!({"window": "2"}), Some("option `window`: expected a duration")),
            (json!({"window": 2}), Some("option `window`: expected string, got 2")),
            (json!({"windw": "2s"}), Some("unknown option `windw`; known: ")),
            (json!({"window": "2s", "by": "uid"}), Some("option `by`: expected one of \"tfid\"")),
            (
                json!({"window": "2s", "count": 0}),
                Some("option `count`: expected at least 1, got 0"),
            ),
            (json!({"window": "2s", "count": 11}), Some("expected at most 10")),
            (json!({"window": "2s", "count": 1.5}), Some("expected integer")),
            (json!({"window": "2s", "types": []}), Some("longer list")),
            (json!({"window": "2s", "types": ["a", ""]}), Some("option `types[1]`: ")),
            (json!({"window": "2s", "memory": "many"}), Some("a size such as")),
            (json!({"window": "2s", "sub": {"x": 1}}), Some("option `sub.x`: expected boolean")),
            (json!({"window": "2s", "either": true}), Some("option `either`: expected string")),
        ];
        for (value, want) in cases {
            let got = check(&schema, &value);
            match want {
                None => assert_eq!(got, Ok(()), "{value}"),
                Some(text) => {
                    assert!(got.as_ref().is_err_and(|e| e.contains(text)), "{value}: {got:?}")
                }
            }
        }
    }
}
