//! Responses of a route without an app server: redirects and fixed responses.

use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Response, StatusCode};

use crate::http::body::Body;
use crate::proxy::reply::location;

use super::template::{Template, Values};

/// The response of a route that needs no app server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Redirect(Redirection),
    Respond(FixedResponse),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redirection {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    pub to: Template,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FixedResponse {
    pub status: StatusCode,
    pub body: Option<Template>,
    pub content_type: HeaderValue,
}

impl Answer {
    /// The response; `None` for a redirect whose target is not a valid field value.
    pub fn response(&self, values: &Values<'_>) -> Option<Response<Body>> {
        let mut response = Response::new(Body::empty());
        match self {
            Self::Redirect(redirection) => {
                *response.status_mut() = redirection.status;
                response.headers_mut().insert(LOCATION, location(&on_this_host(&redirection.to.render(values)))?);
            }
            Self::Respond(fixed) => {
                *response.status_mut() = fixed.status;
                if let Some(body) = &fixed.body {
                    *response.body_mut() = Body::whole(body.render(values));
                    response.headers_mut().insert(CONTENT_TYPE, fixed.content_type.clone());
                }
            }
        }
        Some(response)
    }
}

/// A target that begins with two slashes would name another host, which a client could choose by the path of its request.
fn on_this_host(target: &str) -> String {
    if target.starts_with('/') { format!("/{}", target.trim_start_matches(['/', '\\'])) } else { target.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::tests::values;
    use super::*;

    fn redirect(to: &str, path: &str) -> String {
        let to = Template::parse(to).unwrap();
        let redirect = Answer::Redirect(Redirection { status: StatusCode::PERMANENT_REDIRECT, to });
        let response = redirect.response(&values(path, Some("b=c"))).unwrap();
        assert_eq!(response.status(), 308);
        response.headers()[LOCATION].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_redirect_keeps_the_path_and_the_query_and_never_names_another_host() {
        assert_eq!(redirect("https://www.example.com{uri}", "/a"), "https://www.example.com/a?b=c");
        assert_eq!(redirect("{path}/", "/a"), "/a/");
        assert_eq!(redirect("{path}ä", "/a"), "/a%C3%A4");
        for path in ["//evil.test/a", "/\\evil.test/a", "///evil.test/a"] {
            assert_eq!(redirect("{path}/", path), "/evil.test/a/", "{path}");
        }
    }

    #[test]
    fn a_fixed_response_has_its_status_and_body() {
        let content_type = HeaderValue::from_static("text/plain");
        let body = Some(Template::parse("hello {client.country}").unwrap());
        let fixed = Answer::Respond(FixedResponse { status: StatusCode::GONE, body, content_type });
        let response = fixed.response(&values("/", None)).unwrap();
        assert_eq!((response.status().as_u16(), response.headers()[CONTENT_TYPE].to_str().unwrap()), (410, "text/plain"));
        assert!(response.body().is_whole());
    }
}
