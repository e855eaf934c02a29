//! What the detector accepts and what it refuses.

use super::agent::AgentLane;
use super::*;

fn lane(warp: usize, lane: u32) -> Accessor {
    Accessor {
        warp,
        lane,
        pc: 7,
        collective: false,
        strong: false,
    }
}

fn collective(warp: usize) -> Accessor {
    Accessor {
        collective: true,
        ..lane(warp, 0)
    }
}

#[test]
fn a_barrier_orders_a_write_before_a_read_of_another_warp() {
    let mut detector = Detector::new(64, 4, 2);
    detector.write(0, 4, lane(0, 0)).unwrap();
    assert!(matches!(
        detector.read(0, 4, lane(1, 0)),
        Err(Refusal::Conflict(Conflict {
            write: true,
            warp: 0,
            ..
        }))
    ));
    assert!(detector.barrier(0, 0b11, 0b11));
    detector.read(0, 4, lane(1, 0)).unwrap();
    assert!(matches!(
        detector.write(0, 4, lane(0, 0)),
        Err(Refusal::Conflict(Conflict {
            write: false,
            warp: 1,
            ..
        }))
    ));
    assert!(detector.barrier(0, 0b11, 0b11));
    detector.write(0, 4, lane(0, 0)).unwrap();
}

#[test]
fn arriving_releases_and_only_waiting_acquires() {
    let mut detector = Detector::new(64, 4, 2);
    detector.write(0, 4, lane(0, 0)).unwrap();
    // warp 0 only arrives, warp 1 waits: 0 is before 1, not the other way round
    detector.barrier(0, 0b11, 0b10);
    detector.read(0, 4, lane(1, 0)).unwrap();
    assert!(detector.write(0, 4, lane(0, 0)).is_err());
}

#[test]
fn lanes_of_a_warp_race_until_it_synchronises() {
    let mut detector = Detector::new(64, 4, 1);
    detector.write(0, 4, lane(0, 3)).unwrap();
    detector.read(0, 4, lane(0, 3)).unwrap();
    assert!(detector.read(0, 4, lane(0, 4)).is_err());
    assert!(detector.read(0, 4, collective(0)).is_err());
    detector.warp_sync(0);
    detector.read(0, 4, lane(0, 4)).unwrap();
    detector.read(0, 4, lane(0, 5)).unwrap();
    assert!(
        detector.write(0, 4, lane(0, 4)).is_err(),
        "lane 5 reads it too"
    );
}

#[test]
fn a_collective_read_orders_itself_but_hides_no_lane() {
    let mut detector = Detector::new(64, 4, 1);
    detector.write(0, 4, lane(0, 0)).unwrap();
    detector.warp_sync(0);
    detector.read(0, 4, collective(0)).unwrap();
    detector.write(0, 4, lane(0, 9)).unwrap();
    detector.warp_sync(0);
    detector.read(0, 4, lane(0, 3)).unwrap();
    detector.read(0, 4, collective(0)).unwrap();
    assert!(detector.write(0, 4, lane(0, 9)).is_err());
}

#[test]
fn bytes_under_way_are_untouchable_until_waited_for() {
    let mut detector = Detector::new(64, 16, 2);
    assert!(matches!(
        detector.read(16, 16, lane(0, 0)),
        Err(Refusal::Uninitialised)
    ));
    detector.issue(16, 16, lane(0, 0)).unwrap();
    for warp in 0..2 {
        let refusal = detector.read(16, 16, lane(warp, 0)).unwrap_err();
        assert!(matches!(
            refusal,
            Refusal::Conflict(Conflict { pending: true, .. })
        ));
    }
    detector.complete(16, 16, lane(0, 0));
    detector.read(16, 16, lane(0, 0)).unwrap();
    assert!(
        detector.read(16, 16, lane(1, 0)).is_err(),
        "only a barrier shows it to another warp"
    );
}

