//! Boxes of tensors: loads, stores and reductions by tensor maps of every rank and swizzle, against plain indexing.
//!
//! The expected place of each element is computed from the definition of a box and of a swizzle (PTX ISA, tensors; CUDA
//! programming guide, swizzle patterns), one element at a time.

use crate::emulator::{Bench, Call};
use cuda_emulator::{
    Device, Fault, FaultKind, Options, Schedule, TENSOR_MAP_BYTES, TensorMap, TensorType,
};

/// Bytes of the shared tile, and the threads that carry it.
const TILE: usize = 8192;
const THREADS: usize = 64;

/// What a kernel does with the box.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// Brings it and writes the tile to `out`.
    Load,
    /// Fills the tile from `in` and stores it.
    Store,
    /// As a store, but adds.
    Add,
}

/// A kernel `case(map, out, in, c0 … c4)`; the map is a parameter, or lies in global memory.
fn kernel(way: Way, rank: usize, map_in_memory: bool, bytes: usize) -> String {
    let parameter = if map_in_memory {
        ".param .u64 map"
    } else {
        ".param .align 64 .b8 map[128]"
    };
    let coordinates: Vec<String> = (0..5).map(|at| format!(".param .u32 c{at}")).collect();
    let read: String = (0..rank)
        .map(|at| format!("ld.param.u32 %c{at}, [c{at}];\n"))
        .collect();
    let corner: Vec<String> = (0..rank).map(|at| format!("%c{at}")).collect();
    let corner = corner.join(", ");
    let map = if map_in_memory {
        "ld.param.u64 %map, [map];"
    } else {
        "mov.b64 %map, map;\ncvta.param.u64 %map, %map;"
    };
    let copy = match way {
        Way::Load => format!(
            "@!%first bra wait;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {bytes};\n\
             prefetch.tensormap [%map];\n\
             cp.async.bulk.prefetch.tensor.{rank}d.L2.global.tile [%map, {{{corner}}}];\n\
             cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%base], [%map, {{{corner}}}], [%bar];\n\
             wait:\nmbarrier.try_wait.parity.shared::cta.b64 %p, [%bar], 0;\n@!%p bra wait;\n"
        ),
        Way::Store | Way::Add => {
            let (name, operation) = match way {
                Way::Add => ("cp.reduce.async.bulk.tensor", ".add"),
                _ => ("cp.async.bulk.tensor", ""),
            };
            format!(
                "mov.u32 %at, %t4;\nfill:\nadd.u32 %to, %base, %at;\ncvt.u64.u32 %far, %at;\nadd.s64 %far, %far, %in;\n\
                 ld.global.u32 %v, [%far];\nst.shared.u32 [%to], %v;\nadd.u32 %at, %at, 256;\n\
                 setp.lt.u32 %p, %at, {TILE};\n@%p bra fill;\nfence.proxy.async.shared::cta;\nbar.sync 0;\n\
                 @!%first bra done;\n\
                 {name}.{rank}d.global.shared::cta{operation}.tile.bulk_group [%map, {{{corner}}}], [%base];\n\
                 cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\ndone:\n"
            )
        }
    };
    let carry = match way {
        // only the bytes of the box have a value
        Way::Load => format!(
            "mov.u32 %at, %t4;\ncarry:\nsetp.ge.u32 %p, %at, {bytes};\n@%p bra end;\nadd.u32 %to, %base, %at;\n\
             ld.shared.u32 %v, [%to];\ncvt.u64.u32 %far, %at;\nadd.s64 %far, %far, %out;\nst.global.u32 [%far], %v;\n\
             add.u32 %at, %at, 256;\nbra carry;\nend:\n"
        ),
        _ => String::new(),
    };
    format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n\
         .visible .entry case({parameter}, .param .u64 out, .param .u64 in, {})\n{{\n\
         .reg .b32 %t, %t4, %base, %bar, %at, %to, %v, %c<5>;\n.reg .b64 %out, %in, %map, %far;\n.reg .pred %p, %first;\n\
         .shared .align 1024 .b8 tile[{TILE}];\n.shared .align 8 .b8 bar[8];\n\
         {map}\nld.param.u64 %out, [out];\nld.param.u64 %in, [in];\n{read}mov.u32 %t, %tid.x;\nmul.lo.u32 %t4, %t, 4;\n\
         mov.u32 %base, tile;\nmov.u32 %bar, bar;\nsetp.eq.u32 %first, %t, 0;\n\
         @%first mbarrier.init.shared::cta.b64 [%bar], 1;\n@%first fence.mbarrier_init.release.cluster;\nbar.sync 0;\n\
         {copy}{carry}ret;\n}}\n",
        coordinates.join(", ")
    )
}

