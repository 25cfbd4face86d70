//! Cross-origin resource sharing (Fetch standard, CORS protocol): the pages whose scripts may read the responses of a route.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderMap, HeaderName, HeaderValue, VARY,
};
use http::{Response, StatusCode};

use crate::http::body::Body;

/// The CORS settings of a route. Its app servers need none, and their own fields are replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cors {
    /// Origins such as `https://app.example.com`; `None` for every origin, without credentials.
    pub origins: Option<Vec<HeaderValue>>,
    /// Methods and header fields that scripts may send; `None` for those that the preflight asks about.
    pub methods: Option<HeaderValue>,
    pub headers: Option<HeaderValue>,
    /// Fields of responses that scripts may read, besides the usual ones.
    pub expose: Option<HeaderValue>,
    /// Whether requests may carry cookies.
    pub credentials: bool,
    /// How long browsers may remember the response to a preflight.
    pub max_age: Duration,
}

const FIELDS: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

impl Cors {
    /// The response to a preflight. For an origin that is not allowed it allows nothing, so that the browser does not send the
    /// request.
    pub fn preflight(&self, origin: &HeaderValue, asked: &HeaderMap) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers"));
        if !self.allow(origin, headers) {
            return response;
        }
        for (name, allowed, asked) in [
            (ACCESS_CONTROL_ALLOW_METHODS, &self.methods, asked.get(ACCESS_CONTROL_REQUEST_METHOD)),
            (ACCESS_CONTROL_ALLOW_HEADERS, &self.headers, asked.get(ACCESS_CONTROL_REQUEST_HEADERS)),
        ] {
            if let Some(value) = allowed.as_ref().or(asked) {
                headers.insert(name, value.clone());
            }
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age.as_secs()));
        response
    }

    /// Replaces the CORS fields of a response to a request from this origin.
    pub fn apply(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        for name in &FIELDS {
            headers.remove(name);
        }
        if self.origins.is_some() {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = origin else { return };
        if self.allow(origin, headers)
            && let Some(exposed) = &self.expose
        {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
    }

    /// Allows the origin, if the settings do.
    fn allow(&self, origin: &HeaderValue, headers: &mut HeaderMap) -> bool {
        let allowed = match &self.origins {
            None => HeaderValue::from_static("*"),
            Some(origins) if origins.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin.as_bytes())) => {
                origin.clone()
            }
            Some(_) => return false,
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: HeaderValue = HeaderValue::from_static("https://app.test");
    const EVIL: HeaderValue = HeaderValue::from_static("https://app.test.evil.test");

    fn cors(origins: Option<Vec<HeaderValue>>) -> Cors {
        let credentials = origins.is_some();
        Cors {
            origins,
            methods: None,
            headers: None,
            expose: Some("x-total".parse().unwrap()),
            credentials,
            max_age: Duration::from_secs(60),
        }
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut fields: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        fields.sort();
        fields
    }

    #[test]
    fn a_preflight_allows_what_it_asks_about_for_known_origins_only() {
        let mut asked = HeaderMap::new();
        asked.insert(ACCESS_CONTROL_REQUEST_METHOD, "PUT".parse().unwrap());
        asked.insert(ACCESS_CONTROL_REQUEST_HEADERS, "x-a, x-b".parse().unwrap());
        let vary = "vary: origin, access-control-request-method, access-control-request-headers";
        let known = cors(Some(vec![APP])).preflight(&APP, &asked);
        assert_eq!(known.status(), 204);
        assert_eq!(
            shown(known.headers()),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: x-a, x-b",
                "access-control-allow-methods: PUT",
                "access-control-allow-origin: https://app.test",
                "access-control-max-age: 60",
                vary
            ]
        );
        assert_eq!(shown(cors(Some(vec![APP])).preflight(&EVIL, &asked).headers()), [vary]);
        let fixed = Cors { methods: Some("GET".parse().unwrap()), ..cors(None) }.preflight(&EVIL, &asked);
        assert_eq!(
            (&fixed.headers()[ACCESS_CONTROL_ALLOW_METHODS], &fixed.headers()[ACCESS_CONTROL_ALLOW_ORIGIN]),
            (&"GET".parse().unwrap(), &"*".parse().unwrap())
        );
    }

    #[test]
    fn the_fields_of_the_app_server_are_replaced() {
        let apply = |cors: &Cors, origin: Option<&HeaderValue>| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, "*".parse().unwrap());
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true".parse().unwrap());
            cors.apply(origin, &mut headers);
            shown(&headers)
        };
        let listed = cors(Some(vec![APP]));
        let allowed = [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: https://app.test",
            "access-control-expose-headers: x-total",
            "vary: origin",
        ];
        assert_eq!(apply(&listed, Some(&APP)), allowed);
        assert_eq!(
            (apply(&listed, Some(&EVIL)), apply(&listed, None)),
            (vec!["vary: origin".to_owned()], vec!["vary: origin".to_owned()])
        );
        assert_eq!(apply(&cors(None), Some(&EVIL)), ["access-control-allow-origin: *", "access-control-expose-headers: x-total"]);
    }
}
