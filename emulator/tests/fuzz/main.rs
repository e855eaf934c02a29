//! Mutated inputs: whatever stands in a text or an image, it is run or refused with an error, and never a panic.
//!
//! The inputs are those of the other tests, changed at random from a fixed seed, so that a failure is the same on every run.
//! `fuzz/` has the same as targets of cargo-fuzz, which run without end.

#[path = "../support/cubin.rs"]
mod cubin;
#[path = "../support/fatbin.rs"]
mod fatbin;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use cubin::cubin;
use cuda_emulator::{
    Device, Launch, Memory, Module, Options, Program, Schedule, launch, ptx, registers,
};
use fatbin::{Entry, Packing, fatbin, ptx as plain};

/// Mutants of each kind of input.
const TEXTS: usize = 20_000;
const IMAGES: usize = 40_000;
const LAUNCHES: usize = 6_000;

/// A seeded generator: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }
}

/// The PTX of the other tests.
fn corpus() -> Vec<String> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut files: Vec<_> = ["pass", "fail", "it", "it/hopper", "driver"]
        .into_iter()
        .filter_map(|folder| std::fs::read_dir(tests.join(folder)).ok())
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ptx"))
        .collect();
    files.sort();
    assert!(files.len() > 200, "only {} texts", files.len());
    files
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        // without the tables in comments: mutants of these are of no use
        .map(|text| {
            let lines = text.lines().filter(|line| !line.starts_with("//"));
            lines.collect::<Vec<_>>().join("\n")
        })
        .collect()
}

/// Words that turn up where they should not.
const WORDS: [&str; 40] = [
    "0",
    "-1",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "0x",
    "0f3F800000",
    "0d",
    "1e999",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ";",
    ",",
    ":",
    "@",
    "!",
    "|",
    "+",
    "-",
    "<",
    ">",
    "=",
    "\"",
    "_",
    ".reg",
    ".param",
    ".shared .align 4294967295 .b8 x[4294967295];",
    ".local .b64 l[99999999];",
    ".func",
    ".entry",
    "call",
    "bar.red.and.pred",
    "%r0",
    "%r<4294967295>",
    "é",
    ".v4",
];

/// A text with a few of its words changed.
fn mutate(text: &str, other: &str, random: &mut Random) -> String {
    let mut words: Vec<&str> = text
        .split_inclusive(|c: char| !c.is_alphanumeric() && c != '.')
        .collect();
    let others: Vec<&str> = other
        .split_inclusive(|c: char| !c.is_alphanumeric() && c != '.')
        .collect();
    for _ in 0..1 + random.below(4) {
        if words.is_empty() {
            break;
        }
        let at = random.below(words.len());
        match random.below(7) {
            0 => drop(words.remove(at)),
            1 => words.insert(at, random.pick(&WORDS)),
            2 => words[at] = random.pick(&WORDS),
            3 => words[at] = random.pick(&others),
            4 => {
                let to = random.below(words.len());
                words.swap(at, to);
            }
            5 => {
                let count = random.below(30).min(words.len() - at);
                let run = words[at..at + count].to_vec();
                words.splice(at..at, run);
            }
            _ => words.truncate(at.max(1)),
        }
    }
    words.concat()
}

/// Runs `f` on an input; the input is in the panic of a failure.
fn survives(input: &str, f: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(f)).is_err() {
        panic!("a panic on:\n{input}");
    }
}

#[test]
fn a_changed_text_is_run_or_refused() {
    let corpus = corpus();
    let mut random = Random(1);
    let mut accepted = 0;
    for _ in 0..TEXTS {
        let text = mutate(
            &random.pick(&corpus),
            &random.pick(&corpus),
            &mut Random(random.next()),
        );
        survives(&text, || {
            accepted += usize::from(Program::parse(&text).is_ok())
        });
    }
    // mutants that nobody refuses, and mutants that somebody does: both sides of every check are met
    assert!(
        (TEXTS / 20..TEXTS * 19 / 20).contains(&accepted),
        "{accepted}"
    );
}

