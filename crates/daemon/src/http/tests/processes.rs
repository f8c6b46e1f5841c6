//! Background processes over the API, with a fake guest: what it says is checked, what it refuses has its code.

use super::*;

const ALL: &str = "/v1/vms/agents-1/processes";

#[tokio::test]
async fn processes_are_started_shown_signalled_and_removed() {
    let mut api = api(Guest::Honest);
    assert_eq!(api.json("POST", routes::VMS, r#"{"wait":true}"#).await.0, 201);
    assert_eq!(api.bench.told().await, "you are agents-1");
    let (status, started) = api.json("POST", ALL, r#"{"argv":["sleep","9"]}"#).await;
    assert_eq!((status, &started["id"], &started["state"]), (201, &json!(1), &json!("running")));
    assert_eq!(api.bench.told().await, "started sleep 9");
    let (_, listed) = api.json("GET", ALL, "").await;
    assert_eq!((&listed[0]["state"], &listed[1]["id"]), (&json!("killed"), &json!(3)), "{listed}");
    let (_, shown) = api.json("GET", &format!("{ALL}/1"), "").await;
    assert_eq!((&shown["exit_code"], &shown["signal"]), (&json!(143), &json!(15)));
    assert_eq!((&shown["output_bytes"], &shown["dropped_bytes"]), (&json!(20), &json!(4)));
    let (_, output) = api.json("GET", &format!("{ALL}/1/output?since=10"), "").await;
    assert_eq!((&output["stdout"]["data"], &output["next"]), (&json!("words"), &json!(19)), "{output}");
    assert_eq!((&output["dropped"], &output["running"]), (&json!(4), &json!(false)));
    assert_eq!(api.json("GET", &format!("{ALL}/1/wait"), "").await.1["signal"], 15);
    assert_eq!(api.ask("POST", &format!("{ALL}/1/signal"), r#"{"signal":15}"#).await.0, 204);
    assert_eq!(api.bench.told().await, "signal 15 to process 1");
    assert_eq!(api.ask("DELETE", &format!("{ALL}/1"), "").await.0, 204);
    assert_eq!(api.bench.told().await, "removed process 1");
}

#[tokio::test]
async fn what_is_wrong_with_a_process_has_its_code_and_place() {
    let api = api(Guest::Honest);
    assert_eq!(api.json("POST", routes::VMS, r#"{"wait":true}"#).await.0, 201);
    for (method, path, body, status, pointer) in [
        ("POST", "", r#"{"argv":[]}"#, 400, "/argv"),
        ("POST", "", r#"{"argv":["x"],"stdin":"y"}"#, 400, "/stdin"),
        ("POST", "", r#"{"argv":["x"],"timeout_ms":0}"#, 400, "/timeout_ms"),
        ("POST", "", r#"{"argv":["full"]}"#, 422, ""),
        ("POST", "/1/signal", r#"{"signal":0}"#, 400, "/signal"),
        ("POST", "/1/signal", r#"{"signal":65}"#, 400, "/signal"),
        ("POST", "/4/signal", r#"{"signal":1}"#, 409, ""),
        ("GET", "/7", "", 404, ""),
        ("GET", "/x", "", 400, ""),
        ("GET", "/-1", "", 400, ""),
        ("GET", "/2", "", 502, ""),
        ("GET", "/2/output", "", 502, ""),
        ("GET", "/1/output?since=-1", "", 400, ""),
        ("GET", "/1/output?since=18446744073709551615", "", 502, ""),
        ("GET", "/3/wait?timeout_ms=5", "", 504, ""),
        ("GET", "/4/wait?timeout_ms=600000", "", 502, ""),
        ("GET", "/3/wait?timeout_ms=0", "", 400, ""),
        ("GET", "/3/wait?timeout_ms=3600001", "", 400, ""),
    ] {
        let (got, detail, at) = api.problem(method, &format!("{ALL}{path}"), body).await;
        assert_eq!((got, at.as_str()), (status, pointer), "{method} {path} {body}: {detail}");
    }
}
