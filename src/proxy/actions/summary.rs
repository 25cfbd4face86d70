//! The actions of a route in words, for `explain`.

use std::time::Duration;

use super::{Actions, Answer, Auth, PathRewrite, Upgrades};
use crate::model::service::ServiceId;
use crate::proxy::admission::overload::Priority;
use crate::proxy::admission::rate_limit::{RateKey, RateLimit, Scope};

impl Actions {
    /// One phrase for each action, in the order in which they run.
    pub fn summary(&self, service_name: impl Fn(ServiceId) -> String) -> Vec<String> {
        let mut phrases = Vec::new();
        match self.priority {
            Priority::Low => phrases.push("is refused first under overload".to_owned()),
            Priority::Normal => {}
            Priority::High => phrases.push("is refused last under overload".to_owned()),
        }
        let networks = |list: &[ipnet::IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !self.clients.allow.is_empty() {
            phrases.push(format!("admits clients of {}", networks(&self.clients.allow)));
        }
        if !self.clients.deny.is_empty() {
            phrases.push(format!("refuses clients of {}", networks(&self.clients.deny)));
        }
        phrases.extend(self.rate_limits.iter().map(rate));
        match &self.auth {
            Some(Auth::Forward(auth)) => {
                phrases.push(format!("asks the service `{}` at {}", service_name(auth.service), auth.path))
            }
            Some(Auth::Basic(auth)) => phrases.push(format!("asks for a password of {}", auth.file.display())),
            None => {}
        }
        if let Some(split) = &self.split {
            phrases.push(format!("splits users between {split}"));
        }
        if let Some(mirror) = &self.mirror {
            phrases.push(format!("mirrors {} % of the reads to `{}`", mirror.percent, service_name(mirror.service)));
        }
        if self.cors.is_some() {
            phrases.push("answers CORS preflights".to_owned());
        }
        phrases.extend(self.messages());
        phrases
    }

    /// One phrase for each change to a request or a response.
    fn messages(&self) -> Vec<String> {
        let mut phrases = Vec::new();
        match &self.answer {
            Some(Answer::Redirect(redirection)) => phrases.push(format!("redirects with status {}", redirection.status.as_u16())),
            Some(Answer::Respond(response)) => phrases.push(format!("responds with status {}", response.status.as_u16())),
            None => {}
        }
        match &self.rewrite.path {
            Some(PathRewrite::Prefix { from, to }) if to.is_empty() => phrases.push(format!("removes {from} from the path")),
            Some(PathRewrite::Prefix { from, to }) => phrases.push(format!("replaces {from} in the path by {to}")),
            Some(PathRewrite::Whole(path)) => phrases.push(format!("replaces the path by {path}")),
            None => {}
        }
        if let Some(host) = &self.rewrite.host {
            phrases.push(format!("replaces the host by {}", host.to_str().unwrap_or_default()));
        }
        for (edits, message) in [(&self.request_headers, "request"), (&self.response_headers, "response")] {
            if !edits.is_empty() {
                phrases.push(format!("changes header fields of the {message}"));
            }
        }
        if self.upgrades != Upgrades::default() {
            let protocols = if self.upgrades.0.is_empty() { "no protocol".to_owned() } else { self.upgrades.0.join(", ") };
            phrases.push(format!("allows upgrades to {protocols}"));
        }
        if !self.compress.is_empty() {
            let codings: Vec<_> = self.compress.iter().map(|coding| coding.as_str()).collect();
            phrases.push(format!("compresses with {}", codings.join(", ")));
        }
        if self.limits.is_some() {
            phrases.push("has limits of its own".to_owned());
        }
        phrases
    }
}

fn rate(limit: &RateLimit) -> String {
    let unit = match limit.period {
        period if period == Duration::from_secs(1) => "second",
        period if period == Duration::from_secs(60) => "minute",
        _ => "hour",
    };
    let key = match &limit.by {
        RateKey::Client => "client".to_owned(),
        RateKey::User => "user".to_owned(),
        RateKey::Header(name) => format!("value of {name}"),
        RateKey::Route => "route".to_owned(),
    };
    let scope = match limit.scope {
        Scope::Region => "in each process",
        Scope::Global => "in all regions together",
    };
    let requests = if limit.requests == 1 { "1 request".to_owned() } else { format!("{} requests", limit.requests) };
    format!("admits {requests} a {unit} and {key}, {} at once, {scope}", limit.burst)
}
