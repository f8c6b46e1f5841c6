//! The schema and the reader agree, although nobody checks that when adding a key.

use serde_json::{Value as Json, json};

use super::super::schema;
use super::{assert_golden, read, root};

#[test]
fn the_schema_that_is_shipped_is_the_schema_of_the_reader() {
    let mut text = serde_json::to_string_pretty(&schema()).unwrap();
    text.push('\n');
    assert_golden(&root().join("docs/enisle.schema.json"), &text);
}

/// A file with every required key, as JSON.
fn smallest() -> Json {
    // Keys in both places: `ssh` needs them in one.
    json!({ "config": {
        "ssh": {},
        "ssh_keys": [super::valid::KEY],
        "host_groups": [{
            "name": "agents",
            "ssh_keys": [super::valid::KEY],
            "network": { "mode": "isolated", "range": "169.254.100.0/22", "limits": {} },
        }],
        "listen": [{ "address": "127.0.0.1" }],
        "tls": { "certificate": "/boot/vmlinuz", "key": "/boot/vmlinuz" },
    } })
}

/// Each mapping of the file: where it is in [`smallest`], and its schema.
fn mappings() -> Vec<(&'static str, Json)> {
    let schema = schema();
    let at = |pointer: &str| schema.pointer(pointer).unwrap().clone();
    let group = "/properties/config/properties/host_groups/items";
    vec![
        ("", schema.clone()),
        ("/config", at("/properties/config")),
        ("/config/listen/0", at("/properties/config/properties/listen/items")),
        ("/config/tls", at("/properties/config/properties/tls")),
        ("/config/ssh", at("/properties/config/properties/ssh")),
        ("/config/host_groups/0", at(group)),
        ("/config/host_groups/0/network", at(&format!("{group}/properties/network"))),
        (
            "/config/host_groups/0/network/limits",
            at(&format!("{group}/properties/network/properties/limits")),
        ),
    ]
}

/// [`smallest`] with `key` of one mapping set, or removed.
fn file_with(mapping: &str, key: &str, value: Option<&Json>) -> String {
    let mut file = smallest();
    let object = file.pointer_mut(mapping).unwrap().as_object_mut().unwrap();
    object.remove(key);
    // A bridge's keys mean something together only.
    let of_bridges = ["bridge", "gateway", "isolate_ports", "uplink", "route_between"];
    if of_bridges.contains(&key) || (key == "mode" && value == Some(&json!("bridge"))) {
        object.remove("range");
        object.extend([
            ("mode".to_owned(), json!("bridge")),
            ("bridge".to_owned(), json!("lab0")),
            ("gateway".to_owned(), json!("10.77.0.1/24")),
        ]);
        object.remove(key);
    }
    if let Some(value) = value {
        object.insert(key.to_owned(), value.clone());
    }
    // An initramfs alone is a mistake whatever it is called.
    if key == "initramfs" {
        object.insert("kernel".to_owned(), json!("/boot/vmlinuz"));
    }
    file.to_string()
}

fn each_key(mut check: impl FnMut(&str, &str, &Json, &Json)) {
    let mut keys = 0;
    for (mapping, schema) in mappings() {
        for (key, property) in schema["properties"].as_object().unwrap() {
            check(mapping, key, property, &schema);
            keys += 1;
        }
    }
    assert!(keys >= 31, "only {keys} keys were looked at");
}

#[test]
fn required_keys_are_those_that_the_reader_misses() {
    each_key(|mapping, key, _, schema| {
        // Which of these a network needs depends on its mode: see `mode_bridge` among the golden files.
        if mapping.ends_with("/network") && ["mode", "range", "bridge", "gateway"].contains(&key) {
            return;
        }
        let required = schema["required"].as_array().is_some_and(|r| r.contains(&json!(key)));
        let missed = read(&file_with(mapping, key, None)).is_err();
        assert_eq!(missed, required, "{mapping}/{key}");
    });
}

