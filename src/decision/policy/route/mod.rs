//! Route matching: a request takes the first route, in the operator's order, that matches its host, path and method.
//!
//! Matching walks a trie of path segments, so it costs the same with ten routes as with ten thousand.

mod condition;
mod method;
mod pattern;

use std::collections::HashMap;
use std::net::IpAddr;

use super::chain::{Failover, Step};
use super::class::ClassId;
use crate::model::service::ServiceId;

pub use condition::{Conditions, FieldCondition, FieldNames, Fields, NO_FIELDS};
pub use method::{Method, MethodSet};
pub use pattern::{HostPattern, PathPattern, Pattern, PatternError, Segment};

/// The part of a request that a route is matched against.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub method: Method,
    /// In lower case, without port or trailing dot.
    pub host: &'a str,
    /// In canonical form; starts with a slash.
    pub path: &'a str,
    pub client: IpAddr,
    pub fields: &'a Fields,
}

/// A route's position in the operator's order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouteId(usize);

impl RouteId {
    /// The route at a position of a policy.
    pub const fn new(index: usize) -> Self {
        Self(index)
    }

    pub const fn index(self) -> usize {
        self.0
    }
}

/// A pattern, and how the requests that match it are judged.
#[derive(Clone, PartialEq, Debug)]
pub struct Route {
    pub name: Box<str>,
    pub pattern: Pattern,
    pub class: ClassId,
    /// `None` for a route that responds without an app server.
    pub service: Option<ServiceId>,
    pub chain: Vec<Step>,
    /// Values of the `{user}` segment that stand for the caller, such as `me`.
    pub aliases: Vec<Box<str>>,
    /// The claim that the chain's `token` step reads.
    pub claim: Option<Box<str>>,
    pub failover: Failover,
    pub keeps: KeptCharacters,
}

/// Characters in paths that are kept as a part of their segment, instead of being refused.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct KeptCharacters {
    /// `%2F`
    pub encoded_slash: bool,
    /// `%25`
    pub encoded_percent: bool,
    /// `;`
    pub semicolon: bool,
}

impl KeptCharacters {
    pub const NONE: Self = Self { encoded_slash: false, encoded_percent: false, semicolon: false };
    pub const ALL: Self = Self { encoded_slash: true, encoded_percent: true, semicolon: true };

    /// Whether all characters of `other` are kept.
    pub const fn covers(self, other: Self) -> bool {
        (self.encoded_slash || !other.encoded_slash)
            && (self.encoded_percent || !other.encoded_percent)
            && (self.semicolon || !other.semicolon)
    }
}

/// The route of a request, and the user that its path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteMatch<'a> {
    pub id: Option<RouteId>,
    /// The segment at the position of the route's `{user}`, not decoded.
    pub user: Option<&'a str>,
}

/// All routes, indexed for matching.
#[derive(Clone)]
pub struct RouteTable {
    routes: Vec<Route>,
    exact: HashMap<Box<str>, Trie>,
    /// The routes of `*.domain` hosts, by domain.
    suffix: HashMap<Box<str>, Trie>,
    any: Trie,
    /// The fields that conditions read.
    pub field_names: FieldNames,
}

impl RouteTable {
    pub fn build(routes: Vec<Route>) -> Self {
        let field_names = field_names(&routes);
        let mut table =
            Self { routes: Vec::new(), exact: HashMap::new(), suffix: HashMap::new(), any: Trie::default(), field_names };
        for (index, route) in routes.iter().enumerate() {
            for host in &route.pattern.hosts {
                let trie = match host {
                    HostPattern::Any => &mut table.any,
                    HostPattern::Exact(host) => table.exact.entry(host.clone()).or_default(),
                    HostPattern::Below(domain) => table.suffix.entry(domain.clone()).or_default(),
                };
                route.pattern.paths.iter().for_each(|path| trie.insert(path, &route.pattern, index));
            }
        }
        table.routes = routes;
        table
    }

    pub fn route(&self, id: RouteId) -> &Route {
        self.routes.get(id.index()).expect("a route number comes from this table")
    }

    pub fn all(&self) -> &[Route] {
        &self.routes
    }

    /// The first route that matches, and the user that the path names.
    pub fn find<'a>(&self, head: &Head<'a>) -> RouteMatch<'a> {
        let mut search = Search { head, routes: &self.routes, best: usize::MAX };
        let path = head.path.strip_prefix('/').unwrap_or(head.path);
        // Most servers serve `/a/` as `/a`, so a trailing slash must not bypass a rule.
        let path = path.strip_suffix('/').unwrap_or(path);
        if let Some(trie) = self.exact.get(head.host) {
            trie.search(path, &mut search);
        }
        let mut domain = head.host;
        while let Some((_, parent)) = domain.split_once('.') {
            if let Some(trie) = self.suffix.get(parent) {
                trie.search(path, &mut search);
            }
            domain = parent;
        }
        self.any.search(path, &mut search);
        let best = search.best;
        let Some(route) = self.routes.get(best) else { return RouteMatch { id: None, user: None } };
        let place = route.pattern.user_segment();
        RouteMatch { id: Some(RouteId(best)), user: place.and_then(|place| path.split('/').nth(place)) }
    }
}

