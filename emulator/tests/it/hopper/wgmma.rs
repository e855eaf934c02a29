//! wgmma against a product computed here, for every type and source of its operands.
//!
//! Register fragments are written down from their pictures in the manual (PTX ISA, asynchronous warpgroup level matrix
//! instructions): which element of a row and a column a thread's register holds.

use half::{bf16, f16};

use super::wgmma_layout::{K_MAJOR, Layout};
use crate::emulator::{Bench, Call};
use cuda_emulator::{Device, Fault, FaultKind, Options, Schedule};

/// Bytes of shared memory for A and for B.
const HALF: usize = 32768;
const ROWS: usize = 64;

/// An element type with its name in PTX.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::F16 => "f16",
            Kind::Bf16 => "bf16",
            Kind::Tf32 => "tf32",
            Kind::E4m3 => "e4m3",
            Kind::E5m2 => "e5m2",
            Kind::S8 => "s8",
            Kind::U8 => "u8",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Kind::F16 | Kind::Bf16 => 2,
            Kind::Tf32 => 4,
            _ => 1,
        }
    }

    /// Columns of an instruction.
    fn depth(self) -> usize {
        32 / self.bytes()
    }

    /// The bytes of a small whole number.
    fn encode(self, value: i32) -> Vec<u8> {
        let float = value as f32;
        match self {
            Kind::F16 => f16::from_f32(float).to_le_bytes().to_vec(),
            Kind::Bf16 => bf16::from_f32(float).to_le_bytes().to_vec(),
            // the low bits are not read
            Kind::Tf32 => (float.to_bits() | 0x155).to_le_bytes().to_vec(),
            Kind::S8 | Kind::U8 => vec![value as u8],
            Kind::E5m2 => vec![f16::from_f32(float).to_le_bytes()[1]],
            Kind::E4m3 if value == 0 => vec![0],
            Kind::E4m3 => {
                let size = value.unsigned_abs();
                let exponent = size.ilog2();
                let mantissa = (size << 3 >> exponent) & 7;
                vec![(((exponent + 7) << 3 | mantissa) as u8) | if value < 0 { 0x80 } else { 0 }]
            }
        }
    }
}

/// A form of the instruction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) a: Kind,
    pub(super) b: Kind,
    /// `f32`, `f16` or `s32`.
    pub(super) accumulator: &'static str,
    pub(super) n: usize,
    /// `None`: in registers.
    pub(super) a_layout: Option<Layout>,
    pub(super) b_layout: Layout,
    /// Adds to what D holds.
    pub(super) adds: bool,
    pub(super) negate: [bool; 2],
    pub(super) saturate: bool,
}

impl Form {
    pub(super) fn new(kind: Kind, accumulator: &'static str, n: usize) -> Form {
        Form {
            a: kind,
            b: kind,
            accumulator,
            n,
            a_layout: Some(K_MAJOR),
            b_layout: K_MAJOR,
            adds: true,
            negate: [false; 2],
            saturate: false,
        }
    }

    fn registers(&self) -> usize {
        self.n / if self.accumulator == "f16" { 4 } else { 2 }
    }

    /// Row and column of D in a warpgroup's thread, register and half of it.
    fn place(&self, thread: usize, register: usize, half: usize) -> (usize, usize) {
        let (warp, lane) = (thread / 32, thread % 32);
        let pair = if self.accumulator == "f16" {
            2 * register + half
        } else {
            register
        };
        let row = 16 * warp + lane / 4 + if pair % 4 >= 2 { 8 } else { 0 };
        (row, pair / 4 * 8 + lane % 4 * 2 + pair % 2)
    }

