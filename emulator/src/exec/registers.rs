//! The register file of a warp: rows of 32 words, and predicates of one bit a lane.

use crate::ir::{Pred, Slot};

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// The mask of all lanes.
pub(crate) const FULL: u32 = u32::MAX;

/// One 32-bit register of all lanes.
#[derive(Debug, Clone, Copy)]
#[repr(align(128))]
pub(crate) struct Row(pub [u32; LANES]);

/// A type that registers hold: how many rows, and how to read and write all lanes.
pub(crate) trait Lane: Copy + Default {
    fn read(registers: &Registers, slot: Slot) -> [Self; LANES];
    fn write(registers: &mut Registers, mask: u32, slot: Slot, values: [Self; LANES]);
}

/// Registers and predicates of one warp.
#[derive(Debug)]
pub(crate) struct Registers {
    rows: Vec<Row>,
    predicates: Vec<u32>,
    /// Nothing was written since the rows were filled.
    fresh: bool,
}

/// What registers hold that nobody has written: NaN as a float.
const UNSET: Row = Row([u32::MAX; LANES]);

impl Registers {
    pub(crate) fn new(rows: u32, predicates: u32) -> Self {
        Registers {
            rows: vec![UNSET; rows as usize],
            predicates: vec![0; predicates as usize],
            fresh: true,
        }
    }

    /// Fills every register with one pattern, so that no block sees what another left.
    pub(crate) fn reset(&mut self) {
        if !std::mem::take(&mut self.fresh) {
            self.rows.fill(UNSET);
        }
        self.predicates.fill(0);
        self.predicates[usize::from(crate::ir::ALWAYS)] = FULL;
    }

    pub(crate) fn row(&self, slot: Slot) -> &[u32; LANES] {
        &self.rows[usize::from(slot)].0
    }

    pub(crate) fn row_mut(&mut self, slot: Slot) -> &mut [u32; LANES] {
        &mut self.rows[usize::from(slot)].0
    }

    #[inline(always)]
    pub(crate) fn predicate(&self, index: Pred) -> u32 {
        self.predicates[usize::from(index)]
    }

    #[inline(always)]
    pub(crate) fn set_predicate(&mut self, mask: u32, index: Pred, value: u32) {
        let slot = &mut self.predicates[usize::from(index)];
        *slot = *slot & !mask | value & mask;
    }

    #[inline(always)]
    pub(crate) fn get<T: Lane>(&self, slot: Slot) -> [T; LANES] {
        T::read(self, slot)
    }

    #[inline(always)]
    pub(crate) fn put<T: Lane>(&mut self, mask: u32, slot: Slot, values: [T; LANES]) {
        T::write(self, mask, slot, values);
    }

    #[inline(always)]
    pub(crate) fn map1<A: Lane, D: Lane>(
        &mut self,
        mask: u32,
        d: Slot,
        a: Slot,
        f: impl Fn(A) -> D,
    ) {
        let a = self.get::<A>(a);
        let mut out = [D::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(a[lane]);
        }
        self.put(mask, d, out);
    }

    #[inline(always)]
    pub(crate) fn map2<A: Lane, B: Lane, D: Lane>(
        &mut self,
        mask: u32,
        d: Slot,
        (a, b): (Slot, Slot),
        f: impl Fn(A, B) -> D,
    ) {
        let (a, b) = (self.get::<A>(a), self.get::<B>(b));
        let mut out = [D::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(a[lane], b[lane]);
        }
        self.put(mask, d, out);
    }

    #[inline(always)]
    pub(crate) fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(
        &mut self,
        mask: u32,
        d: Slot,
        (a, b, c): (Slot, Slot, Slot),
        f: impl Fn(A, B, C) -> D,
    ) {
        let (a, b, c) = (self.get::<A>(a), self.get::<B>(b), self.get::<C>(c));
        let mut out = [D::default(); LANES];
        for lane in 0..LANES {
            out[lane] = f(a[lane], b[lane], c[lane]);
        }
        self.put(mask, d, out);
    }