/// The names of the fields in all conditions, each once.
fn field_names(routes: &[Route]) -> FieldNames {
    let mut names = FieldNames::default();
    let conditions = routes.iter().map(|route| &route.pattern.conditions);
    for (condition, list) in conditions.flat_map(|conditions| {
        conditions.headers.iter().map(|header| (header, true)).chain(conditions.query.iter().map(|query| (query, false)))
    }) {
        let list = if list { &mut names.headers } else { &mut names.query };
        if !list.contains(&condition.name) {
            list.push(condition.name.clone());
        }
    }
    names
}

/// A search for the first route.
struct Search<'s> {
    head: &'s Head<'s>,
    routes: &'s [Route],
    /// The lowest number of a route that matches.
    best: usize,
}

impl Search<'_> {
    /// Looks through the routes that end at a node. They are in order.
    fn improve(&mut self, ends: &[End]) {
        let matches = |end: &&End| end.methods.contains(self.head.method) && (!end.is_conditional || self.holds(end.route));
        if let Some(first) = ends.iter().find(matches) {
            self.best = self.best.min(first.route);
        }
    }

    fn holds(&self, route: usize) -> bool {
        let conditions = self.routes.get(route).map(|route| &route.pattern.conditions);
        conditions.is_some_and(|conditions| conditions.hold(self.head.client, self.head.fields))
    }
}

/// The routes of one host pattern.
#[derive(Clone)]
struct Trie {
    nodes: Vec<Node>,
}

#[derive(Clone, Default)]
struct Node {
    literals: HashMap<Box<str>, usize>,
    any_segment: Option<usize>,
    /// Routes whose pattern ends here.
    ends: Vec<End>,
    /// Routes whose pattern continues with `/**`.
    tails: Vec<End>,
    /// The lowest route number at or below this node. The search skips the node if it has found a lower one.
    first: usize,
}

/// A route whose pattern ends at a node.
#[derive(Clone)]
struct End {
    route: usize,
    methods: MethodSet,
    is_conditional: bool,
}

impl Default for Trie {
    fn default() -> Self {
        Self { nodes: vec![Node { first: usize::MAX, ..Node::default() }] }
    }
}

impl Trie {
    fn insert(&mut self, path: &PathPattern, pattern: &Pattern, route: usize) {
        let mut at = 0;
        let improve = |node: &mut Node| node.first = node.first.min(route);
        improve(self.node(at));
        for segment in &path.segments {
            at = self.child(at, segment);
            improve(self.node(at));
        }
        let node = self.node(at);
        let list = if path.open_ended { &mut node.tails } else { &mut node.ends };
        list.push(End { route, methods: pattern.methods, is_conditional: !pattern.conditions.is_empty() });
    }

    fn child(&mut self, parent: usize, segment: &Segment) -> usize {
        let next = self.nodes.len();
        let node = self.node(parent);
        let child = match segment {
            Segment::Literal(text) => *node.literals.entry(text.clone()).or_insert(next),
            Segment::Any | Segment::User => *node.any_segment.get_or_insert(next),
        };
        if child == next {
            self.nodes.push(Node { first: usize::MAX, ..Node::default() });
        }
        child
    }

    fn node(&mut self, at: usize) -> &mut Node {
        self.nodes.get_mut(at).expect("node numbers come from this trie")
    }

    fn search(&self, path: &str, search: &mut Search<'_>) {
        // The path `/` arrives as one empty segment; `visit` also matches it with the pattern that has no segments.
        self.visit(0, Some(path), search);
    }

    /// The depth is limited by the longest pattern, regardless of the path's length.
    fn visit(&self, at: usize, rest: Option<&str>, search: &mut Search<'_>) {
        let Some(node) = self.nodes.get(at) else { return };
        if node.first >= search.best {
            return;
        }
        search.improve(&node.tails);
        let Some(rest) = rest else {
            search.improve(&node.ends);
            return;
        };
        if at == 0 && rest.is_empty() {
            search.improve(&node.ends);
        }
        let (segment, rest) = match rest.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (rest, None),
        };
        if let Some(child) = node.literals.get(segment) {
            self.visit(*child, rest, search);
        }
        if let Some(child) = node.any_segment
            && !segment.is_empty()
        {
            self.visit(child, rest, search);
        }
    }
}

#[cfg(test)]
mod tests;
