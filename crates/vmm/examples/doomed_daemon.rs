//! Launches one microVM as a daemon would, says its number, and lives until it is killed: the
//! process that `tests/machine/adopt.rs` kills. Needs root.
//!
//! Arguments: kernel, initramfs, run directory, console log, uid, scope, the guest's word.

use std::error::Error;

use enisle_vmm::{Accelerator, CgroupSpec, ConsoleSpec, Ids, MachineSpec, Qemu, Vmm};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, run_dir, log, uid, scope, word] = &arguments[..] else {
        return Err("seven arguments".into());
    };
    let id = uid.parse()?;
    let spec = MachineSpec {
        name: "orphan".into(),
        run_dir: run_dir.into(),
        vcpu: 1,
        ram_mb: 256,
        kernel: kernel.into(),
        initramfs: initramfs.into(),
        cmdline_extra: format!("rdinit=/vmmtest-init vmmtest={word}"),
        disks: Vec::new(),
        nic: None,
        netns: None,
        user: Ids { uid: id, gid: id },
        cgroup: CgroupSpec {
            scope: scope.clone(),
            name: "vm.1".into(),
            memory_max: Some(640 << 20),
            cpu_milli: Some(1500),
            pids_max: Some(64),
        },
        console: ConsoleSpec::at(log),
    };
    let machine = Qemu::find(None, None, Accelerator::Tcg).await?.launch(spec).await?;
    machine.start().await?;
    println!("vmm: {}", machine.pid());
    std::future::pending().await
}
