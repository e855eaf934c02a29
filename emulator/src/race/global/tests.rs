//! What orders two accesses of global memory, and what does not.

use super::super::shadow::Line;
use super::super::{Detector, Flags, Lanes};
use super::Touch;
use crate::ir::{Order, Scope};

/// Two blocks of two warps each that read memory by strong operations.
fn pair() -> [Detector; 2] {
    [0, 1].map(|unit| {
        let mut detector = Detector::new(64, 4, 2).synchronising();
        detector.reset(unit);
        detector
    })
}

fn touch(warp: usize, write: bool) -> Touch {
    Touch {
        warp,
        pc: 7,
        mask: 0xf,
        lanes: Lanes::one(0),
        write,
        scope: None,
    }
}

/// A strong access of the device's scope.
fn strong(warp: usize, write: bool) -> Touch {
    Touch {
        scope: Some(Scope::Device),
        ..touch(warp, write)
    }
}

const FLAG: [u64; 1] = [64];

fn raise(from: &mut Detector, flags: &mut Flags, warp: usize, order: Order) {
    assert!(from.strong_write(flags, &FLAG, (warp, 1, u32::MAX), order, false));
}

#[test]
fn blocks_are_ordered_by_a_flag_and_two_fences_only() {
    for (release, acquire) in [(true, true), (true, false), (false, true), (false, false)] {
        let ([mut one, mut two], mut flags) = (pair(), Flags::default());
        let mut line = Line::default();
        one.touch(&mut line, touch(0, true)).unwrap();
        if release {
            one.fence(0, Scope::Device, u32::MAX, u32::MAX);
        }
        raise(&mut one, &mut flags, 0, Order::RELAXED);
        two.strong_read(&flags, FLAG.into_iter(), 1, Order::RELAXED);
        if acquire {
            two.fence(1, Scope::Device, u32::MAX, u32::MAX);
        }
        let found = two.touch(&mut line, touch(1, false));
        assert_eq!(found.is_ok(), release && acquire, "{release} {acquire}");
        // the other warp of that block has seen nothing yet
        assert!(two.touch(&mut line, touch(0, false)).is_err());
        two.barrier(0, 0b11, 0b11);
        let found = two.touch(&mut line, touch(0, true));
        assert_eq!(found.is_ok(), release && acquire, "{release} {acquire}");
    }
}

#[test]
fn a_fence_of_the_block_reaches_no_other() {
    let ([mut one, mut two], mut flags) = (pair(), Flags::default());
    let mut line = Line::default();
    one.touch(&mut line, touch(0, true)).unwrap();
    one.fence(0, Scope::Block, u32::MAX, u32::MAX);
    raise(&mut one, &mut flags, 0, Order::RELAXED);
    // within the block it does
    one.strong_read(&flags, FLAG.into_iter(), 1, Order::RELAXED);
    one.fence(1, Scope::Block, u32::MAX, u32::MAX);
    one.touch(&mut line, touch(1, false)).unwrap();
    two.strong_read(&flags, FLAG.into_iter(), 0, Order::RELAXED);
    two.fence(0, Scope::Device, u32::MAX, u32::MAX);
    let found = two.touch(&mut line, touch(0, false)).unwrap_err();
    assert_eq!(
        (found.unit, found.write, found.narrow),
        (Some(0), true, false)
    );
}

#[test]
fn what_one_has_acquired_it_hands_on() {
    let mut blocks: [Detector; 3] = [0, 1, 2].map(|unit| {
        let mut detector = Detector::new(0, 4, 1).synchronising();
        detector.reset(unit);
        detector
    });
    let order = Order {
        acquires: true,
        releases: true,
        ..Order::RELAXED
    };
    let (mut flags, mut line) = (Flags::default(), Line::default());
    blocks[0].touch(&mut line, touch(0, true)).unwrap();
    raise(&mut blocks[0], &mut flags, 0, order);
    blocks[1].strong_read(&flags, FLAG.into_iter(), 0, order);
    let mut second = Flags::default();
    raise(&mut blocks[1], &mut second, 0, order);
    blocks[2].strong_read(&second, FLAG.into_iter(), 0, order);
    blocks[2].touch(&mut line, touch(0, true)).unwrap();
    // what came after its release is no part of it
    blocks[1].touch(&mut line, touch(0, false)).unwrap_err();
}

#[test]
fn strong_accesses_race_with_weak_ones_only() {
    let [one, two] = pair();
    let mut line = Line::default();
    one.touch(&mut line, strong(0, true)).unwrap();
    two.touch(&mut line, strong(0, true)).unwrap();
    two.touch(&mut line, strong(1, false)).unwrap();
    assert!(one.touch(&mut line, touch(1, false)).is_err());
    let narrow = Touch {
        scope: Some(Scope::Block),
        ..strong(1, true)
    };
    assert!(one.touch(&mut line, narrow).unwrap_err().narrow);
    // a strong access hides no weak one before it
    let mut line = Line::default();
    one.touch(&mut line, touch(0, true)).unwrap();
    one.touch(&mut line, strong(0, true)).unwrap();
    assert!(two.touch(&mut line, strong(0, true)).is_err());
}

#[test]
fn bytes_that_many_blocks_read_are_told_apart_from_their_neighbours() {
    let blocks: [Detector; 5] = std::array::from_fn(|unit| {
        let mut detector = Detector::new(0, 4, 1);
        detector.reset(unit as u32);
        detector
    });
    let at = |mask, write| Touch {
        mask,
        ..touch(0, write)
    };
    let all_read = || {
        let mut line = Line::default();
        for block in &blocks {
            block.touch(&mut line, at(0xffff, false)).unwrap();
        }
        line
    };
    for block in &blocks {
        assert!(block.touch(&mut all_read(), at(0xf, true)).is_err());
    }
    let mut line = all_read();
    blocks[0].touch(&mut line, at(0xff << 16, true)).unwrap();
    blocks[3].touch(&mut line, at(0xff << 32, false)).unwrap();
    blocks[0].touch(&mut line, at(1 << 20, false)).unwrap();
    assert!(blocks[1].touch(&mut line, at(1 << 20, false)).is_err());
}

#[test]
fn a_line_that_is_touched_in_many_places_still_knows_who_read_it() {
    let blocks: [Detector; 3] = std::array::from_fn(|unit| {
        let mut detector = Detector::new(0, 4, 1);
        detector.reset(unit as u32);
        detector
    });
    let mut line = Line::default();
    for detector in &blocks {
        for at in 0..128 {
            let read = Touch {
                mask: 1 << at,
                lanes: Lanes::one(at % 32),
                pc: at,
                ..touch(0, false)
            };
            detector.touch(&mut line, read).unwrap();
        }
    }
    assert!(blocks[0].touch(&mut line, touch(0, true)).is_err());
}

#[test]
fn reads_of_several_lanes_are_one_note() {
    let mut detector = Detector::new(0, 4, 1);
    let mut line = Line::default();
    for lane in 0..8 {
        let read = Touch {
            lanes: Lanes::one(lane),
            ..touch(0, false)
        };
        detector.touch(&mut line, read).unwrap();
    }
    let write = touch(0, true);
    assert!(
        detector.touch(&mut line, write).is_err(),
        "lanes 1 to 7 read it"
    );
    detector.warp_sync(0);
    detector.touch(&mut line, write).unwrap();
}
