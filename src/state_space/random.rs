//! Random numbers that are the same on every machine.

/// Uniform numbers: SplitMix64, Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
pub(super) struct Uniform(u64);

impl Uniform {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number between 0 and 1, never one of both.
    pub(super) fn draw(&mut self) -> f64 {
        // 52 bits and a half: the middle of one of 2^52 intervals.
        ((self.bits() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of Java's SplittableRandom, and of every other SplitMix64, from seed 1234567.
    #[test]
    fn the_generator_is_the_known_one() {
        let mut uniform = Uniform::new(1_234_567);
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        for expected in expected {
            assert_eq!(uniform.bits(), expected);
        }
    }

    #[test]
    fn numbers_fill_the_interval_evenly() {
        let mut uniform = Uniform::new(7);
        let count = 10_000;
        let draws: Vec<f64> = (0..count).map(|_| uniform.draw()).collect();
        assert!(draws.iter().all(|&x| x > 0.0 && x < 1.0));
        let mean = draws.iter().sum::<f64>() / f64::from(count);
        let square = draws.iter().map(|x| x * x).sum::<f64>() / f64::from(count);
        // five standard deviations of a mean
        assert!((mean - 0.5).abs() < 5.0 * 0.289 / 100.0, "{mean}");
        assert!((square - 1.0 / 3.0).abs() < 5.0 * 0.299 / 100.0, "{square}");
    }
}
