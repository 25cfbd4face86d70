//! Files that an operator must renew in time: certificates, the GeoIP database and the user table.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::config::Settings;
use crate::geoip::GeoIp;
use crate::model::day::Day;
use crate::transport::tls::{CertificateFiles, validity_of};

/// How long before its end a file is reported.
const NOTICE: Duration = Duration::from_secs(14 * 86_400);

const DAY: Duration = Duration::from_secs(86_400);

/// A file that stops being valid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expiring {
    pub file: PathBuf,
    pub kind: Kind,
    from: SystemTime,
    pub until: SystemTime,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Certificate,
    /// A certificate that Domicile itself renews.
    AcmeCertificate,
    GeoIp,
    /// A table that its export should have changed by then. It stays in use.
    UserTable,
}

/// Every file of a configuration that must be renewed. `table_changed` is the time of the last change of the user table.
pub fn of(settings: &Settings, geoip: Option<&GeoIp>, table_changed: Option<SystemTime>) -> Vec<Expiring> {
    let acme: Vec<_> = settings.acme().map(|files| files.pair().certificate).collect();
    let certificate = |file: &PathBuf| {
        let validity = validity_of(file)?;
        let kind = if acme.contains(file) { Kind::AcmeCertificate } else { Kind::Certificate };
        Some(Expiring { file: file.clone(), kind, from: validity.from, until: validity.until })
    };
    let mut all: Vec<_> = certificates(settings).iter().filter_map(certificate).collect();
    if let Some((settings, geoip)) = settings.geoip.as_ref().zip(geoip)
        && let Some(most) = settings.max_age
    {
        let (file, from) = (settings.database.clone(), geoip.built());
        all.push(Expiring { file, kind: Kind::GeoIp, from, until: from + most });
    }
    if let Some((settings, from)) = settings.directory.as_ref().zip(table_changed)
        && let Some(most) = settings.stale_after
    {
        all.push(Expiring { file: settings.file.clone(), kind: Kind::UserTable, from, until: from + most });
    }
    all
}

/// How long until files must be reported again: a day, or until the next of them begins to be reported.
pub fn until_next_note(files: &[Expiring], now: SystemTime) -> Duration {
    let starts = files.iter().flat_map(|file| [file.until - file.kind.notice(), file.until]);
    // After the moment itself, so that the file is late when the time is compared again.
    let ahead = starts.filter_map(|at| at.duration_since(now).ok()).map(|left| left + Duration::from_millis(1));
    ahead.min().unwrap_or(DAY).min(DAY)
}

fn certificates(settings: &Settings) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let certificate = |pair: &CertificateFiles| pair.certificate.clone();
    for tls in settings.listeners.iter().filter_map(|listener| listener.tls.as_ref()) {
        files.extend(tls.certificates.iter().map(certificate));
        files.extend(tls.clients.iter().map(|clients| clients.authority.clone()));
    }
    if let Some(peers) = &settings.peer_tls {
        files.extend([certificate(&peers.own), peers.authority.clone()]);
    }
    files.sort();
    files.dedup();
    files
}

impl Expiring {
    /// A warning with the remedy, if the file has expired, expires within [`NOTICE`], or is not valid yet.
    pub fn note(&self, now: SystemTime) -> Option<String> {
        let left = self.until.duration_since(now).unwrap_or_default();
        let is_early = self.kind == Kind::Certificate && self.from > now;
        if self.kind == Kind::AcmeCertificate || (left > self.kind.notice() && !is_early) {
            return None;
        }
        let (file, day, days) = (self.file.display(), Day::of(self.until), left.as_secs() / 86_400);
        Some(match self.kind {
            Kind::GeoIp if left.is_zero() => format!(
                "`{file}`: the GeoIP database is older than `geoip.max_age`; it still selects regions, but proves no jurisdiction; \
                 install a newer one"
            ),
            Kind::GeoIp => format!(
                "`{file}`: the GeoIP database reaches `geoip.max_age` in {days} days, on {day}, and then proves no jurisdiction; \
                 install a newer one"
            ),
            Kind::UserTable => {
                let age = rounded(now.duration_since(self.from).unwrap_or_default());
                format!("`{file}`: the user table has not changed for {age}, longer than `stale_after`; check its export")
            }
            Kind::Certificate | Kind::AcmeCertificate if self.from > now => {
                format!("`{file}`: this certificate is not valid before {}; check the clock", Day::of(self.from))
            }
            Kind::Certificate | Kind::AcmeCertificate if left.is_zero() => {
                format!("`{file}`: this certificate has expired on {day}; renew it")
            }
            Kind::Certificate | Kind::AcmeCertificate => {
                format!("`{file}`: this certificate expires in {days} days, on {day}; renew it")
            }
        })
    }
}

/// A duration in its largest unit.
fn rounded(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (unit, name) = match seconds {
        172_800.. => (86_400, "days"),
        7_200.. => (3_600, "hours"),
        120.. => (60, "minutes"),
        _ => (1, "seconds"),
    };
    format!("{} {name}", seconds / unit)
}

impl Kind {
    /// How long before its end such a file is reported.
    fn notice(self) -> Duration {
        if self == Self::UserTable { Duration::ZERO } else { NOTICE }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Certificate => "certificate",
            Self::AcmeCertificate => "certificate (renewed by ACME)",
            Self::GeoIp => "GeoIP database",
            Self::UserTable => "user table",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_reported_two_weeks_before_its_end() {
        let from = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let file = |kind| Expiring { file: "a.pem".into(), kind, from, until: from + DAY * 90 };
        let note = |kind, days| file(kind).note(from + DAY * days).unwrap_or_default();
        assert_eq!(note(Kind::Certificate, 75), "");
        assert_eq!(note(Kind::Certificate, 77), "`a.pem`: this certificate expires in 13 days, on 2025-01-02; renew it");
        assert_eq!(note(Kind::Certificate, 91), "`a.pem`: this certificate has expired on 2025-01-02; renew it");
        assert!(file(Kind::Certificate).note(from - DAY).unwrap().contains("not valid before 2024-10-04"));
        assert!(note(Kind::GeoIp, 80).contains("reaches `geoip.max_age` in 10 days, on 2025-01-02"));
        assert!(note(Kind::GeoIp, 90).contains("older than `geoip.max_age`"));
        assert_eq!(note(Kind::AcmeCertificate, 90), "", "Domicile renews it and reports its own errors");
        assert_eq!(note(Kind::UserTable, 89), "");
        let stale = "`a.pem`: the user table has not changed for 90 days, longer than `stale_after`; check its export";
        assert_eq!(note(Kind::UserTable, 90), stale);
    }

    #[test]
    fn the_next_report_is_when_a_file_must_be_renewed() {
        let now = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let file = |kind, until| Expiring { file: "a.pem".into(), kind, from: now, until };
        let next = |kind, seconds| until_next_note(&[file(kind, now + Duration::from_secs(seconds))], now);
        let (hour, fortnight) = (3_600, 14 * 86_400);
        assert_eq!(next(Kind::UserTable, hour), Duration::from_millis(3_600_001));
        assert_eq!(next(Kind::Certificate, fortnight + hour), Duration::from_millis(3_600_001));
        assert_eq!(next(Kind::Certificate, fortnight), Duration::from_millis(1));
        assert_eq!(next(Kind::Certificate, 60 * 86_400), DAY);
        assert_eq!(until_next_note(&[], now), DAY);
    }
}
