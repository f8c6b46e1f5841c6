//! Real guests under QEMU/TCG. Owns the proof that a microVM is launched, confined, noticed
//! and removed as `enisle-vmm` says. Needs root, QEMU, `vhost-device-vsock`, a C compiler, and
//! the guest images in `ENISLE_TEST_IMAGES` or `/var/lib/enisle/images`; fails without them.

mod adopt;
mod bench;
mod confinement;
mod devices;
mod endings;
mod failures;
mod leftovers;