    /// The instruction and what must stand around it; `%p` says whether it adds.
    pub(super) fn instruction(&self) -> String {
        let list = |name: &str, count: usize| {
            let names: Vec<_> = (0..count).map(|at| format!("%{name}{at}")).collect();
            format!("{{{}}}", names.join(", "))
        };
        let sign = |negate: bool| if negate { -1 } else { 1 };
        let a = match self.a_layout {
            None => list("a", 4),
            Some(_) => "%da".into(),
        };
        let mut text = format!(
            "wgmma.mma_async.sync.aligned.m64n{}k{}.{}.{}.{}{} {}, {a}, %db, %p",
            self.n,
            self.a.depth(),
            self.accumulator,
            self.a.name(),
            self.b.name(),
            if self.saturate { ".satfinite" } else { "" },
            list("d", self.registers()),
        );
        if self.accumulator != "s32" {
            text += &format!(", {}, {}", sign(self.negate[0]), sign(self.negate[1]));
        }
        if self.a.bytes() == 2 {
            if let Some(layout) = self.a_layout {
                text += &format!(", {}", i32::from(layout.transposed));
            }
            text += &format!(", {}", i32::from(self.b_layout.transposed));
        }
        text + ";\n"
    }

    /// `case(out, in, da, db)`: `in` holds the image of shared memory, then the registers of A, then those of D.
    pub(super) fn kernel(&self, body: &str) -> String {
        let count = self.registers();
        let load = |name: &str, count: usize, start: usize| -> String {
            (0..count)
                .map(|at| format!("ld.global.b32 %{name}{at}, [%far+{}];\n", start + 512 * at))
                .collect()
        };
        let store: String = (0..count)
            .map(|at| format!("st.global.b32 [%out+{}], %d{at};\n", 512 * at))
            .collect();
        format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n\
             .visible .entry case(.param .u64 out, .param .u64 in, .param .u64 da, .param .u64 db)\n{{\n\
             .reg .b32 %t, %at, %v, %a<4>, %d<{count}>;\n.reg .b64 %out, %in, %far, %da, %db;\n.reg .pred %p, %q, %last;\n\
             .shared .align 1024 .b8 tiles[{both}];\n.shared .align 8 .b8 bar[8];\n\
             ld.param.u64 %out, [out];\nld.param.u64 %in, [in];\nld.param.u64 %da, [da];\nld.param.u64 %db, [db];\n\
             mov.u32 %t, %tid.x;\nmul.lo.u32 %at, %t, 4;\ncvt.u64.u32 %far, %at;\nadd.s64 %out, %out, %far;\n\
             setp.ge.u32 %last, %t, 96;\n\
             fill:\ncvt.u64.u32 %far, %at;\nadd.s64 %far, %far, %in;\nld.global.u32 %v, [%far];\nst.shared.u32 [%at], %v;\n\
             add.u32 %at, %at, 512;\nsetp.lt.u32 %q, %at, {both};\n@%q bra fill;\n\
             mul.lo.u32 %at, %t, 4;\ncvt.u64.u32 %far, %at;\nadd.s64 %far, %far, %in;\n\
             setp.ne.u32 %p, %t, {unused};\n{loads}{registers}\
             {body}{store}ret;\n}}\n",
            both = 2 * HALF,
            unused = if self.adds {
                "999".to_string()
            } else {
                "%t".to_string()
            },
            loads = load("a", 4, 2 * HALF),
            registers = load("d", count, 2 * HALF + 2048),
        )
    }

    /// The instruction as it must stand.
    pub(super) fn right(&self) -> String {
        format!(
            "fence.proxy.async.shared::cta;\nbar.sync 0;\nwgmma.fence.sync.aligned;\n{}\
             wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
            self.instruction()
        )
    }

    fn a_value(&self, row: usize, k: usize) -> i32 {
        let value = ((row * 7 + k * 5 + row * k) % 9) as i32 - 4;
        if self.a == Kind::U8 {
            value + 200
        } else {
            value
        }
    }

    fn b_value(&self, column: usize, k: usize) -> i32 {
        let value = ((column * 3 + k * 11 + column * k) % 7) as i32 - 3;
        if self.b == Kind::U8 {
            value + 100
        } else {
            value
        }
    }

    fn d_value(&self, row: usize, column: usize) -> i32 {
        let value = ((row * 5 + column) % 17) as i32 - 8;
        if self.saturate { i32::MAX - 5 } else { value }
    }

    fn input(&self) -> Vec<u8> {
        let depth = self.a.depth();
        let mut bytes = vec![0x7f; 2 * HALF];
        let mut put =
            |at: usize, value: Vec<u8>| bytes[at..at + value.len()].copy_from_slice(&value);
        for k in 0..depth {
            if let Some(layout) = self.a_layout {
                for row in 0..ROWS {
                    put(
                        layout.place(row, k, self.a.bytes()),
                        self.a.encode(self.a_value(row, k)),
                    );
                }
            }
            for column in 0..self.n {
                let place = HALF + self.b_layout.place(column, k, self.b.bytes());
                put(place, self.b.encode(self.b_value(column, k)));
            }
        }
        // registers of A: four bytes of row lane / 4, of that plus 8, and both again half the columns on
        let each = 4 / self.a.bytes();
        for register in 0..4 {
            for thread in 0..128 {
                let row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (register % 2);
                let column = thread % 4 * each + register / 2 * depth / 2;
                for k in column..column + each {
                    bytes.extend(self.a.encode(self.a_value(row, k)));
                }
            }
        }
        for register in 0..self.registers() {
            for thread in 0..128 {
                let value = |half| {
                    let (row, column) = self.place(thread, register, half);
                    self.d_value(row, column)
                };
                match self.accumulator {
                    "f32" => bytes.extend((value(0) as f32).to_le_bytes()),
                    "s32" => bytes.extend(value(0).to_le_bytes()),
                    _ => bytes.extend(
                        [0, 1]
                            .map(|half| f16::from_f32(value(half) as f32).to_le_bytes())
                            .concat(),
                    ),
                }
            }
        }
        bytes
    }

    fn expected(&self, row: usize, column: usize) -> i64 {
        let dot: i64 = (0..self.a.depth())
            .map(|k| i64::from(self.a_value(row, k)) * i64::from(self.b_value(column, k)))
            .sum();
        let dot = if self.negate[0] != self.negate[1] {
            -dot
        } else {
            dot
        };
        let sum = dot
            + if self.adds {
                self.d_value(row, column).into()
            } else {
                0
            };
        if self.saturate {
            sum.min(i32::MAX.into())
        } else {
            sum
        }
    }

    /// Runs a kernel around the instruction; the bytes of `out`.
    pub(super) fn run(&self, body: &str, schedule: Schedule) -> Result<Vec<u8>, Fault> {
        let bench = Bench::load(&self.kernel(body)).unwrap_or_else(|error| panic!("{error}"));
        let input = bench.buffer(&self.input());
        let size = 512 * self.registers();
        let out = bench.memory.alloc(size as u64).unwrap();
        let a = self.a_layout.map_or(0, |layout| layout.descriptor(0));
        let call = Call {
            device: Device::sm_90(),
            block: [128, 1, 1],
            options: Options {
                threads: 1,
                schedule,
                ..Options::default()
            },
            ..Call::new(&[out, input, a, self.b_layout.descriptor(HALF)])
        };
        bench.run(&call)?;
        Ok(bench.read(out, size))
    }

    /// Asserts that the product is exact.
    pub(super) fn check(&self) {
        let found = self
            .run(&self.right(), Schedule::LowestPc)
            .unwrap_or_else(|fault| panic!("{self:?}: {fault}"));
        for register in 0..self.registers() {
            for thread in 0..128 {
                let word: [u8; 4] = found[512 * register + 4 * thread..][..4]
                    .try_into()
                    .unwrap();
                let halves = [[word[0], word[1]], [word[2], word[3]]];
                let values = match self.accumulator {
                    "f32" => vec![f32::from_le_bytes(word) as i64],
                    "s32" => vec![i32::from_le_bytes(word).into()],
                    _ => halves
                        .map(|half| f16::from_le_bytes(half).to_f32() as i64)
                        .to_vec(),
                };
                for (half, value) in values.into_iter().enumerate() {
                    let (row, column) = self.place(thread, register, half);
                    assert_eq!(
                        value,
                        self.expected(row, column),
                        "row {row}, column {column} of {self:?}"
                    );
                }
            }
        }
    }

    /// Asserts that a mistake is found.
    #[track_caller]
    pub(super) fn fails(&self, body: &str, kind: FaultKind, words: &str, instruction: &str) {
        let fault = self.run(body, Schedule::LowestPc).unwrap_err();
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(
            fault.message.contains(words),
            "`{words}` is not in: {fault}"
        );
        let site = fault
            .site
            .as_ref()
            .map(|site| site.instruction.clone())
            .unwrap_or_default();
        assert!(
            site.starts_with(instruction),
            "`{instruction}` is not the place: {fault}"
        );
    }
}

