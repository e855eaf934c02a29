//! Softmax attention by the formula: Vaswani et al., "Attention Is All You Need", 2017, equation 1, with the
//! masks and biases that the kernels know.

use super::{Mismatch, check_groups, check_length, check_lengths};

/// One attention problem: sizes, tensors (contiguous, row-major) and options.
///
/// ```
/// use seqmix::reference::attention::Forward;
///
/// // One query of head dim 2 that scores both keys alike: the mean of the values.
/// let problem = Forward {
///     batch: 1, seq_q: 1, seq_k: 2, heads: 1, heads_kv: 1, head_dim: 2,
///     q: &[0.0, 0.0], k: &[1.0, 2.0, 3.0, 4.0], v: &[2.0, 4.0, 6.0, 8.0],
///     ..Forward::default()
/// };
/// let result = problem.run()?;
/// assert_eq!(result.out, [4.0, 6.0]);
/// assert_eq!(result.lse, [2.0_f64.ln()]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward<'a> {
    /// Number of independent sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub seq_q: usize,
    /// Keys and values per sequence.
    pub seq_k: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads: query head `h` uses key head `h / (heads / heads_kv)`.
    pub heads_kv: usize,
    /// Elements of one query, key or value.
    pub head_dim: usize,
    /// `[batch, seq_q, heads, head_dim]`
    pub q: &'a [f64],
    /// `[batch, seq_k, heads_kv, head_dim]`
    pub k: &'a [f64],
    /// `[batch, seq_k, heads_kv, head_dim]`
    pub v: &'a [f64],
    /// Factor of the scores; `None`: `1 / sqrt(head_dim)`.
    pub scale: Option<f64>,
    /// How many keys before its own position a query sees; `None`: all.
    pub left: Option<usize>,
    /// How many keys after its own position a query sees; `None`: all; `Some(0)` is the causal mask.
    pub right: Option<usize>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
    /// `[batch, heads]`: the score of a key loses `slope * distance`. Press et al., "Train Short, Test Long", 2021.
    pub alibi_slopes: Option<&'a [f64]>,
    /// `[batch, seq_q, seq_k]`: a query sees a key only where this is not 0. The same for all heads.
    pub attn_mask: Option<&'a [u8]>,
}

/// What attention returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// As `q`; a row that sees no key is 0.
    pub out: Vec<f64>,
    /// `[batch, heads, seq_q]` (varlen: `[heads, total_q]`): the natural logarithm of each row's sum of
    /// `exp(score)`, with softcap and bias; negative infinity for a row that sees no key.
    pub lse: Vec<f64>,
}

