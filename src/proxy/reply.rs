//! Responses that the proxy generates itself: problem details (RFC 9457) and redirects.

use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Uri};
use percent_encoding::{CONTROLS, utf8_percent_encode};
use serde_json::json;

use crate::http::body::Body;
use crate::http::names::{GRPC_MESSAGE, GRPC_STATUS, PROXY_STATUS};
use crate::http::tunnel::WEBSOCKET_VERSION;
use crate::model::outcome::{Code, Rule};
use crate::peer::response::write_code;

/// The status of a refusal.
pub const fn status_of(code: Code) -> StatusCode {
    match code {
        Code::RouteNone => StatusCode::NOT_FOUND,
        Code::HomeUnresolved | Code::ClientDenied => StatusCode::FORBIDDEN,
        Code::TokenUnverified | Code::CredentialUnread | Code::PasswordRefused => StatusCode::UNAUTHORIZED,
        Code::NowhereCleared
        | Code::EvidenceTooWeak
        | Code::HomeNotCleared
        | Code::CarrierNotCleared
        | Code::ClassUnknown
        | Code::ResponseNotCleared
        | Code::ResponseWithheld
        | Code::NoLongerCleared => StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS,
        Code::DirectoryUnavailable
        | Code::HomeUnknown
        | Code::HomeDown
        | Code::AllDown
        | Code::ServiceMissing
        | Code::PeersDisagree
        | Code::LedgerUnavailable
        | Code::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        Code::Misdirected | Code::PeerMalformed | Code::WrongSite => StatusCode::MISDIRECTED_REQUEST,
        Code::Loop | Code::UpstreamUnreachable | Code::UpstreamBad => StatusCode::BAD_GATEWAY,
        Code::UpstreamTimeout | Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Malformed(_) => StatusCode::BAD_REQUEST,
        Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Code::TargetTooLong => StatusCode::URI_TOO_LONG,
        Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::UpgradeRefused => StatusCode::NOT_IMPLEMENTED,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::WebSocketVersion => StatusCode::UPGRADE_REQUIRED,
    }
}

/// One neutral sentence for the client: no region, no rule, no address.
const fn sentence(code: Code) -> &'static str {
    match code {
        Code::RouteNone => "There is no service at this address.",
        Code::HomeUnresolved => "The region of this request could not be determined.",
        Code::ClientDenied => "Clients of this network may not use this service.",
        Code::PasswordRefused => "This page needs a user name and a password.",
        Code::RateLimited => "There were too many requests. Try again later.",
        Code::TokenUnverified => "The token of this request is not valid. Get a new one and try again.",
        Code::CredentialUnread => "Credentials of this kind are not supported. Use a bearer token.",
        Code::EvidenceTooWeak => "This data is only served to authenticated users. Sign in and try again.",
        Code::NowhereCleared | Code::HomeNotCleared | Code::CarrierNotCleared | Code::ClassUnknown | Code::NoLongerCleared => {
            "Rules on where data may be processed do not allow this request to be served."
        }
        Code::ResponseNotCleared => "Rules on where data may be processed do not allow this response to be sent.",
        Code::ResponseWithheld => {
            "The request was carried out, but rules on where data may be processed do not allow its response to be sent. Do not repeat the request."
        }
        Code::DirectoryUnavailable
        | Code::HomeUnknown
        | Code::HomeDown
        | Code::AllDown
        | Code::PeersDisagree
        | Code::LedgerUnavailable
        | Code::Overloaded => "The service is temporarily unavailable. Try again later.",
        Code::ServiceMissing => "This service is not available in the regions that may serve this request.",
        Code::Misdirected | Code::PeerMalformed => "This region does not own the request.",
        Code::Loop => "Request loop detected.",
        Code::UpstreamUnreachable => "The application could not be reached.",
        Code::UpstreamBad => "The application sent an invalid response.",
        Code::UpstreamTimeout | Code::DeadlineExceeded => "The application did not respond in time.",
        Code::Malformed(Rule::Line) => "The request line is not valid, or a line does not end with CR LF.",
        Code::Malformed(Rule::Target) => "The request target is not valid.",
        Code::Malformed(Rule::Header) => "A header field of the request is not valid.",
        Code::Malformed(Rule::Host) => "The host of the request is missing, repeated or not valid.",
        Code::Malformed(Rule::Length) => "The length of the request's body is ambiguous.",
        Code::Malformed(Rule::Path) => "The path of the request is not valid or ambiguous.",
        Code::Malformed(Rule::Upgrade) => "The WebSocket handshake is not valid.",
        Code::Malformed(Rule::Hops) => "Max-Forwards is not a number.",
        Code::Malformed(Rule::User) => "The user of the request is not valid or ambiguous.",
        Code::Malformed(Rule::Body) => "The body of the request broke off or is not valid.",
        Code::Malformed(Rule::Stream) => "The request breaks the rules of HTTP/2.",
        Code::BodyTooLarge => "The request's body is too large.",
        Code::HeadTooLarge => "The request's headers are too large.",
        Code::TargetTooLong => "The request's URL is too long.",
        Code::RequestTimeout => "The request took too long to arrive.",
        Code::MethodNotAllowed => "This method is not allowed.",
        Code::WrongSite => "This connection was opened for another host. Open a new one for this host.",
        Code::UpgradeRefused => "This protocol is not supported.",
        Code::WebSocketVersion => "Only version 13 of the WebSocket protocol is supported.",
    }
}

