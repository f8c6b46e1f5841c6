//! Micro-benchmarks: `cargo bench --workspace --features enisle-bench/micro --bench micro`. No root, no network.
//!
//! Owns: what is pure and on the way of a slot or of a policy: the policy compiler, the netlink encoder.
//! Refuses: anything that asks the kernel (`cargo xtask bench`).

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{BatchSize, Criterion, Throughput, criterion_main};
use enisle_net::plan::Range;
use enisle_net::policy::{PolicySpec, compile};

/// As many entries, of all kinds that there are: networks of several lengths, addresses, ports.
fn lists(entries: u32) -> PolicySpec {
    let entry = |i: u32| {
        // Scattered, so that neither neighbours merge nor one is inside the other too often.
        let address = Ipv4Addr::from(0x0b00_0000 + i.wrapping_mul(2_654_435_761) % 0xb000_0000);
        let net = |length: u32| {
            format!("{}/{length}", Ipv4Addr::from(u32::from(address) >> (32 - length) << (32 - length)))
        };
        match i % 4 {
            0 => net(24),
            1 => net(29),
            2 => format!("{address}"),
            _ => format!("{address}:{}/tcp", 1 + i % 65_535),
        }
    };
    #[expect(clippy::unwrap_used, reason = "each of these is an entry")]
    let mut all: Vec<_> = (0..entries).map(|i| entry(i).parse().unwrap()).collect();
    let allow = all.split_off(all.len() / 10 * 9);
    PolicySpec { drop: all, allow }
}

fn policy(c: &mut Criterion) {
    let mut group = c.benchmark_group("compile a policy");
    for entries in [10, 1_000, 10_000] {
        let lists = lists(entries);
        group.throughput(Throughput::Elements(u64::from(entries)));
        group.bench_function(format!("{entries} entries"), |b| {
            b.iter_batched(|| lists.clone(), |lists| compile(black_box(&lists)), BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn netlink(c: &mut Criterion) {
    #[expect(clippy::unwrap_used, reason = "a constant that parses")]
    let range: Range = "169.254.100.0/22".parse().unwrap();
    let blocks: Vec<_> = range.blocks().collect();
    let mut blocks = blocks.into_iter().cycle();
    c.bench_function("encode every request of a slot", |b| {
        b.iter(|| blocks.next().map(enisle_net::measure::encode_a_slot));
    });
}

/// What `criterion_group!` makes, with a doc comment.
fn micro() {
    let mut criterion = Criterion::default().configure_from_args();
    policy(&mut criterion);
    netlink(&mut criterion);
}

criterion_main!(micro);