    /// The lanes where a relation holds.
    #[inline(always)]
    pub(crate) fn test<A: Lane, B: Lane>(&self, a: Slot, b: Slot, f: impl Fn(A, B) -> bool) -> u32 {
        let (a, b) = (self.get::<A>(a), self.get::<B>(b));
        let mut bits = 0;
        for lane in 0..LANES {
            bits |= u32::from(f(a[lane], b[lane])) << lane;
        }
        bits
    }
}

/// Writes the lanes of `mask`.
#[inline(always)]
fn blend(mask: u32, to: &mut [u32; LANES], values: [u32; LANES]) {
    if mask == FULL {
        *to = values;
    } else {
        blend_some(mask, to, &values);
    }
}

/// Out of line: it would stand in every operation otherwise.
#[inline(never)]
fn blend_some(mask: u32, to: &mut [u32; LANES], values: &[u32; LANES]) {
    for lane in 0..LANES {
        let keep = (mask >> lane & 1).wrapping_sub(1);
        to[lane] = to[lane] & keep | values[lane] & !keep;
    }
}

impl Lane for u32 {
    #[inline(always)]
    fn read(registers: &Registers, slot: Slot) -> [u32; LANES] {
        *registers.row(slot)
    }

    #[inline(always)]
    fn write(registers: &mut Registers, mask: u32, slot: Slot, values: [u32; LANES]) {
        blend(mask, registers.row_mut(slot), values);
    }
}

impl Lane for u64 {
    /// The low words lie in the first row, the high words in the second.
    #[inline(always)]
    fn read(registers: &Registers, slot: Slot) -> [u64; LANES] {
        let rows = &registers.rows[usize::from(slot)..usize::from(slot) + 2];
        let mut out = [0; LANES];
        for (out, (&low, &high)) in out.iter_mut().zip(rows[0].0.iter().zip(&rows[1].0)) {
            *out = u64::from(low) | u64::from(high) << 32;
        }
        out
    }

    #[inline(always)]
    fn write(registers: &mut Registers, mask: u32, slot: Slot, values: [u64; LANES]) {
        let rows = &mut registers.rows[usize::from(slot)..usize::from(slot) + 2];
        let (mut low, mut high) = ([0; LANES], [0; LANES]);
        for lane in 0..LANES {
            low[lane] = values[lane] as u32;
            high[lane] = (values[lane] >> 32) as u32;
        }
        blend(mask, &mut rows[0].0, low);
        blend(mask, &mut rows[1].0, high);
    }
}

/// A type stored as another of the same size or wider.
macro_rules! lane_as {
    ($($kind:ty: $store:ty, $read:expr, $write:expr;)*) => {$(
        impl Lane for $kind {
            #[inline(always)]
            fn read(registers: &Registers, slot: Slot) -> [$kind; LANES] {
                let stored = <$store>::read(registers, slot);
                let mut out = [<$kind>::default(); LANES];
                for lane in 0..LANES {
                    out[lane] = $read(stored[lane]);
                }
                out
            }

            #[inline(always)]
            fn write(registers: &mut Registers, mask: u32, slot: Slot, values: [$kind; LANES]) {
                let mut out = [<$store>::default(); LANES];
                for lane in 0..LANES {
                    out[lane] = $write(values[lane]);
                }
                <$store>::write(registers, mask, slot, out);
            }
        }
    )*};
}

lane_as! {
    i32: u32, u32::cast_signed, i32::cast_unsigned;
    i64: u64, u64::cast_signed, i64::cast_unsigned;
    u16: u32, (|value: u32| value as u16), u32::from;
    i16: u32, (|value: u32| value as i16), (|value: i16| u32::from(value as u16));
    f32: u32, f32::from_bits, f32::to_bits;
    f64: u64, f64::from_bits, f64::to_bits;
}
