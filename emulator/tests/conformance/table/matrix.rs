//! mma.sync of every dense shape, movmatrix, and ldmatrix with stmatrix: whole matrices, put into fragments by the
//! manual's formulas. The numbers are small and whole, so that sums are exact in any order.

use super::number;
use crate::exact::{Direction, E4M3, E5M2, F16, F32, F64, Format, whole};
use crate::form::{Form, Random};

const LANES: usize = 32;

/// The type of an element.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Float(Format, u32),
    Integer(u32, bool),
}

/// What a name stands for, and its bits in a register.
fn kind(name: &str) -> Kind {
    match name {
        "f16" => Kind::Float(F16, 16),
        "bf16" => Kind::Float(crate::exact::BF16, 16),
        "tf32" | "f32" => Kind::Float(F32, 32),
        "f64" => Kind::Float(F64, 64),
        "e4m3" => Kind::Float(E4M3, 8),
        "e5m2" => Kind::Float(E5M2, 8),
        "b1" => Kind::Integer(1, false),
        integer => Kind::Integer(integer[1..].parse().unwrap(), integer.starts_with('s')),
    }
}

impl Kind {
    fn bits(self) -> u32 {
        match self {
            Kind::Float(_, bits) | Kind::Integer(bits, _) => bits,
        }
    }

    /// Elements of a register.
    fn packed(self) -> usize {
        (32 / self.bits()).max(1) as usize
    }

    /// The bits of a whole number.
    fn encode(self, value: i128) -> u64 {
        match self {
            Kind::Float(format, _) => format.round(&whole(value), Direction::Nearest),
            Kind::Integer(bits, _) => number(value as u64, bits, false) as u64,
        }
    }

    /// A number that sums of products of stay exact with.
    fn pick(self, random: &mut Random) -> i128 {
        let bits = random.next();
        match self {
            Kind::Float(..) => (bits % 9) as i128 - 4,
            Kind::Integer(width, signed) => number(bits, width, signed),
        }
    }
}

/// A matrix of whole numbers, row by row.
#[derive(Clone)]
struct Matrix(Vec<Vec<i128>>);

impl Matrix {
    fn random(rows: usize, columns: usize, kind: Kind, random: &mut Random) -> Matrix {
        Matrix(
            (0..rows)
                .map(|_| (0..columns).map(|_| kind.pick(random)).collect())
                .collect(),
        )
    }
}

/// Where element `i` of a lane's fragment of A lies: row and column, for the shapes with 8 or 16 rows.
fn of_a(kind: Kind, rows: usize, i: usize, lane: usize) -> (usize, usize) {
    let (group, place) = (lane >> 2, lane % 4);
    let (packed, register) = (kind.packed(), i / kind.packed());
    let (below, right) = match rows {
        8 => (0, register),
        _ => (register % 2, register / 2),
    };
    (
        group + 8 * below,
        place * packed + i % packed + 4 * packed * right,
    )
}

/// The same of B.
fn of_b(kind: Kind, i: usize, lane: usize) -> (usize, usize) {
    let (group, place) = (lane >> 2, lane % 4);
    let packed = kind.packed();
    (
        place * packed + i % packed + 4 * packed * (i / packed),
        group,
    )
}

/// The same of C and D.
fn of_c(i: usize, lane: usize) -> (usize, usize) {
    ((lane >> 2) + 8 * (i / 2), (lane % 4) * 2 + i % 2)
}

