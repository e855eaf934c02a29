//! A form of an instruction: its PTX, its inputs, and what must come out.

use crate::value::{Tolerance, Type};

/// Threads of a form that each work for themselves: enough for every pair of edges.
pub(crate) const THREADS: usize = 256;

/// What comes out of all threads from what goes in: a list a column, `None` where nothing is expected.
pub(crate) type Expect = Box<dyn Fn(&[Vec<u64>]) -> Vec<Vec<Option<u64>>>>;

/// One form of one instruction.
pub(crate) struct Form {
    pub(crate) name: String,
    /// The least architecture: 80, 86, 89 or 90.
    pub(crate) arch: u32,
    /// Declarations in front of the kernel.
    pub(crate) module: String,
    /// Instructions; inputs are `%i0`, `%i1`, …, outputs `%o0`, …; `%thread` is the thread's number.
    pub(crate) body: String,
    pub(crate) inputs: Vec<Type>,
    pub(crate) outputs: Vec<Type>,
    pub(crate) tolerance: Tolerance,
    /// A column an input, a value a thread.
    pub(crate) data: Vec<Vec<u64>>,
    pub(crate) expect: Expect,
}

/// Types by their names.
pub(crate) fn types(names: &str) -> Vec<Type> {
    names
        .split_whitespace()
        .map(|name| Type::by_name(name).unwrap_or_else(|| panic!("no type {name}")))
        .collect()
}

impl Form {
    /// A form that each thread runs for itself; `f` gives a value for each output.
    pub(crate) fn lanes(
        name: impl Into<String>,
        inputs: &str,
        outputs: &str,
        body: impl Into<String>,
        f: impl Fn(&[u64]) -> Vec<Option<u64>> + 'static,
    ) -> Form {
        let (name, inputs, outputs) = (name.into(), types(inputs), types(outputs));
        let data = samples(&inputs, &name, THREADS);
        let columns = outputs.len();
        Form {
            name,
            arch: 80,
            module: String::new(),
            body: body.into(),
            data,
            inputs,
            outputs,
            tolerance: Tolerance::Exact,
            expect: Box::new(move |data| {
                let threads = data.first().map_or(THREADS, Vec::len);
                let mut out = vec![Vec::new(); columns];
                for thread in 0..threads {
                    let row: Vec<u64> = data.iter().map(|column| column[thread]).collect();
                    for (column, value) in out.iter_mut().zip(f(&row)) {
                        column.push(value);
                    }
                }
                out
            }),
        }
    }

    /// `opcode %o0, %i0, …`: one output of every thread.
    pub(crate) fn simple(
        opcode: impl Into<String>,
        inputs: &str,
        output: &str,
        f: impl Fn(&[u64]) -> u64 + 'static,
    ) -> Form {
        let opcode = opcode.into();
        let count = inputs.split_whitespace().count();
        let sources: Vec<String> = (0..count).map(|at| format!("%i{at}")).collect();
        let body = format!("{opcode} %o0, {};", sources.join(", "));
        Form::lanes(opcode, inputs, output, body, move |x| vec![Some(f(x))])
    }

    /// A form of whole warps.
    pub(crate) fn warps(
        name: impl Into<String>,
        (inputs, outputs): (&str, &str),
        threads: usize,
        body: impl Into<String>,
        expect: impl Fn(&[Vec<u64>]) -> Vec<Vec<Option<u64>>> + 'static,
    ) -> Form {
        let (name, inputs, outputs) = (name.into(), types(inputs), types(outputs));
        Form {
            arch: 80,
            module: String::new(),
            body: body.into(),
            data: samples(&inputs, &name, threads),
            name,
            inputs,
            outputs,
            tolerance: Tolerance::Exact,
            expect: Box::new(expect),
        }
    }

    pub(crate) fn arch(mut self, arch: u32) -> Form {
        self.arch = arch;
        self
    }

    pub(crate) fn module(mut self, module: impl Into<String>) -> Form {
        self.module = module.into();
        self
    }

    pub(crate) fn within(mut self, tolerance: &str) -> Form {
        self.tolerance = Tolerance::parse(tolerance).unwrap_or_else(|| panic!("{tolerance}"));
        self
    }

    /// Changes the inputs, a value at a time.
    pub(crate) fn with(mut self, column: usize, f: impl Fn(u64) -> u64) -> Form {
        for value in &mut self.data[column] {
            *value = f(*value);
        }
        self
    }

    pub(crate) fn threads(&self) -> usize {
        self.data.first().map_or(THREADS, Vec::len)
    }

    /// The whole PTX text of a kernel `case(out, in)`.
    pub(crate) fn text(&self) -> String {
        let kernel = self.kernel("case");
        let (arch, module) = (self.arch, &self.module);
        format!(".version 8.7\n.target sm_{arch}\n.address_size 64\n{module}\n{kernel}")
    }

