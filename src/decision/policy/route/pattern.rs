//! Patterns of hosts (exact or `*.domain`) and of paths (literals, `{name}` for one segment, `/**` at the end).

use std::fmt;

use super::condition::Conditions;
use super::method::MethodSet;

/// The requests that a route matches: those with one of the hosts, one of the paths, and one of the methods.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern {
    pub hosts: Vec<HostPattern>,
    /// INVARIANT: the `{user}` segment has the same position in all of them.
    pub paths: Vec<PathPattern>,
    pub methods: MethodSet,
    pub conditions: Conditions,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostPattern {
    Any,
    /// In lower case.
    Exact(Box<str>),
    /// Every subdomain of this domain, at any depth, but not the domain itself.
    Below(Box<str>),
}

/// A path pattern as segments. A pattern with `/**` at the end is open-ended: `/a/**` matches `/a` and all paths below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathPattern {
    pub segments: Vec<Segment>,
    pub open_ended: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Segment {
    Literal(Box<str>),
    /// `{name}`: any non-empty segment.
    Any,
    /// `{user}`: as `Any`, and the segment names the user whose data the request touches.
    User,
}

/// The mistake in a pattern, and how to correct it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PatternError(pub String);

impl fmt::Display for PatternError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

fn wrong<T>(message: impl Into<String>) -> Result<T, PatternError> {
    Err(PatternError(message.into()))
}

impl HostPattern {
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let text = text.to_ascii_lowercase();
        if text == "*" {
            return Ok(Self::Any);
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, text.as_str()),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']');
        if name.is_empty() || !name.bytes().all(plain) || (name.contains(':') && !name.starts_with('[')) {
            return wrong(format!(
                "`{text}` is not a valid host pattern; write a name without a port, such as `api.example.com`, or \
                 `*.example.com` for all subdomains"
            ));
        }
        Ok(if below { Self::Below(name.into()) } else { Self::Exact(name.into()) })
    }

    /// Whether this pattern matches every host that `other` matches.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Exact(own), Self::Exact(host)) => own == host,
            (Self::Below(domain), Self::Exact(host)) => is_below(host, domain),
            (Self::Below(domain), Self::Below(other)) => domain == other || is_below(other, domain),
            (Self::Exact(_) | Self::Below(_), Self::Any) | (Self::Exact(_), Self::Below(_)) => false,
        }
    }

    /// Whether there is a host that both patterns match.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

fn is_below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

impl PathPattern {
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let Some(rest) = text.strip_prefix('/') else {
            return wrong(format!("`{text}` is not a valid path pattern; start it with `/`"));
        };
        let mut parts: Vec<&str> = rest.split('/').collect();
        // A trailing slash does not change what a pattern matches.
        if parts.len() > 1 && parts.last() == Some(&"") {
            parts.pop();
        }
        if parts.len() > 1 && parts.contains(&"") {
            return wrong(format!("`{text}` has an empty segment, which no pattern can match; write a single slash"));
        }
        let open_ended = parts.last() == Some(&"**");
        if open_ended {
            parts.pop();
        }
        if !open_ended && parts == [""] {
            return Ok(Self { segments: Vec::new(), open_ended: false });
        }
        let segments = parts.into_iter().map(Segment::parse).collect::<Result<Vec<_>, _>>()?;
        if segments.iter().filter(|segment| **segment == Segment::User).count() > 1 {
            return wrong(format!("`{text}` contains `{{user}}` twice, but a request belongs to one user; use another name"));
        }
        Ok(Self { segments, open_ended })
    }

    /// The index of the `{user}` segment.
    pub fn user_segment(&self) -> Option<usize> {
        self.segments.iter().position(|segment| *segment == Segment::User)
    }

    /// Whether this pattern matches every path that `other` matches.
    pub fn covers(&self, other: &Self) -> bool {
        let length_fits = if self.open_ended {
            self.segments.len() <= other.segments.len()
        } else {
            !other.open_ended && self.segments.len() == other.segments.len()
        };
        length_fits && self.segments.iter().zip(&other.segments).all(|(own, theirs)| own.covers(theirs))
    }

    /// Whether there is a path that both patterns match.
    pub fn overlaps(&self, other: &Self) -> bool {
        let length_fits = match self.segments.len().cmp(&other.segments.len()) {
            std::cmp::Ordering::Less => self.open_ended,
            std::cmp::Ordering::Equal => true,
            std::cmp::Ordering::Greater => other.open_ended,
        };
        length_fits && self.segments.iter().zip(&other.segments).all(|(own, theirs)| own.overlaps(theirs))
    }

    /// This pattern with a base path such as `/v2` in front.
    #[must_use]
    pub fn below(&self, base: &str) -> Self {
        let base = base.trim_matches('/');
        let mut segments: Vec<Segment> =
            base.split('/').filter(|part| !part.is_empty()).map(|part| Segment::Literal(part.into())).collect();
        segments.extend(self.segments.iter().cloned());
        Self { segments, open_ended: self.open_ended }
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, PatternError> {
        if let Some(name) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
            return match (name, plain) {
                ("user", _) => Ok(Self::User),
                (_, true) => Ok(Self::Any),
                (_, false) => wrong(format!("`{text}` is not a valid placeholder; name it with letters, digits, `-` and `_`")),
            };
        }
        if text.contains(['*', '{', '}', '?', '#', '\\', ';']) || text.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
            return wrong(format!(
                "`{text}` is not a valid path segment; write literal text, `{{name}}` for one whole segment, or `**` as the \
                 last segment"
            ));
        }
        if text == "." || text == ".." {
            return wrong(format!("`{text}` is a dot segment, which is resolved before matching; remove it"));
        }
        Ok(Self::Literal(text.into()))
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Literal(own), Self::Literal(text)) => own == text,
            (Self::Literal(_), Self::Any | Self::User) => false,
            (Self::Any | Self::User, Self::Literal(text)) => !text.is_empty(),
            (Self::Any | Self::User, Self::Any | Self::User) => true,
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

impl Pattern {
    /// The index of the path segment that names the user.
    pub fn user_segment(&self) -> Option<usize> {
        self.paths.first().and_then(PathPattern::user_segment)
    }

    /// Whether this pattern matches every host that `other` matches.
    pub fn covers_hosts(&self, others: &[HostPattern]) -> bool {
        others.iter().all(|other| self.hosts.iter().any(|own| own.covers(other)))
    }

    /// Whether this pattern matches every host and path that `other` matches, under its conditions, regardless of methods.
    pub fn covers_target_of(&self, other: &Self) -> bool {
        self.conditions.cover(&other.conditions) && self.covers_place_of(other)
    }

    /// Whether this pattern has every host and path that `other` has, regardless of methods and conditions.
    pub fn covers_place_of(&self, other: &Self) -> bool {
        self.covers_hosts(&other.hosts) && other.paths.iter().all(|other| self.paths.iter().any(|own| own.covers(other)))
    }

    /// Whether there is a host and path that both patterns match, regardless of methods.
    pub fn overlaps_target_of(&self, other: &Self) -> bool {
        let hosts_overlap = self.hosts.iter().any(|own| other.hosts.iter().any(|other| own.overlaps(other)));
        hosts_overlap
            && self.conditions.share_clients(&other.conditions)
            && self.paths.iter().any(|own| other.paths.iter().any(|other| own.overlaps(other)))
    }
}
