//! The log's lines about a request carry its id, also those of the owner task that does the work.

use super::*;
use std::io::Write;
use std::sync::Mutex;
use tracing::Instrument;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The id of the request that the line with this message was about.
    #[track_caller]
    fn id_of(&self, message: &str) -> Option<String> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let line = lines.rfind(|line| line["message"] == message);
        let line = line.unwrap_or_else(|| panic!("no line {message:?} in:\n{text}"));
        line["span"]["id"].as_str().map(str::to_owned)
    }
}

#[tokio::test]
async fn an_owners_lines_are_those_of_the_request_it_works_for() {
    two_subscribers();
    let lines = Lines::default();
    let to = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().json().flatten_event(true).with_max_level(tracing::Level::DEBUG);
    let _here = tracing::subscriber::set_default(subscriber.with_writer(move || to.clone()).finish());
    let bench = bench(Guest::Honest, FaultPlan::default());
    let request = |id: &'static str| tracing::error_span!("request", id);
    let create = waiting();
    let vm = bench.registry.start_and_wait(&create).instrument(request("made")).await.unwrap();
    for message in ["creating", "made", "ready"] {
        assert_eq!(lines.id_of(message).as_deref(), Some("made"), "{message}");
    }
    vm.remove(Removal::Deleted).instrument(request("deleted")).await.unwrap();
    for message in ["state", "gone"] {
        assert_eq!(lines.id_of(message).as_deref(), Some("deleted"), "{message}");
    }
    bench.registry.start(&create).unwrap().ready(SOON).await.unwrap();
    assert_eq!(lines.id_of("ready"), None, "the control: nobody's request");
}
