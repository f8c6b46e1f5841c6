//! `/v1/events`: what happened, as JSON lines or server-sent events, whole or as it comes.

use super::App;
use super::problem::ApiError;
use crate::access::view::{self, Sight};
use crate::events::Reader;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use enisle_api::{Code, Event, EventFilter, Problem};
use futures_util::stream;
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// After this much silence a follower gets a comment: what is between might close a silent
/// connection (HTML, 9.2.7).
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Only what came after the event of this number.
    since: Option<u64>,
    /// Go on with what happens until the daemon stops.
    #[serde(default)]
    follow: bool,
    /// Only these.
    only: Option<EventFilter>,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Lines,
    Sse,
}

pub(super) async fn events(
    State(app): State<Arc<App>>,
    query: Result<Query<EventsQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|e| Problem::new(Code::InvalidRequest, e.body_text()))?;
    let form = wanted(&headers);
    let since = match query.since {
        Some(since) => Some(since),
        None => last_seen(&headers)?,
    };
    let reader = Seen { reader: app.registry.events().reader(since, query.only), sight: view::sight() };
    let body = if query.follow { following(reader, form) } else { Body::from(present(reader, form)) };
    let kind = match form {
        Form::Lines => "application/jsonl",
        Form::Sse => "text/event-stream",
    };
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], body).into_response())
}

/// What a browser says when it connects again.
fn last_seen(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| Problem::new(Code::InvalidRequest, "Last-Event-ID is no number").into())
}

/// Server-sent events for whoever names them and does not prefer something else; else lines.
fn wanted(headers: &HeaderMap) -> Form {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut sse, mut other) = (0.0, 0.0);
    for range in accept.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.parse().ok());
        let best: &mut f32 =
            if kind.eq_ignore_ascii_case("text/event-stream") { &mut sse } else { &mut other };
        *best = best.max(quality.unwrap_or(1.0));
    }
    if sse > 0.0 && sse >= other { Form::Sse } else { Form::Lines }
}

/// A reader who sees the events of some groups, and how many of all were missed.
struct Seen {
    reader: Reader,
    sight: Sight,
}

impl Seen {
    /// `None` for a batch without an event that is seen.
    fn of(&self, mut batch: Vec<Event>) -> Option<Vec<Event>> {
        batch.retain(|event| match event.what.group() {
            Some(group) => self.sight.sees(group),
            // It names groups.
            None => !event.what.is_of_the_file() || self.sight.is_whole(),
        });
        Some(batch).filter(|batch| !batch.is_empty())
    }

    /// The next ones, as soon as there are some. Cancel-safe.
    async fn next(&mut self) -> Option<Vec<Event>> {
        loop {
            let batch = self.reader.next().await?;
            if let Some(seen) = self.of(batch) {
                return Some(seen);
            }
        }
    }
}

fn present(mut reader: Seen, form: Form) -> String {
    let mut text = String::new();
    loop {
        let batch = reader.reader.batch();
        if batch.is_empty() {
            return text;
        }
        text.push_str(&reader.of(batch).map(|seen| render(&seen, form)).unwrap_or_default());
    }
}

fn following(reader: Seen, form: Form) -> Body {
    Body::from_stream(stream::unfold(reader, move |mut reader| async move {
        let text = match form {
            Form::Lines => render(&reader.next().await?, form),
            Form::Sse => match timeout(COMMENT_INTERVAL, reader.next()).await {
                Ok(batch) => render(&batch?, form),
                Err(_) => ":\n\n".to_owned(),
            },
        };
        Some((Ok::<_, Infallible>(text), reader))
    }))
}

fn render(batch: &[Event], form: Form) -> String {
    let mut text = String::new();
    for event in batch {
        // Text and numbers only: there is nothing in it that JSON could refuse.
        let json = serde_json::to_string(event).unwrap_or_default();
        match form {
            Form::Lines => text.push_str(&format!("{json}\n")),
            Form::Sse => {
                let kind = event.what.name();
                text.push_str(&format!("id: {}\nevent: {kind}\ndata: {json}\n\n", event.seq));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_decides() {
        for (accept, form) in [
            (&[][..], Form::Lines),
            (&["*/*"], Form::Lines),
            (&["text/event-stream"], Form::Sse),
            (&["Text/Event-Stream, */*;q=0.1"], Form::Sse),
            (&["application/jsonl", "text/event-stream;q=0.5"], Form::Lines),
            (&["text/event-stream;q=0"], Form::Lines),
        ] {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(header::ACCEPT, value.parse().unwrap());
            }
            assert_eq!(wanted(&headers), form, "{accept:?}");
        }
    }
}
