//! The devices a guest sees are the ones it was given.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use enisle_vmm::{Disk, DiskFormat, ExitReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::bench::{Bench, PATIENCE, console_says, ended};

#[tokio::test(flavor = "multi_thread")]
async fn vsock_works_both_ways() {
    let bench = Bench::new();
    let inbox = bench.run_dir().join("vsock.sock_1024");
    let listener = UnixListener::bind(&inbox).unwrap();
    std::os::unix::fs::chown(&inbox, None, Some(bench.user.gid)).unwrap();
    std::fs::set_permissions(&inbox, PermissionsExt::from_mode(0o660)).unwrap();
    let machine = bench.launch(bench.spec("vsock")).await;
    machine.start().await.unwrap();

    let (mut boot, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut hello = [0; 21];
    boot.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello from the guest\n");

    let mut stream = machine.connect_vsock(1024).await.unwrap();
    // In pieces, one at a time: the device cannot carry bulk in both directions at once, which
    // is why the guest protocol has windows.
    for round in 0..64_u8 {
        let sent: Vec<u8> = (0..8192_u32).map(|index| (index % 251) as u8 ^ round).collect();
        let mut received = vec![0; sent.len()];
        stream.write_all(&sent).await.unwrap();
        timeout(PATIENCE, stream.read_exact(&mut received)).await.unwrap().unwrap();
        assert!(sent == received, "vsock changed the bytes");
    }

    let refused = machine.connect_vsock(9).await.unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains("nothing listens on that port"), "{source}");

    machine.kill().await;
    std::fs::remove_file(inbox).unwrap();
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_somebody_else_is_not_talked_to() {
    let bench = Bench::new();
    let machine = bench.launch(bench.spec("idle")).await;
    // As a VMM taken over by its guest could: its socket replaced by a link to another's.
    let elsewhere = bench.dir.path().join("other.sock");
    let listener = UnixListener::bind(&elsewhere).unwrap();
    std::fs::remove_file(machine.vsock_path()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, machine.vsock_path()).unwrap();
    let refused = machine.connect_vsock(1024).await.unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains("answered by user 0"), "{source}");
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0, "something was sent");
    machine.kill().await;
    assert!(elsewhere.exists(), "the link was followed when it was removed");
    bench.assert_nothing_left();
}

fn image(path: &Path, first_line: &str) {
    let mut file = std::fs::File::create(path).unwrap();
    writeln!(file, "{first_line}").unwrap();
    file.set_len(1 << 20).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Disks only root can open, one of them an overlay whose header names a file that must not be
/// opened.
#[tokio::test(flavor = "multi_thread")]
async fn disks_come_in_order_and_a_base_stays_untouched() {
    let bench = Bench::new();
    let at = |name: &str| bench.dir.path().join(name);
    image(&at("base.raw"), "the base");
    image(&at("bait.raw"), "the bait");
    image(&at("data.raw"), "the data");
    image(&at("fixed.raw"), "the fixed");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([at("bait.raw"), at("root.qcow2")])
        .status()
        .unwrap();
    assert!(made.success());
    let disk = |name: &str, backing: Option<&str>, format, read_only| Disk {
        path: at(name),
        backing: backing.map(at),
        format,
        read_only,
    };
    let mut spec = bench.spec("disks");
    spec.disks = vec![
        disk("root.qcow2", Some("base.raw"), DiskFormat::Qcow2, false),
        disk("data.raw", None, DiskFormat::Raw, false),
        disk("fixed.raw", None, DiskFormat::Raw, true),
    ];
    let machine = bench.launch(spec).await;
    machine.start().await.unwrap();
    let exit = ended(&machine).await;
    assert_eq!(exit.reason, ExitReason::GuestShutdown, "{exit:?}");
    for line in ["vda rw [the base]", "vdb rw [the data]", "vdc ro [the fixed]"] {
        console_says(&machine, line).await;
    }
    let second_sector = |name: &str| {
        let bytes = std::fs::read(at(name)).unwrap();
        String::from_utf8_lossy(&bytes[512..533]).into_owned()
    };
    assert_eq!(second_sector("data.raw"), "written by the guest\n");
    for untouched in ["base.raw", "fixed.raw"] {
        assert_eq!(second_sector(untouched), "\0".repeat(21), "{untouched}");
    }
    bench.assert_nothing_left();
}
