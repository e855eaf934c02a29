//! The tables agree with each other and with the GPUs they are for.

use super::Numbers::{Complex, Real};
use super::Source::{Any, Variable};
use super::*;

/// What GPUs of compute capability 8.6, 8.9 and 12.0 give to one block: the least since 8.0.
const SHARED_BYTES: usize = 99 << 10;

#[test]
fn rows_fit_every_gpu_since_ampere() {
    for row in FORWARD {
        let Entry { name, threads, .. } = row.entry();
        assert!(row.shared_bytes() <= SHARED_BYTES, "{name}");
        assert!(threads <= 1024, "{name}");
        let of_lane = row.states / row.lanes;
        assert_eq!(
            of_lane * row.lanes,
            row.states,
            "{name}: lanes share the states"
        );
        assert!(
            of_lane == 1 || of_lane % 4 == 0,
            "{name}: whole pieces of 16 bytes"
        );
    }
    for row in BACKWARD {
        let Entry { name, threads, .. } = row.entry();
        assert!(row.shared_bytes() <= SHARED_BYTES, "{name}");
        assert!(threads <= 1024, "{name}");
        assert_eq!(
            row.states % (4 * row.lanes),
            0,
            "{name}: whole pieces of 16 bytes"
        );
        // those of f32, which are half as many
        let steps = row.row_bytes / 4;
        assert_eq!(steps % row.depth, 0, "{name}: whole parts");
    }
}

#[test]
fn tiles_of_the_scan_are_whole_intervals_of_the_gradients() {
    for forward in FORWARD {
        for backward in BACKWARD {
            assert_eq!(
                forward.row_bytes % backward.row_bytes,
                0,
                "{} and {}",
                forward.entry().name,
                backward.entry().name
            );
        }
    }
}

#[test]
fn every_state_size_has_a_row() {
    for (numbers, source) in [(Real, Variable), (Real, Any), (Complex, Any)] {
        let forward = FORWARD.iter();
        let forward = forward.filter(|row| row.numbers == numbers && row.source == source);
        let backward = BACKWARD.iter();
        let backward = backward.filter(|row| row.numbers == numbers && row.source == source);
        let states: [Vec<usize>; 2] = [
            forward.map(|row| row.states).collect(),
            backward.map(|row| row.states).collect(),
        ];
        for states in states {
            assert!(states.is_sorted(), "{numbers:?} {source:?}: {states:?}");
            assert_eq!(states.last(), Some(&256), "{numbers:?} {source:?}");
        }
    }
}

#[test]
fn a_row_spells_its_kernel() {
    let entry = FORWARD[1].entry();
    assert_eq!(entry.name, "selective_scan_forward_real_16");
    assert_eq!(
        entry.instance,
        "seqmix::selective_scan::Forward<seqmix::selective_scan::Real, 4, 4, 2, 64, 32, \
         seqmix::selective_scan::Source::Variable>"
    );
    assert_eq!((entry.threads, entry.shared_bytes), (128, 26_240));
}
