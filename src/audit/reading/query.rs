//! Finds the lines of a ledger that have some properties.

use super::Line;

/// The properties; `None` admits every line.
#[derive(Clone, Default, Debug)]
pub struct Filter {
    /// The pseudonyms of a user, one for each key; empty admits every line.
    pub users: Vec<String>,
    /// The first moment, as the lines write times: `2026-11-28T00:00:00.000000Z`.
    pub since: Option<String>,
    /// The first moment that is too late.
    pub before: Option<String>,
    /// The kind of line: `movement`, `settlement`, `counts`, `action`, `process` or `checkpoint`.
    pub kind: Option<String>,
    /// The region, or for `processing` the jurisdiction, that the data came from.
    pub from: Option<String>,
    /// The region that it went to.
    pub to: Option<String>,
    pub class: Option<String>,
    pub route: Option<String>,
    pub request: Option<String>,
    /// A legal basis, or the record of one.
    pub basis: Option<String>,
    /// A part of a class's rule, such as `personal.transfers`.
    pub rule: Option<String>,
}

impl Filter {
    pub fn admits(&self, line: &Line<'_>) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        let any = |wanted: &Option<String>, mut found: Box<dyn Iterator<Item = &str> + '_>| {
            wanted.as_ref().is_none_or(|wanted| found.any(|found| found == wanted))
        };
        let grounds = line.transfers.iter().flat_map(|ground| [Some(&*ground.basis), ground.record.as_deref()]).flatten();
        is(&self.kind, &line.kind)
            && self.since.as_deref().is_none_or(|since| since <= &*line.time)
            && self.before.as_deref().is_none_or(|before| &*line.time < before)
            && (self.users.is_empty() || line.user.as_deref().is_some_and(|user| self.users.iter().any(|known| known == user)))
            && is(&self.from, &line.from)
            && is(&self.to, &line.to)
            && any(&self.class, Box::new(line.classes.iter().map(|class| &**class)))
            && is(&self.route, &line.route)
            && is(&self.request, &line.request)
            && any(&self.basis, Box::new(grounds))
            && any(&self.rule, Box::new(line.rules.iter().map(|rule| &**rule)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_property_must_fit() {
        let text = r#"{"kind":"movement","time":"2026-11-28T10:00:00.000000Z","what":"request","from":"us-east","to":"eu-west","route":"orders","request":"r1","jurisdiction":"us","classes":["personal"],"transfers":[{"basis":"contract","record":"SCC \"14\""}],"rules":["personal.transfers"],"user":"p1"}"#;
        let line = Line::parse(text).unwrap();
        let set = |put: fn(&mut Filter, String), value: &str| {
            let mut filter = Filter::default();
            put(&mut filter, value.to_owned());
            filter.admits(&line)
        };
        assert!(Filter::default().admits(&line));
        type Put = fn(&mut Filter, String);
        let cases: [(Put, &[&str], &str); 10] = [
            (|filter, value| filter.users = vec!["p0".into(), value], &["p1"], "p2"),
            (|filter, value| filter.kind = Some(value), &["movement"], "counts"),
            (|filter, value| filter.from = Some(value), &["us-east"], "eu-west"),
            (|filter, value| filter.to = Some(value), &["eu-west"], "us-east"),
            (|filter, value| filter.class = Some(value), &["personal"], "restricted"),
            (|filter, value| filter.route = Some(value), &["orders"], "account"),
            (|filter, value| filter.request = Some(value), &["r1"], "r2"),
            (|filter, value| filter.basis = Some(value), &["contract", "SCC \"14\""], "consent"),
            (|filter, value| filter.rule = Some(value), &["personal.transfers"], "personal.stays"),
            (|filter, value| filter.since = Some(value), &["2026-11-28T10:00:00.000000Z"], "2026-11-28T10:00:00.000001Z"),
        ];
        for (put, fitting, other) in cases {
            assert!(fitting.iter().all(|value| set(put, value)), "{fitting:?}");
            assert!(!set(put, other), "{other}");
        }
        assert!(!set(|filter, value| filter.before = Some(value), "2026-11-28T10:00:00.000000Z"), "the end is not included");
        assert!(set(|filter, value| filter.before = Some(value), "2026-11-28T10:00:00.000001Z"));
    }
}
