//! Files that stop being valid at a certain time: certificates and the GeoIP database.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::config::Settings;
use crate::geoip::GeoIp;
use crate::model::day::Day;
use crate::transport::tls::{CertificateFiles, validity_of};

/// How long before its end a file is reported.
const NOTICE: Duration = Duration::from_secs(14 * 86_400);

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
}

/// Every file of a configuration that stops being valid.
pub fn of(settings: &Settings, geoip: Option<&GeoIp>) -> Vec<Expiring> {
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
    all
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
        if self.kind == Kind::AcmeCertificate || (left > NOTICE && self.from <= now) {
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

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Certificate => "certificate",
            Self::AcmeCertificate => "certificate (renewed by ACME)",
            Self::GeoIp => "GeoIP database",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

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
    }
}
