//! Route matching: a request takes the first route, in the operator's order, that matches its host, path and method.
//!
//! Matching walks a trie of path segments, so it costs the same with ten routes as with ten thousand.

mod method;
mod pattern;

use std::collections::HashMap;

use super::chain::{Failover, Step};
use super::class::ClassId;
use crate::model::service::ServiceId;

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
}

/// A route's position in the operator's order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouteId(usize);

impl RouteId {
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
    /// Protocols that a request may upgrade its connection to, in lower case.
    pub upgrades: Vec<Box<str>>,
}

/// The route of a request, and the user that its path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteMatch<'a> {
    pub id: Option<RouteId>,
    /// The segment at the position of the route's `{user}`, not decoded.
    pub user: Option<&'a str>,
}

/// All routes, indexed for matching.
pub struct RouteTable {
    routes: Vec<Route>,
    exact: HashMap<Box<str>, Trie>,
    /// The routes of `*.domain` hosts, by domain.
    suffix: HashMap<Box<str>, Trie>,
    any: Trie,
}

impl RouteTable {
    pub fn build(routes: Vec<Route>) -> Self {
        let mut table = Self { routes: Vec::new(), exact: HashMap::new(), suffix: HashMap::new(), any: Trie::default() };
        for (index, route) in routes.iter().enumerate() {
            for host in &route.pattern.hosts {
                let trie = match host {
                    HostPattern::Any => &mut table.any,
                    HostPattern::Exact(host) => table.exact.entry(host.clone()).or_default(),
                    HostPattern::Below(domain) => table.suffix.entry(domain.clone()).or_default(),
                };
                route.pattern.paths.iter().for_each(|path| trie.insert(path, route.pattern.methods, index));
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
        let mut best = usize::MAX;
        let path = head.path.strip_prefix('/').unwrap_or(head.path);
        // Most servers serve `/a/` as `/a`, so a trailing slash must not bypass a rule.
        let path = path.strip_suffix('/').unwrap_or(path);
        if let Some(trie) = self.exact.get(head.host) {
            trie.search(path, head.method, &mut best);
        }
        let mut domain = head.host;
        while let Some((_, parent)) = domain.split_once('.') {
            if let Some(trie) = self.suffix.get(parent) {
                trie.search(path, head.method, &mut best);
            }
            domain = parent;
        }
        self.any.search(path, head.method, &mut best);
        let Some(route) = self.routes.get(best) else { return RouteMatch { id: None, user: None } };
        let place = route.pattern.user_segment();
        RouteMatch { id: Some(RouteId(best)), user: place.and_then(|place| path.split('/').nth(place)) }
    }
}

/// The routes of one host pattern.
struct Trie {
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    literals: HashMap<Box<str>, usize>,
    any_segment: Option<usize>,
    /// Routes whose pattern ends here.
    ends: Vec<(usize, MethodSet)>,
    /// Routes whose pattern continues with `/**`.
    tails: Vec<(usize, MethodSet)>,
    /// The lowest route number at or below this node. The search skips the node if it has found a lower one.
    first: usize,
}

impl Default for Trie {
    fn default() -> Self {
        Self { nodes: vec![Node { first: usize::MAX, ..Node::default() }] }
    }
}

impl Trie {
    fn insert(&mut self, path: &PathPattern, methods: MethodSet, route: usize) {
        let mut at = 0;
        let improve = |node: &mut Node| node.first = node.first.min(route);
        improve(self.node(at));
        for segment in &path.segments {
            at = self.child(at, segment);
            improve(self.node(at));
        }
        let node = self.node(at);
        let list = if path.open_ended { &mut node.tails } else { &mut node.ends };
        list.push((route, methods));
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

    fn search(&self, path: &str, method: Method, best: &mut usize) {
        // The path `/` arrives as one empty segment; `visit` also matches it with the pattern that has no segments.
        self.visit(0, Some(path), method, best);
    }

    /// The depth is limited by the longest pattern, regardless of the path's length.
    fn visit(&self, at: usize, rest: Option<&str>, method: Method, best: &mut usize) {
        let Some(node) = self.nodes.get(at) else { return };
        if node.first >= *best {
            return;
        }
        improve(&node.tails, method, best);
        let Some(rest) = rest else {
            improve(&node.ends, method, best);
            return;
        };
        if at == 0 && rest.is_empty() {
            improve(&node.ends, method, best);
        }
        let (segment, rest) = match rest.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (rest, None),
        };
        if let Some(child) = node.literals.get(segment) {
            self.visit(*child, rest, method, best);
        }
        if let Some(child) = node.any_segment
            && !segment.is_empty()
        {
            self.visit(child, rest, method, best);
        }
    }
}

fn improve(list: &[(usize, MethodSet)], method: Method, best: &mut usize) {
    // Routes are inserted in order, so the first one with the method has the lowest number.
    if let Some((route, _)) = list.iter().find(|(_, methods)| methods.contains(method)) {
        *best = (*best).min(*route);
    }
}

#[cfg(test)]
mod tests;
