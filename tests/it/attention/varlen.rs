//! Sequences of different lengths in one tensor.

use half::{bf16, f16};
use seqmix::Tensor;
use seqmix::attention::{Config, ForwardVarlen};
use seqmix::reference::attention as reference;

use super::{CAUSAL, FULL, judge, widen};
use crate::naive::{Narrow, Number, normal};
use crate::support::{Place, Placed, RacesPass, device};

/// Lengths of each sequence's queries and keys.
type Lengths = &'static [(usize, usize)];

const LENGTHS: [Lengths; 6] = [
    &[(5, 5)],
    &[(7, 7), (64, 64), (1, 1), (65, 65)],
    &[(129, 40), (40, 129), (1, 130), (130, 1)],
    // Sequences without queries, without keys, without both; at the start, in the middle and at the end.
    &[(0, 3), (3, 0), (0, 0), (17, 20), (0, 70)],
    &[(3, 0), (66, 66), (0, 0)],
    &[(0, 0), (0, 0)],
];

/// 0 and the sums up to each length.
fn cumulative(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let sums = lengths.scan(0, |sum, length| {
        *sum += length;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}

struct Case {
    lengths: Lengths,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    config: Config,
    lse: bool,
    /// By how much `max_seqlen_q` exceeds the longest sequence.
    excess: usize,
}

const CASE: Case = Case {
    lengths: LENGTHS[1],
    heads: 2,
    heads_kv: 1,
    head_dim: 64,
    config: FULL,
    lse: true,
    excess: 0,
};

fn check<T: Narrow>(case: &Case) {
    let Case {
        lengths,
        heads,
        heads_kv,
        head_dim,
        config,
        lse: with_lse,
        excess,
    } = *case;
    let name = format!(
        "{:?} {lengths:?} heads {heads}/{heads_kv} dim {head_dim} {config:?}",
        T::DTYPE
    );
    let device = device();
    let stream = device.stream();
    let cu_seqlens_q = cumulative(lengths.iter().map(|lengths| lengths.0));
    let cu_seqlens_k = cumulative(lengths.iter().map(|lengths| lengths.1));
    let longest = lengths.iter().map(|lengths| lengths.0).max().unwrap_or(0);
    let (total_q, total_k) = (cu_seqlens_q[lengths.len()], cu_seqlens_k[lengths.len()]);
    let (shape_q, shape_k) = ([total_q, heads, head_dim], [total_k, heads_kv, head_dim]);

    let data = |seed, shape: [usize; 3]| normal::<T>(seed, shape.iter().product(), 1.0);
    let host = [data(1, shape_q), data(2, shape_k), data(3, shape_k)];
    let input =
        |shape, data| Placed::input(&stream, Place::contiguous(shape), data, T::narrow(f64::NAN));
    let [q, k, v] = [
        input(shape_q, &host[0]),
        input(shape_k, &host[1]),
        input(shape_k, &host[2]),
    ];
    let upload = |cu_seqlens: &[usize]| {
        let values: Vec<i32> = cu_seqlens.iter().map(|&x| x as i32).collect();
        Placed::input(
            &stream,
            Place::contiguous([values.len()]),
            &values,
            i32::MAX,
        )
    };
    let (on_device_q, on_device_k) = (upload(&cu_seqlens_q), upload(&cu_seqlens_k));
    let guard = T::narrow(-123.0);
    let mut out = Placed::output(
        &stream,
        Place::contiguous(shape_q),
        T::narrow(f64::NAN),
        guard,
    );
    let mut lse = Placed::output(
        &stream,
        Place::contiguous([heads, total_q]),
        f32::NAN,
        -123.0,
    );
    let tensors = ForwardVarlen {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        cu_seqlens_q: on_device_q.view(),
        cu_seqlens_k: on_device_k.view(),
        max_seqlen_q: longest + excess,
        out: out.view_mut(),
        lse: with_lse.then(|| lse.view_mut()),
        alibi_slopes: None,
    };
    let queued = device.attention.forward_varlen(&stream, config, tensors);
    queued.unwrap_or_else(|error| panic!("{name}: {error}"));

    let [q, k, v] = host.each_ref().map(|x| widen(x));
    let problem = reference::Forward {
        heads,
        heads_kv,
        head_dim,
        q: &q,
        k: &k,
        v: &v,
        right: (config == CAUSAL).then_some(0),
        ..reference::Forward::default()
    };
    let expected = problem
        .run_varlen(&cu_seqlens_q, &cu_seqlens_k, |x| x)
        .unwrap();
    let naive = problem
        .run_varlen(&cu_seqlens_q, &cu_seqlens_k, T::round)
        .unwrap();
    let (out, lse) = (out.fetch(&stream, "out"), lse.fetch(&stream, "lse"));
    judge(
        &name,
        head_dim,
        &out,
        with_lse.then_some(&lse),
        &expected,
        &naive,
    );
    assert!(
        with_lse || lse.iter().all(|x| x.is_nan()),
        "{name}: lse was written unasked"
    );
}

#[test]
fn sequences_of_different_lengths() {
    for lengths in LENGTHS {
        for config in [FULL, CAUSAL] {
            let case = Case {
                lengths,
                config,
                ..CASE
            };
            check::<f16>(&case);
            check::<bf16>(&case);
        }
    }
}

#[test]
fn every_head_dim() {
    for head_dim in [32, 64, 96, 128, 160, 192, 256, 8, 72, 200] {
        for config in [FULL, CAUSAL] {
            check::<f16>(&Case {
                lengths: LENGTHS[3],
                heads: 3,
                heads_kv: 3,
                head_dim,
                config,
                ..CASE
            });
        }
    }
}

#[test]
fn without_lse() {
    check::<f16>(&Case { lse: false, ..CASE });
}

/// The longest length only has to be long enough.
#[test]
fn a_generous_longest_length() {
    for excess in [1, 63, 64, 1000] {
        for config in [FULL, CAUSAL] {
            check::<f16>(&Case {
                excess,
                config,
                ..CASE
            });
        }
    }
}

/// Lengths live on the device, where nobody has checked them: wrong ones may give wrong numbers, but every access
/// stays within the tensors.
#[test]
fn wrong_lengths_do_not_leave_the_tensors() {
    let device = device();
    let _sequences_overlap = RacesPass::new();
    let stream = device.stream();
    let (total_q, total_k, heads, head_dim) = (70, 90, 2, 64);
    let input = |rows, seed| {
        let data = normal::<f16>(seed, rows * heads * head_dim, 1.0);
        Tensor::from_host(&stream, &data, [rows, heads, head_dim]).unwrap()
    };
    let (q, k, v) = (input(total_q, 1), input(total_k, 2), input(total_k, 3));
    let wrong = [
        [-5, 1_000_000, 2, 70],
        [i32::MIN, i32::MAX, 0, i32::MIN],
        [70, 60, 50, 0],
        [71, 91, 71, 91],
        [0, 35, 70, i32::MAX],
    ];
    for wrong_q in wrong {
        for wrong_k in wrong {
            let cu_seqlens_q = Tensor::from_host(&stream, &wrong_q, [4]).unwrap();
            let cu_seqlens_k = Tensor::from_host(&stream, &wrong_k, [4]).unwrap();
            let place = Place::contiguous([total_q, heads, head_dim]);
            let mut out = Placed::output(&stream, place, f16::NAN, f16::narrow(-123.0));
            let mut lse = Placed::output(
                &stream,
                Place::contiguous([heads, total_q]),
                f32::NAN,
                -123.0,
            );
            let tensors = ForwardVarlen {
                q: q.view(),
                k: k.view(),
                v: v.view(),
                cu_seqlens_q: cu_seqlens_q.view(),
                cu_seqlens_k: cu_seqlens_k.view(),
                max_seqlen_q: total_q,
                out: out.view_mut(),
                lse: Some(lse.view_mut()),
                alibi_slopes: None,
            };
            let queued = device.attention.forward_varlen(&stream, FULL, tensors);
            queued.unwrap_or_else(|error| panic!("{wrong_q:?} {wrong_k:?}: {error}"));
            out.fetch(&stream, "out");
            lse.fetch(&stream, "lse");
        }
    }
}

/// Rows that belong to no sequence are left as they are.
#[test]
fn rows_outside_all_sequences_stay() {
    let device = device();
    let stream = device.stream();
    let (heads, head_dim) = (1, 32);
    let input = |seed| {
        let data = normal::<f16>(seed, 40 * heads * head_dim, 1.0);
        Tensor::from_host(&stream, &data, [40, heads, head_dim]).unwrap()
    };
    let (q, k, v) = (input(1), input(2), input(3));
    let cu_seqlens = Tensor::from_host(&stream, &[4, 20, 33], [3]).unwrap();
    let mut out = Placed::output(
        &stream,
        Place::contiguous([40, heads, head_dim]),
        f16::ZERO,
        f16::ONE,
    );
    let tensors = ForwardVarlen {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        cu_seqlens_q: cu_seqlens.view(),
        cu_seqlens_k: cu_seqlens.view(),
        max_seqlen_q: 16,
        out: out.view_mut(),
        lse: None,
        alibi_slopes: None,
    };
    device
        .attention
        .forward_varlen(&stream, FULL, tensors)
        .unwrap();
    let out = out.fetch(&stream, "out");
    let written: Vec<bool> = out
        .chunks(head_dim)
        .map(|row| row.iter().any(|x| *x != f16::ZERO))
        .collect();
    let expected: Vec<bool> = (0..40).map(|row| (4..33).contains(&row)).collect();
    assert_eq!(written, expected, "rows written");
}