/// The error type for `Proxy-Status` (RFC 9209 section 2.3).
const fn proxy_error(code: Code) -> &'static str {
    match code {
        Code::Loop => "proxy_loop_detected",
        Code::UpstreamUnreachable => "destination_unavailable",
        Code::HomeDown
        | Code::AllDown
        | Code::ServiceMissing
        | Code::DirectoryUnavailable
        | Code::HomeUnknown
        | Code::PeersDisagree => "destination_unavailable",
        Code::UpstreamBad => "http_protocol_error",
        Code::UpstreamTimeout | Code::DeadlineExceeded => "http_response_timeout",
        Code::Malformed(_) | Code::HeadTooLarge | Code::TargetTooLong | Code::BodyTooLarge | Code::RequestTimeout => {
            "http_request_error"
        }
        Code::RouteNone
        | Code::HomeUnresolved
        | Code::NowhereCleared
        | Code::EvidenceTooWeak
        | Code::HomeNotCleared
        | Code::CarrierNotCleared
        | Code::ClassUnknown
        | Code::ResponseNotCleared
        | Code::ResponseWithheld
        | Code::ClientDenied
        | Code::RateLimited
        | Code::PasswordRefused
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

/// The `blocked-by` link of a legal block (RFC 7725), which identifies the operator by a stable name.
const BLOCKED_BY: &str = "<urn:domicile:residency>; rel=\"blocked-by\"";

/// Whether a request comes from the address bar or a link of a browser: only then browsers put `text/html` first.
pub fn wants_html(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes().trim_ascii_start().starts_with(b"text/html"))
}

/// The refusal as problem details for programs (RFC 9457).
fn document(code: Code, request_id: &str) -> String {
    let status = status_of(code);
    let document = json!({
        "type": format!("urn:domicile:problem:{}", code.as_str()),
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": sentence(code),
        "code": code.as_str(),
        "request": request_id,
    });
    format!("{document}\n")
}

