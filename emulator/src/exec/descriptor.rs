//! Matrix descriptors of wgmma: where in shared memory an element of an operand lies.
//!
//! Memory is seen as units of 16 bytes. With the rows contiguous (K-major) a unit holds neighbours in K, else (MN-major)
//! neighbours in M or N. Eight units, each in the next line of a swizzle pattern, make a core; the two strides lead from
//! core to core. The swizzle then exchanges units within a line by the address itself, as bulk copies of tensors do.

/// A descriptor, decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    start: u64,
    /// The leading and the stride dimension byte offsets.
    leading: u64,
    stride: u64,
    /// The line of 128 bytes, of eight, that the swizzle pattern starts in; 0 where it starts at a multiple of its size.
    base: u64,
    /// Bytes of a line of the swizzle pattern: 16 without one.
    line: u64,
}

impl Descriptor {
    pub(super) fn new(bits: u64) -> Descriptor {
        let field = |at: u32, width: u32| bits >> at & ((1 << width) - 1);
        Descriptor {
            start: field(0, 14) << 4,
            leading: field(16, 14) << 4,
            stride: field(32, 14) << 4,
            base: field(49, 3),
            line: [16, 128, 64, 32][field(62, 2) as usize],
        }
    }

    /// The address of the unit that holds K units `unit` of row `row` of a K-major matrix.
    pub(super) fn unit_of_row(&self, row: u64, unit: u64) -> u64 {
        let core = self.start + row / 8 * self.stride + row % 8 * self.line;
        let across = if self.line == 16 { self.leading } else { 16 };
        self.swizzled(core + unit * across)
    }

    /// The address of the unit that holds rows `8 unit` to `8 unit + 7` of column `k` of an MN-major matrix.
    pub(super) fn unit_of_column(&self, unit: u64, k: u64) -> u64 {
        let units = self.line / 16;
        let (along, down) = if self.line == 16 {
            (self.stride, self.leading)
        } else {
            (self.leading, self.stride)
        };
        let core = self.start + unit / units * along + k / 8 * down;
        self.swizzled(core + unit % units * 16 + k % 8 * self.line)
    }

    fn swizzled(&self, address: u64) -> u64 {
        let mask = self.line / 16 - 1;
        let line = (address >> 7).wrapping_sub(self.base);
        address ^ (line & mask) << 4
    }
}
