//! Builds an OpenAPI 3.1 document, operation by operation. Owns its shape; refuses to know routes.

use crate::{Code, Problem};
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// How a token is refused.
const REFUSED: [Code; 3] = [Code::Unauthorized, Code::Forbidden, Code::TooManyAttempts];

/// A parameter of an operation.
#[derive(Clone, Copy)]
pub(super) struct Param {
    name: &'static str,
    place: &'static str,
    kind: &'static str,
    required: bool,
    description: &'static str,
}

impl Param {
    pub(super) const fn query(name: &'static str, kind: &'static str, description: &'static str) -> Self {
        Self { name, place: "query", kind, required: false, description }
    }

    pub(super) const fn required_query(name: &'static str, description: &'static str) -> Self {
        Self { name, place: "query", kind: "string", required: true, description }
    }

    pub(super) const fn header(name: &'static str, description: &'static str) -> Self {
        Self { name, place: "header", kind: "string", required: false, description }
    }

    /// The filter of lists, which may be repeated.
    pub(super) const fn labels() -> Self {
        Self::query(
            "label",
            "array",
            "`KEY` or `KEY=VALUE`; may be repeated: only VMs that have all of them.",
        )
    }

    fn render(self) -> Value {
        let schema = match self.kind {
            "array" => json!({ "type": "array", "items": { "type": "string" } }),
            "integer" => json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX, "format": "uint64" }),
            kind => json!({ "type": kind }),
        };
        json!({
            "name": self.name,
            "in": self.place,
            "required": self.required,
            "description": self.description,
            "schema": schema,
        })
    }
}

/// What an operation asks of the caller's token; the daemon's table of routes says the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scopes {
    /// Nothing: it tells nothing of this daemon.
    Public,
    /// `ro` of a group, of the VM's where the path names one.
    Read,
    /// `rw`, likewise.
    Write,
    Admin,
}