/// The refusal as a page for people. It loads nothing, and works without scripts.
fn page(code: Code, request_id: &str) -> String {
    let (status, request_id) = (status_of(code), request_id.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', ""));
    let title = status.canonical_reason().unwrap_or("Error");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n\
         <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem;color:#222;background:#fff}}\
         small{{color:#666}}@media(prefers-color-scheme:dark){{body{{color:#ddd;background:#111}}small{{color:#999}}}}</style>\n\
         <h1>{title}</h1>\n<p>{}</p>\n<p><small>{} &middot; {} &middot; {request_id}</small></p>\n</html>\n",
        sentence(code),
        status.as_u16(),
        code.as_str()
    )
}

/// A refusal, in the form that its recipient reads.
fn problem(code: Code, request_id: &str, wants_html: bool) -> Response<Body> {
    let status = status_of(code);
    let (body, kind) = if wants_html {
        (page(code, request_id), "text/html; charset=utf-8")
    } else {
        (document(code, request_id), "application/problem+json")
    };
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if wants_html {
        let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::from_str(&format!("domicile; error={}; details=\"{}\"", proxy_error(code), code.as_str())) {
        headers.insert(PROXY_STATUS, value);
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

/// The `WWW-Authenticate` challenge (RFC 6750 section 3).
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
    /// The media type of a gRPC call, whose client only understands gRPC responses.
    pub grpc: Option<&'a HeaderValue>,
    /// The client is a browser, and its user reads the response.
    pub wants_html: bool,
    /// Peers get the code in a header.
    pub is_peer: bool,
    /// HTTP/1 has header fields for the connection, which HTTP/2 forbids.
    pub is_http1: bool,
    /// The connection closes after the response, because the rest of the request is not read.
    pub closes: bool,
}

/// A refusal as problem details, or as a gRPC status for a gRPC call.
pub fn refusal(code: Code, recipient: &Recipient<'_>) -> Response<Body> {
    let mut response = match recipient.grpc {
        Some(kind) => call_problem(code, recipient.request_id, kind),
        None => problem(code, recipient.request_id, recipient.wants_html),
    };
    if recipient.is_peer {
        write_code(response.headers_mut(), code);
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

/// The response to a CORS preflight, which allows the requested method and headers for one origin (Fetch standard, CORS
/// protocol). It must not be cached, because the allowed origins can change.
pub fn preflight(origin: &HeaderValue, asked: &HeaderMap) -> Response<Body> {
    let mut response = status_only(StatusCode::NO_CONTENT);
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

/// A refusal of a gRPC call: a trailers-only response, with the gRPC status in its headers (gRPC over HTTP/2, Responses). The
/// code is at the end of `grpc-message` for people, and in `Proxy-Status` for programs.
fn call_problem(code: Code, request_id: &str, kind: &HeaderValue) -> Response<Body> {
    let (mut head, _) = problem(code, request_id, false).into_parts();
    head.status = StatusCode::OK;
    head.headers.insert(header::CONTENT_TYPE, kind.clone());
    head.headers.extend(call_trailers(code));
    Response::from_parts(head, Body::empty())
}

/// The trailers of a gRPC response, which carry its status.
pub fn call_trailers(code: Code) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(GRPC_STATUS, HeaderValue::from(call_status(code)));
    if let Ok(message) = HeaderValue::from_str(&format!("{} ({})", sentence(code), code.as_str())) {
        trailers.insert(GRPC_MESSAGE, message);
    }
    trailers
}

/// The status of a refused gRPC call. `UNAVAILABLE` is only for refusals that a retry may resolve, because clients retry it
/// automatically.
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
        Code::EvidenceTooWeak | Code::TokenUnverified | Code::CredentialUnread | Code::PasswordRefused => UNAUTHENTICATED,
        Code::HomeUnresolved
        | Code::ClientDenied
        | Code::NowhereCleared
        | Code::HomeNotCleared
        | Code::CarrierNotCleared
        | Code::ClassUnknown
        | Code::ResponseNotCleared
        | Code::ResponseWithheld
        | Code::NoLongerCleared => PERMISSION_DENIED,
        Code::BodyTooLarge | Code::HeadTooLarge | Code::TargetTooLong | Code::RateLimited => RESOURCE_EXHAUSTED,
        Code::WrongSite => FAILED_PRECONDITION,
        Code::RouteNone | Code::ServiceMissing | Code::MethodNotAllowed | Code::UpgradeRefused | Code::WebSocketVersion => {
            UNIMPLEMENTED
        }
        Code::Malformed(_) | Code::Loop | Code::Misdirected | Code::PeerMalformed => INTERNAL,
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

/// A response with a status only.
pub fn status_only(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS, TRACE");

/// The response to `OPTIONS *`: the methods of the server as a whole (RFC 9110 section 9.3.7).
pub fn options() -> Response<Body> {
    let mut response = status_only(StatusCode::NO_CONTENT);
    response.headers_mut().insert(header::ALLOW, METHODS);
    response
}

/// Redirects to the same URL over HTTPS. The status 308 is permanent and keeps the method and the body.
pub fn to_https(host: &str, port: u16, target: &str) -> Option<Response<Body>> {
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let mut response = status_only(StatusCode::PERMANENT_REDIRECT);
    response.headers_mut().insert(header::LOCATION, location(&format!("https://{host}{port}{target}"))?);
    Some(response)
}

/// Redirects to a region's public URL. The status 307 is temporary and keeps the method and the body.
pub fn redirect(region: &Uri, path: &str, query: Option<&str>) -> Option<Response<Body>> {
    let base = region.to_string();
    let base = base.trim_end_matches('/');
    let url = match query {
        Some(query) => format!("{base}{path}?{query}"),
        None => format!("{base}{path}"),
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location(&url)?);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}

/// The value of `Location` for a URL. A URL is ASCII (RFC 3986), while the query of a request may not be.
pub fn location(url: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(utf8_percent_encode(url, CONTROLS).to_string()).ok()
}
