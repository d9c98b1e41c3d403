//! Understands the registers of a PC's real-time clock (Motorola MC146818).
//! May: nothing. Context: boot. Input: a chip: any bytes.

/// Registers that tell the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Time {
    pub second: u8,
    pub minute: u8,
    pub hour: u8,
    pub day: u8,
    pub month: u8,
    pub year: u8,
}

/// Status register B: hours count to 24.
const HOURS_24: u8 = 1 << 1;
/// Numbers are binary, not decimal digits.
const BINARY: u8 = 1 << 2;
/// Hours that count to 12 have this bit in the afternoon.
const AFTERNOON: u8 = 1 << 7;

/// Seconds since 1970 when the registers were `time` and status register B `format`; none for what is no
/// time. Years are those of this century: the register of the century is not the same on all machines.
#[must_use]
pub fn seconds(time: Time, format: u8) -> Option<u64> {
    let plain = |value: u8| match format & BINARY {
        0 => (value & 0xf) + (value >> 4) * 10,
        _ => value,
    };
    let hour = if format & HOURS_24 != 0 {
        plain(time.hour)
    } else {
        plain(time.hour & !AFTERNOON) % 12 + if time.hour & AFTERNOON != 0 { 12 } else { 0 }
    };
    let [second, minute, day, month, year] =
        [time.second, time.minute, time.day, time.month, time.year].map(plain);
    let possible = second < 60
        && minute < 60
        && hour < 24
        && (1..=31).contains(&day)
        && (1..=12).contains(&month)
        && year < 100;
    let clock = (u64::from(hour) * 60 + u64::from(minute)) * 60 + u64::from(second);
    possible.then(|| days(year.into(), month.into(), day.into()) * 86_400 + clock)
}

/// Days from 1970 to a day in year `years` of this century, in which every fourth year has a day more.
fn days(years: u64, month: usize, day: u64) -> u64 {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    const TO_2000: u64 = 10_957;
    let leap_days = years.div_ceil(4) + u64::from(years.is_multiple_of(4) && month > 2);
    TO_2000 + years * 365 + leap_days + BEFORE[month - 1] + day - 1
}

#[cfg(test)]
mod tests {
    use super::{BINARY, HOURS_24, Time, seconds};

    const NIGHT: Time =
        Time { second: 0x59, minute: 0x58, hour: 0x23, day: 0x29, month: 2, year: 0x24 };

    #[test]
    fn digits_and_numbers() {
        assert_eq!(seconds(NIGHT, HOURS_24), Some(1_709_251_139));
        let binary = Time { second: 59, minute: 58, hour: 23, day: 29, month: 2, year: 24 };
        assert_eq!(seconds(binary, HOURS_24 | BINARY), Some(1_709_251_139));
        let first = Time { second: 0, minute: 0, hour: 0, day: 1, month: 1, year: 0 };
        assert_eq!(seconds(first, HOURS_24), Some(946_684_800));
        let march = Time { day: 1, month: 3, year: 0x26, ..first };
        assert_eq!(seconds(march, HOURS_24), Some(1_772_323_200));
    }

    #[test]
    fn halves_of_the_day() {
        let at = |hour| seconds(Time { hour, ..NIGHT }, 0).map(|seconds| seconds / 3600 % 24);
        assert_eq!(at(0x12), Some(0));
        assert_eq!(at(0x11), Some(11));
        assert_eq!(at(0x92), Some(12));
        assert_eq!(at(0x91), Some(23));
    }

    #[test]
    fn an_absent_chip_has_no_time() {
        let ones = Time { second: 255, minute: 255, hour: 255, day: 255, month: 255, year: 255 };
        for format in [0, 255] {
            assert_eq!(seconds(ones, format), None);
        }
        let zeros = Time { second: 0, minute: 0, hour: 0, day: 0, month: 0, year: 0 };
        assert_eq!(seconds(zeros, 0), None);
    }
}
