//! The date formatting that chat templates use, over a plain date and time.
//!
//! English names, no time zones: the caller says which time it means. Invariant: unknown codes are kept as written.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment, broken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// Days since 1970-01-01.
    days: i64,
    second_of_day: i64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Moment {
    pub(super) fn from_unix(seconds: i64) -> Self {
        Self { days: seconds.div_euclid(86_400), second_of_day: seconds.rem_euclid(86_400) }
    }

    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_unix(i64::try_from(since.as_secs()).unwrap_or(0))
    }

    /// Year, month (1 to 12) and day (1 to 31) in the Gregorian calendar.
    fn date(self) -> (i64, i64, i64) {
        // Years are counted from March here, so that the leap day is the last of a year: within 400 years (146,097
        // days) every length then follows from divisions alone.
        let shifted = self.days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month, day)
    }

    fn day_of_year(self) -> i64 {
        let (year, month, day) = self.date();
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let index = usize::try_from(month - 1).unwrap_or(0);
        before.get(index).copied().unwrap_or(0) + i64::from(leap && month > 2) + day
    }

    pub(super) fn format(self, pattern: &str) -> String {
        let (year, month, day) = self.date();
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let weekday = (self.days + 4).rem_euclid(7);
        let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
        let name =
            |names: &[&'static str], i: i64| usize::try_from(i).ok().and_then(|i| names.get(i).copied()).unwrap_or("");
        let short = |s: &str| s.get(..3).unwrap_or(s).to_owned();
        let mut out = String::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut code = chars.next();
            // glibc's flag for "no padding".
            let bare = code == Some('-');
            if bare {
                code = chars.next();
            }
            let two = |n: i64| if bare { n.to_string() } else { format!("{n:02}") };
            let text = match code {
                Some('Y') => year.to_string(),
                Some('y') => two(year.rem_euclid(100)),
                Some('m') => two(month),
                Some('d') => two(day),
                Some('e') if bare => day.to_string(),
                Some('e') => format!("{day:2}"),
                Some('B') => name(&MONTHS, month - 1).to_owned(),
                Some('b' | 'h') => short(name(&MONTHS, month - 1)),
                Some('A') => name(&DAYS, weekday).to_owned(),
                Some('a') => short(name(&DAYS, weekday)),
                Some('w') => weekday.to_string(),
                Some('u') => (if weekday == 0 { 7 } else { weekday }).to_string(),
                Some('H') => two(hour),
                Some('I') => two(hour12),
                Some('M') => two(minute),
                Some('S') => two(second),
                Some('f') => "000000".to_owned(),
                Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
                Some('j') if bare => self.day_of_year().to_string(),
                Some('j') => format!("{:03}", self.day_of_year()),
                Some('s') => (self.days * 86_400 + self.second_of_day).to_string(),
                Some('F') => format!("{year}-{month:02}-{day:02}"),
                Some('D' | 'x') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
                Some('T' | 'X') => format!("{hour:02}:{minute:02}:{second:02}"),
                Some('R') => format!("{hour:02}:{minute:02}"),
                Some('c') => self.format("%a %b %e %H:%M:%S %Y"),
                // A naive time has no zone.
                Some('z' | 'Z') => String::new(),
                Some('n') => "\n".to_owned(),
                Some('t') => "\t".to_owned(),
                Some('%') => "%".to_owned(),
                Some(other) if bare => format!("%-{other}"),
                Some(other) => format!("%{other}"),
                None => "%".to_owned(),
            };
            out.push_str(&text);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_known_moments() {
        let at = |s, p| Moment::from_unix(s).format(p);
        assert_eq!(at(0, "%Y-%m-%d %H:%M:%S %a %j"), "1970-01-01 00:00:00 Thu 001");
        assert_eq!(at(1_768_478_400, "%B %d, %Y %I %p"), "January 15, 2026 12 PM");
        assert_eq!(at(951_782_400, "%d %b %Y %A %j %-d"), "29 Feb 2000 Tuesday 060 29");
        assert_eq!(at(-1, "%F %T"), "1969-12-31 23:59:59");
        assert_eq!(at(0, "100%% %q %"), "100% %q %");
    }
}
