//! Everything that an operator must renew in time: certificates, the GeoIP database, the user table, and transfers of the policy.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::config::Settings;
use crate::decision::policy::Policy;
use crate::geoip::GeoIp;
use crate::model::day::Day;
use crate::transport::tls::{CertificateFiles, validity_of};

const DAY: Duration = Duration::from_secs(86_400);

/// A file or a transfer that stops being valid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expiring {
    /// The path of a file, or the description of a transfer.
    pub name: String,
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
    /// A permission of the policy.
    Transfer,
}

/// Every transfer of a policy.
pub fn transfers(policy: &Policy) -> Vec<Expiring> {
    let of_class = |class| {
        let data = policy.class(class);
        data.rule.transfers.iter().map(|transfer| {
            let (from, to) = (policy.jurisdiction_name(transfer.from), policy.jurisdiction_names(transfer.to));
            let name = format!("transfer of {} data from {from} to {to} ({})", data.name, transfer.grounds());
            Expiring { name, kind: Kind::Transfer, from: SystemTime::UNIX_EPOCH, until: transfer.until.end() }
        })
    };
    policy.class_ids().flat_map(of_class).collect()
}

/// Everything of a configuration that must be renewed. `table_changed` is the time of the last change of the user table.
pub fn of(policy: &Policy, settings: &Settings, geoip: Option<&GeoIp>, table_changed: Option<SystemTime>) -> Vec<Expiring> {
    let acme: Vec<_> = settings.acme().map(|files| files.pair().certificate).collect();
    let certificate = |file: &PathBuf| {
        let validity = validity_of(file)?;
        let kind = if acme.contains(file) { Kind::AcmeCertificate } else { Kind::Certificate };
        Some(Expiring { name: name(file), kind, from: validity.from, until: validity.until })
    };
    let mut all: Vec<_> = certificates(settings).iter().filter_map(certificate).collect();
    if let Some((settings, geoip)) = settings.geoip.as_ref().zip(geoip)
        && let Some(most) = settings.max_age
    {
        let from = geoip.built();
        all.push(Expiring { name: name(&settings.database), kind: Kind::GeoIp, from, until: from + most });
    }
    if let Some((settings, from)) = settings.directory.as_ref().zip(table_changed)
        && let Some(most) = settings.stale_after
    {
        all.push(Expiring { name: name(&settings.file), kind: Kind::UserTable, from, until: from + most });
    }
    all.extend(transfers(policy));
    all
}

fn name(file: &Path) -> String {
    file.display().to_string()
}

/// How long until files must be reported again: a day, or until the next of them begins to be reported.
pub fn until_next_note(files: &[Expiring], now: SystemTime) -> Duration {
    let starts = files.iter().flat_map(|file| [file.until - file.notice(), file.until]);
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
    /// How long before its end it is reported.
    fn notice(&self) -> Duration {
        match self.kind {
            Kind::Certificate | Kind::GeoIp => 14 * DAY,
            // It is renewed when a third of its lifetime is left; half of that has passed without success.
            Kind::AcmeCertificate => self.until.duration_since(self.from).unwrap_or_default() / 6,
            // A contract takes longer to renew than a file.
            Kind::Transfer => 30 * DAY,
            Kind::UserTable => Duration::ZERO,
        }
    }

    /// A warning with the remedy, if it has expired, expires soon, or is not valid yet.
    pub fn note(&self, now: SystemTime) -> Option<String> {
        let left = self.until.duration_since(now).unwrap_or_default();
        // A placeholder is valid for no time, until ACME has fetched the first certificate.
        if self.kind == Kind::AcmeCertificate && self.from == self.until {
            return None;
        }
        let is_early = self.kind == Kind::Certificate && self.from > now;
        if left > self.notice() && !is_early {
            return None;
        }
        let (file, day, days) = (&self.name, Day::of(self.until), left.as_secs() / 86_400);
        Some(match self.kind {
            Kind::Transfer => {
                let last = Day::of(self.until - DAY);
                let state =
                    if left.is_zero() { format!("has ended with {last}") } else { format!("ends in {days} days, with {last}") };
                format!("the {file} {state}, and then requests that need it are refused; renew it, or remove it")
            }
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
            Kind::AcmeCertificate => {
                let state =
                    if left.is_zero() { format!("has expired on {day}") } else { format!("expires in {days} days, on {day}") };
                format!("`{file}`: this certificate {state}, and ACME has not renewed it; the log says why")
            }
            Kind::Certificate if self.from > now => {
                format!("`{file}`: this certificate is not valid before {}; check the clock", Day::of(self.from))
            }
            Kind::Certificate if left.is_zero() => {
                format!("`{file}`: this certificate has expired on {day}; renew it")
            }
            Kind::Certificate => {
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

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Certificate => "certificate",
            Self::AcmeCertificate => "certificate (renewed by ACME)",
            Self::GeoIp => "GeoIP database",
            Self::UserTable => "user table",
            Self::Transfer => "transfer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_reported_two_weeks_before_its_end() {
        let from = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let file = |kind| Expiring { name: "a.pem".into(), kind, from, until: from + DAY * 90 };
        let note = |kind, days| file(kind).note(from + DAY * days).unwrap_or_default();
        assert_eq!(note(Kind::Certificate, 75), "");
        assert_eq!(note(Kind::Certificate, 77), "`a.pem`: this certificate expires in 13 days, on 2025-01-02; renew it");
        assert_eq!(note(Kind::Certificate, 91), "`a.pem`: this certificate has expired on 2025-01-02; renew it");
        assert!(file(Kind::Certificate).note(from - DAY).unwrap().contains("not valid before 2024-10-04"));
        assert!(note(Kind::GeoIp, 80).contains("reaches `geoip.max_age` in 10 days, on 2025-01-02"));
        assert!(note(Kind::GeoIp, 90).contains("older than `geoip.max_age`"));
        assert_eq!(note(Kind::AcmeCertificate, 74), "", "Domicile renews it 30 days before");
        assert_eq!(Expiring { until: from, ..file(Kind::AcmeCertificate) }.note(from + DAY), None, "a placeholder");
        assert!(note(Kind::AcmeCertificate, 76).contains("expires in 14 days, on 2025-01-02, and ACME has not renewed it"));
        assert_eq!(note(Kind::UserTable, 89), "");
        let stale = "`a.pem`: the user table has not changed for 90 days, longer than `stale_after`; check its export";
        assert_eq!(note(Kind::UserTable, 90), stale);
        assert_eq!(note(Kind::Transfer, 59), "");
        assert!(
            note(Kind::Transfer, 61).contains("ends in 29 days, with 2025-01-01, and then requests that need it are refused")
        );
        assert!(note(Kind::Transfer, 90).contains("has ended with 2025-01-01"), "{}", note(Kind::Transfer, 90));
    }

    #[test]
    fn the_next_report_is_when_a_file_must_be_renewed() {
        let now = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let file = |kind, until| Expiring { name: "a.pem".into(), kind, from: now, until };
        let next = |kind, seconds| until_next_note(&[file(kind, now + Duration::from_secs(seconds))], now);
        let (hour, fortnight) = (3_600, 14 * 86_400);
        assert_eq!(next(Kind::UserTable, hour), Duration::from_millis(3_600_001));
        assert_eq!(next(Kind::Certificate, fortnight + hour), Duration::from_millis(3_600_001));
        assert_eq!(next(Kind::Certificate, fortnight), Duration::from_millis(1));
        assert_eq!(next(Kind::Certificate, 60 * 86_400), DAY);
        assert_eq!(until_next_note(&[], now), DAY);
    }
}
