//! The spans of a request.

use std::time::{Duration, SystemTime};

use crate::decision::policy::Policy;
use crate::engine::judge::Judged;
use crate::traces::Ended;

use super::{CLIENT_CLOSED, Names, RequestLog};

impl RequestLog {
    /// Sends the spans of a sampled request. They name no path, address or user, because a collector keeps them.
    pub(super) fn end_trace(&self, names: &Names<'_>, judged: Option<&Judged>, policy: &Policy, elapsed: Duration) {
        let Some((traces, trace)) = self.worker.shared.traces.as_ref().zip(self.trace).filter(|(_, trace)| trace.is_sampled)
        else {
            return;
        };
        let ended = SystemTime::now();
        let status = self.status.map_or(CLIENT_CLOSED, |status| status.as_u16());
        let method = self.method.as_ref().map_or("_OTHER", http::Method::as_str);
        let evidence = judged.and_then(|judged| judged.decision.trail.home).and_then(|home| home.evidence());
        let text = |value: &str| value.to_owned();
        let mut attributes = vec![
            ("http.request.method", text(method)),
            ("http.response.status_code", status.to_string()),
            ("domicile.route", text(names.route)),
            ("domicile.class", names.class.clone().into_owned()),
            ("domicile.home", text(names.home)),
            ("domicile.served_by", text(names.served_by)),
            ("domicile.verdict", text(names.verdict)),
            ("domicile.request_id", text(&self.id)),
        ];
        attributes.extend(evidence.map(|evidence| ("domicile.evidence", text(evidence.as_str()))));
        attributes.extend(self.code.map(|code| ("error.type", text(code.as_str()))));
        let request = Ended {
            name: format!("{method} {}", names.route),
            started: ended - elapsed,
            ended,
            attributes,
            has_failed: status >= 500,
        };
        let attempt = self.attempt.started.map(|started| {
            let hop = self.attempt.upstream.as_ref().map(|(_, upstream)| ("server.address", text(upstream.authority())));
            let region = self.sent_to.map(|region| ("domicile.region", text(policy.region_name(region))));
            let begun = ended - started.elapsed();
            Ended {
                name: if hop.is_some() { text("upstream") } else { text("region") },
                started: begun,
                // Without a response, the attempt ended with the request.
                ended: self.attempt.took.map_or(ended, |took| begun + took),
                attributes: hop.into_iter().chain(region).collect(),
                has_failed: self.attempt.took.is_none(),
            }
        });
        traces.end(&trace, request, attempt);
    }
}
