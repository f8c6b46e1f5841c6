//! Who sends a body that is refused reads why.

use super::*;

/// Writes all of it before anything is read, as most clients do; the answer's status line.
async fn all_then_read(api: &Api, head: &str, body: usize) -> String {
    let mut stream = UnixStream::connect(&api.socket).await.unwrap();
    let exchange = async {
        stream.write_all(format!("{head}\r\ncontent-length: {body}\r\n\r\n").as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; body]).await.unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    timeout(SOON, exchange).await.unwrap()
}

#[tokio::test]
async fn a_refusal_is_read_whatever_the_client_had_still_to_send() {
    let api = api(Guest::Honest);
    let size = MAX_BODY * 3 / 2;
    for (head, status) in [
        ("POST /v1/vms HTTP/1.1\r\nhost: x", "HTTP/1.1 413"),
        ("POST /v1/no-such-route HTTP/1.1\r\nhost: x", "HTTP/1.1 404"),
        ("PATCH /v1/vms HTTP/1.1\r\nhost: x", "HTTP/1.1 405"),
        ("PUT /v1/vms/nobody/files?path=a HTTP/1.1\r\nhost: x", "HTTP/1.1 404"),
    ] {
        assert_eq!(all_then_read(&api, head, size).await, status, "{head}");
    }
}

#[tokio::test]
async fn who_asks_first_is_told_at_once() {
    let api = api(Guest::Honest);
    let mut stream = UnixStream::connect(&api.socket).await.unwrap();
    let head = "POST /v1/vms HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), "HTTP/1.1 413");
}