/// The document as far as it is built.
pub(super) struct Document {
    generator: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Document {
    pub(super) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into());
        Self { generator: settings.into_generator(), paths: Map::new() }
    }

    pub(super) fn schema<T: JsonSchema>(&mut self) -> Value {
        self.generator.subschema_for::<T>().to_value()
    }

    pub(super) fn get(&mut self, path: &'static str, id: &str, summary: &str) -> Operation<'_> {
        Operation::new(self, "get", path, id, summary)
    }

    pub(super) fn post(&mut self, path: &'static str, id: &str, summary: &str) -> Operation<'_> {
        Operation::new(self, "post", path, id, summary)
    }

    pub(super) fn put(&mut self, path: &'static str, id: &str, summary: &str) -> Operation<'_> {
        Operation::new(self, "put", path, id, summary)
    }

    pub(super) fn delete(&mut self, path: &'static str, id: &str, summary: &str) -> Operation<'_> {
        Operation::new(self, "delete", path, id, summary)
    }

    /// The whole document.
    pub(super) fn finish(mut self) -> Value {
        let problem = self.schema::<Problem>();
        let codes: Vec<Value> = Code::ALL
            .iter()
            .map(|code| json!({ "code": code.name(), "status": code.status(), "title": code.title() }))
            .collect();
        let mut document = json!({
            "openapi": "3.1.0",
            "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
            "info": {
                "title": "Enisle",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "microVMs that reach the Internet and nothing else. Requests refuse fields they do not know, \
                                answers may get new ones. What is not 2xx is a problem document (RFC 9457) with a stable `code`.",
                "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            },
            "servers": [{
                "url": "/",
                "description": "The daemon's unix socket, /run/enisle/api.sock by default, or `https` where its file says `listen`.",
            }],
            "paths": self.paths,
            "security": [{}, { "bearer": [] }],
            "components": {
                "securitySchemes": { "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "enisle_ID_SECRET",
                    "description": "Over TCP: a token made by `enisle token create`. Over the unix socket none is needed, \
                                    and none is looked at. `x-scope` of an operation says what the token must be for: \
                                    `none` (no token), `ro` or `rw` (of the VM's group; lists and events show only \
                                    groups of the token, and what is of others is `not_found`), or `admin`.",
                } },
                "responses": { "Problem": {
                    "description": "It was refused or failed; `code` says why.",
                    "headers": { "X-Request-Id": { "$ref": "#/components/headers/RequestId" } },
                    "content": { "application/problem+json": { "schema": problem } },
                } },
                "headers": { "RequestId": {
                    "description": "Names the request, here and in the daemon's log.",
                    "schema": { "type": "string", "format": "uuid" },
                } },
            },
            "x-problem-codes": codes,
        });
        document["components"]["schemas"] = Value::Object(self.generator.take_definitions(true));
        document
    }
}

/// An operation as far as it is described; [`Operation::end`] puts it into the document.
pub(super) struct Operation<'a> {
    document: &'a mut Document,
    method: &'static str,
    path: &'static str,
    content: Map<String, Value>,
    params: Vec<Value>,
    responses: Map<String, Value>,
    scopes: Scopes,
}

impl<'a> Operation<'a> {
    fn new(
        document: &'a mut Document,
        method: &'static str,
        path: &'static str,
        id: &str,
        summary: &str,
    ) -> Self {
        let mut content = Map::new();
        content.insert("operationId".to_owned(), id.into());
        content.insert("summary".to_owned(), summary.into());
        let of_path = path.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
        let params = of_path
            .map(|(name, _)| {
                json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } })
            })
            .collect();
        let scopes = if method == "get" { Scopes::Read } else { Scopes::Write };
        Self { document, method, path, content, params, responses: Map::new(), scopes }
    }

    /// For everybody, token or not. Without this or another word it takes `ro` to get and `rw` for the rest.
    pub(super) fn public(self) -> Self {
        Self { scopes: Scopes::Public, ..self }
    }

    /// For `rw`, although it is a `GET`.
    pub(super) fn write(self) -> Self {
        Self { scopes: Scopes::Write, ..self }
    }

    /// For `admin`.
    pub(super) fn admin(self) -> Self {
        Self { scopes: Scopes::Admin, ..self }
    }

    pub(super) fn param(mut self, param: Param) -> Self {
        self.params.push(param.render());
        self
    }

    /// A JSON body.
    pub(super) fn body<T: JsonSchema>(mut self) -> Self {
        let schema = self.document.schema::<T>();
        let body = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        self.content.insert("requestBody".to_owned(), body);
        self
    }

    /// A body that is no JSON.
    pub(super) fn bytes_body(mut self, kind: &str, description: &str) -> Self {
        let body = json!({ "required": true, "description": description, "content": { kind: {} } });
        self.content.insert("requestBody".to_owned(), body);
        self
    }

    /// A JSON answer.
    pub(super) fn json<T: JsonSchema>(self, status: u16) -> Self {
        self.answer::<T>(status, json!({}))
    }

    /// A JSON answer with its revision in `ETag`.
    pub(super) fn etag<T: JsonSchema>(self) -> Self {
        let etag = json!({ "ETag": { "description": "The lists' revision, for `If-Match`.", "schema": { "type": "string" } } });
        self.answer::<T>(200, etag)
    }

    fn answer<T: JsonSchema>(mut self, status: u16, headers: Value) -> Self {
        let schema = self.document.schema::<T>();
        self.respond(status, "Done.", &json!({ "application/json": { "schema": schema } }), headers);
        self
    }

    /// Events, one a line or one a server-sent event.
    pub(super) fn lines<T: JsonSchema>(mut self, lines: &str, sse: &str) -> Self {
        let schema = self.document.schema::<T>();
        let content = json!({
            lines: { "schema": { "type": "string", "description": "One JSON object a line." }, "x-item": schema },
            sse: { "schema": { "type": "string", "description": "`id`, `event` and the JSON object in `data`." }, "x-item": schema },
        });
        self.respond(200, "One after the other, as they come.", &content, json!({}));
        self
    }

    /// JSON objects, one a line.
    pub(super) fn json_lines<T: JsonSchema>(mut self) -> Self {
        let schema = self.document.schema::<T>();
        let content = json!({
            "application/jsonl": { "schema": { "type": "string", "description": "One JSON object a line." }, "x-item": schema },
        });
        self.respond(200, "One after the other, as they come.", &content, json!({}));
        self
    }

    /// An answer that is no JSON of ours.
    pub(super) fn bytes(mut self, kind: &str, description: &str) -> Self {
        self.respond(200, description, &json!({ kind: {} }), json!({}));
        self
    }

    /// No content.
    pub(super) fn nothing(mut self) -> Self {
        self.respond(204, "Done.", &Value::Null, json!({}));
        self
    }

    /// A WebSocket with these messages.
    pub(super) fn upgrade(mut self, messages: Value) -> Self {
        self.respond(101, "The stream is open.", &Value::Null, json!({}));
        self.content.insert("x-websocket".to_owned(), messages);
        self
    }

    fn respond(&mut self, status: u16, description: &str, content: &Value, mut headers: Value) {
        headers["X-Request-Id"] = json!({ "$ref": "#/components/headers/RequestId" });
        let mut response = json!({ "description": description, "headers": headers });
        if !content.is_null() {
            response["content"] = content.clone();
        }
        self.responses.insert(status.to_string(), response);
    }

    /// The operation may end in these problems, and in a defect.
    pub(super) fn end(mut self, codes: &[Code]) {
        let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
        let (word, refused): (&str, &[Code]) = match self.scopes {
            Scopes::Public => ("none", &[]),
            Scopes::Read => ("ro", &REFUSED),
            Scopes::Write => ("rw", &REFUSED),
            Scopes::Admin => ("admin", &REFUSED),
        };
        self.content.insert("x-scope".to_owned(), word.into());
        if self.scopes == Scopes::Public {
            self.content.insert("security".to_owned(), json!([{}]));
        }
        for code in codes.iter().chain(refused).chain([&Code::Internal]) {
            by_status.entry(code.status()).or_default().push(code.name());
        }
        for (status, names) in by_status {
            let problem = json!({ "$ref": "#/components/responses/Problem", "description": format!("`{}`", names.join("`, `")) });
            self.responses.insert(status.to_string(), problem);
        }
        if !self.params.is_empty() {
            self.content.insert("parameters".to_owned(), self.params.into());
        }
        self.content.insert("responses".to_owned(), self.responses.into());
        let item = self.document.paths.entry(self.path).or_insert_with(|| json!({}));
        item[self.method] = self.content.into();
    }
}