/// The registers that hold a matrix, a column of lanes each; `place` says where an element lies.
fn registers(
    matrix: &Matrix,
    kind: Kind,
    elements: usize,
    place: impl Fn(usize, usize) -> (usize, usize),
) -> Vec<Vec<u64>> {
    let packed = kind.packed();
    let word = |register: usize, lane: usize| {
        (0..packed).fold(0, |word, at| {
            let (row, column) = place(register * packed + at, lane);
            word | kind.encode(matrix.0[row][column]) << (kind.bits() * at as u32)
        })
    };
    (0..elements / packed)
        .map(|register| (0..LANES).map(|lane| word(register, lane)).collect())
        .collect()
}

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    let mut all = |shapes: &[&'static str], types: [&'static str; 4], tail: &'static str, arch| {
        for shape in shapes {
            forms.push(product(shape, types, tail).arch(arch));
        }
    };
    let halves = ["m16n8k8", "m16n8k16"];
    all(&halves, ["f32", "f16", "f16", "f32"], "", 80);
    all(&halves, ["f16", "f16", "f16", "f16"], "", 80);
    all(&halves, ["f32", "bf16", "bf16", "f32"], "", 80);
    all(
        &["m16n8k4", "m16n8k8"],
        ["f32", "tf32", "tf32", "f32"],
        "",
        80,
    );
    all(&["m8n8k4"], ["f64", "f64", "f64", "f64"], "", 80);
    all(
        &["m16n8k4", "m16n8k8", "m16n8k16"],
        ["f64", "f64", "f64", "f64"],
        "",
        90,
    );
    for accumulator in ["f32", "f16"] {
        for a in ["e4m3", "e5m2"] {
            for b in ["e4m3", "e5m2"] {
                // half accumulators and the lesser depth came with later assemblers than the types
                all(
                    &["m16n8k32", "m16n8k16"],
                    [accumulator, a, b, accumulator],
                    "",
                    89,
                );
            }
        }
    }
    for tail in ["", ".satfinite"] {
        for (a, b) in [("u8", "u8"), ("s8", "s8"), ("u8", "s8"), ("s8", "u8")] {
            all(
                &["m8n8k16", "m16n8k16", "m16n8k32"],
                ["s32", a, b, "s32"],
                tail,
                80,
            );
        }
        for (a, b) in [("u4", "u4"), ("s4", "s4"), ("u4", "s4"), ("s4", "u4")] {
            all(
                &["m8n8k32", "m16n8k32", "m16n8k64"],
                ["s32", a, b, "s32"],
                tail,
                80,
            );
        }
    }
    for tail in [".xor.popc", ".and.popc"] {
        all(
            &["m8n8k128", "m16n8k128", "m16n8k256"],
            ["s32", "b1", "b1", "s32"],
            tail,
            80,
        );
    }
    quads(&mut forms);
    transposes(&mut forms);
    forms
}

/// C plus the product of A and B.
fn multiply(a: &Matrix, b: &Matrix, c: &Matrix, f: impl Fn(i128, i128) -> i128) -> Matrix {
    let entry = |row: usize, column: usize| {
        let products = (0..b.0.len()).map(|k| f(a.0[row][k], b.0[k][column]));
        c.0[row][column] + products.sum::<i128>()
    };
    Matrix(
        (0..a.0.len())
            .map(|row| (0..8).map(|column| entry(row, column)).collect())
            .collect(),
    )
}

fn list(prefix: char, from: usize, count: usize) -> String {
    let names: Vec<_> = (from..from + count)
        .map(|at| format!("%{prefix}{at}"))
        .collect();
    format!("{{{}}}", names.join(", "))
}

