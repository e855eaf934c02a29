//! Where the operands of a wgmma lie in shared memory, and products of every such layout.
//!
//! The layouts are written down from their pictures in the manual (PTX ISA, asynchronous warpgroup level matrix
//! instructions: shared memory layout): where the element of a row and a column lies. The emulator goes the other way, from
//! descriptors to addresses.

use super::wgmma::{Form, Kind};

/// How an operand lies in shared memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Layout {
    /// Bytes of the swizzle's lines; 0 without one.
    pub(super) swizzle: usize,
    /// M or N is contiguous.
    pub(super) transposed: bool,
    /// Bytes from the start of the tile at which the instruction's columns begin, of a K-major tile with a swizzle.
    skip: usize,
    /// Bytes before the swizzle's pattern begins, a multiple of 128: if it is none of the pattern's size, the descriptor's
    /// base offset says so.
    shift: usize,
    /// Rows of the pattern before those of a K-major tile.
    first: usize,
}

impl Layout {
    /// The byte at which an element lies, from the start of the tile.
    pub(super) fn place(self, row: usize, column: usize, size: usize) -> usize {
        let (line, atom) = (self.swizzle, 8 * self.swizzle);
        let row = row + self.first;
        // places are counted from the start of the pattern
        self.shift
            + match (self.transposed, self.swizzle) {
                (false, 0) => {
                    // cores of 8 rows by 16 bytes, two side by side
                    let byte = column * size;
                    row / 8 * 256 + byte / 16 * 128 + row % 8 * 16 + byte % 16
                }
                (false, _) => {
                    let byte = self.skip + column * size;
                    let chunk = (byte / 16) ^ (row * line / 128 % (line / 16));
                    row * line + chunk * 16 + byte % 16
                }
                (true, 0) => row / 8 * 256 + column / 8 * 128 + column % 8 * 16 + row % 8 * 2,
                (true, _) => {
                    let across = line / 2;
                    let chunk = (row % across / 8) ^ (column % 8 * line / 128 % (line / 16));
                    row / across * 2 * atom
                        + column / 8 * atom
                        + column % 8 * line
                        + chunk * 16
                        + row % 8 * 2
                }
            }
    }

    /// The descriptor of a tile at a shared address.
    pub(super) fn descriptor(self, start: usize) -> u64 {
        let atom = 8 * self.swizzle;
        let (leading, stride) = match (self.transposed, self.swizzle) {
            (false, 0) => (128, 256),
            (false, _) => (16, atom),
            (true, 0) => (128, 256),
            (true, _) => (2 * atom, atom),
        };
        let mode = match self.swizzle {
            128 => 1,
            64 => 2,
            32 => 3,
            _ => 0u64,
        };
        let field = |bytes: usize, at: u32| (bytes as u64 >> 4) << at;
        let pattern = start + self.shift;
        let offset = if self.swizzle == 0 || pattern.is_multiple_of(atom) {
            0
        } else {
            pattern as u64 >> 7 & 7
        };
        field(pattern + self.first * self.swizzle + self.skip, 0)
            | field(leading, 16)
            | field(stride, 32)
            | offset << 49
            | mode << 62
    }
}

pub(super) const K_MAJOR: Layout = Layout {
    swizzle: 128,
    transposed: false,
    skip: 0,
    shift: 0,
    first: 0,
};

#[test]
fn operands_lie_in_every_layout() {
    let layouts = [false, true].map(|transposed| {
        [0, 32, 64, 128].map(|swizzle| Layout {
            swizzle,
            transposed,
            skip: 0,
            shift: 0,
            first: 0,
        })
    });
    for a_layout in layouts.concat() {
        for b_layout in layouts.concat() {
            let form = Form::new(Kind::Bf16, "f32", 80);
            Form {
                a_layout: Some(a_layout),
                b_layout,
                ..form
            }
            .check();
            Form {
                a_layout: None,
                b_layout,
                ..form
            }
            .check();
        }
    }
    for swizzle in [0, 32, 64, 128] {
        let layout = Layout { swizzle, ..K_MAJOR };
        for kind in [Kind::Tf32, Kind::E4m3] {
            let form = Form::new(kind, "f32", 24);
            Form {
                a_layout: Some(layout),
                b_layout: layout,
                ..form
            }
            .check();
        }
    }
}

#[test]
fn columns_begin_anywhere_in_a_swizzled_line() {
    for (swizzle, skips) in [(128, &[32, 64, 96][..]), (64, &[32])] {
        for &skip in skips {
            let layout = Layout {
                swizzle,
                skip,
                ..K_MAJOR
            };
            let form = Form::new(Kind::F16, "f32", 64);
            Form {
                a_layout: Some(layout),
                b_layout: layout,
                ..form
            }
            .check();
        }
    }
}

/// The pattern of a swizzle begins at a multiple of 1024, 512 or 256 bytes, or the descriptor's base offset is the line of
/// 128 bytes it begins in (PTX ISA, matrix descriptor format). What lies there is then the same picture, moved.
#[test]
fn patterns_begin_at_any_line() {
    for swizzle in [32, 64, 128] {
        for shift in [128, 256, 384, 512, 640, 768, 896, 1024] {
            for transposed in [false, true] {
                let layout = Layout {
                    swizzle,
                    transposed,
                    skip: 0,
                    shift,
                    first: 0,
                };
                let form = Form::new(Kind::F16, "f32", 72);
                let other = Layout {
                    shift: 1024 - shift,
                    ..layout
                };
                Form {
                    a_layout: Some(layout),
                    b_layout: other,
                    ..form
                }
                .check();
            }
            let columns = Layout {
                shift,
                skip: if swizzle == 32 { 0 } else { 32 },
                swizzle,
                ..K_MAJOR
            };
            Form {
                a_layout: None,
                b_layout: columns,
                ..Form::new(Kind::Bf16, "f32", 24)
            }
            .check();
        }
    }
}

/// A tile that begins some rows into a pattern needs no base offset: the pattern is where it was.
#[test]
fn tiles_begin_at_any_row_of_a_pattern() {
    for (swizzle, rows) in [(128, [1, 3, 8]), (64, [2, 4, 6]), (32, [4, 8, 12])] {
        for rows in rows {
            let layout = Layout {
                swizzle,
                first: rows,
                ..K_MAJOR
            };
            Form {
                a_layout: Some(layout),
                b_layout: layout,
                ..Form::new(Kind::F16, "f32", 32)
            }
            .check();
        }
    }
}
