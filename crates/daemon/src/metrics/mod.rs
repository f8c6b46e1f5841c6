//! What `/metrics` tells.
//!
//! ```text
//! owners, API ──observe──▶ Metrics (histograms) ─┐
//! slots, queue, events, /proc ──read──▶ Scrape ──┴─▶ registry ─▶ text
//! ```
//!
//! Owns: names, labels and their bounds. A label is the name of a group, which only the file gives, or one of a
//! set that this program knows: never a VM, an address or what a client or a guest sent. Refuses: taking
//! anything that somebody else waits for, longer than one slot is read.

mod host;
mod scrape;
mod text;

pub(crate) use scrape::Scrape;
pub(crate) use text::KIND;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry as Names;
use std::fmt;
use std::time::Duration;

/// Bounds in seconds of the time until exec works in a VM: from a snapshot's to an emulated guest's on a
/// busy machine.
const LAUNCH: [f64; 14] = [0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 120.0, 300.0];
/// Bounds in seconds of the time until an answer begins.
const REQUEST: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfGroup {
    group: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    method: &'static str,
    /// The template, never the path.
    route: String,
    /// Its class, as `2xx`.
    status: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// What is observed when it happens.
pub(crate) struct Metrics {
    launches: Histograms<OfGroup>,
    requests: Histograms<OfRequest>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            launches: Family::new_with_constructor(|| Histogram::new(LAUNCH)),
            requests: Family::new_with_constructor(|| Histogram::new(REQUEST)),
        }
    }

    /// Exec works in a new VM, so long after it was asked for.
    pub(crate) fn launched(&self, group: &str, after: Duration) {
        let of = OfGroup { group: group.to_owned() };
        self.launches.get_or_create(&of).observe(after.as_secs_f64());
    }

    /// The answer to a request begins. `route` is a template of the router; `None` where there is none.
    pub(crate) fn answered(&self, method: &str, route: Option<&str>, status: u16, after: Duration) {
        let of = OfRequest {
            method: known_method(method),
            route: route.unwrap_or("none").to_owned(),
            status: class(status),
        };
        self.requests.get_or_create(&of).observe(after.as_secs_f64());
    }

    /// Everything as text, with what was read just now.
    ///
    /// # Errors
    /// Never: a `String` takes what it is given.
    pub(crate) fn render(&self, scrape: Scrape) -> Result<String, fmt::Error> {
        let mut names = Names::default();
        names.register(
            "enisle_vm_launch_seconds",
            "Time from the request for a VM until exec works in it",
            self.launches.clone(),
        );
        names.register(
            "enisle_api_request_seconds",
            "Time until the answer to a request of the API begins, by route",
            self.requests.clone(),
        );
        names.register_collector(Box::new(scrape));
        let mut written = String::new();
        prometheus_client::encoding::text::encode(&mut written, &names)?;
        Ok(text::classic(&written))
    }
}

/// A client may send any word for a method.
fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("other")
}

fn class(status: u16) -> &'static str {
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send_makes_no_new_series() {
        let metrics = Metrics::new();
        metrics.launched("agents", Duration::from_millis(300));
        for n in 0..200_u16 {
            metrics.answered(&format!("M{n}"), None, 400 + n % 10, Duration::from_micros(700));
        }
        metrics.answered("GET", Some("/v1/vms/{name}"), 200, Duration::from_millis(2));
        let text = metrics.render(Scrape::default()).unwrap();
        let counts: Vec<&str> =
            text.lines().filter(|line| line.starts_with("enisle_api_request_seconds_count")).collect();
        assert_eq!(counts.len(), 2, "{counts:?}");
        assert!(
            text.contains(
                "enisle_api_request_seconds_count{method=\"other\",route=\"none\",status=\"4xx\"} 200"
            ),
            "{text}"
        );
        assert!(text.contains("enisle_vm_launch_seconds_bucket{le=\"0.5\",group=\"agents\"} 1"), "{text}");
        assert!(text.contains("enisle_vm_launch_seconds_bucket{le=\"0.25\",group=\"agents\"} 0"), "{text}");
    }
}
