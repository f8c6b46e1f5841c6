//! Plain requests, and what is said when there is nobody to ask.

use crate::fake_daemon::FakeDaemon;
use enisle_client::api::{Code, CreateVm, Encoding, RunExec};
use enisle_client::{Client, Endpoint, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn vms_come_and_go() {
    let daemon = FakeDaemon::start();
    let client = Client::new(Endpoint::unix(&daemon.socket));
    assert_eq!(client.health().await.unwrap().status, "ok");
    assert_eq!(client.version().await.unwrap().hypervisor, "none");
    assert_eq!(client.groups().await.unwrap()[0].capacity, 256);
    let labels = [("team".to_owned(), "a b&c".to_owned())].into();
    let create =
        CreateVm { vcpu: Some(3), userdata: Some("#!/bin/sh".into()), labels, ..CreateVm::default() };
    let made = client.create_vm(&create).await.unwrap();
    assert_eq!((made.name.as_str(), made.vcpu), ("agents-2", 3));
    assert!(daemon.shared.seen.lock().unwrap().created == Some(create));
    assert_eq!(client.vm("agents-2").await.unwrap(), made);
    assert_eq!(client.vms().await.unwrap().len(), 2);
    assert_eq!(client.vms_with(&["team=a b&c".into()]).await.unwrap(), [made]);
    assert_eq!(client.vms_with(&["team=a".into()]).await.unwrap(), []);
    client.create_vm_once(&CreateVm::default(), "k 1").await.unwrap();
    assert_eq!(daemon.shared.seen.lock().unwrap().key.as_deref(), Some("k 1"));
    client.delete_vm("agents-2").await.unwrap();
    let gone = client.delete_vm("agents-2").await.unwrap_err();
    assert_eq!(gone.code(), Some(Code::NotFound));
    assert!(gone.hint().unwrap().contains("vm list"));
    let mut log = client.logs("agents-1", true).await.unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = log.chunk().await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    assert!(text.ends_with(b"followed\n"));
}

#[tokio::test]
async fn events_come_one_by_one_from_where_they_are_asked_for() {
    let daemon = FakeDaemon::start();
    let client = Client::new(Endpoint::unix(&daemon.socket));
    for (since, follow, numbers) in
        [(None, false, &[7, 8, 9][..]), (Some(8), true, &[9, 10]), (Some(10), true, &[])]
    {
        let mut events = client.events(since, follow).await.unwrap();
        let mut seen = Vec::new();
        while let Some(event) = events.next().await.unwrap() {
            seen.push(event.seq);
        }
        assert_eq!(seen, numbers, "{since:?}");
    }
}

#[tokio::test]
async fn a_process_is_run_to_its_end() {
    let daemon = FakeDaemon::start();
    let client = Client::new(Endpoint::unix(&daemon.socket));
    let run = RunExec { argv: vec!["a".into(), "b".into()], stdin: Some("in".into()), ..RunExec::default() };
    let outcome = client.run("agents-1", &run).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.stdout.data.as_str()), (7, "a b"));
    assert_eq!((outcome.stderr.data.as_str(), outcome.stderr.encoding), ("in", Encoding::Utf8));
}

#[tokio::test]
async fn files_are_asked_for_by_their_path() {
    let daemon = FakeDaemon::start();
    let client = Client::new(Endpoint::unix(&daemon.socket));
    assert_eq!(client.stat("agents-1", "/a b&c").await.unwrap().name, "GET stat /a b&c");
    let list = client.list_dir("agents-1", "/d").await.unwrap();
    assert_eq!((list.entries[0].name.as_str(), list.truncated), ("GET list /d", true));
    client.make_dir("agents-1", "/d", true).await.unwrap();
    client.remove_path("agents-1", "/d", false).await.unwrap();
    let seen = daemon.shared.seen.lock().unwrap().files.clone();
    assert_eq!(seen, ["mkdir path=%2Fd&parents=true", "remove path=%2Fd&recursive=false"]);
}

#[tokio::test]
async fn problems_come_through_whole() {
    let daemon = FakeDaemon::start();
    let client = Client::new(Endpoint::unix(&daemon.socket));
    let create = CreateVm { group: Some("nobody".into()), ..CreateVm::default() };
    let Err(Error::Problem(problem)) = client.create_vm(&create).await else { panic!("no problem") };
    assert_eq!((problem.code, problem.pointer.as_deref()), (Code::NotFound, Some("/group")));
    let stream = client.connect_tcp("nobody", "x", 1).await.unwrap_err();
    assert_eq!(stream.code(), Some(Code::NotFound), "also where an upgrade was asked for");
    let odd = client.vm("../groups").await.unwrap_err();
    assert_eq!(odd.code(), Some(Code::NotFound), "a name is never another path");
}

#[tokio::test]
async fn a_missing_daemon_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let client = Client::new(Endpoint::unix(&path));
    let nobody = client.health().await.unwrap_err();
    assert!(matches!(nobody, Error::NotRunning { .. }), "{nobody:?}");
    assert!(nobody.to_string().contains(&path.display().to_string()));
    assert!(nobody.hint().unwrap().contains("sudo enisle up"));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(client.health().await.unwrap_err(), Error::NotRunning { .. }), "a stale socket");
}

#[tokio::test]
async fn something_that_is_no_daemon_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
            stream.write_all(answer).await.unwrap();
        }
    });
    let client = Client::new(Endpoint::unix(&path));
    let error = client.vms().await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    assert!(client.connect_unix("x", "/y").await.is_err());
}
