//! The document against the router: the same paths, the same methods, the same answers.

use super::*;
use enisle_api::openapi;
use std::collections::BTreeSet;

#[tokio::test]
async fn the_document_has_every_route_and_no_other() {
    let document = openapi::document();
    let paths = document["paths"].as_object().unwrap();
    let described: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    let routed: BTreeSet<&str> = table().iter().map(|(path, _)| *path).collect();
    assert_eq!(described, routed);
    let api = api(Guest::Honest);
    for (path, item) in paths {
        // No route has it, so that the answer names those there are.
        let (status, headers, _) = api
            .ask_with(
                "OPTIONS",
                &path.replace("{name}", "x").replace("{file}", "x").replace("{id}", "x"),
                &[],
                "",
            )
            .await;
        assert_eq!(status, 405, "{path}");
        let allowed = headers["allow"].to_str().unwrap().to_lowercase();
        let allowed: BTreeSet<&str> = allowed.split(',').filter(|method| *method != "head").collect();
        let described: BTreeSet<&str> = item.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(described, allowed, "{path}");
    }
}

/// Each answer that this rig can give has a status and a code that the document names for it.
#[tokio::test]
async fn answers_are_among_those_described() {
    let document = openapi::document();
    let api = api(Guest::Honest);
    api.json("POST", routes::VMS, r#"{"wait":true}"#).await;
    for (method, path, route, body) in [
        ("GET", routes::HEALTH, routes::HEALTH, ""),
        ("GET", routes::VERSION, routes::VERSION, ""),
        ("GET", routes::GROUPS, routes::GROUPS, ""),
        ("GET", routes::EVENTS, routes::EVENTS, ""),
        ("GET", "/v1/events?since=x", routes::EVENTS, ""),
        ("POST", routes::VERIFY, routes::VERIFY, r#"{"vm":"nobody"}"#),
        ("POST", routes::VERIFY, routes::VERIFY, "x"),
        ("GET", routes::VMS, routes::VMS, ""),
        ("POST", routes::VMS, routes::VMS, r#"{"name":"agents-1"}"#),
        ("POST", routes::VMS, routes::VMS, r#"{"group":"x"}"#),
        ("POST", routes::VMS, routes::VMS, "{}"),
        ("POST", routes::VMS, routes::VMS, "{}"),
        ("GET", "/v1/vms/agents-1", routes::VM, ""),
        ("GET", "/v1/vms/nobody", routes::VM, ""),
        ("GET", "/v1/vms/agents-1/policy", routes::VM_POLICY, ""),
        ("PUT", "/v1/vms/agents-1/policy", routes::VM_POLICY, "{}"),
        ("PUT", "/v1/vms/agents-1/policy", routes::VM_POLICY, r#"{"drop":["x"]}"#),
        ("GET", "/v1/vms/agents-1/why?dest=8.8.8.8", routes::VM_WHY, ""),
        ("GET", "/v1/vms/agents-1/why", routes::VM_WHY, ""),
        ("GET", "/v1/groups/agents/policy", routes::GROUP_POLICY, ""),
        ("GET", "/v1/vms/agents-1/log", routes::VM_LOG, ""),
        ("GET", "/v1/vms/agents-1/log?of=vmm", routes::VM_LOG, ""),
        ("GET", "/v1/vms/agents-1/log?of=vmm&follow=true", routes::VM_LOG, ""),
        ("GET", "/v1/vms/agents-1/log?of=x", routes::VM_LOG, ""),
        ("POST", "/v1/vms/agents-1/pause", routes::VM_PAUSE, ""),
        ("POST", "/v1/vms/nobody/pause", routes::VM_PAUSE, ""),
        ("POST", "/v1/vms/agents-1/exec", routes::VM_EXEC, r#"{"argv":["true"]}"#),
        ("POST", "/v1/vms/agents-1/resume", routes::VM_RESUME, ""),
        ("GET", "/v1/vms/agents-1/stream", routes::VM_STREAM, ""),
        ("GET", routes::TOKENS, routes::TOKENS, ""),
        ("POST", routes::TOKENS, routes::TOKENS, r#"{"scopes":["admin"]}"#),
        ("POST", routes::TOKENS, routes::TOKENS, r#"{"scopes":[]}"#),
        ("DELETE", "/v1/tokens/0123abcd", routes::TOKEN, ""),
        ("GET", routes::METRICS, routes::METRICS, ""),
        ("GET", routes::OPENAPI, routes::OPENAPI, ""),
        ("GET", routes::DOCS, routes::DOCS, ""),
        ("GET", "/docs/page.js", routes::DOCS_FILE, ""),
        ("GET", "/docs/..%2Fmod.rs", routes::DOCS_FILE, ""),
        ("DELETE", "/v1/vms/agents-1", routes::VM, ""),
        ("DELETE", "/v1/vms/agents-1", routes::VM, ""),
    ] {
        let (status, headers, answer) = api.ask_with(method, path, &[], body).await;
        let described = &document["paths"][route][method.to_lowercase()]["responses"][status.to_string()];
        assert!(described.is_object(), "{method} {path} answers {status}");
        assert!(headers.contains_key("x-request-id"), "{method} {path}");
        if status >= 400 {
            let problem: Problem = serde_json::from_slice(&answer).unwrap();
            let codes = described["description"].as_str().unwrap();
            assert!(codes.contains(&format!("`{}`", problem.code.name())), "{method} {path}: {codes}");
        } else if let Some(content) = described["content"].as_object() {
            let kind = headers["content-type"].to_str().unwrap().split(';').next().unwrap();
            assert!(content.contains_key(kind) || content.contains_key("*/*"), "{method} {path}: {kind}");
        }
    }
}

#[tokio::test]
async fn the_document_and_its_page_are_served_whole_and_ask_nobody_else() {
    let api = api(Guest::Honest);
    let (status, served) = api.json("GET", routes::OPENAPI, "").await;
    assert_eq!((status, served), (200, openapi::document()));
    let (_, headers, page) = api.ask_with("GET", routes::DOCS, &[], "").await;
    assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let page = String::from_utf8(page).unwrap();
    let links = page.split(['"', '\'']).filter(|part| part.starts_with('/') || part.contains("://"));
    for link in links {
        let (status, _, text) = api.ask_with("GET", link, &[], "").await;
        assert_eq!(status, 200, "{link}");
        assert!(!String::from_utf8(text).unwrap().contains("cdn"), "{link}");
    }
    assert!(page.contains("/docs/page.js") && page.contains("/docs/style.css"));
}