/// A tensor, a box of it, and where that begins.
#[derive(Debug, Clone)]
struct Problem {
    element: TensorType,
    dims: Vec<u64>,
    /// Bytes that each outer dimension has beyond what the inner ones need.
    padding: u64,
    boxes: Vec<u32>,
    steps: Vec<u32>,
    swizzle: u32,
    nan_fill: bool,
    corner: Vec<i32>,
}

impl Problem {
    fn new(dims: &[u64], boxes: &[u32], corner: &[i32]) -> Problem {
        Problem {
            element: TensorType::U16,
            dims: dims.to_vec(),
            padding: 0,
            boxes: boxes.to_vec(),
            steps: vec![1; dims.len()],
            swizzle: 0,
            nan_fill: false,
            corner: corner.to_vec(),
        }
    }

    fn size(&self) -> usize {
        self.element.bytes() as usize
    }

    fn strides(&self) -> Vec<u64> {
        let mut stride = self.dims[0] * self.element.bytes();
        let mut strides = Vec::new();
        for &dim in &self.dims[1..] {
            stride = (stride + self.padding).next_multiple_of(16);
            strides.push(stride);
            stride *= dim;
        }
        strides
    }

    /// Bytes of the whole tensor.
    fn tensor_bytes(&self) -> usize {
        let last = self.dims.last().unwrap();
        let stride = self.strides().last().copied();
        (last * stride.unwrap_or(self.element.bytes())) as usize
    }

    fn map(&self, address: u64) -> TensorMap {
        TensorMap {
            element: self.element,
            address,
            dims: self.dims.clone(),
            strides: self.strides(),
            boxes: self.boxes.clone(),
            steps: self.steps.clone(),
            swizzle: self.swizzle,
            nan_fill: self.nan_fill,
        }
    }

    /// For each element of the box: where it lies in the tile, and where in the tensor, if it does.
    fn elements(&self) -> Vec<(usize, Option<usize>)> {
        let counts: Vec<usize> = (0..self.dims.len())
            .map(|d| if d == 0 { self.boxes[0] } else { self.boxes[d].div_ceil(self.steps[d]) } as usize)
            .collect();
        let strides = self.strides();
        let mut out = Vec::new();
        for number in 0..counts.iter().product() {
            let mut rest: usize = number;
            let (mut at, mut inside) = (0i64, true);
            for d in 0..counts.len() {
                let step = if d == 0 { 1 } else { self.steps[d] as i64 };
                let index = i64::from(self.corner[d]) + (rest % counts[d]) as i64 * step;
                rest /= counts[d];
                inside &= index >= 0 && index < self.dims[d] as i64;
                at += index
                    * if d == 0 {
                        self.size() as i64
                    } else {
                        strides[d - 1] as i64
                    };
            }
            let linear = number * self.size();
            // within 1024, 512 or 256 bytes, the 16-byte chunks of row r change places by r
            let (row, chunk) = (linear / 128, linear / 16 % 8);
            let chunk = match self.swizzle {
                128 => chunk ^ (row % 8),
                64 => chunk ^ (row % 4),
                32 => chunk ^ (row % 2),
                _ => chunk,
            };
            out.push((
                row * 128 + chunk * 16 + linear % 16,
                inside.then_some(at as usize),
            ));
        }
        out
    }

