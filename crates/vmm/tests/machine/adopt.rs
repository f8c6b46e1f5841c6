//! A daemon that is gone: its VM lives on, and the next daemon has it whole.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use enisle_vmm::{
    AdoptSpec, ConsoleChunk, ConsoleSpec, ExitReason, Machine, Survivor, Vmm, kill_group,
    kill_leftovers_except, leftovers, start_ticks,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::bench::{Bench, PATIENCE, boot_files, console_says, ended, qemu};

const NAME: &str = "vm.1";

/// A VM whose daemon was killed once its guest had printed `until`: the VMM's number and start.
fn orphan(bench: &Bench, word: &str, until: &str) -> (u32, u64) {
    let own = std::env::current_exe().unwrap();
    let program = own.ancestors().nth(2).unwrap().join("examples/doomed_daemon");
    let boot = boot_files();
    let mut daemon = Command::new(&program)
        .args([&boot.kernel, &boot.initramfs, &bench.run_dir(), &bench.log_path()])
        .args([&bench.user.uid.to_string(), &bench.scope, word])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}: cargo build -p enisle-vmm --examples", program.display()));
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let said = lines.next().expect("the daemon launched nothing").unwrap();
    let pid = said.strip_prefix("vmm: ").unwrap().parse().unwrap();
    let begun = std::time::Instant::now();
    while !std::fs::read_to_string(bench.log_path()).is_ok_and(|log| log.contains(until)) {
        assert!(begun.elapsed() < PATIENCE, "the guest did not say {until:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let ticks = start_ticks(pid);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    (pid, ticks)
}

fn find(bench: &Bench, (pid, ticks): (u32, u64)) -> Survivor {
    Survivor::find(&bench.scope, NAME, pid, ticks).unwrap()
}

async fn adopt(bench: &Bench, survivor: Survivor) -> Machine {
    let spec = AdoptSpec {
        name: "orphan".into(),
        run_dir: bench.run_dir(),
        user: bench.user,
        console: ConsoleSpec::at(bench.log_path()),
        survivor,
    };
    qemu().await.adopt(spec).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_is_adopted_with_its_controls_its_console_and_its_vsock() {
    let bench = Bench::new();
    let process = orphan(&bench, "vsock", "vmmtest: ready for vsock");
    assert_eq!(bench.processes().len(), 2, "they outlive their daemon");
    let survivor = find(&bench, process);
    assert_eq!(survivor.pid(), process.0);
    let machine = adopt(&bench, survivor).await;
    assert_eq!((machine.pid(), machine.exit()), (process.0, None));
    // The guest listens some time after it has said hello.
    let begun = std::time::Instant::now();
    let mut stream = loop {
        match machine.connect_vsock(1024).await {
            Ok(stream) => break stream,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    stream.write_all(b"still there?").await.unwrap();
    let mut answer = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"still there?");
    // What comes from the host meanwhile, a connection and the end of one, waits and loses nothing.
    machine.pause().unwrap();
    stream.write_all(b"and now?").await.unwrap();
    assert!(timeout(Duration::from_secs(1), stream.read(&mut [0])).await.is_err(), "a paused guest answers");
    assert!(machine.is_paused());
    machine.resume().unwrap();
    let mut answer = [0; 8];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"and now?");
    drop(stream);
    let history = machine.console().history().await.unwrap();
    assert!(String::from_utf8_lossy(&history).contains("ready for vsock"), "what was said before is kept");
    let exit = machine.kill().await;
    assert_eq!((exit.reason, exit.leftovers), (ExitReason::Killed, vec![]));
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_guests_own_end_is_noticed_with_its_reason() {
    let bench = Bench::new();
    let process = orphan(&bench, "button", "vmmtest: button armed");
    let machine = adopt(&bench, find(&bench, process)).await;
    machine.power_button().await.unwrap();
    console_says(&machine, "vmmtest: button pressed").await;
    let exit = ended(&machine).await;
    assert_eq!(exit.reason, ExitReason::GuestShutdown, "{exit:?}");
    assert_eq!((exit.code, exit.leftovers), (None, vec![]));
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_talks_to_nobody_is_not_held_up_and_is_heard_again() {
    let bench = Bench::new();
    let process = orphan(&bench, "flood", "vmmtest: 0123456789");
    // A megabyte and more that nobody reads: a guest that waited would stand still.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let machine = adopt(&bench, find(&bench, process)).await;
    let (_, mut live) = machine.console().follow().await.unwrap();
    let heard = timeout(PATIENCE, live.next()).await.unwrap().unwrap();
    assert!(matches!(heard, ConsoleChunk::Output(_) | ConsoleChunk::Skipped(_)));
    machine.kill().await;
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_in_a_row_die_and_a_vmm_that_crashes_is_noticed() {
    let bench = Bench::new();
    let process = orphan(&bench, "idle", "vmmtest: ready for idle");
    // A second daemon adopts and dies: its descriptors close, nothing is told to end.
    let second = std::thread::spawn({
        let run_dir = bench.run_dir();
        move || std::os::unix::net::UnixStream::connect(run_dir.join("qmp.sock")).unwrap()
    });
    drop(second.join().unwrap());
    let machine = adopt(&bench, find(&bench, process)).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(process.0).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let exit = ended(&machine).await;
    assert_eq!((exit.reason, exit.leftovers), (ExitReason::Crash, vec![]));
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_taken_for_a_survivor_and_what_is_not_kept_is_swept() {
    let (bench, other) = (Bench::new(), Bench::new());
    let (pid, ticks) = orphan(&bench, "idle", "vmmtest: ready for idle");
    Survivor::find(&bench.scope, NAME, pid, ticks + 1).unwrap_err();
    Survivor::find(&bench.scope, "vm.2", pid, ticks).unwrap_err();
    Survivor::find(&other.scope, NAME, pid, ticks).unwrap_err();
    let own = std::process::id();
    Survivor::find(&bench.scope, NAME, own, start_ticks(own)).unwrap_err();
    let found = leftovers(&bench.scope).unwrap();
    assert!(found.iter().any(|group| group.pids.len() == 2 && group.pids.contains(&pid)), "{found:?}");

    let keep = [NAME.to_owned()];
    assert_eq!(kill_leftovers_except(&bench.scope, &keep, PATIENCE).await.unwrap(), 0);
    assert_eq!(kill_group(&bench.scope, "vm.2", PATIENCE).await.unwrap(), 0);
    drop(find(&bench, (pid, ticks)));
    assert_eq!(kill_group(&bench.scope, NAME, PATIENCE).await.unwrap(), 2);
    Survivor::find(&bench.scope, NAME, pid, ticks).unwrap_err();
    assert_eq!(leftovers(&bench.scope).unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_not_the_vmms_is_refused_and_the_vm_stays_as_it_was() {
    let bench = Bench::new();
    let process = orphan(&bench, "idle", "vmmtest: ready for idle");
    let control = bench.run_dir().join("qmp.sock");
    let kept = bench.run_dir().join("kept");
    std::fs::rename(&control, &kept).unwrap();
    // Root's, not the VM's: nothing is said to it.
    let impostor = UnixListener::bind(&control).unwrap();
    std::fs::set_permissions(&control, PermissionsExt::from_mode(0o600)).unwrap();
    tokio::spawn(async move { drop(impostor.accept().await) });
    let spec = AdoptSpec {
        name: "orphan".into(),
        run_dir: bench.run_dir(),
        user: bench.user,
        console: ConsoleSpec::at(bench.log_path()),
        survivor: find(&bench, process),
    };
    qemu().await.adopt(spec).await.unwrap_err();
    std::fs::rename(&kept, &control).unwrap();
    let machine = adopt(&bench, find(&bench, process)).await;
    machine.kill().await;
    bench.assert_nothing_left();
}
