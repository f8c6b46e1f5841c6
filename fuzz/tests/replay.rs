//! Every target over its seeds, and over seeds that were damaged at random: a few thousand inputs in
//! every run of the tests, so that the targets are known to work. The search itself is libFuzzer's.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use enisle_fuzz::TARGETS;

/// Damaged inputs a seed; those of an archive make files.
const DAMAGED: usize = 400;

/// xorshift64*: what is tried is the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % end.max(1)
    }

    /// Some bytes changed, cut out, doubled, or taken from another input.
    fn damage(&mut self, seed: &[u8], other: &[u8]) -> Vec<u8> {
        let mut data = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(data.len());
            let end = (at + self.below(16)).min(data.len());
            match self.below(5) {
                0 => data.truncate(at),
                1 => drop(data.drain(at..end)),
                2 => {
                    let again = data[at..end].to_vec();
                    data.splice(at..at, again);
                }
                3 => {
                    let from = self.below(other.len());
                    data.splice(at.min(data.len()).., other[from..].iter().copied());
                }
                _ => {
                    for byte in &mut data[at..end] {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
        }
        data
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut paths: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no seeds", dir.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn no_input_breaks_a_parser() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        let mut random = Random(0x656e_6973_6c65);
        let damaged: Vec<Vec<u8>> = seeds
            .iter()
            .flat_map(|seed| std::iter::repeat_n(seed, DAMAGED))
            .map(|seed| {
                let other = random.below(seeds.len());
                random.damage(seed, &seeds[other])
            })
            .collect();
        for input in seeds.iter().chain(&damaged) {
            let ended = catch_unwind(AssertUnwindSafe(|| target(input)));
            assert!(ended.is_ok(), "{name} breaks on {}", input.escape_ascii());
        }
    }
}

#[test]
fn a_broken_parser_would_be_found() {
    let panics = |data: &[u8]| assert!(!data.contains(&b'\xff'), "the fault");
    let mut random = Random(1);
    let found = (0..DAMAGED).any(|_| {
        let input = random.damage(&[0x7f; 64], &[]);
        catch_unwind(|| panics(&input)).is_err()
    });
    assert!(found, "what damages the inputs is of no use");
}
