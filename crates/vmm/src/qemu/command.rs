//! Owns QEMU's command line, as a pure function of what was opened and decided before.

use std::ffi::OsString;
use std::os::fd::RawFd;

use serde_json::{Value, json};

use crate::Accelerator;
use crate::spec::DiskFormat;

/// Everything the command line says. Descriptors are numbers in the child's table.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) accelerator: Accelerator,
    pub(super) tcg_cache_mb: u64,
    pub(super) vcpu: u8,
    pub(super) ram_mb: u32,
    pub(super) cmdline: String,
    pub(super) kernel: RawFd,
    pub(super) initramfs: RawFd,
    pub(super) disks: Vec<DiskFds>,
    pub(super) nic: Option<NicFds>,
    pub(super) control: RawFd,
    pub(super) console: RawFd,
    pub(super) vhost_vsock: RawFd,
}

/// An opened disk.
#[derive(Debug)]
pub(super) struct DiskFds {
    pub(super) format: DiskFormat,
    pub(super) read_only: bool,
    pub(super) image: RawFd,
    pub(super) backing: Option<RawFd>,
}

/// An opened tap queue.
#[derive(Debug)]
pub(super) struct NicFds {
    pub(super) tap: RawFd,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
}

/// Transports a device may be put on: `microvm` has eight at least. The first is left out: its
/// interrupts do not arrive in Linux 6.1 with QEMU 7.2, and a disk on it hangs the boot.
pub(crate) const TRANSPORTS: usize = 7;

/// Grows the arguments, and deals out what must be unique on the way.
#[derive(Debug)]
struct Arguments {
    list: Vec<OsString>,
    free_transport: usize,
    next_fdset: usize,
}

/// The arguments after the program's name.
pub(super) fn render(plan: &Plan) -> Vec<OsString> {
    let mut arguments = Arguments { list: Vec::new(), free_transport: TRANSPORTS, next_fdset: 0 };
    arguments.machine(plan);
    arguments.boot(plan);
    arguments.connections(plan);
    // The guest finds the last transport first, and they are dealt out in its order: the first
    // disk is `vda`.
    for (index, disk) in plan.disks.iter().enumerate() {
        arguments.disk(index, disk);
    }
    if let Some(nic) = &plan.nic {
        arguments.nic(nic);
    }
    arguments.vsock(plan.vhost_vsock);
    arguments.random();
    arguments.list
}

impl Arguments {
    fn push(&mut self, option: &str, value: impl Into<OsString>) {
        self.list.push(option.into());
        self.list.push(value.into());
    }

    fn flag(&mut self, option: &str) {
        self.list.push(option.into());
    }

