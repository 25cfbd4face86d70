//! The answers we give ourselves: problems (RFC 9457) and redirects.

use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Uri};
use serde_json::json;

use crate::http::body::Body;
use crate::http::tunnel::WEBSOCKET_VERSION;
use crate::model::outcome::Code;
use crate::peer::fields;

/// The status of a refusal.
pub const fn status_of(code: Code) -> StatusCode {
    match code {
        Code::RouteNone => StatusCode::NOT_FOUND,
        Code::HomeUnresolved => StatusCode::FORBIDDEN,
        Code::TokenUnverified | Code::CredentialUnread => StatusCode::UNAUTHORIZED,
        Code::NowhereCleared
        | Code::EvidenceTooWeak
        | Code::HomeNotCleared
        | Code::CarrierNotCleared
        | Code::ClassUnknown
        | Code::AnswerNotCleared
        | Code::AnswerWithheld
        | Code::NoLongerCleared => StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS,
        Code::DirectoryUnavailable
        | Code::HomeUnknown
        | Code::HomeDown
        | Code::AllDown
        | Code::PeersDisagree
        | Code::LedgerUnavailable
        | Code::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        Code::Misdirected | Code::PeerMalformed | Code::WrongSite => StatusCode::MISDIRECTED_REQUEST,
        Code::Loop | Code::UpstreamUnreachable | Code::UpstreamBad => StatusCode::BAD_GATEWAY,
        Code::UpstreamTimeout | Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::RequestMalformed => StatusCode::BAD_REQUEST,
        Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Code::TargetTooLong => StatusCode::URI_TOO_LONG,
        Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::UpgradeRefused => StatusCode::NOT_IMPLEMENTED,
        Code::WebSocketVersion => StatusCode::UPGRADE_REQUIRED,
    }
}

/// One neutral sentence for the client: no region, no rule, no address.
const fn sentence(code: Code) -> &'static str {
    match code {
        Code::RouteNone => "Nothing is served here under this address.",
        Code::HomeUnresolved => "It is not known where this request belongs.",
        Code::TokenUnverified => "The token of this request does not verify. Get a new one and try again.",
        Code::CredentialUnread => "Credentials of this kind are not accepted here. Use a bearer token.",
        Code::EvidenceTooWeak => "This data is only served to users who are known. Sign in and try again.",
        Code::NowhereCleared | Code::HomeNotCleared | Code::CarrierNotCleared | Code::ClassUnknown | Code::NoLongerCleared => {
            "Rules on where data may be processed do not allow this request to be served."
        }
        Code::AnswerNotCleared => "Rules on where data may be processed do not allow this answer to be given here.",
        Code::AnswerWithheld => {
            "The request was carried out, but rules on where data may be processed do not allow its answer to be given here. Do not repeat it."
        }
        Code::DirectoryUnavailable
        | Code::HomeUnknown
        | Code::HomeDown
        | Code::AllDown
        | Code::PeersDisagree
        | Code::LedgerUnavailable
        | Code::Overloaded => "The service cannot answer at the moment. Try again later.",
        Code::Misdirected | Code::PeerMalformed => "This region does not own the request.",
        Code::Loop => "Request loop detected.",
        Code::UpstreamUnreachable => "The application could not be reached.",
        Code::UpstreamBad => "The application gave no usable answer.",
        Code::UpstreamTimeout | Code::DeadlineExceeded => "The application did not answer in time.",
        Code::RequestMalformed => "The request is malformed or ambiguous.",
        Code::BodyTooLarge => "The request's body is too large.",
        Code::HeadTooLarge => "The request's head is too large.",
        Code::TargetTooLong => "The request's address is too long.",
        Code::RequestTimeout => "The request took too long to arrive.",
        Code::MethodNotAllowed => "This method is not served here.",
        Code::WrongSite => "This connection was made for another host. Open one for this host.",
        Code::UpgradeRefused => "This protocol is not spoken here.",
        Code::WebSocketVersion => "Only version 13 of the WebSocket protocol is supported.",
    }
}

