//! Converts a request to the form that its outgoing connection needs. Each form can be converted to the other.

use http::header::{
    CONNECTION, COOKIE, HOST, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, Request, Uri, Version};

use super::super::body::Body;
use super::super::tunnel::{CONNECT, fresh_key, websocket_accept};

/// Origin form with `Host`, for HTTP/1.1.
pub(super) fn for_http1(request: &mut Request<Body>) -> Option<()> {
    let host = host_of(request)?;
    let target = request.uri().path_and_query().cloned()?;
    *request.version_mut() = Version::HTTP_11;
    request.headers_mut().insert(HOST, host);
    *request.uri_mut() = Uri::from(target);
    join_cookies(request.headers_mut());
    Some(())
}

/// Scheme and authority in the target, for HTTP/2.
pub(super) fn for_http2(request: &mut Request<Body>, scheme: &str) -> Option<()> {
    let host = host_of(request)?;
    let target = request.uri().path_and_query().cloned()?;
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(HOST);
    for name in [TRANSFER_ENCODING, CONNECTION, UPGRADE, SEC_WEBSOCKET_KEY] {
        request.headers_mut().remove(name);
    }
    *request.uri_mut() = Uri::builder().scheme(scheme).authority(host.to_str().ok()?).path_and_query(target).build().ok()?;
    Some(())
}

/// Authority form (host and port only), for CONNECT over either version (RFC 9112 section 3.2.3, RFC 9113 section 8.5).
pub(super) fn for_connect(request: &mut Request<Body>) -> Option<()> {
    let host = host_of(request)?;
    *request.uri_mut() = host.to_str().ok()?.parse().ok()?;
    request.headers_mut().insert(HOST, host);
    Some(())
}

/// An HTTP/1.1 upgrade. The inner value is the `Sec-WebSocket-Accept` that the response to a WebSocket upgrade must have.
pub(super) fn for_upgrade(request: &mut Request<Body>, protocol: &str) -> Option<Option<String>> {
    if protocol == CONNECT {
        *request.version_mut() = Version::HTTP_11;
        return for_connect(request).map(|()| None);
    }
    for_http1(request)?;
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_str(protocol).ok()?);
    if protocol != "websocket" {
        return Some(None);
    }
    let key = fresh_key();
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).ok()?);
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    Some(Some(websocket_accept(key.as_bytes())))
}

/// Whether a 101 response agrees to the requested protocol.
pub(super) fn agrees(response: &HeaderMap, protocol: &str, accept: Option<&str>) -> bool {
    let is = |name, wanted: &str| {
        response.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.eq_ignore_ascii_case(wanted))
    };
    is(UPGRADE, protocol) && accept.is_none_or(|accept| response.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|value| value == accept))
}

fn host_of(request: &Request<Body>) -> Option<HeaderValue> {
    let from_target = || HeaderValue::from_str(request.uri().authority()?.as_str()).ok();
    request.headers().get(HOST).cloned().or_else(from_target)
}

/// HTTP/2 clients may split cookies over several fields; HTTP/1 allows one field (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let cookies: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_cookie_fields_are_joined() {
        let mut headers = HeaderMap::new();
        for cookie in ["a=1", "b=2", "c=3"] {
            headers.append(COOKIE, cookie.parse().unwrap());
        }
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }

    #[test]
    fn a_request_changes_its_form_and_back() {
        let mut request = Request::post("/a?b=c").header(HOST, "app.test:81").body(Body::empty()).unwrap();
        for_http2(&mut request, "http").unwrap();
        assert_eq!((request.uri().to_string().as_str(), request.headers().len()), ("http://app.test:81/a?b=c", 0));
        for_http1(&mut request).unwrap();
        assert_eq!(
            (request.uri().to_string().as_str(), &request.headers()[HOST]),
            ("/a?b=c", &"app.test:81".parse::<HeaderValue>().unwrap())
        );
    }
}
