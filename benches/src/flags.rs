//! Values on the command line: numbers with their limits, durations in seconds, sizes with a unit.

use std::time::Duration;

/// Longest duration a flag may ask for: a day.
const SECONDS_MAX: f64 = 86_400.0;

/// Seconds, also in fractions.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number of seconds"))?;
    if !(0.0..=SECONDS_MAX).contains(&value) {
        return Err(format!("{text} is not between 0 and {SECONDS_MAX} seconds"));
    }
    Duration::try_from_secs_f64(value).map_err(|error| error.to_string())
}

/// Seconds above zero.
pub fn seconds_above_zero(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("must be above 0".to_owned()),
        duration => Ok(duration),
    }
}

/// Bytes: a whole number, perhaps with KiB, MiB or GiB after it.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(format!("`{unit}` is no unit of bytes; use KiB, MiB or GiB")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is no number of bytes"))?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("{text} is zero or too much"))
}

/// `host:port`.
pub fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0) => {
            Ok(text.to_owned())
        }
        _ => Err(format!("`{text}` is no HOST:PORT")),
    }
}

/// What a produce waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acks(pub i16);

/// `0`, `1`, `all` or `-1`.
pub fn acks(text: &str) -> Result<Acks, String> {
    match text {
        "0" => Ok(Acks(0)),
        "1" => Ok(Acks(1)),
        "all" | "-1" => Ok(Acks(-1)),
        _ => Err(format!("`{text}` is none of 0, 1, all")),
    }
}

/// Processes, by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pids(pub Vec<u32>);

/// One id, or several with commas between.
pub fn pids(text: &str) -> Result<Pids, String> {
    let one = |word: &str| word.trim().parse().ok().filter(|pid| *pid > 0);
    let pids: Option<Vec<u32>> = text.split(',').map(one).collect();
    pids.map(Pids).ok_or_else(|| format!("`{text}` is no PID,PID,…"))
}

/// `KEY=VALUE` as a line of TOML for a broker that is started here.
pub fn setting(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() && !value.trim().is_empty() => {
            Ok(format!("{} = {}", key.trim(), value.trim()))
        }
        _ => Err(format!("`{text}` is no KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_sizes_when_parsed_then_units_count_and_nonsense_is_named() {
        assert_eq!(bytes("4GiB"), Ok(4 << 30));
        assert_eq!(bytes("1000"), Ok(1_000));
        for bad in ["", "0", "4GB", "GiB", "-1", "99999999999GiB", "1.5MiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert!(bytes("4GB").unwrap_err().contains("GiB"));
    }

    #[test]
    fn given_seconds_when_parsed_then_fractions_are_fine_and_the_absurd_is_not() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["-1", "nan", "inf", "1e9", "ten"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert!(seconds_above_zero("0").is_err());
    }

    #[test]
    fn given_addresses_acks_and_settings_when_parsed_then_only_the_known_forms_pass() {
        assert!(address("localhost:9092").is_ok() && address("[::1]:9092").is_ok());
        for bad in ["localhost", ":9092", "h:0", "h:99999"] {
            assert!(address(bad).is_err(), "{bad}");
        }
        assert_eq!(acks("all"), Ok(Acks(-1)));
        assert!(acks("2").is_err());
        assert_eq!(setting("wal.file_bytes=8388608"), Ok("wal.file_bytes = 8388608".to_owned()));
        assert!(setting("wal.file_bytes").is_err());
        assert_eq!(pids("12,7"), Ok(Pids(vec![12, 7])));
        assert!(pids("12,").is_err() && pids("0").is_err() && pids("me").is_err());
    }
}