    fn run(&self, way: Way, in_memory: bool, schedule: Schedule) -> Result<(), Fault> {
        let elements = self.elements();
        let bytes = elements.len() * self.size();
        let bench = Bench::load(&kernel(way, self.dims.len(), in_memory, bytes)).unwrap();
        let value = |at: usize| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3];
        let data: Vec<u8> = (0..self.tensor_bytes()).map(value).collect();
        let tile: Vec<u8> = (0..TILE).map(|at| value(at + 77_777)).collect();
        let (tensor, input) = (bench.buffer(&data), bench.buffer(&tile));
        let out = bench.buffer(&vec![0xee; TILE]);
        let encoded = self.map(tensor).encode().unwrap();
        let mut params = if in_memory {
            bench.buffer(&encoded).to_le_bytes().to_vec()
        } else {
            encoded.to_vec()
        };
        params.extend(out.to_le_bytes());
        params.extend(input.to_le_bytes());
        let corner = self
            .corner
            .iter()
            .copied()
            .chain(std::iter::repeat(0))
            .take(5);
        params.extend(corner.flat_map(i32::to_le_bytes));
        let call = Call {
            device: Device::sm_90(),
            block: [THREADS as u32, 1, 1],
            options: Options {
                threads: 1,
                schedule,
                ..Options::default()
            },
            params,
            ..Call::new(&[])
        };
        bench.run(&call)?;
        let size = self.size();
        let (found, mut expected) = match way {
            Way::Load => (bench.read(out, TILE), vec![0xee; TILE]),
            Way::Store | Way::Add => (bench.read(tensor, data.len()), data.clone()),
        };
        for (at, place) in elements {
            match (way, place) {
                (Way::Load, Some(place)) => {
                    expected[at..at + size].copy_from_slice(&data[place..place + size]);
                }
                (Way::Load, None) => {
                    let fill = if self.nan_fill { 0x7fff_u16 } else { 0 };
                    expected[at..at + size].fill(0);
                    expected[at..at + 2].copy_from_slice(&fill.to_le_bytes());
                }
                (Way::Store, Some(place)) => {
                    expected[place..place + size].copy_from_slice(&tile[at..at + size]);
                }
                (Way::Add, Some(place)) => {
                    let word =
                        |from: &[u8], at| u32::from_le_bytes(from[at..at + 4].try_into().unwrap());
                    let sum = word(&data, place).wrapping_add(word(&tile, at));
                    expected[place..place + 4].copy_from_slice(&sum.to_le_bytes());
                }
                (Way::Store | Way::Add, None) => {}
            }
        }
        let wrong = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "byte of {way:?} in {self:?}");
        Ok(())
    }
}

/// Boxes inside and across every border, of each rank.
fn problems() -> Vec<Problem> {
    let with = |problem: Problem, change: fn(&mut Problem)| {
        let mut problem = problem;
        change(&mut problem);
        problem
    };
    vec![
        Problem::new(&[64], &[32], &[8]),
        Problem::new(&[64], &[64], &[-5]),
        Problem::new(&[60], &[64], &[0]),
        Problem::new(&[64, 7], &[32, 4], &[16, 2]),
        Problem::new(&[64, 7], &[32, 8], &[40, -3]),
        with(Problem::new(&[70, 20], &[64, 16], &[3, 7]), |p| {
            p.swizzle = 128
        }),
        with(Problem::new(&[70, 20], &[32, 16], &[3, 7]), |p| {
            p.swizzle = 64
        }),
        with(Problem::new(&[70, 20], &[16, 24], &[3, -1]), |p| {
            p.swizzle = 32
        }),
        with(Problem::new(&[70, 20], &[32, 32], &[50, 1]), |p| {
            (p.swizzle, p.element) = (128, TensorType::U32);
        }),
        with(Problem::new(&[40, 9, 5], &[16, 4, 3], &[30, 7, 3]), |p| {
            p.padding = 16
        }),
        with(Problem::new(&[40, 9, 5], &[16, 8, 4], &[0, 0, 0]), |p| {
            p.steps = vec![1, 3, 2];
        }),
        with(Problem::new(&[40, 9, 5], &[16, 8, 4], &[0, -2, 1]), |p| {
            p.steps = vec![7, 2, 3];
            p.swizzle = 32;
        }),
        Problem::new(&[24, 3, 4, 5], &[8, 2, 2, 3], &[16, 1, -1, 3]),
        Problem::new(&[24, 3, 2, 3, 2], &[8, 2, 2, 2, 2], &[20, 2, 1, -1, 1]),
        with(Problem::new(&[64, 8], &[16, 4], &[56, 6]), |p| {
            p.element = TensorType::U32
        }),
    ]
}

