//! The line of a request in the access log.

use std::fmt;
use std::time::{Duration, SystemTime};

use http::Version;

use crate::access_log::Entry;
use crate::decision::facts::Ingress;
use crate::decision::policy::Policy;
use crate::engine::judge::Judged;
use crate::model::outcome::Code;

use super::{CLIENT_CLOSED, Names, RequestLog, text_of};

impl RequestLog {
    pub(super) fn write_line(&self, names: &Names<'_>, judged: Option<&Judged>, policy: &Policy, elapsed: Duration) {
        let trail = judged.map(|judged| &judged.decision.trail);
        let user = judged.and_then(|judged| judged.user.as_ref()).map(|(user, _)| self.worker.shared.pseudonyms.of(user));
        let evidence = trail.and_then(|trail| trail.home).and_then(|home| home.evidence());
        let processed_here = judged.filter(|judged| judged.decision.trail.clearance.contains(policy.local));
        let path = processed_here.zip(self.question.as_ref());
        let path = path.map(|(judged, question)| WithoutUser(&question.path, judged.user_segment));
        let peer = match self.arrival.ingress {
            Ingress::Client => None,
            Ingress::Peer(peer) => Some(policy.region_name(peer)),
        };
        let trace = self.trace.map(|trace| trace.to_string());
        let broken = self.response_body.failure.get().or(self.request_body.failure.get());
        let sent_to = self.attempt.upstream.as_ref();
        self.worker.log_request(&Entry {
            ended: Some(SystemTime::now()),
            id: &self.id,
            client: self.client,
            peer,
            user: user.as_deref(),
            method: self.method.as_ref().map(http::Method::as_str),
            host: processed_here.and(self.question.as_ref()).map(|question| &*question.host),
            path: path.as_ref().map(|path| path as &dyn fmt::Display),
            protocol: self.version.map(protocol_name),
            tls: self.tls_version,
            route: Some(names.route),
            class: Some(&names.class),
            home: Some(names.home),
            evidence: evidence.map(|evidence| evidence.as_str()),
            served_by: Some(names.served_by),
            verdict: Some(names.verdict),
            code: self.code.map(Code::as_str),
            status: self.status.map_or(CLIENT_CLOSED, |status| status.as_u16()),
            service: sent_to.map(|(service, _)| &*service.settings.name),
            upstream: sent_to.map(|(_, upstream)| upstream.authority()),
            upstream_time: self.attempt.took,
            attempts: self.attempt.number,
            request_bytes: self.request_body.bytes.get(),
            response_bytes: self.response_body.bytes.get(),
            broken: broken.as_ref().map(|broken| broken as &dyn fmt::Display),
            referer: processed_here.and(text_of(self.referer.as_ref())).map(origin_of),
            user_agent: text_of(self.user_agent.as_ref().filter(|_| processed_here.is_some())),
            trace: trace.as_deref(),
            elapsed,
        });
    }
}

/// The origin of a URL. The rest belongs to another request, which other rules may cover, and may name a user.
fn origin_of(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    // A user name in a URL comes before the host.
    if url[host..end].contains('@') { &url[..host] } else { &url[..end] }
}

const fn protocol_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// A path for the log: `{user}` replaces the segment that names a user.
struct WithoutUser<'a>(&'a str, Option<usize>);

impl fmt::Display for WithoutUser<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(at) = self.1 else { return out.write_str(self.0) };
        for (index, segment) in self.0.split('/').skip(1).enumerate() {
            out.write_str("/")?;
            out.write_str(if index == at { "{user}" } else { segment })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_referer_has_neither_path_nor_query_nor_user() {
        for (url, origin) in [
            ("https://a.test/users/alice?token=1", "https://a.test"),
            ("https://a.test", "https://a.test"),
            ("https://a.test?x", "https://a.test"),
            ("https://alice@a.test/", "https://"),
            ("/users/alice", ""),
            ("android-app://com.example/x", "android-app://com.example"),
        ] {
            assert_eq!(origin_of(url), origin);
        }
    }

    #[test]
    fn a_logged_path_names_no_user() {
        assert_eq!(WithoutUser("/users/alice/orders/1", Some(1)).to_string(), "/users/{user}/orders/1");
        assert_eq!(WithoutUser("/a/b", None).to_string(), "/a/b");
    }
}
