//! Counts what accesses of memory cost: sectors of global memory, passes over the banks of shared memory.

use super::context::lanes;
use super::registers::LANES;
use super::together::Pattern;
use crate::report::{GlobalTraffic, SharedTraffic};

/// Adds one request of global memory: its 32-byte sectors.
pub(super) fn count_global(
    traffic: &mut GlobalTraffic,
    addresses: &[u64; LANES],
    mask: u32,
    bytes: u64,
    pattern: Pattern,
) {
    traffic.requests += 1;
    traffic.bytes += bytes * u64::from(mask.count_ones());
    let whole = match pattern {
        Pattern::Same => bytes,
        Pattern::Row => bytes * LANES as u64,
        Pattern::Any => 0,
    };
    if whole != 0
        && let Some(last) = addresses[0].checked_add(whole - 1)
    {
        traffic.sectors += last / 32 - addresses[0] / 32 + 1;
        return;
    }
    let mut sectors = [0u64; 2 * LANES];
    let (mut count, mut sorted) = (0, true);
    for lane in lanes(mask) {
        // an address that leads past the end of all is judged elsewhere
        for sector in addresses[lane] / 32..=addresses[lane].saturating_add(bytes - 1) / 32 {
            if count > 0 && sectors[count - 1] == sector {
                continue;
            }
            sorted &= count == 0 || sectors[count - 1] < sector;
            sectors[count] = sector;
            count += 1;
        }
    }
    let list = &mut sectors[..count];
    if !sorted {
        list.sort_unstable();
    }
    let distinct = list.chunk_by(|a, b| a == b).count();
    traffic.sectors += distinct as u64;
}

/// Adds a bulk access of global memory: a request of its own.
pub(super) fn count_range(traffic: &mut GlobalTraffic, address: u64, bytes: usize) {
    traffic.requests += 1;
    traffic.sectors += (address + bytes as u64).div_ceil(32) - address / 32;
    traffic.bytes += bytes as u64;
}

/// Adds one request of shared memory: its passes over the banks, in phases of 128 bytes. `bytes` is a power of two.
pub(super) fn count_shared(
    traffic: &mut SharedTraffic,
    addresses: &[u64; LANES],
    mask: u32,
    bytes: u64,
    pattern: Pattern,
) {
    traffic.requests += 1;
    // a phase moves at most 128 bytes: 32 lanes of 4, 16 of 8 or 8 of 16
    let unit = bytes.max(4);
    let banks = 128 / unit;
    let group = LANES.min(banks as usize);
    if pattern != Pattern::Any {
        // no bank meets two units in a phase
        let phases = (LANES / group) as u64;
        traffic.wavefronts += phases;
        traffic.ideal_wavefronts += phases;
        return;
    }
    let shift = unit.trailing_zeros();
    for start in (0..LANES).step_by(group) {
        let phase = mask >> start & (u32::MAX >> (LANES - group));
        if phase == 0 {
            continue;
        }
        // most accesses meet a bank once or not at all, where neighbours that ask for the same count as one
        let (mut met, mut asked, mut before) = (0u32, 0, u64::MAX);
        for lane in lanes(phase) {
            let chunk = addresses[start + lane] >> shift;
            if chunk != before {
                met |= 1 << (chunk & (banks - 1));
                asked += 1;
                before = chunk;
            }
        }
        if met.count_ones() == asked {
            traffic.wavefronts += 1;
            traffic.ideal_wavefronts += 1;
            continue;
        }
        // the first unit that each bank serves, and those that come on top
        let mut first = [0; LANES];
        let mut depth = [0u64; LANES];
        let mut more = [0; LANES];
        let mut extra = 0;
        for lane in lanes(phase) {
            let chunk = addresses[start + lane] >> shift;
            let bank = (chunk & (banks - 1)) as usize;
            if depth[bank] == 0 {
                first[bank] = chunk;
            } else if first[bank] == chunk || more[..extra].contains(&chunk) {
                continue;
            } else {
                more[extra] = chunk;
                extra += 1;
            }
            depth[bank] += 1;
        }
        let distinct: u64 = depth.iter().sum();
        traffic.wavefronts += depth.into_iter().max().unwrap_or(1);
        traffic.ideal_wavefronts += (distinct * unit).div_ceil(128);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(f: impl Fn(u64) -> u64) -> [u64; LANES] {
        std::array::from_fn(|lane| f(lane as u64))
    }

    #[test]
    fn wavefronts_follow_the_banks() {
        let passes = |f: fn(u64) -> u64, bytes| {
            let mut traffic = SharedTraffic::default();
            let at = addresses(f);
            let pattern = Pattern::of(&at, u32::MAX, bytes as usize);
            count_shared(&mut traffic, &at, u32::MAX, bytes, pattern);
            let mut slow = SharedTraffic::default();
            count_shared(&mut slow, &at, u32::MAX, bytes, Pattern::Any);
            assert_eq!(traffic, slow, "{pattern:?}");
            (traffic.wavefronts, traffic.ideal_wavefronts)
        };
        assert_eq!(passes(|lane| 4 * lane, 4), (1, 1));
        assert_eq!(passes(|_| 64, 4), (1, 1), "one word for all is a broadcast");
        assert_eq!(passes(|lane| 8 * lane, 4), (2, 1));
        assert_eq!(passes(|lane| 128 * lane, 4), (32, 1));
        assert_eq!(passes(|lane| 16 * lane, 16), (4, 4));
        assert_eq!(
            passes(|lane| 128 * lane, 16),
            (32, 4),
            "eight rows at one bank a phase"
        );
        assert_eq!(passes(|lane| 2 * lane, 2), (1, 1));
        assert_eq!(
            passes(|lane| lane / 4 * 16, 16),
            (4, 4),
            "four lanes ask for the same"
        );
        assert_eq!(passes(|lane| lane % 2 * 128, 4), (2, 1));
    }

    #[test]
    fn sectors_are_counted_once() {
        let sectors = |f: fn(u64) -> u64, bytes| {
            let mut traffic = GlobalTraffic::default();
            let at = addresses(f);
            let pattern = Pattern::of(&at, u32::MAX, bytes as usize);
            count_global(&mut traffic, &at, u32::MAX, bytes, pattern);
            let mut slow = GlobalTraffic::default();
            count_global(&mut slow, &at, u32::MAX, bytes, Pattern::Any);
            assert_eq!(traffic, slow, "{pattern:?}");
            traffic.sectors
        };
        assert_eq!(sectors(|lane| 4 * lane, 4), 4);
        assert_eq!(sectors(|lane| 128 - 4 * (lane + 1), 4), 4);
        assert_eq!(sectors(|lane| 1024 * lane, 4), 32);
        assert_eq!(sectors(|lane| 16 * lane, 16), 16);
        assert_eq!(sectors(|lane| 48 + 2 * lane, 2), 3);
        assert_eq!(sectors(|_| 40, 8), 1);
    }
}