#[test]
fn events_keep_their_fields() {
    let event = Event(Event::new(CLOCK_LIMIT, 31, 33, (1 << 24) - 1).0 | PENDING | STRONG);
    assert_eq!(
        (event.clock(), event.warp(), event.lane(), event.pc()),
        (CLOCK_LIMIT, 31, 33, (1 << 24) - 1)
    );
}

fn conflict(result: Result<(), Refusal>) -> Conflict {
    match result.unwrap_err() {
        Refusal::Conflict(conflict) => conflict,
        Refusal::Uninitialised => panic!("expected a conflict"),
    }
}

#[test]
fn an_arrival_of_some_lanes_releases_what_they_did_only() {
    let mut detector = Detector::new(64, 4, 2);
    detector.write(0, 4, lane(0, 0)).unwrap();
    detector.write(4, 4, lane(0, 1)).unwrap();
    let mut seen = Seen::default();
    assert!(detector.release(0, 1, u32::MAX, &mut seen));
    detector.write(8, 4, lane(0, 0)).unwrap();
    detector.acquire(1, &seen);
    detector.read(0, 4, lane(1, 5)).unwrap();
    assert!(detector.read(4, 4, lane(1, 5)).is_err(), "another lane's");
    assert!(
        detector.read(8, 4, lane(1, 5)).is_err(),
        "after the arrival"
    );
    // what it has seen in part it hands on
    let mut again = Seen::default();
    detector.release(1, u32::MAX, u32::MAX, &mut again);
    let mut third = Seen::default();
    third.join(&again);
    detector.acquire(0, &third);
    detector.write(0, 4, lane(0, 9)).unwrap();
}

#[test]
fn the_async_proxy_sees_writes_behind_a_fence() {
    let mut detector = Detector::cluster(1, 64, 16, 2, true);
    detector.write(0, 16, lane(0, 3)).unwrap();
    let refused = conflict(detector.issue_read(0, 16, lane(0, 3)));
    assert!(refused.unfenced);
    detector.fence_proxy(0, 1 << 4, 9);
    assert!(
        detector.issue_read(0, 16, lane(0, 3)).is_err(),
        "another lane's fence"
    );
    detector.fence_proxy(0, 1 << 3, 9);
    detector.issue_read(0, 16, lane(0, 3)).unwrap();
    assert!(
        !conflict(detector.issue_read(0, 16, lane(1, 0))).unfenced,
        "a race"
    );
}

#[test]
fn reads_of_the_async_proxy_keep_writers_out_until_the_last_ends() {
    let mut detector = Detector::cluster(1, 64, 16, 2, true);
    let (group, other) = (AgentLane::of_products(0), AgentLane::of_products(1));
    detector.mark_read(0, 16, lane(0, 0));
    detector.mark_read(0, 16, lane(0, 0));
    for _ in 0..2 {
        assert!(conflict(detector.write(0, 16, lane(1, 0))).pending);
        detector.agent_period();
        detector.complete_read(0, 16, 7, group);
    }
    assert!(conflict(detector.write(0, 16, lane(1, 0))).agent);
    detector.acquire_agent(1, Some(other));
    assert!(detector.write(0, 16, lane(1, 0)).is_err(), "another's end");
    detector.acquire_agent(1, Some(group));
    detector.write(0, 16, lane(1, 0)).unwrap();
}

#[test]
fn other_blocks_of_a_cluster_read_and_are_waited_for() {
    // two blocks of one warp and 64 bytes each
    let mut detector = Detector::cluster(2, 64, 4, 1, false);
    detector.write(64, 4, lane(1, 0)).unwrap();
    assert!(detector.read(64, 4, lane(0, 0)).is_err());
    let mut seen = Seen::default();
    detector.release(1, u32::MAX, u32::MAX, &mut seen);
    detector.acquire(0, &seen);
    detector.read(64, 4, lane(0, 0)).unwrap();
    assert!(!conflict(detector.write(64, 4, lane(1, 0))).write);
}
