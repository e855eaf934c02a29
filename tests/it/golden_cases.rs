//! The golden cases: inputs and expected outputs that this crate did not make.

use std::ops::RangeInclusive;

use seqmix::reference::attention::{Forward, Output};
use seqmix::reference::gemm;

use crate::golden::{Case, Failure, Ops, folder};
use crate::measure::{Bound, Verdict};
use crate::support::device;

/// All cases of an op by name, in order; there are `count`.
pub(crate) fn cases(op: &str, count: usize) -> Vec<(String, Case)> {
    let files = std::fs::read_dir(folder().join("cases")).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let named = paths.into_iter().filter_map(|path| {
        let name = path.file_stem()?.to_str()?.to_owned();
        name.starts_with(&format!("{op}__"))
            .then(|| (name, Case::read(&path).unwrap()))
    });
    let cases: Vec<_> = named.collect();
    assert_eq!(cases.len(), count, "cases of {op}");
    cases
}

/// Cases that ask for what no kernel does yet, and the word that the refusal has to name it by.
const REFUSED: [(&str, &str); 5] = [
    ("attention_forward__bf16_alibi", "alibi_slopes"),
    (
        "attention_forward__bf16_window_both",
        "Window { left: Some(8), right: Some(5) }",
    ),
    ("attention_forward__f16_softcap", "softcap 30"),
    ("attention_forward__f16_tree_mask", "attn_mask"),
    (
        "attention_forward__f16_window_left",
        "Window { left: Some(16), right: Some(0) }",
    ),
];

#[test]
fn attention_keeps_every_bound() {
    let ops = Ops::new(&device().context).unwrap();
    for (name, case) in cases("attention_forward", 15) {
        let outputs = case.run(&ops);
        if let Some((_, option)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let Err(Failure::Unsupported(message)) = outputs else {
                panic!("{name} was not refused")
            };
            assert!(message.contains(option), "{name}: {message}");
            continue;
        }
        let outputs = outputs.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        // The kernels keep scores in f32: they meet the strict bounds as well.
        for strict in [false, true] {
            let verdicts = case.judge(&outputs, strict).unwrap();
            assert_eq!(verdicts.len(), 2, "{name}");
            for (tensor, verdict) in verdicts {
                assert!(
                    verdict.pass(),
                    "{name}, strict {strict}: {tensor}: {verdict}"
                );
            }
        }
    }
}

/// Runs all cases of an op, of which there are `count`, each with so many outputs.
fn check(op: &str, count: usize, outputs: usize) {
    check_all(op, count, outputs..=outputs);
}

/// The same where cases differ in how many outputs they have.
fn check_all(op: &str, count: usize, outputs: RangeInclusive<usize>) {
    let ops = Ops::new(&device().context).unwrap();
    for (name, case) in cases(op, count) {
        let found = case.run(&ops);
        let found = found.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        let verdicts = case.judge(&found, false).unwrap();
        assert!(
            outputs.contains(&verdicts.len()),
            "{name}: {} outputs",
            verdicts.len()
        );
        for (tensor, verdict) in verdicts {
            assert!(verdict.pass(), "{name}: {tensor}: {verdict}");
        }
    }
}

#[test]
fn gemm_keeps_every_bound() {
    check("gemm", 5, 1);
}

#[test]
fn causal_conv1d_keeps_every_bound() {
    check("causal_conv1d_forward", 2, 2);
    check("causal_conv1d_backward", 1, 3);
}

#[test]
fn selective_scan_keeps_every_bound() {
    check("selective_scan_forward", 4, 2);
    check("selective_scan_backward", 2, 8);
    check("selective_scan_step", 2, 2);
}

#[test]
fn ssd_keeps_every_bound() {
    check("ssd_forward", 3, 2);
    check("ssd_backward", 1, 8);
}

#[test]
fn linear_attention_keeps_every_bound() {
    check_all("linear_attention_forward", 7, 1..=3);
    check_all("linear_attention_backward", 3, 4..=6);
}

/// Runs the reference on a case of gemm.
fn run_gemm_reference(case: &Case) -> Vec<f64> {
    let values = |name| case.get(name).map(|stored| stored.values().unwrap());
    let matrix = |name, flag| {
        let [rows, columns] = case.need(name).unwrap().shape[..] else {
            panic!("{name} is no matrix")
        };
        let stored = values(name).unwrap();
        if !case.flag(flag).unwrap() {
            return (stored, rows, columns);
        }
        let at = |place: usize| stored[place % rows * columns + place / rows];
        ((0..rows * columns).map(at).collect(), columns, rows)
    };
    let ((a, m, k), (b, _, n)) = (matrix("a", "trans_a"), matrix("b", "trans_b"));
    let (c, bias, residual) = (values("c"), values("bias"), values("residual"));
    let problem = gemm::Multiply {
        batch: 1,
        m,
        n,
        k,
        a: &a,
        b: &b,
        c: c.as_deref(),
        bias: bias.as_deref(),
        residual: residual.as_deref(),
        alpha: case.number("alpha", 0).unwrap(),
        beta: case.number("beta", 0).unwrap(),
        epilogue: gemm::Epilogue::Activate {
            activation: match case.activation().unwrap() {
                "none" => gemm::Activation::None,
                "gelu_tanh" => gemm::Activation::GeluTanh,
                "silu" => gemm::Activation::Silu,
                other => panic!("{other}"),
            },
        },
        ..gemm::Multiply::default()
    };
    problem.run().unwrap().d
}

