//! When the next request may go out: a rate, pauses that the server asks for, and back-off between the tries of one request.
use std::{
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use chrono::DateTime;

use crate::data::random::RowRandom;

/// The longest pause that a server may ask for; after a longer one the same command is better run again.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);

/// The beginnings of all requests, whichever thread sends them.
pub(super) struct Pace {
    next: Mutex<Instant>,
    interval: Duration,
}

impl Pace {
    /// So many a minute, evenly spaced; 0: no limit.
    pub fn new(per_minute: usize) -> Pace {
        let interval =
            if per_minute == 0 { Duration::ZERO } else { Duration::from_secs(60) / per_minute as u32 };
        Pace { next: Mutex::new(Instant::now()), interval }
    }

    fn next(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.next.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// When the caller's request may go out.
    pub fn slot(&self) -> Instant {
        let mut next = self.next();
        let slot = next.max(Instant::now());
        if !self.interval.is_zero() {
            *next = slot + self.interval;
        }
        slot
    }

    /// Nothing goes out for so long.
    pub fn hold(&self, pause: Duration) {
        let mut next = self.next();
        *next = next.max(Instant::now() + pause);
    }
}

/// The pause before try number `again` (from 1): it doubles from half a second up to half a minute, of which between a half and all is waited, so that
/// requests that failed together do not come back together. Which part is a function of the request: no result depends on it.
pub(super) fn back_off(place: &str, again: usize) -> Duration {
    let whole = 0.5 * 2f64.powi(again.saturating_sub(1).min(6) as i32);
    let part = RowRandom::new(again as u64, "back-off", place).uniform();
    Duration::from_secs_f64(whole.min(30.0) * (0.5 + 0.5 * part))
}

/// The header Retry-After (RFC 9110, 10.2.3): seconds, or a date.
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(value.trim()).ok()?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let until = u64::try_from(date.timestamp()).ok()?;
    Some(Duration::from_secs(until.saturating_sub(since.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_spaced_and_all_wait_while_one_is_held() {
        let (pace, second) = (Pace::new(60), Duration::from_secs(1));
        let slots = [pace.slot(), pace.slot(), pace.slot()];
        assert!(slots[1] - slots[0] == second && slots[2] - slots[1] == second);
        let pace = Pace::new(0);
        assert!([pace.slot(), pace.slot()].iter().all(|slot| *slot <= Instant::now()));
        let now = Instant::now();
        pace.hold(LONGEST);
        assert!(pace.slot() >= now + LONGEST);
    }

    #[test]
    fn pauses_double_and_are_the_same_each_time() {
        let seconds: Vec<f64> = (1..12).map(|n| back_off("row 1", n).as_secs_f64()).collect();
        for (n, s) in seconds.iter().enumerate() {
            let whole = (0.5 * 2f64.powi(n as i32)).min(30.0);
            assert!((whole / 2.0..=whole).contains(s), "{seconds:?}");
        }
        assert_eq!(back_off("row 1", 3), back_off("row 1", 3));
        assert_ne!(back_off("row 1", 3), back_off("row 2", 3));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(retry_after("Fri, 01 Jan 2100 00:00:00 GMT").unwrap() > LONGEST);
        assert_eq!((retry_after("soon"), retry_after("-1"), retry_after("")), (None, None, None));
    }
}