/// Runs all kernels of a program, with parameters that lead to a buffer: how many end without a fault, and with one.
fn run_all(program: Program) -> (usize, usize) {
    const BUFFER: usize = 1 << 12;
    let memory = Memory::new(1 << 20);
    let Ok(module) = Module::load(Arc::new(program), &memory) else {
        return (0, 0);
    };
    let buffer = memory.alloc(BUFFER as u64).unwrap();
    memory.write(buffer, &[1; BUFFER]).unwrap();
    let mut ends = (0, 0);
    for (kernel, seed) in module.program().kernels().zip(1..) {
        let address = buffer.to_le_bytes().into_iter().cycle();
        let params: Vec<u8> = address.take(kernel.param_bytes() as usize).collect();
        let options = Options {
            threads: 1,
            schedule: Schedule::Adversarial(seed),
            max_instructions: 4_000,
            // the threads of all blocks share one buffer, and few mutants would end well
            global_races: seed % 2 == 0,
            ..Options::default()
        };
        let asked = Launch {
            params: &params,
            dynamic_shared: 1 << 10,
            dynamic_shared_limit: 1 << 10,
            ..Launch::new(&module, &kernel.name, [2, 1, 1], [64, 1, 1])
        };
        match launch(&asked, &Device::sm_90(), &memory, &options) {
            Ok(_) => ends.0 += 1,
            Err(_) => ends.1 += 1,
        }
    }
    ends
}

#[test]
fn a_changed_kernel_ends() {
    let corpus = corpus();
    let mut random = Random(3);
    let mut ends = (0, 0);
    for _ in 0..LAUNCHES {
        let text = mutate(
            &random.pick(&corpus),
            &random.pick(&corpus),
            &mut Random(random.next()),
        );
        survives(&text, || {
            if let Ok(program) = Program::parse(&text) {
                let (well, with_fault) = run_all(program);
                ends = (ends.0 + well, ends.1 + with_fault);
            }
        });
    }
    assert!(ends.0 > LAUNCHES / 60 && ends.1 > LAUNCHES / 60, "{ends:?}");
}

#[test]
fn nesting_without_end_is_refused() {
    for (open, close) in [("{", "}"), ("(", ")"), ("[", "]")] {
        let deep = open.repeat(100_000) + &close.repeat(100_000);
        let texts = [
            format!(
                ".version 8.0\n.target sm_80\n.address_size 64\n.entry k() {{ mov.b32 {deep}, %r; }}"
            ),
            format!(".version 8.0\n.target sm_80\n.address_size 64\n.global .b32 x[1] = {deep};"),
        ];
        for text in texts {
            assert!(Program::parse(&text).is_err());
        }
    }
}

#[test]
fn what_once_was_a_panic_is_refused() {
    for body in [
        "bar.red.and.pred %p;",
        ".local .b64 l[18446744073709551615];",
        ".reg .b64 %r<4294967295>;",
        ".reg .pred %q<4294967295>;",
        ".shared .align 3 .b8 s[1];",
        ".shared .b8 s[16777216], t;",
    ] {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k() {{ .reg .pred %p; {body} ret; }}"
        );
        assert!(Program::parse(&text).is_err(), "{body}");
    }
}

#[test]
fn a_changed_image_is_read_or_refused() {
    let texts = corpus();
    let entry = |kind, arch, variant, packing, at: usize| Entry {
        kind,
        arch,
        variant,
        packing,
        payload: texts[at].as_bytes(),
    };
    let code = cubin(80, &[("walk", 255), ("step", 24)]);
    let machine = Entry {
        payload: &code,
        ..entry(2, 80, 0, Packing::Plain, 0)
    };
    let images = [
        fatbin(&[machine]),
        fatbin(&[plain(80, &texts[0])]),
        fatbin(&[
            entry(1, 80, 0, Packing::Zstd, 1),
            entry(2, 80, 0, Packing::Plain, 2),
        ]),
        fatbin(&[
            entry(1, 80, 0, Packing::Lz4, 3),
            entry(1, 90, 0x10_0000, Packing::Zstd, 4),
        ]),
    ];
    let mut random = Random(2);
    let (mut read, mut told) = (0, 0);
    for _ in 0..IMAGES {
        let mut image = random.pick(&images);
        for _ in 0..1 + random.below(3) {
            // headers are where sizes stand
            let at = match random.below(2) {
                0 => random.below(image.len().min(96)),
                _ => random.below(image.len()),
            };
            match random.below(4) {
                0 => image[at] = random.next() as u8,
                1 => image[at] ^= 1 << random.below(8),
                2 => image[at] = random.pick(&[0, 0x7f, 0x80, 0xff]),
                _ => image.truncate(at.max(1)),
            }
        }
        let shown = format!("{:02x?}", &image[..image.len().min(128)]);
        survives(&shown, || {
            for device in [Device::sm_80(), Device::sm_90()] {
                read += usize::from(ptx(&image, &device).is_ok());
                told += registers(&image, &device).len();
            }
        });
    }
    assert!(
        (IMAGES / 20..2 * IMAGES * 19 / 20).contains(&read),
        "{read}"
    );
    assert!((IMAGES / 40..IMAGES / 2).contains(&told), "{told}");
}