/// Runs the reference on a case of swiglu: `gate` and `up` are products of `[gate | up]`, and `dout` one of itself,
/// with parts of the identity.
fn run_swiglu_reference(case: &Case) -> Vec<f64> {
    let values = |name| case.need(name).unwrap().values().unwrap();
    let (gate, up) = (values("gate"), values("up"));
    let [rows, n] = case.need("gate").unwrap().shape[..] else {
        panic!("gate is no matrix")
    };
    let beside = gate.chunks(n).zip(up.chunks(n));
    let beside: Vec<f64> = beside.flat_map(|(gate, up)| [gate, up].concat()).collect();
    // rows of zeros before and after those of the identity
    let identity = |before: usize, after: usize| -> Vec<f64> {
        let one = |at: usize| f64::from(at / n == before + at % n);
        (0..(before + n + after) * n).map(one).collect()
    };
    let activation = gemm::Activation::Silu;
    let problem = gemm::Multiply {
        batch: 1,
        m: rows,
        n,
        ..gemm::Multiply::default()
    };
    if case.get("dout").is_some() {
        let backward = gemm::Multiply {
            k: n,
            a: &values("dout"),
            b: &identity(0, 0),
            epilogue: gemm::Epilogue::GateBackward {
                activation,
                preactivation: &beside,
            },
            ..problem
        };
        return backward.run().unwrap().d;
    }
    let forward = gemm::Multiply {
        k: 2 * n,
        a: &beside,
        b: &identity(n, 0),
        epilogue: gemm::Epilogue::Gate {
            activation,
            weights: &identity(0, n),
            bias: None,
        },
        ..problem
    };
    forward.run().unwrap().d
}

/// Runs the reference on a case of attention; `round` is that of [`Forward::run_rounded`].
fn run_reference(case: &Case, round: impl Fn(f64) -> f64) -> Output {
    let values = |name| case.get(name).map(|stored| stored.values().unwrap());
    let [q, k, v] = ["q", "k", "v"].map(|name| values(name).unwrap());
    let shape = |name| &case.need(name).unwrap().shape[..];
    let lengths =
        |name| values(name).map(|values| values.iter().map(|&x| x as usize).collect::<Vec<_>>());
    let (left, right) = case.window().unwrap();
    let mask = values("attn_mask").map(|mask| mask.iter().map(|&x| x as u8).collect::<Vec<_>>());
    let varlen = lengths("cu_seqlens_q").zip(lengths("cu_seqlens_k"));
    let batch = match &varlen {
        Some((cu_seqlens, _)) => cu_seqlens.len() - 1,
        None => shape("q")[0],
    };
    let [.., heads, head_dim] = shape("q")[..] else {
        panic!("q has no heads")
    };
    let [.., seq_q, _, _] = shape("q")[..] else {
        panic!("q has no rows")
    };
    let [.., seq_k, heads_kv, _] = shape("k")[..] else {
        panic!("k has no rows")
    };
    // One slope a head stands for every sequence.
    let slopes = values("alibi_slopes").map(|slopes| match slopes.len() == heads {
        true => slopes.repeat(batch),
        false => slopes,
    });
    let problem = Forward {
        batch,
        seq_q,
        seq_k,
        heads,
        heads_kv,
        head_dim,
        q: &q,
        k: &k,
        v: &v,
        scale: Some(case.number("softmax_scale", 0).unwrap()),
        left,
        right,
        softcap: case.softcap().unwrap(),
        alibi_slopes: slopes.as_deref(),
        attn_mask: mask.as_deref(),
    };
    match varlen {
        Some((cu_seqlens_q, cu_seqlens_k)) => problem
            .run_varlen(&cu_seqlens_q, &cu_seqlens_k, round)
            .unwrap(),
        None => problem.run_rounded(round).unwrap(),
    }
}

/// Fails unless the reference found what the case expects. The expected values were rounded to f32 once; the
/// reference differs by no more than that.
pub(crate) fn check_reference(name: &str, case: &Case, tensor: &str, found: &[f64]) {
    let expected = case.need(tensor).unwrap().values().unwrap();
    let finite = expected.iter().filter(|x| x.is_finite());
    let largest = finite.fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let bound = Bound {
        max_abs: 1e-7 * largest,
        rel_l2: Some(1e-7),
        row_rel_l2: None,
    };
    let verdict = Verdict::of(found, &expected, 1, bound);
    assert!(verdict.pass(), "{name}: {tensor}: {verdict}");
}

#[test]
fn the_references_give_the_expected_values() {
    for (name, case) in cases("attention_forward", 15) {
        let Output { out, lse } = run_reference(&case, |x| x);
        check_reference(&name, &case, "expected.o", &out);
        check_reference(&name, &case, "expected.lse", &lse);
    }
    for (name, case) in cases("gemm", 5) {
        check_reference(&name, &case, "expected.d", &run_gemm_reference(&case));
    }
    for (name, case) in cases("swiglu_forward", 1) {
        check_reference(&name, &case, "expected.out", &run_swiglu_reference(&case));
    }
    for (name, case) in cases("swiglu_backward", 1) {
        let both = run_swiglu_reference(&case);
        let n = case.need("gate").unwrap().shape[1];
        for (part, tensor) in ["expected.dgate", "expected.dup"].into_iter().enumerate() {
            let rows = both.chunks(2 * n);
            let found: Vec<f64> = rows
                .flat_map(|row| &row[part * n..][..n])
                .copied()
                .collect();
            check_reference(&name, &case, tensor, &found);
        }
    }
}
