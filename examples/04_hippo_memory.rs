//! Step 4: the theory behind state space models: a memory of a few numbers that holds a whole signal.
//!
//! A HiPPO-LegS state sees a signal once, sample by sample. Then all of its past is read out of the state. Theory says
//! how much may be lost; the exit code is 1 if more is.
//!
//! ```sh
//! cargo run --example 04_hippo_memory
//! ```

use std::f64::consts::TAU;
use std::process::ExitCode;

use seqmix::state_space::{Discretization, LegsMemory};

/// The signal on [0, 1]: sines, each with its amplitude and its number of periods.
const SINES: [(f64, f64); 3] = [(1.0, 0.8), (0.5, 2.0), (0.25, 3.5)];
/// Samples, each of which stands for the time around it.
const SAMPLES: usize = 1000;

fn signal(t: f64) -> f64 {
    let sines = SINES.map(|(amplitude, periods)| amplitude * (TAU * periods * t).sin());
    sines.iter().sum()
}

/// The most that `states` coefficients may lose of the signal, as a root mean square over the time until `now`.
fn bound(states: usize, now: f64) -> f64 {
    let each = SINES.map(|(amplitude, periods)| {
        let frequency = TAU * periods;
        // A sample is off by at most the slope times the distance from its middle, whose mean square over a length
        // h is h^2 / 12. A projection makes no function longer.
        let held = amplitude * frequency / SAMPLES as f64 / 12.0_f64.sqrt();
        // Legendre coefficients of exp(i k y) on [-1, 1] are i^n (2n+1) j_n(k), |j_n(k)| <= k^n / (2n+1)!!, and what
        // the first ones leave is at most the whole.
        let k = frequency * now / 2.0;
        let (mut spherical, mut tail) = (1.0_f64, 0.0_f64);
        for n in 0..states + 100 {
            if n > 0 {
                spherical *= k / (2 * n + 1) as f64;
            }
            if n >= states {
                tail += (2 * n + 1) as f64 * spherical * spherical;
            }
        }
        held + amplitude * tail.sqrt().min(1.0)
    });
    each.iter().sum()
}

/// What is lost of the signal until `now`, as a root mean square.
fn lost(memory: &LegsMemory, now: f64) -> f64 {
    let points = 4000;
    let square = |i| {
        let position = (f64::from(i) + 0.5) / f64::from(points);
        (memory.recall(position) - signal(position * now)).powi(2)
    };
    ((0..points).map(square).sum::<f64>() / f64::from(points)).sqrt()
}

fn main() -> ExitCode {
    println!("states  time  lost     at most");
    let mut kept = true;
    for states in [4, 8, 16, 32] {
        let mut memory = LegsMemory::new(states, Discretization::ZeroOrderHold);
        for sample in 0..SAMPLES {
            memory.push(signal((sample as f64 + 0.5) / SAMPLES as f64));
            let now = (sample + 1) as f64 / SAMPLES as f64;
            if [0.25, 0.5, 1.0].contains(&now) {
                let (lost, bound) = (lost(&memory, now), bound(states, now));
                println!("{states:6}  {now:4.2}  {lost:.1e}  {bound:.1e}");
                kept &= lost <= bound;
            }
        }
    }
    if kept {
        return ExitCode::SUCCESS;
    }
    println!("more was lost than theory allows");
    ExitCode::FAILURE
}
