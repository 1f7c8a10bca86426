//! Every target over random changes of its corpus. `SCSI_PR_SOAK=N` multiplies their number (`cargo xtask soak`).
//!
//! It needs no special compiler. libFuzzer, which looks at coverage, finds more (see the crate's documentation).

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use fuzz::TARGETS;

/// Changed inputs for each target.
const INPUTS: u64 = 500;
/// The longest input.
const LONGEST: usize = 4096;
const FACTOR: &str = "SCSI_PR_SOAK";
/// Repeats the run with this seed.
const SEED: &str = "SCSI_PR_SEED";

/// Xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() % bound.max(1)
    }

    /// Changes an input a few times: another byte, a bit, bytes that are repeated, removed, or come from another input.
    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len());
            match self.below(6) {
                _ if input.is_empty() => input.push(self.next() as u8),
                0 => input[at] = self.next() as u8,
                1 => input[at] ^= 1 << self.below(8),
                2 => input[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                3 => {
                    let length = self.below(64).min(input.len() - at);
                    let repeated = input[at..at + length].to_vec();
                    input.splice(at..at, repeated);
                }
                4 => {
                    let length = self.below(16).min(input.len() - at);
                    input.drain(at..at + length);
                }
                _ => {
                    let from = self.below(other.len());
                    let length = self.below(128).min(other.len() - from);
                    input.splice(at..at, other[from..from + length].iter().copied());
                }
            }
        }
        input.truncate(LONGEST);
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn targets_do_not_panic_over_changed_inputs() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number(SEED).unwrap_or(now) | 1;
    for (name, target) in TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut corpus: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        corpus.sort();
        let corpus: Vec<Vec<u8>> = corpus.into_iter().map(|path| fs::read(path).unwrap()).collect();
        let mut random = Random(seed);
        for _ in 0..INPUTS * number(FACTOR).unwrap_or(1) {
            let mut input = corpus[random.below(corpus.len())].clone();
            let other = random.below(corpus.len());
            random.change(&mut input, &corpus[other]);
            let outcome = std::panic::catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{SEED}={seed}: {name} panicked over {input:02x?}");
        }
    }
}
