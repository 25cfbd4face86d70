//! The commands of operators.

use std::fmt;
use std::time::Duration;

use percent_encoding::percent_decode_str;

/// A command of an operator that changes the running process, and nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    DrainUpstream {
        service: String,
        upstream: String,
        drains: bool,
    },
    /// Sets the weight of an upstream; `None` for the configured one.
    WeighUpstream {
        service: String,
        upstream: String,
        weight: Option<u32>,
    },
    DrainRegion {
        region: String,
        drains: bool,
    },
    /// Sets the filter of the log for a time.
    LogLevel {
        filter: String,
        period: Duration,
    },
    /// Replaces the key that signs the ledger.
    RotateSigningKey,
    /// Replaces the key of the pseudonyms.
    RotatePseudonyms,
    /// Destroys the keys of pseudonyms that were replaced before a moment, as lines of the ledger write it.
    ForgetPseudonyms {
        before: String,
    },
}

/// The highest weight of an upstream.
pub const MAX_WEIGHT: u32 = 1000;

/// The longest time of another log level: a forgotten one would fill the disk.
const MAX_PERIOD: Duration = Duration::from_secs(86_400);

impl Operation {
    /// Reads the path and the query of a request. The error says what is wrong.
    pub fn parse(path: &str, query: &str) -> Result<Self, String> {
        let parameter = |name: &str| {
            let find = |pair: &str| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
            let text = query.split('&').find_map(find).ok_or_else(|| format!("the parameter `{name}` is missing"))?;
            percent_decode_str(&text).decode_utf8().map(String::from).map_err(|_| format!("`{name}` is not valid UTF-8"))
        };
        match path {
            "/upstreams/drain" | "/upstreams/undrain" => Ok(Self::DrainUpstream {
                service: parameter("service")?,
                upstream: parameter("upstream")?,
                drains: path == "/upstreams/drain",
            }),
            "/upstreams/weight" => {
                let text = parameter("weight")?;
                let weight = match text.as_str() {
                    "configured" => None,
                    text => match text.parse() {
                        Ok(weight @ 1..=MAX_WEIGHT) => Some(weight),
                        _ => return Err(format!("`{text}` is not a valid weight; write 1 to {MAX_WEIGHT}, or `configured`")),
                    },
                };
                Ok(Self::WeighUpstream { service: parameter("service")?, upstream: parameter("upstream")?, weight })
            }
            "/regions/drain" | "/regions/undrain" => {
                Ok(Self::DrainRegion { region: parameter("region")?, drains: path == "/regions/drain" })
            }
            "/log" => {
                let period = parameter("for")?;
                let parsed = humantime::parse_duration(&period).ok().filter(|period| *period <= MAX_PERIOD);
                let period = parsed.ok_or_else(|| format!("`{period}` is not a valid duration; write one of at most 1 day, such as `10m`"))?;
                Ok(Self::LogLevel { filter: parameter("level")?, period })
            }
            "/audit/rotate/pseudonyms" => Ok(Self::RotatePseudonyms),
            "/audit/rotate/signing-key" => Ok(Self::RotateSigningKey),
            "/audit/forget" => {
                let text = parameter("before")?;
                let time: jiff::Timestamp = text
                    .parse()
                    .map_err(|_| format!("`{text}` is not a valid moment; write it as `2026-12-01T00:00:00Z`"))?;
                // The names of the keys are compared with it as texts.
                Ok(Self::ForgetPseudonyms { before: format!("{time:.6}") })
            }
            _ => Err("unknown command; use /reload, /upstreams/drain, /upstreams/undrain, /upstreams/weight, /regions/drain, /regions/undrain, /log, /audit/rotate/pseudonyms, /audit/rotate/signing-key or /audit/forget".into()),
        }
    }

    /// The name of the command, for the ledger.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::DrainUpstream { drains: true, .. } => "upstream_drain",
            Self::DrainUpstream { drains: false, .. } => "upstream_undrain",
            Self::WeighUpstream { .. } => "upstream_weight",
            Self::DrainRegion { drains: true, .. } => "region_drain",
            Self::DrainRegion { drains: false, .. } => "region_undrain",
            Self::LogLevel { .. } => "log_level",
            Self::RotatePseudonyms => "pseudonym_rotation",
            Self::RotateSigningKey => "signing_key_rotation",
            Self::ForgetPseudonyms { .. } => "forget",
        }
    }
}

/// The target and the new value of the command, for the ledger and the log.
impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DrainUpstream { service, upstream, .. } => write!(out, "{service}/{upstream}"),
            Self::WeighUpstream { service, upstream, weight: Some(weight) } => write!(out, "{service}/{upstream} {weight}"),
            Self::WeighUpstream { service, upstream, weight: None } => write!(out, "{service}/{upstream} configured"),
            Self::DrainRegion { region, .. } => out.write_str(region),
            Self::LogLevel { filter, period } => write!(out, "{filter} for {}", humantime::format_duration(*period)),
            Self::RotatePseudonyms | Self::RotateSigningKey => Ok(()),
            Self::ForgetPseudonyms { before } => write!(out, "keys of pseudonyms that ended before {before}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_from_path_and_query() {
        let parse = |text: &str| {
            let (path, query) = text.split_once('?').unwrap_or((text, ""));
            Operation::parse(path, query).map(|operation| format!("{} {operation}", operation.name()))
        };
        for (text, wanted) in [
            ("/upstreams/drain?service=app&upstream=10.0.0.1%3A80", "upstream_drain app/10.0.0.1:80"),
            ("/upstreams/weight?service=app&upstream=a:1&weight=5", "upstream_weight app/a:1 5"),
            ("/upstreams/weight?service=app&upstream=a:1&weight=configured", "upstream_weight app/a:1 configured"),
            ("/regions/undrain?region=eu-west", "region_undrain eu-west"),
            ("/log?level=debug&for=10m", "log_level debug for 10m"),
            (
                "/audit/forget?before=2026-12-01T01%3A00%3A00%2B01%3A00",
                "forget keys of pseudonyms that ended before 2026-12-01T00:00:00.000000Z",
            ),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(wanted));
        }
        for (text, wrong) in [
            ("/upstreams/drain?service=app", "`upstream` is missing"),
            ("/upstreams/weight?service=app&upstream=a:1&weight=0", "`0` is not a valid weight"),
            ("/log?level=debug&for=2days", "at most 1 day"),
            ("/restart", "unknown command; use /reload"),
            ("/audit/forget?before=later", "`later` is not a valid moment; write it as `2026-12-01T00:00:00Z`"),
        ] {
            assert!(parse(text).unwrap_err().contains(wrong), "{text}");
        }
    }
}