#[test]
fn loads_bring_each_element_to_its_place() {
    for (number, problem) in problems().iter().enumerate() {
        for schedule in [Schedule::LowestPc, Schedule::Adversarial(3)] {
            problem.run(Way::Load, number % 2 == 0, schedule).unwrap();
        }
    }
}

#[test]
fn elements_outside_are_nan_if_asked_for() {
    let mut problem = Problem::new(&[60, 7], &[32, 8], &[40, -3]);
    (problem.element, problem.nan_fill) = (TensorType::F16, true);
    problem.run(Way::Load, false, Schedule::LowestPc).unwrap();
    problem.element = TensorType::Bf16;
    problem.run(Way::Load, false, Schedule::LowestPc).unwrap();
}

#[test]
fn stores_leave_alone_what_lies_outside() {
    for problem in problems() {
        problem.run(Way::Store, false, Schedule::LowestPc).unwrap();
    }
}

#[test]
fn reductions_add_to_what_stands_there() {
    let mut problem = Problem::new(&[70, 20], &[32, 16], &[50, 7]);
    (problem.element, problem.swizzle) = (TensorType::S32, 128);
    problem.run(Way::Add, false, Schedule::LowestPc).unwrap();
    problem.element = TensorType::U32;
    problem.run(Way::Add, true, Schedule::LowestPc).unwrap();
    // there is no addition of bytes
    problem.element = TensorType::U8;
    problem.swizzle = 0;
    let fault = problem
        .run(Way::Add, false, Schedule::LowestPc)
        .unwrap_err();
    assert_eq!(fault.kind, FaultKind::Trap);
    assert!(fault.message.contains("no such reduction"), "{fault}");
}

#[test]
fn a_map_of_another_rank_is_refused() {
    let problem = Problem::new(&[64, 7], &[32, 4], &[0, 0]);
    let bench = Bench::load(&kernel(Way::Load, 3, false, 256)).unwrap();
    let tensor = bench.buffer(&vec![0; problem.tensor_bytes()]);
    for (change, words) in [
        (0, "of 3 dimensions by a tensor map of 2"),
        (1, "no tensor map"),
    ] {
        let mut params = problem.map(tensor).encode().unwrap().to_vec();
        params[TENSOR_MAP_BYTES / 4] ^= change;
        params.resize(TENSOR_MAP_BYTES + 36, 0);
        let call = Call {
            device: Device::sm_90(),
            params,
            ..Call::new(&[])
        };
        let fault = bench.run(&call).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Trap, "{fault}");
        assert!(fault.message.contains(words), "{fault}");
        let site = fault.site.unwrap();
        assert!(
            site.instruction.contains("cp.async.bulk.tensor.3d"),
            "{site}"
        );
    }
}

#[test]
fn a_tile_that_is_not_aligned_is_refused() {
    let problem = Problem::new(&[64, 7], &[32, 4], &[0, 0]);
    let text = kernel(Way::Load, 2, false, 256).replace("[%base], [%map", "[%base+64], [%map");
    let bench = Bench::load(&text).unwrap();
    let tensor = bench.buffer(&vec![0; problem.tensor_bytes()]);
    let mut params = problem.map(tensor).encode().unwrap().to_vec();
    params.resize(TENSOR_MAP_BYTES + 36, 0);
    let call = Call {
        device: Device::sm_90(),
        params,
        ..Call::new(&[])
    };
    let fault = bench.run(&call).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Misaligned, "{fault}");
    assert!(fault.message.contains("not a multiple of 128"), "{fault}");
}
