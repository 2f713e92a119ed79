//! How long to wait before the next attempt. Pure.

use std::time::Duration;

use crate::config::BackoffConfig;

/// The pause before attempt number `attempt` (the first pause is number 1): uniformly random
/// between zero and a bound that grows exponentially ("full jitter"), clamped after the jitter so
/// that no pause is ever above the maximum. `random` is uniform in `0.0..1.0`.
pub(super) fn delay(config: &BackoffConfig, attempt: u32, random: f64) -> Duration {
    let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
    let max = config.max.as_secs_f64();
    let bound = (config.initial.as_secs_f64() * config.multiplier.powi(exponent)).min(max);
    Duration::try_from_secs_f64(bound * random.clamp(0.0, 1.0))
        .unwrap_or(config.max)
        .min(config.max)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const CONFIG: BackoffConfig = BackoffConfig {
        initial: Duration::from_millis(100),
        max: Duration::from_secs(60),
        multiplier: 2.0,
        stable_after: Duration::from_secs(30),
    };

    /// Bound of each attempt, until it stays at the maximum.
    fn bound(attempt: u32) -> f64 {
        (0.1 * 2_f64.powi(i32::try_from(attempt).expect("small") - 1)).min(60.0)
    }

    #[test]
    fn delays_are_uniform_up_to_the_attempts_bound() {
        const SAMPLES: u32 = 20_000;
        let mut random = SmallRng::seed_from_u64(7);
        for attempt in 1..=14 {
            let delays: Vec<f64> = (0..SAMPLES)
                .map(|_| delay(&CONFIG, attempt, random.random()).as_secs_f64())
                .collect();
            let bound = bound(attempt);
            let mean = delays.iter().sum::<f64>() / f64::from(SAMPLES);
            // A uniform mean's standard error is bound / sqrt(12 n): five of them.
            let tolerance = 5.0 * bound / (12.0 * f64::from(SAMPLES)).sqrt();
            assert!(
                (mean - bound / 2.0).abs() < tolerance,
                "attempt {attempt}: mean {mean}"
            );
            assert!(delays.iter().all(|delay| (0.0..=bound).contains(delay)));
            let upper = delays.iter().filter(|delay| **delay > 0.9 * bound).count();
            let share = upper as f64 / f64::from(SAMPLES);
            assert!(
                (0.08..0.12).contains(&share),
                "attempt {attempt}: top decile {share}"
            );
        }
    }

    #[test]
    fn no_delay_is_above_the_maximum_after_jitter() {
        for attempt in [1, 10, 11, 100, 10_000, u32::MAX] {
            for random in [0.0, 0.5, 0.999_999_999, 1.0, 7.0, f64::NAN] {
                assert!(
                    delay(&CONFIG, attempt, random) <= CONFIG.max,
                    "{attempt} {random}"
                );
            }
        }
    }

    #[test]
    fn the_bound_grows_until_the_maximum() {
        let at = |attempt| delay(&CONFIG, attempt, 1.0);
        assert!((1..=10).all(|attempt| at(attempt) < at(attempt + 1)));
        assert_eq!(at(11), CONFIG.max);
        assert_eq!(at(12), CONFIG.max);
    }
}