/// The type of error for `Proxy-Status` (RFC 9209 section 2.3), where it names one.
const fn proxy_error(code: Code) -> &'static str {
    match code {
        Code::Loop => "proxy_loop_detected",
        Code::UpstreamUnreachable => "destination_unavailable",
        Code::HomeDown | Code::AllDown | Code::DirectoryUnavailable | Code::HomeUnknown | Code::PeersDisagree => {
            "destination_unavailable"
        }
        Code::UpstreamBad => "http_protocol_error",
        Code::UpstreamTimeout | Code::DeadlineExceeded => "http_response_timeout",
        Code::RequestMalformed | Code::HeadTooLarge | Code::TargetTooLong | Code::BodyTooLarge | Code::RequestTimeout => {
            "http_request_error"
        }
        Code::RouteNone
        | Code::HomeUnresolved
        | Code::NowhereCleared
        | Code::EvidenceTooWeak
        | Code::HomeNotCleared
        | Code::CarrierNotCleared
        | Code::ClassUnknown
        | Code::AnswerNotCleared
        | Code::AnswerWithheld
        | Code::Misdirected
        | Code::PeerMalformed
        | Code::NoLongerCleared
        | Code::TokenUnverified
        | Code::CredentialUnread
        | Code::WrongSite
        | Code::UpgradeRefused
        | Code::WebSocketVersion
        | Code::MethodNotAllowed => "http_request_denied",
        Code::LedgerUnavailable | Code::Overloaded => "proxy_internal_error",
    }
}

/// The `blocked-by` link of a legal block (RFC 7725): the operator, under a stable name.
const BLOCKED_BY: &str = "<urn:domicile:residency>; rel=\"blocked-by\"";

/// A refusal as a problem document.
fn problem(code: Code, request_id: &str) -> Response<Body> {
    let status = status_of(code);
    let document = json!({
        "type": format!("urn:domicile:problem:{}", code.as_str()),
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": sentence(code),
        "code": code.as_str(),
        "request": request_id,
    });
    let mut response = Response::new(Body::whole(format!("{document}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::from_str(&format!("domicile; error={}; details=\"{}\"", proxy_error(code), code.as_str())) {
        headers.insert("proxy-status", value);
    }
    if status == StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS {
        headers.insert(header::LINK, HeaderValue::from_static(BLOCKED_BY));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, METHODS);
    }
    if code == Code::WebSocketVersion {
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(WEBSOCKET_VERSION));
    }
    if let Some(challenge) = challenge(code) {
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// RFC 6750 section 3.
const fn challenge(code: Code) -> Option<HeaderValue> {
    match code {
        Code::TokenUnverified => Some(HeaderValue::from_static("Bearer error=\"invalid_token\"")),
        Code::CredentialUnread => Some(HeaderValue::from_static("Bearer")),
        _ => None,
    }
}

/// The recipient of a refusal, which determines its form.
pub struct Recipient<'a> {
    pub request_id: &'a str,
    /// The media type of a gRPC call, whose client understands nothing but gRPC.
    pub grpc: Option<&'a HeaderValue>,
    /// A peer reads the code from a header field.
    pub is_peer: bool,
    /// HTTP/1 has header fields for the connection, which HTTP/2 forbids.
    pub is_http1: bool,
    /// The connection closes after the response, because the rest of the request is not read.
    pub closes: bool,
}

/// A refusal in the form that its recipient understands.
pub fn refusal(code: Code, recipient: &Recipient<'_>) -> Response<Body> {
    let mut response = match recipient.grpc {
        Some(kind) => call_problem(code, recipient.request_id, kind),
        None => problem(code, recipient.request_id),
    };
    if recipient.is_peer {
        response.headers_mut().insert(fields::CODE, HeaderValue::from_static(code.as_str()));
    }
    if recipient.closes {
        close(&mut response);
    }
    if code == Code::WebSocketVersion && recipient.is_http1 {
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let options = if recipient.closes { "close, upgrade" } else { "upgrade" };
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static(options));
    }
    response
}