    fn machine(&mut self, plan: &Plan) {
        let Plan { vcpu, ram_mb, .. } = plan;
        self.push("-name", format!("guest={},process=enisle-vmm", escaped(&plan.name)));
        self.push("-machine", "microvm,acpi=on,rtc=on,pit=on,pic=on,memory-backend=ram");
        // Shared memory is what the vsock device's process sees the guest's rings through.
        self.push("-object", format!("memory-backend-memfd,id=ram,size={ram_mb}M,share=on"));
        self.push("-m", format!("{ram_mb}M"));
        self.push("-smp", vcpu.to_string());
        match plan.accelerator {
            Accelerator::Kvm => {
                self.push("-accel", "kvm");
                self.push("-cpu", "host");
            }
            Accelerator::Tcg => {
                let cache = plan.tcg_cache_mb;
                self.push("-accel", format!("tcg,thread=multi,tb-size={cache}"));
                self.push("-cpu", EMULATED_CPU);
            }
        }
        self.flag("-nodefaults");
        self.flag("-no-user-config");
        self.flag("-no-reboot");
        self.push("-display", "none");
        self.push("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        // Stopped until told to run.
        self.flag("-S");
        // vhost-user devices exist in their modern form only.
        self.push("-global", "virtio-mmio.force-legacy=false");
    }

    fn boot(&mut self, plan: &Plan) {
        self.push("-kernel", format!("/proc/self/fd/{}", plan.kernel));
        self.push("-initrd", format!("/proc/self/fd/{}", plan.initramfs));
        self.push("-append", plan.cmdline.clone());
    }

    fn connections(&mut self, plan: &Plan) {
        let control = plan.control;
        self.push("-chardev", format!("socket,id=qmp,fd={control},server=on,wait=off"));
        self.push("-mon", "chardev=qmp,mode=control");
        let console = plan.console;
        // Waiting costs nothing, as our connection is in its queue already, and makes sure
        // that the guest's first byte has somewhere to go.
        self.push("-chardev", format!("socket,id=console,fd={console},server=on,wait=on"));
        self.push("-serial", "chardev:console");
    }

    fn disk(&mut self, index: usize, disk: &DiskFds) {
        let name = format!("disk{index}");
        let backing = disk.backing.map(|fd| {
            let base = format!("{name}-base");
            let file = self.image(&base, fd, true);
            self.node(json!({
                "driver": "raw", "node-name": base, "file": file, "read-only": true,
            }));
            base
        });
        let file = self.image(&name, disk.image, disk.read_only);
        let mut node = json!({
            "driver": match disk.format { DiskFormat::Raw => "raw", DiskFormat::Qcow2 => "qcow2" },
            "node-name": name,
            "file": file,
            "read-only": disk.read_only,
            "discard": "unmap",
        });
        if disk.format == DiskFormat::Qcow2 {
            // Said even when it is none: otherwise the name in the image's header is opened.
            node["backing"] = backing.map_or(Value::Null, Value::String);
        }
        self.node(node);
        // QEMU's default stops the guest when the host's disk is full, and nobody would let it
        // run on: its agent must be able to say why a write failed.
        self.device(&format!("virtio-blk-device,drive={name},serial={name},werror=report,rerror=report"));
    }

    /// The lowest node of a disk, on a descriptor; returns the node's name.
    fn image(&mut self, disk: &str, fd: RawFd, read_only: bool) -> String {
        self.next_fdset += 1;
        let set = self.next_fdset;
        self.push("-add-fd", format!("fd={fd},set={set}"));
        let name = format!("{disk}-file");
        self.node(json!({
            "driver": "file",
            "node-name": name,
            "filename": format!("/dev/fdset/{set}"),
            "read-only": read_only,
            "discard": "unmap",
        }));
        name
    }

    fn node(&mut self, node: Value) {
        self.push("-blockdev", node.to_string());
    }

    fn nic(&mut self, nic: &NicFds) {
        let NicFds { tap, mtu, .. } = nic;
        let mac: Vec<String> = nic.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        self.push("-netdev", format!("tap,id=net0,fd={tap},vhost=off"));
        self.device(&format!(
            "virtio-net-device,netdev=net0,mac={},host_mtu={mtu},mrg_rxbuf=on,csum=on,\
             guest_csum=on,host_tso4=on,guest_tso4=on",
            mac.join(":")
        ));
    }

    fn vsock(&mut self, fd: RawFd) {
        self.push("-chardev", format!("socket,id=vsock,fd={fd}"));
        self.device("vhost-user-vsock-device,chardev=vsock");
    }

    fn random(&mut self) {
        self.push("-object", "rng-builtin,id=rng0");
        self.device("virtio-rng-device,rng=rng0");
    }

    fn device(&mut self, description: &str) {
        let bus = self.free_transport;
        self.free_transport -= 1;
        self.push("-device", format!("{description},bus=virtio-mmio-bus.{bus}"));
    }
}

/// Everything QEMU can emulate, but for the promise that copying byte by byte is fast (`rep movsb`): on a real
/// processor it is, here each byte is a turn of a loop, and a kernel and a C library that believe it copy and clear
/// memory five times slower.
const EMULATED_CPU: &str = "max,-erms,-fsrm";

/// In an option's value a comma is written twice (QEMU's `-help`, "-name").
fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            name: "agents-1".into(),
            accelerator: Accelerator::Tcg,
            tcg_cache_mb: 128,
            vcpu: 2,
            ram_mb: 512,
            cmdline: "console=ttyS0".into(),
            kernel: 10,
            initramfs: 11,
            disks: vec![DiskFds {
                format: DiskFormat::Qcow2,
                read_only: false,
                image: 12,
                backing: Some(13),
            }],
            nic: Some(NicFds { tap: 14, mac: [2, 0, 0xa9, 0xfe, 0x64, 2], mtu: 1500 }),
            control: 15,
            console: 16,
            vhost_vsock: 17,
        }
    }

    fn line(plan: &Plan) -> String {
        let words: Vec<String> = render(plan).into_iter().map(|word| word.into_string().unwrap()).collect();
        words.join("\n")
    }

    #[test]
    fn no_path_of_the_host_is_on_the_line() {
        let line = line(&plan());
        for word in line.lines().filter(|word| word.contains('/')) {
            assert!(word.contains("/proc/self/fd/") || word.contains("/dev/fdset/"), "{word}");
        }
    }

    #[test]
    fn an_overlay_names_its_base_and_every_device_has_its_own_transport() {
        let line = line(&plan());
        assert!(line.contains(r#""backing":"disk0-base""#), "{line}");
        for (device, bus) in ["blk", "net", "vsock", "rng"].iter().zip(["7", "6", "5", "4"]) {
            let found = line.lines().any(|word| {
                word.contains(&format!("{device}-device"))
                    && word.ends_with(&format!("bus=virtio-mmio-bus.{bus}"))
            });
            assert!(found, "{device} on {bus}: {line}");
        }
    }

    #[test]
    fn only_an_emulated_processor_denies_its_fast_strings() {
        let mut plan = plan();
        assert!(line(&plan).contains("-cpu\nmax,-erms,-fsrm\n"));
        plan.accelerator = Accelerator::Kvm;
        assert!(line(&plan).contains("-cpu\nhost\n"));
    }

    #[test]
    fn a_qcow2_header_is_never_asked_for_a_backing_file() {
        let mut plan = plan();
        plan.disks[0].backing = None;
        assert!(line(&plan).contains(r#""backing":null"#));
    }

    #[test]
    fn a_name_cannot_become_an_option() {
        let mut plan = plan();
        plan.name = "x,process=y".into();
        assert!(line(&plan).contains("guest=x,,process=y,process=enisle-vmm"));
    }
}