impl Forward<'_> {
    /// Attention, in `f64` throughout:
    ///
    /// ```text
    /// s[i,j] = scale * q[i] . k[j]
    /// s[i,j] = softcap * tanh(s[i,j] / softcap)           if softcap
    /// s[i,j] = s[i,j] - slope * |i + seq_k - seq_q - j|   if alibi_slopes
    /// i sees j if  -left <= j - (i + seq_k - seq_q) <= right  and  attn_mask[i,j]
    /// lse[i] = ln(sum over the seen j of exp(s[i,j]))
    /// out[i] = sum over the seen j of exp(s[i,j] - lse[i]) * v[j]
    /// ```
    ///
    /// Positions are aligned at the end: the last query stands at the last key.
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for.
    pub fn run(&self) -> Result<Output, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula as an implementation computes it that keeps every intermediate in a narrow type: `round`
    /// (to that type and back) is applied to the scores, to the scores after softcap and after bias, to the
    /// normalised probabilities, and to the output. Sums are exact; `lse` is that of the rounded scores.
    ///
    /// How far this lies from [`run`](Self::run) is what a naive implementation of that precision loses, and so a
    /// yardstick for kernels: they keep scores in `f32` and should lose less.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output, Mismatch> {
        self.check()?;
        let mut result = Output {
            out: vec![0.0; self.q.len()],
            lse: vec![f64::NEG_INFINITY; self.batch * self.heads * self.seq_q],
        };
        for b in 0..self.batch {
            for h in 0..self.heads {
                for i in 0..self.seq_q {
                    let seen: Vec<usize> =
                        (0..self.seq_k).filter(|&j| self.sees(b, i, j)).collect();
                    if seen.is_empty() {
                        continue;
                    }
                    let s: Vec<f64> = seen
                        .iter()
                        .map(|&j| self.score(b, h, i, j, &round))
                        .collect();
                    let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let lse = max + s.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                    result.lse[(b * self.heads + h) * self.seq_q + i] = lse;
                    let p: Vec<f64> = s.iter().map(|s| round((s - lse).exp())).collect();
                    let query = self.query(b, i, h);
                    let row = &mut result.out[query..query + self.head_dim];
                    for (&j, p) in seen.iter().zip(&p) {
                        let v = &self.v[self.key(b, j, h)..];
                        row.iter_mut().zip(v).for_each(|(out, v)| *out += p * v);
                    }
                    row.iter_mut().for_each(|out| *out = round(*out));
                }
            }
        }
        Ok(result)
    }

    /// Sequences of different lengths, one after the other in one tensor: `q` is `[total_q, heads, head_dim]`,
    /// `k` and `v` are `[total_k, heads_kv, head_dim]`, and sequence `b` holds the rows `cu_seqlens[b]` to
    /// `cu_seqlens[b + 1]` of them. `batch`, `seq_q` and `seq_k` are not read; there is no `attn_mask`.
    /// `round` is that of [`run_rounded`](Self::run_rounded).
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for, or the cumulative lengths fall or disagree with
    /// the tensors.
    pub fn run_varlen(
        &self,
        cu_seqlens_q: &[usize],
        cu_seqlens_k: &[usize],
        round: impl Fn(f64) -> f64,
    ) -> Result<Output, Mismatch> {
        let Self {
            heads,
            heads_kv,
            head_dim,
            ..
        } = *self;
        let sequences = cu_seqlens_q.len().saturating_sub(1);
        let (total_q, total_k) = (check_lengths(cu_seqlens_q)?, check_lengths(cu_seqlens_k)?);
        check_length(
            "length of cu_seqlens_k",
            &[cu_seqlens_q.len()],
            cu_seqlens_k.len(),
        )?;
        check_length("length of q", &[total_q, heads, head_dim], self.q.len())?;
        check_length("length of k", &[total_k, heads_kv, head_dim], self.k.len())?;
        check_length("length of v", &[total_k, heads_kv, head_dim], self.v.len())?;
        if let Some(slopes) = self.alibi_slopes {
            check_length("length of alibi_slopes", &[sequences, heads], slopes.len())?;
        }
        let mut result = Output {
            out: vec![0.0; self.q.len()],
            lse: vec![f64::NEG_INFINITY; heads * total_q],
        };
        for b in 0..sequences {
            let (seq_q, seq_k) = (
                cu_seqlens_q[b]..cu_seqlens_q[b + 1],
                cu_seqlens_k[b]..cu_seqlens_k[b + 1],
            );
            let in_q = seq_q.start * heads * head_dim..seq_q.end * heads * head_dim;
            let in_k = seq_k.start * heads_kv * head_dim..seq_k.end * heads_kv * head_dim;
            let one = Forward {
                batch: 1,
                seq_q: seq_q.len(),
                seq_k: seq_k.len(),
                q: &self.q[in_q.clone()],
                k: &self.k[in_k.clone()],
                v: &self.v[in_k],
                alibi_slopes: self
                    .alibi_slopes
                    .map(|slopes| &slopes[b * heads..(b + 1) * heads]),
                attn_mask: None,
                ..*self
            }
            .run_rounded(&round)?;
            result.out[in_q].copy_from_slice(&one.out);
            for h in 0..heads {
                let to = h * total_q + seq_q.start..h * total_q + seq_q.end;
                result.lse[to].copy_from_slice(&one.lse[h * seq_q.len()..(h + 1) * seq_q.len()]);
            }
        }
        Ok(result)
    }

    /// Whether query `i` of sequence `b` sees key `j`.
    fn sees(&self, b: usize, i: usize, j: usize) -> bool {
        // Sums instead of differences, so that nothing falls below zero.
        let query = i + self.seq_k;
        let key = j + self.seq_q;
        let in_left = self
            .left
            .is_none_or(|left| key.saturating_add(left) >= query);
        let in_right = self
            .right
            .is_none_or(|right| key <= query.saturating_add(right));
        let allowed = self
            .attn_mask
            .is_none_or(|mask| mask[(b * self.seq_q + i) * self.seq_k + j] != 0);
        in_left && in_right && allowed
    }

    /// The score of query `i` and key `j` for head `h` of sequence `b`.
    fn score(&self, b: usize, h: usize, i: usize, j: usize, round: impl Fn(f64) -> f64) -> f64 {
        let q = &self.q[self.query(b, i, h)..][..self.head_dim];
        let k = &self.k[self.key(b, j, h)..][..self.head_dim];
        let scale = self.scale.unwrap_or(1.0 / (self.head_dim as f64).sqrt());
        let mut s = round(scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>());
        if let Some(softcap) = self.softcap {
            s = round(softcap * (s / softcap).tanh());
        }
        if let Some(slopes) = self.alibi_slopes {
            let distance = (i + self.seq_k).abs_diff(j + self.seq_q);
            s = round(s - slopes[b * self.heads + h] * distance as f64);
        }
        s
    }

    /// Where query `i` of head `h` begins in `q` and `out`.
    fn query(&self, b: usize, i: usize, h: usize) -> usize {
        ((b * self.seq_q + i) * self.heads + h) * self.head_dim
    }

    /// Where the key and the value `j` that query head `h` uses begin in `k` and `v`.
    fn key(&self, b: usize, j: usize, h: usize) -> usize {
        let group = self.heads / self.heads_kv;
        ((b * self.seq_k + j) * self.heads_kv + h / group) * self.head_dim
    }

    fn check(&self) -> Result<(), Mismatch> {
        let Self {
            batch,
            seq_q,
            seq_k,
            heads,
            heads_kv,
            head_dim,
            ..
        } = *self;
        check_length(
            "length of q",
            &[batch, seq_q, heads, head_dim],
            self.q.len(),
        )?;
        check_length(
            "length of k",
            &[batch, seq_k, heads_kv, head_dim],
            self.k.len(),
        )?;
        check_length(
            "length of v",
            &[batch, seq_k, heads_kv, head_dim],
            self.v.len(),
        )?;
        if let Some(slopes) = self.alibi_slopes {
            check_length("length of alibi_slopes", &[batch, heads], slopes.len())?;
        }
        if let Some(mask) = self.attn_mask {
            check_length("length of attn_mask", &[batch, seq_q, seq_k], mask.len())?;
        }
        check_groups(
            ("heads (a multiple of heads_kv)", heads),
            ("heads_kv", heads_kv),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four positions, one head of dim 1, all scores 0, values 1, 2, 4, 8: a row is the mean of what it sees.
    const POSITIONS: Forward<'_> = Forward {
        batch: 1,
        seq_q: 4,
        seq_k: 4,
        heads: 1,
        heads_kv: 1,
        head_dim: 1,
        q: &[0.0; 4],
        k: &[0.0; 4],
        v: &[1.0, 2.0, 4.0, 8.0],
        scale: None,
        left: None,
        right: None,
        softcap: None,
        alibi_slopes: None,
        attn_mask: None,
    };

    fn assert_near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                found == expected || (found - expected).abs() < 1e-12,
                "{found} is not {expected}"
            );
        }
    }

    #[test]
    fn masks_choose_what_a_row_sees() {
        let causal = Forward {
            right: Some(0),
            ..POSITIONS
        };
        assert_near(&causal.run().unwrap().out, &[1.0, 1.5, 7.0 / 3.0, 3.75]);
        let window = Forward {
            left: Some(1),
            right: Some(0),
            ..POSITIONS
        };
        assert_near(&window.run().unwrap().out, &[1.0, 1.5, 3.0, 6.0]);
        let mask = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0];
        let masked = Forward {
            attn_mask: Some(&mask),
            ..POSITIONS
        }
        .run()
        .unwrap();
        assert_near(&masked.out, &[1.0, 2.0, 4.0, 0.0]);
        assert_near(&masked.lse, &[0.0, 0.0, 0.0, f64::NEG_INFINITY]);
    }

    #[test]
    fn the_causal_mask_is_aligned_at_the_end() {
        let more_keys = Forward {
            seq_q: 2,
            q: &[0.0; 2],
            right: Some(0),
            ..POSITIONS
        };
        assert_near(&more_keys.run().unwrap().out, &[7.0 / 3.0, 3.75]);
        let more_queries = Forward {
            seq_k: 2,
            k: &[0.0; 2],
            v: &[1.0, 2.0],
            right: Some(0),
            ..POSITIONS
        };
        let result = more_queries.run().unwrap();
        assert_near(&result.out, &[0.0, 0.0, 1.0, 1.5]);
        assert_near(
            &result.lse,
            &[f64::NEG_INFINITY, f64::NEG_INFINITY, 0.0, 2.0_f64.ln()],
        );
    }

    #[test]
    fn a_bias_weighs_the_keys() {
        let slopes = [2.0_f64.ln()];
        let alibi = Forward {
            alibi_slopes: Some(&slopes),
            right: Some(0),
            ..POSITIONS
        }
        .run()
        .unwrap();
        assert_near(&alibi.out[1..2], &[(0.5 * 1.0 + 2.0) / 1.5]);
        assert_near(&alibi.lse[1..2], &[1.5_f64.ln()]);
        let capped = Forward {
            q: &[1e9; 4],
            k: &[1e9; 4],
            softcap: Some(3.0),
            ..POSITIONS
        }
        .run()
        .unwrap();
        assert_near(&capped.lse, &[3.0 + 4.0_f64.ln(); 4]);
    }

    #[test]
    fn sequences_of_a_varlen_problem_do_not_see_each_other() {
        let problem = Forward {
            alibi_slopes: Some(&[0.0; 3]),
            ..POSITIONS
        };
        let result = problem
            .run_varlen(&[0, 1, 1, 4], &[0, 2, 3, 4], |x| x)
            .unwrap();
        assert_near(&result.out, &[1.5, 8.0, 8.0, 8.0]);
        assert_near(&result.lse, &[2.0_f64.ln(), 0.0, 0.0, 0.0]);
    }

    #[test]
    fn rounding_applies_to_every_intermediate() {
        let thirds = Forward {
            right: Some(0),
            ..POSITIONS
        }
        .run_rounded(|x| (x * 4.0).round() / 4.0)
        .unwrap();
        // 1/3 rounds to 1/4, and 7/4 needs no rounding.
        assert_eq!(thirds.out, [1.0, 1.5, 1.75, 3.75]);
    }

    #[test]
    fn sizes_that_disagree_are_named() {
        let error = Forward {
            seq_k: 5,
            ..POSITIONS
        }
        .run()
        .unwrap_err();
        assert_eq!(error.to_string(), "length of k: expected 5, found 4");
        let error = Forward {
            seq_q: 2,
            heads: 2,
            seq_k: 1,
            heads_kv: 3,
            head_dim: 1,
            ..POSITIONS
        };
        let error = Forward {
            k: &[0.0; 3],
            v: &[0.0; 3],
            ..error
        }
        .run()
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "heads (a multiple of heads_kv): expected 3, found 2"
        );
        let error = POSITIONS
            .run_varlen(&[0, 5, 4], &[0, 1, 4], |x| x)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cu_seqlens, which may not fall: expected 5, found 4"
        );
    }
}
