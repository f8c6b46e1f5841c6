//! Every way a VM can end is noticed at once, told apart, and leaves nothing.

use std::time::{Duration, Instant};

use enisle_vmm::{ConsoleSpec, ExitReason};
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::{Bench, PATIENCE, console_says, ended, qemu};
use enisle_vmm::Vmm;

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_powers_off() {
    let bench = Bench::new();
    let machine = bench.launch(bench.spec("off")).await;
    assert_eq!(machine.exit(), None);
    assert!(machine.console().history().await.unwrap().is_empty(), "it ran before start()");
    machine.start().await.unwrap();
    let exit = ended(&machine).await;
    assert_eq!(exit.reason, ExitReason::GuestShutdown, "{exit:?}");
    assert_eq!((exit.code, exit.leftovers), (Some(0), vec![]));
    // From the kernel's first line to the last: nothing was lost on the way.
    let console = console_says(&machine, "vmmtest: ready for off").await;
    assert!(console.contains("Linux version"), "{console}");
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_resets_and_one_that_panics() {
    for (word, reason) in [("reset", ExitReason::GuestReset), ("panic", ExitReason::GuestPanic)] {
        let bench = Bench::new();
        let machine = bench.launch(bench.spec(word)).await;
        machine.start().await.unwrap();
        let exit = ended(&machine).await;
        assert_eq!(exit.reason, reason, "{exit:?}");
        bench.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_button_reaches_the_guest() {
    let bench = Bench::new();
    let machine = bench.launch(bench.spec("button")).await;
    machine.start().await.unwrap();
    console_says(&machine, "vmmtest: button armed").await;
    machine.power_button().await.unwrap();
    let exit = ended(&machine).await;
    assert_eq!(exit.reason, ExitReason::GuestShutdown, "{exit:?}");
    console_says(&machine, "vmmtest: button pressed").await;
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_is_immediate_and_repeatable() {
    let bench = Bench::new();
    let machine = bench.launch(bench.spec("idle")).await;
    machine.start().await.unwrap();
    console_says(&machine, "vmmtest: ready for idle").await;
    let begin = Instant::now();
    let exit = machine.kill().await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(exit.reason, ExitReason::Killed);
    assert_eq!(machine.kill().await, exit);
    let refused = machine.pause().unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert_eq!(source, "it is not running any more");
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_last_handle_kills() {
    let bench = Bench::new();
    let machine = bench.launch(bench.spec("idle")).await;
    let other = machine.clone();
    drop(machine);
    other.start().await.unwrap();
    console_says(&other, "vmmtest: ready for idle").await;
    let console = other.console().clone();
    let (_, mut stream) = console.follow().await.unwrap();
    drop(other);
    // The console ends with the VM; what is removed after it follows within moments.
    let gone = async { while stream.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while bench.cgroup("memory").exists() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_nobody_waits_for_is_undone() {
    let bench = Bench::new();
    let launch = qemu().await.launch(bench.spec("idle"));
    let dropped = tokio::time::timeout(Duration::from_millis(30), launch).await;
    assert!(dropped.is_err(), "the launch was faster than the test");
    let deadline = Instant::now() + PATIENCE;
    // It is finished first, in the background; only then is it known to be unwanted.
    let mut seen = false;
    loop {
        let exists = bench.cgroup("memory").exists();
        seen |= exists;
        if (seen && !exists) || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(seen);
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_is_a_crash_and_a_terminated_one_is_not() {
    for (signal, reason) in [(Signal::KILL, ExitReason::Crash), (Signal::TERM, ExitReason::Killed)] {
        let bench = Bench::new();
        let machine = bench.launch(bench.spec("idle")).await;
        machine.start().await.unwrap();
        console_says(&machine, "vmmtest: ready for idle").await;
        let begin = Instant::now();
        send(machine.pid(), signal);
        let exit = ended(&machine).await;
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert_eq!(exit.reason, reason, "{exit:?}");
        if signal == Signal::KILL {
            assert_eq!(exit.signal, Some(9));
        }
        bench.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_vsock_device_is_the_vms() {
    let bench = Bench::new();
    let machine = bench.launch(bench.spec("idle")).await;
    machine.start().await.unwrap();
    console_says(&machine, "vmmtest: ready for idle").await;
    let both = bench.processes();
    assert_eq!(both.len(), 2, "{both:?}");
    let device = both.into_iter().find(|&pid| pid != machine.pid()).unwrap();
    send(device, Signal::KILL);
    let exit = ended(&machine).await;
    assert_eq!(exit.reason, ExitReason::Crash);
    assert_eq!(exit.detail, "the vsock device ended: signal 9");
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_beyond_its_memory_limit_is_said_to_be() {
    let bench = Bench::new();
    let mut spec = bench.spec("memory");
    // Enough to boot, not for the 256 MiB the guest believes it has.
    spec.cgroup.memory_max = Some(240 << 20);
    let machine = bench.launch(spec).await;
    machine.start().await.unwrap();
    let exit = ended(&machine).await;
    assert_eq!(exit.reason, ExitReason::OomKilled, "{exit:?}");
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn pausing_stops_the_guest_and_resuming_does_not_lose_it() {
    let bench = Bench::new();
    let mut spec = bench.spec("flood");
    spec.console = ConsoleSpec { max_bytes: 64 << 10, ..spec.console };
    let machine = bench.launch(spec).await;
    machine.start().await.unwrap();
    console_says(&machine, "vmmtest: 0123456789").await;
    machine.pause().unwrap();
    // What was on its way when the guest stopped still arrives.
    let (_, mut stream) = machine.console().follow().await.unwrap();
    let quiet = async { while tokio::time::timeout(Duration::from_secs(2), stream.next()).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, quiet).await.expect("a paused guest goes on printing");
    machine.resume().unwrap();
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("a resumed guest is silent");
    // Meanwhile the flood has cost two bounded files.
    let bytes = machine.console().history().await.unwrap().len();
    assert!(bytes <= 128 << 10, "{bytes}");
    machine.kill().await;
    bench.assert_nothing_left();
}