/// Ends the HTTP/1 connection after this response.
pub fn close(response: &mut Response<Body>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// Allows a cross-origin request that its browser asks about, for one origin (Fetch standard, CORS protocol). Nothing may
/// remember it: the permission is that of the moment.
pub fn preflight(origin: &HeaderValue, asked: &HeaderMap) -> Response<Body> {
    let mut response = bare(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    for (asks, allows) in [
        (header::ACCESS_CONTROL_REQUEST_METHOD, header::ACCESS_CONTROL_ALLOW_METHODS),
        (header::ACCESS_CONTROL_REQUEST_HEADERS, header::ACCESS_CONTROL_ALLOW_HEADERS),
    ] {
        if let Some(value) = asked.get(asks) {
            headers.insert(allows, value.clone());
        }
    }
    response
}

/// The same for a gRPC call, whose clients look for a status of their own: an answer of nothing but trailers, in its head (gRPC over
/// HTTP/2, Responses). The code stands at the message's end, for people, and in `Proxy-Status`, for programs.
fn call_problem(code: Code, request_id: &str, kind: &HeaderValue) -> Response<Body> {
    let (mut head, _) = problem(code, request_id).into_parts();
    head.status = StatusCode::OK;
    head.headers.insert(header::CONTENT_TYPE, kind.clone());
    head.headers.extend(call_trailers(code));
    Response::from_parts(head, Body::empty())
}

/// The end of a gRPC call's answer that says what became of it.
pub fn call_trailers(code: Code) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(call_status(code)));
    if let Ok(message) = HeaderValue::from_str(&format!("{} ({})", sentence(code), code.as_str())) {
        trailers.insert("grpc-message", message);
    }
    trailers
}

/// The status of a refused gRPC call. Only what a second try may mend is `UNAVAILABLE`: clients repeat that by themselves.
const fn call_status(code: Code) -> u16 {
    const DEADLINE_EXCEEDED: u16 = 4;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const FAILED_PRECONDITION: u16 = 9;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match code {
        Code::UpstreamTimeout | Code::DeadlineExceeded | Code::RequestTimeout => DEADLINE_EXCEEDED,
        Code::EvidenceTooWeak | Code::TokenUnverified | Code::CredentialUnread => UNAUTHENTICATED,
        Code::HomeUnresolved
        | Code::NowhereCleared
        | Code::HomeNotCleared
        | Code::CarrierNotCleared
        | Code::ClassUnknown
        | Code::AnswerNotCleared
        | Code::AnswerWithheld
        | Code::NoLongerCleared => PERMISSION_DENIED,
        Code::BodyTooLarge | Code::HeadTooLarge | Code::TargetTooLong => RESOURCE_EXHAUSTED,
        Code::WrongSite => FAILED_PRECONDITION,
        Code::RouteNone | Code::MethodNotAllowed | Code::UpgradeRefused | Code::WebSocketVersion => UNIMPLEMENTED,
        Code::RequestMalformed | Code::Loop | Code::Misdirected | Code::PeerMalformed => INTERNAL,
        Code::DirectoryUnavailable
        | Code::HomeUnknown
        | Code::HomeDown
        | Code::AllDown
        | Code::PeersDisagree
        | Code::LedgerUnavailable
        | Code::UpstreamUnreachable
        | Code::UpstreamBad
        | Code::Overloaded => UNAVAILABLE,
    }
}

/// An answer that says no more than its status.
pub fn bare(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS, TRACE");

/// The response to `OPTIONS *`: the methods of the server as a whole (RFC 9110 section 9.3.7).
pub fn options() -> Response<Body> {
    let mut response = bare(StatusCode::NO_CONTENT);
    response.headers_mut().insert(header::ALLOW, METHODS);
    response
}

/// Sends the client to the same place over HTTPS: 308, for good, and with method and body.
pub fn to_https(host: &str, port: u16, target: &str) -> Option<Response<Body>> {
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let mut response = bare(StatusCode::PERMANENT_REDIRECT);
    let location = HeaderValue::from_str(&format!("https://{host}{port}{target}")).ok()?;
    response.headers_mut().insert(header::LOCATION, location);
    Some(response)
}

/// Sends the client to a region's public URL: 307, so that its method and body go along, and nothing is remembered.
pub fn redirect(region: &Uri, path: &str, query: Option<&str>) -> Option<Response<Body>> {
    let base = region.to_string();
    let base = base.trim_end_matches('/');
    let location = match query {
        Some(query) => format!("{base}{path}?{query}"),
        None => format!("{base}{path}"),
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, HeaderValue::from_str(&location).ok()?);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}