    /// The kernel alone under a name.
    pub(crate) fn kernel(&self, name: &str) -> String {
        let threads = self.threads();
        let bits = |kind: &Type| (8 * kind.bytes()).max(16);
        let mut text = format!(
            ".visible .entry {name}(.param .u64 out, .param .u64 in)\n{{\n\
             .reg .b32 %thread;\n.reg .b64 %out, %in, %slot;\n"
        );
        let names = |prefix, kinds: &[Type]| -> String {
            let declare = |(at, kind)| format!(".reg .b{} %{prefix}{at};\n", bits(kind));
            kinds.iter().enumerate().map(declare).collect()
        };
        text += &names('i', &self.inputs);
        text += &names('o', &self.outputs);
        text += "ld.param.u64 %in, [in];\nld.param.u64 %out, [out];\nmov.u32 %thread, %tid.x;\n\
                 mul.wide.u32 %slot, %thread, 8;\nadd.s64 %in, %in, %slot;\nadd.s64 %out, %out, %slot;\n";
        for (at, kind) in self.inputs.iter().enumerate() {
            let (width, offset) = (8 * kind.bytes(), 8 * threads * at);
            text += &format!("ld.global.b{width} %i{at}, [%in+{offset}];\n");
        }
        text += "{\n";
        text += &self.body;
        text += "\n}\n";
        for (at, kind) in self.outputs.iter().enumerate() {
            let (width, offset) = (8 * kind.bytes(), 8 * threads * at);
            text += &format!("st.global.b{width} [%out+{offset}], %o{at};\n");
        }
        text += "ret;\n}\n";
        text
    }
}

/// A seeded generator: the same numbers on every run and every device.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(name: &str) -> Random {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Random(hash)
    }

    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Inputs: first every pair of edges in the first two columns, then random bits.
pub(crate) fn samples(kinds: &[Type], name: &str, threads: usize) -> Vec<Vec<u64>> {
    let mut random = Random::new(name);
    let lists: Vec<Vec<u64>> = kinds.iter().map(|&kind| edges(kind)).collect();
    let edged = threads * 3 / 4;
    let mut out = vec![Vec::new(); kinds.len()];
    for thread in 0..threads {
        let mut place = thread;
        for (column, list) in lists.iter().enumerate() {
            let bits = match (thread < edged, column) {
                (true, 0 | 1) => {
                    let at = place % list.len();
                    place /= list.len();
                    list[at]
                }
                (true, _) => list[random.next() as usize % list.len()],
                (false, _) => near(kinds[column], random.next()),
            };
            out[column].push(bits);
        }
    }
    out
}

/// Random bits of a type; floats of a moderate size, so that sums and products mean something.
fn near(kind: Type, bits: u64) -> u64 {
    let with_exponent = |mantissa: u32, bias: u64, sign: u32| {
        let exponent = bias + (bits >> 56) % 9 - 4;
        bits & ((1 << mantissa) - 1) | exponent << mantissa | (bits >> 55 & 1) << sign
    };
    let pair = |half: u64, other: u64| half | other << 16;
    match kind {
        Type::F16 => with_exponent(10, 15, 15),
        Type::Bf16 => with_exponent(7, 127, 15),
        Type::F32 => with_exponent(23, 127, 31),
        Type::F64 => with_exponent(52, 1023, 63),
        Type::F16x2 => pair(near(Type::F16, bits), near(Type::F16, bits.rotate_left(29))),
        Type::Bf16x2 => pair(
            near(Type::Bf16, bits),
            near(Type::Bf16, bits.rotate_left(29)),
        ),
        Type::Unsigned(bytes) | Type::Signed(bytes) => bits >> (64 - 8 * bytes),
    }
}

/// Values at which a type's arithmetic turns.
fn edges(kind: Type) -> Vec<u64> {
    let float = |mantissa: u32, exponent: u32, rest: &[f64], bits: &dyn Fn(f64) -> u64| {
        let sign = 1u64 << (mantissa + exponent);
        let infinity = ((1 << exponent) - 1) << mantissa;
        let mut out = vec![0, sign, infinity, infinity | sign, sign - 1];
        // the least subnormal, the largest subnormal, the least normal, the largest
        out.extend([1, (1 << mantissa) - 1, 1 << mantissa, infinity - 1]);
        out.extend(rest.iter().map(|&value| bits(value)));
        out
    };
    let rest = [1.0, -1.0, 1.5, -2.5, 0.1];
    match kind {
        Type::Unsigned(bytes) | Type::Signed(bytes) => {
            let bits = 8 * bytes;
            let all = u64::MAX >> (64 - bits);
            let top = 1 << (bits - 1);
            vec![
                0,
                1,
                2,
                5,
                31 & all,
                33 & all,
                top - 1,
                top,
                top + 1,
                all,
                all - 1,
                0x5a5a_a5a5_1234_8765 & all,
            ]
        }
        Type::F16 => float(10, 5, &rest, &|x| half::f16::from_f64(x).to_bits().into()),
        Type::Bf16 => float(7, 8, &rest, &|x| half::bf16::from_f64(x).to_bits().into()),
        Type::F32 => float(23, 8, &rest, &|x| (x as f32).to_bits().into()),
        Type::F64 => float(52, 11, &rest, &f64::to_bits),
        Type::F16x2 | Type::Bf16x2 => {
            let half = edges(if kind == Type::F16x2 {
                Type::F16
            } else {
                Type::Bf16
            });
            let count = half.len();
            (0..count)
                .map(|at| half[at] | half[(5 * at + 3) % count] << 16)
                .collect()
        }
    }
}