#[test]
fn the_reader_accepts_each_default_and_example_and_limit() {
    each_key(|mapping, key, property, _| {
        let item = property.get("items");
        let mut values: Vec<Json> = property.get("default").into_iter().cloned().collect();
        for words in [Some(property), item].into_iter().flatten() {
            let list = |name: &str| words[name].as_array().cloned().unwrap_or_default();
            let limits = ["minimum", "maximum"].into_iter().filter_map(|name| words.get(name).cloned());
            let mut of_item: Vec<Json> = list("examples");
            of_item.extend(list("enum"));
            of_item.extend(limits);
            let wrap = |value: Json| {
                if item.is_some() { json!([value]) } else { value }
            };
            values.extend(of_item.into_iter().map(wrap));
        }
        if property["type"] == "object" || key == "host_groups" {
            return;
        }
        assert!(!values.is_empty(), "{key} has no default, example or limit");
        for value in values {
            // The largest count needs the largest range; that is another rule than the schema's.
            let result = read(&file_with(mapping, key, Some(&value)));
            if let Err(errors) = result {
                let other = errors.to_string().contains("but 169.254.100.0/22 holds 256")
                    || errors.to_string().contains("there is no");
                assert!(other, "{mapping}/{key}: {value}\n{errors}");
            }
        }
    });
}

#[test]
fn a_default_means_the_same_as_no_key() {
    each_key(|mapping, key, property, _| {
        let Some(default) = property.get("default") else {
            return;
        };
        let explicit = read(&file_with(mapping, key, Some(default))).unwrap();
        let absent = read(&file_with(mapping, key, None)).unwrap();
        assert_eq!(explicit, absent, "{mapping}/{key}");
    });
}

#[test]
fn the_reader_refuses_what_the_schema_refuses() {
    let samples = [
        ("null", json!(null)),
        ("boolean", json!(true)),
        ("integer", json!(3)),
        ("string", json!("§")),
        ("array", json!([[]])),
        ("object", json!({ "x": 1 })),
    ];
    each_key(|mapping, key, property, _| {
        let wanted = property["type"].as_str().unwrap_or_default();
        for (kind, value) in &samples {
            let fits = wanted == *kind || (wanted == "number" && *kind == "integer");
            if !fits {
                let file = file_with(mapping, key, Some(value));
                assert!(read(&file).is_err(), "{mapping}/{key} accepts {value}");
            }
        }
        for (limit, beyond) in [("minimum", -1.0), ("maximum", 1.0)] {
            if let Some(value) = property[limit].as_f64() {
                let value = value + beyond;
                let value = if wanted == "integer" { json!(value as i64) } else { json!(value) };
                let file = file_with(mapping, key, Some(&value));
                assert!(read(&file).is_err(), "{mapping}/{key} accepts {value}");
            }
        }
    });
}

#[test]
fn unknown_keys_are_refused_everywhere() {
    for (mapping, schema) in mappings() {
        assert_eq!(schema["additionalProperties"], false, "{mapping}");
        let file = file_with(mapping, "x-unknown", Some(&json!(1)));
        assert!(read(&file).is_err(), "{mapping}");
    }
}

#[test]
fn the_manual_names_every_key_and_default() {
    let manual = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    each_key(|mapping, key, property, _| {
        // Two mappings may have a key of the same name.
        let rows: Vec<&str> =
            manual.lines().filter(|line| line.starts_with(&format!("| `{key}` |"))).collect();
        if rows.is_empty() {
            assert!(
                ["config", "host_groups", "network"].contains(&key),
                "{mapping}/{key} is not in the manual"
            );
            return;
        }
        let default = match property.get("default") {
            Some(Json::String(text)) => format!("`{text}`"),
            Some(Json::Number(number)) => format!("`{number}`"),
            _ => String::new(),
        };
        let said = rows.iter().any(|row| row.contains(&default));
        assert!(said, "default of {mapping}/{key} in: {rows:?}");
    });
}