fn product(shape: &str, [d, a, b, c]: [&'static str; 4], tail: &'static str) -> Form {
    let (rows, depth) = shape[1..].split_once("n8k").unwrap();
    let (rows, depth): (usize, usize) = (rows.parse().unwrap(), depth.parse().unwrap());
    let (tail_front, tail_back) = match tail {
        ".satfinite" => (tail, ""),
        _ => ("", tail),
    };
    let opcode = format!("mma.sync.aligned.{shape}.row.col{tail_front}.{d}.{a}.{b}.{c}{tail_back}");
    let mut random = Random::new(&opcode);
    let (kind_a, kind_b, kind_c) = (kind(a), kind(b), kind(c));
    let matrix_a = Matrix::random(rows, depth, kind_a, &mut random);
    let matrix_b = Matrix::random(depth, 8, kind_b, &mut random);
    let mut matrix_c = Matrix::random(rows, 8, kind_c, &mut random);
    if tail == ".satfinite" {
        // half of the sums leave the range
        for value in matrix_c.0.iter_mut().flatten() {
            *value = if *value < 0 {
                i32::MIN.into()
            } else {
                i32::MAX.into()
            };
        }
    }
    let bits = |x: i128, y: i128| match tail {
        ".xor.popc" => x ^ y,
        ".and.popc" => x & y,
        _ => x * y,
    };
    let mut sums = multiply(&matrix_a, &matrix_b, &matrix_c, bits);
    if tail == ".satfinite" {
        for value in sums.0.iter_mut().flatten() {
            *value = (*value).clamp(i32::MIN.into(), i32::MAX.into());
        }
    }
    let elements = rows * depth / LANES;
    let mut data = registers(&matrix_a, kind_a, elements, |i, lane| {
        of_a(kind_a, rows, i, lane)
    });
    let count_a = data.len();
    let of_b = |i, lane| of_b(kind_b, i, lane);
    data.extend(registers(&matrix_b, kind_b, 8 * depth / LANES, of_b));
    let count_b = data.len() - count_a;
    data.extend(registers(&matrix_c, kind_c, rows * 8 / LANES, of_c));
    let count_c = data.len() - count_a - count_b;
    let out = registers(&sums, kind(d), rows * 8 / LANES, of_c);
    let wide = |kind: Kind| if kind.bits() == 64 { "u64" } else { "u32" };
    let inputs = [
        vec![wide(kind_a); count_a],
        vec![wide(kind_b); count_b],
        vec![wide(kind_c); count_c],
    ]
    .concat()
    .join(" ");
    let outputs = vec![wide(kind(d)); out.len()].join(" ");
    let body = format!(
        "{opcode}\n{}, {}, {}, {};",
        list('o', 0, out.len()),
        list('i', 0, count_a),
        list('i', count_a, count_b),
        list('i', count_a + count_b, count_c)
    );
    let mut form = Form::warps(opcode, (&inputs, &outputs), LANES, body, move |_| {
        out.iter()
            .map(|column| column.iter().copied().map(Some).collect())
            .collect()
    });
    form.data = data;
    form
}

/// m8n8k4 of f16: four products, each of a quad of lanes and of the quad 16 lanes above.
fn quads(forms: &mut Vec<Form>) {
    for (a_rows, b_rows) in [(true, true), (true, false), (false, true), (false, false)] {
        for (d, c) in [("f16", "f16"), ("f32", "f32"), ("f32", "f16")] {
            let order = |rows: bool| if rows { "row" } else { "col" };
            let opcode = format!(
                "mma.sync.aligned.m8n8k4.{}.{}.{d}.f16.f16.{c}",
                order(a_rows),
                order(b_rows)
            );
            let mut random = Random::new(&opcode);
            let half = kind("f16");
            let matrices: Vec<[Matrix; 3]> = (0..4)
                .map(|_| {
                    [(8, 4), (4, 8), (8, 8)]
                        .map(|(rows, columns)| Matrix::random(rows, columns, half, &mut random))
                })
                .collect();
            let sums: Vec<Matrix> = matrices
                .iter()
                .map(|[a, b, c]| multiply(a, b, c, |x, y| x * y))
                .collect();
            // row and column of element i, as the manual's formulas go
            let low = |lane: usize| lane % 4 + if lane < 16 { 0 } else { 4 };
            let across = |lane: usize, i: usize| i % 4 + if lane < 16 { 0 } else { 4 };
            let of_a = move |i, lane| match a_rows {
                true => (low(lane), i),
                false => (across(lane, i), lane % 4),
            };
            let of_b = move |i, lane| match b_rows {
                true => (lane % 4, across(lane, i)),
                false => (i, low(lane)),
            };
            let of_c = move |name: &str, i: usize, lane: usize| match name {
                "f16" => (low(lane), i),
                _ => {
                    let row = (lane & 1) + (i & 2) + if lane < 16 { 0 } else { 4 };
                    (row, (i & 4) + (lane & 2) + (i & 1))
                }
            };
            // a quad's registers come from its own matrices
            type Pick<'a> = &'a dyn Fn(usize) -> &'a Matrix;
            let gather = |pick: Pick<'_>,
                          kind: Kind,
                          elements,
                          place: &dyn Fn(usize, usize) -> (usize, usize)| {
                let each: Vec<_> = (0..4)
                    .map(|quad| registers(pick(quad), kind, elements, place))
                    .collect();
                let quad = |lane: usize| lane % 16 / 4;
                (0..each[0].len())
                    .map(|register| {
                        (0..LANES)
                            .map(|lane| each[quad(lane)][register][lane])
                            .collect()
                    })
                    .collect::<Vec<Vec<u64>>>()
            };
            let mut data = gather(&|quad| &matrices[quad][0], half, 4, &of_a);
            data.extend(gather(&|quad| &matrices[quad][1], half, 4, &of_b));
            data.extend(gather(
                &|quad| &matrices[quad][2],
                kind(c),
                8,
                &|i, lane| of_c(c, i, lane),
            ));
            let out = gather(&|quad| &sums[quad], kind(d), 8, &|i, lane| of_c(d, i, lane));
            let count = data.len();
            let body = format!(
                "{opcode}\n{}, {}, {}, {};",
                list('o', 0, out.len()),
                list('i', 0, 2),
                list('i', 2, 2),
                list('i', 4, count - 4)
            );
            let (inputs, outputs) = (
                vec!["u32"; count].join(" "),
                vec!["u32"; out.len()].join(" "),
            );
            let mut form = Form::warps(opcode, (&inputs, &outputs), LANES, body, move |_| {
                out.iter()
                    .map(|column| column.iter().copied().map(Some).collect())
                    .collect()
            });
            form.data = data;
            forms.push(form);
        }
    }
}

/// The 8x8 tile of 16-bit elements that a register of all lanes holds.
fn tile(register: &[u64], row: usize, column: usize) -> u64 {
    register[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff
}

/// A register from a tile.
fn of_tile(f: impl Fn(usize, usize) -> u64) -> Vec<Option<u64>> {
    (0..LANES)
        .map(|lane| {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            Some(f(row, column) | f(row, column + 1) << 16)
        })
        .collect()
}

fn transposes(forms: &mut Vec<Form>) {
    let opcode = "movmatrix.sync.aligned.m8n8.trans.b16";
    let body = format!("{opcode} %o0, %i0;");
    forms.push(Form::warps(opcode, ("u32", "u32"), LANES, body, |data| {
        vec![of_tile(|row, column| tile(&data[0], column, row))]
    }));
    for count in [1, 2, 4] {
        for trans in ["", ".trans"] {
            for store in [false, true] {
                // rows of 16 bytes, tile after tile; lane l names row l
                let before = ".shared .align 16 .b8 tiles[512];\n.reg .b32 %at, %base, %row;\n\
                              mov.u32 %base, tiles;\nand.b32 %row, %thread, 31;\n";
                let mut body = before.to_string();
                let list = |prefix| list(prefix, 0, count);
                let opcode = if store { "stmatrix" } else { "ldmatrix" };
                let opcode = format!("{opcode}.sync.aligned.m8n8.x{count}{trans}.shared.b16");
                body += "mad.lo.u32 %row, %row, 16, %base;\nmad.lo.u32 %at, %thread, 4, %base;\n";
                let rows = if count == 4 { "%row" } else { "%base_row" };
                // lanes beyond the tiles name rows that exist
                if count < 4 {
                    body += &format!(
                        ".reg .b32 %base_row;\nand.b32 %base_row, %thread, {};\n\
                         mad.lo.u32 %base_row, %base_row, 16, %base;\n",
                        8 * count - 1
                    );
                }
                if store {
                    body += &format!(
                        "{opcode} [{rows}], {};\nbar.warp.sync 0xffffffff;\n",
                        list('i')
                    );
                    for at in 0..count {
                        body += &format!("ld.shared.b32 %o{at}, [%at+{}];\n", 128 * at);
                    }
                } else {
                    for at in 0..count {
                        body += &format!("st.shared.b32 [%at+{}], %i{at};\n", 128 * at);
                    }
                    body += &format!(
                        "bar.warp.sync 0xffffffff;\n{opcode} {}, [{rows}];",
                        list('o')
                    );
                }
                let kinds = vec!["u32"; count].join(" ");
                let form = Form::warps(opcode, (&kinds, &kinds), LANES, body, move |data| {
                    let moved = |register: &Vec<u64>| {
                        of_tile(|row, column| match trans {
                            "" => tile(register, row, column),
                            _ => tile(register, column, row),
                        })
                    };
                    data.iter().map(moved).collect()
                });
                forms.push(if store { form.arch(90) } else { form });
            }
        }
    }
}