#[test]
fn every_type_is_multiplied() {
    use Kind::{Bf16, E4m3, E5m2, F16, S8, Tf32, U8};
    for (kind, accumulator) in [
        (F16, "f32"),
        (F16, "f16"),
        (Bf16, "f32"),
        (Tf32, "f32"),
        (E4m3, "f32"),
        (E4m3, "f16"),
        (E5m2, "f32"),
        (S8, "s32"),
        (U8, "s32"),
    ] {
        let form = Form::new(kind, accumulator, 32);
        form.check();
        Form {
            a_layout: None,
            ..form
        }
        .check();
    }
    Form {
        b: E5m2,
        ..Form::new(E4m3, "f32", 16)
    }
    .check();
    Form {
        b: S8,
        ..Form::new(U8, "s32", 16)
    }
    .check();
}

#[test]
fn every_width_is_multiplied() {
    for n in (8..=256).step_by(8) {
        Form::new(Kind::F16, if n % 16 == 0 { "f32" } else { "f16" }, n).check();
    }
    for n in [8, 16, 24, 32, 48, 96, 256] {
        Form::new(Kind::S8, "s32", n).check();
    }
}

#[test]
fn signs_sums_and_saturation() {
    let form = Form::new(Kind::F16, "f32", 16);
    for negate in [[true, false], [false, true], [true, true]] {
        Form { negate, ..form }.check();
    }
    Form {
        adds: false,
        ..form
    }
    .check();
    Form {
        adds: false,
        ..Form::new(Kind::U8, "s32", 16)
    }
    .check();
    Form {
        saturate: true,
        ..Form::new(Kind::U8, "s32", 16)
    }
    .check();
}

#[test]
fn products_follow_each_other_into_the_same_registers() {
    let form = Form::new(Kind::F16, "f32", 16);
    let (instruction, wait) = (form.instruction(), "wgmma.wait_group.sync.aligned 0;\n");
    let commit = "wgmma.commit_group.sync.aligned;\n";
    let start = "fence.proxy.async.shared::cta;\nbar.sync 0;\nwgmma.fence.sync.aligned;\n";
    for schedule in [Schedule::LowestPc, Schedule::Adversarial(5)] {
        let twice = form
            .run(
                &format!("{start}{instruction}{instruction}{commit}{wait}"),
                schedule,
            )
            .unwrap();
        let apart = form
            .run(
                &format!("{start}{instruction}{commit}wgmma.wait_group.sync.aligned 0;\nwgmma.fence.sync.aligned;\n{instruction}{commit}{wait}"),
                schedule,
            )
            .unwrap();
        assert_eq!(twice, apart);
        let word: [u8; 4] = twice[..4].try_into().unwrap();
        let product = form.expected(0, 0) - i64::from(form.d_value(0, 0));
        assert_eq!(
            f32::from_le_bytes(word) as i64,
            form.expected(0, 0) + product
        );
    }
}
