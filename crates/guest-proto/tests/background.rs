//! Every operation on background processes, and every answer, as they go over the wire.

use enisle_guest_proto::{
    Control, Decoder, Exec, Open, OutputHead, ProcessInfo, ProcessOp, ProcessState, Request, VERSION,
    encode_control,
};

fn exec() -> Exec {
    Exec {
        argv: vec!["sh".into(), "-c".into(), "echo \"\n\"".into()],
        env: vec![("A".into(), "b".into())],
        cwd: Some("/tmp".into()),
        user: None,
        tty: None,
        timeout_ms: Some(u64::MAX),
    }
}

#[test]
fn operations_survive_the_wire_and_unknown_fields_do_not() {
    for op in [
        ProcessOp::Start(exec()),
        ProcessOp::List {},
        ProcessOp::Show { id: u32::MAX },
        ProcessOp::Output { id: 1, since: u64::MAX },
        ProcessOp::Attach { id: 1, since: 0 },
        ProcessOp::Signal { id: 1, signal: 64 },
        ProcessOp::Wait { id: 1, timeout_ms: 3_600_000 },
        ProcessOp::Remove { id: 1 },
    ] {
        let open = Open { version: VERSION, request: Request::Process(op) };
        let mut wire = Vec::new();
        encode_control(&open, &mut wire).unwrap();
        let mut decoder = Decoder::default();
        decoder.feed(&wire);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert!(frame.control::<Open>().unwrap() == open);
        let mut json: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
        json["request"]["colour"] = "red".into();
        assert!(serde_json::from_value::<Open>(json.clone()).is_err(), "{json}");
    }
}

#[test]
fn answers_survive_the_wire() {
    let ended = ProcessState::Ended { code: 137, signal: Some(9), timed_out: true };
    for state in [ProcessState::Running {}, ended] {
        let info = ProcessInfo {
            id: 1,
            pid: 2,
            argv: vec!["a\nb".into()],
            cwd: "/".into(),
            user: "root".into(),
            started_ms: -1,
            state,
            written: u64::MAX,
            dropped: 0,
        };
        let line = serde_json::to_string(&info).unwrap();
        assert!(!line.contains('\n'), "one line: {line}");
        assert_eq!(serde_json::from_str::<ProcessInfo>(&line).unwrap(), info);
    }
    let head = OutputHead { dropped: u64::MAX, running: true };
    assert_eq!(serde_json::from_str::<OutputHead>(&serde_json::to_string(&head).unwrap()).unwrap(), head);
    let told = serde_json::to_string(&Control::Dropped { bytes: 7 }).unwrap();
    assert_eq!(told, r#"{"type":"dropped","bytes":7}"#);
}
