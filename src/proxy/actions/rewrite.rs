//! Rewriting of the request target for the app server.

use std::borrow::Cow;

use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri};

/// The changes to the target of a request.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Rewrite {
    pub path: Option<PathRewrite>,
    /// Replaces the host.
    pub host: Option<HeaderValue>,
}

/// A change of the path. The query stays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PathRewrite {
    /// Replaces the beginning of the path. Neither text ends in `/`; both may be empty.
    Prefix { from: Box<str>, to: Box<str> },
    /// Replaces the whole path.
    Whole(Box<str>),
}

impl PathRewrite {
    /// The path that the app server gets.
    pub fn apply<'a>(&'a self, path: &'a str) -> Cow<'a, str> {
        match self {
            Self::Whole(path) => Cow::Borrowed(path),
            Self::Prefix { from, to } => match path.strip_prefix(&**from) {
                Some("") => if to.is_empty() { "/" } else { to }.into(),
                Some(rest) if rest.starts_with('/') => {
                    if to.is_empty() {
                        rest.into()
                    } else {
                        format!("{to}{rest}").into()
                    }
                }
                Some(_) | None => path.into(),
            },
        }
    }
}

impl Rewrite {
    /// Changes the target of a request.
    pub fn apply<B>(&self, request: &mut Request<B>) {
        if let Some(path) = &self.path {
            let path = path.apply(request.uri().path()).into_owned();
            set_path(request, &path);
        }
        if let Some(host) = &self.host {
            request.headers_mut().insert(http::header::HOST, host.clone());
        }
    }
}

/// Replaces the path of a request; the query stays. A CONNECT request has no path.
pub fn set_path<B>(request: &mut Request<B>, path: &str) {
    if request.uri().path_and_query().is_none() {
        return;
    }
    let target = match request.uri().query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = Some(target.expect("a canonical path and a validated prefix are a valid target"));
    *request.uri_mut() = Uri::from_parts(parts).expect("only the path has changed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_at_a_segment_only() {
        let strip = PathRewrite::Prefix { from: "/api".into(), to: "".into() };
        let replace = PathRewrite::Prefix { from: "/v1".into(), to: "/v2/x".into() };
        let add = PathRewrite::Prefix { from: "".into(), to: "/base".into() };
        for (rewrite, path, expected) in [
            (&strip, "/api", "/"),
            (&strip, "/api/", "/"),
            (&strip, "/api/a/b", "/a/b"),
            (&strip, "/apis", "/apis"),
            (&strip, "/other", "/other"),
            (&replace, "/v1", "/v2/x"),
            (&replace, "/v1/a", "/v2/x/a"),
            (&add, "/", "/base/"),
            (&add, "/a", "/base/a"),
            (&PathRewrite::Whole("/w".into()), "/a", "/w"),
        ] {
            assert_eq!(rewrite.apply(path), expected, "{rewrite:?} {path}");
        }
    }

    #[test]
    fn a_request_without_a_path_keeps_its_target() {
        let mut request = Request::connect("db.internal:5432").body(()).unwrap();
        Rewrite { path: Some(PathRewrite::Whole("/a".into())), host: None }.apply(&mut request);
        assert_eq!(request.uri().to_string(), "db.internal:5432");
    }

    #[test]
    fn the_query_stays() {
        let mut request = Request::get("/api/a?b=/api").body(()).unwrap();
        let path = Some(PathRewrite::Prefix { from: "/api".into(), to: "".into() });
        Rewrite { path, host: Some(HeaderValue::from_static("app.internal")) }.apply(&mut request);
        assert_eq!(
            (request.uri().to_string().as_str(), request.headers()["host"].to_str().unwrap()),
            ("/a?b=/api", "app.internal")
        );
    }
}
