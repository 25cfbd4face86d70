//! The page of the demo: sends a request to a region and shows where it went. Plain HTML forms, without scripts.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpListener;

use super::client;

/// A region as the page needs it.
#[derive(Clone)]
pub struct PageRegion {
    pub name: &'static str,
    pub http: SocketAddr,
    pub admin: SocketAddr,
}

/// The examples of the page: a title, the region, the method, the path, the user and the client's address.
const EXAMPLES: &[(&str, &str, &str, &str, &str, &str)] = &[
    ("a user at home", "eu-west", "GET", "/users/alice/orders/1", "", ""),
    ("the same user abroad", "us-east", "GET", "/users/alice/orders/1", "", ""),
    ("an unknown user from Germany", "us-east", "GET", "/profile/me", "", "91.64.0.1"),
    ("personal data of a Brazilian", "us-east", "GET", "/profile/me", "", "177.1.1.1"),
    ("restricted data, abroad", "us-east", "GET", "/account/1", "alice", ""),
    ("public data", "ap-northeast", "GET", "/feed/1", "", ""),
];

/// Serves the page at an address until the runtime ends; returns the address.
pub async fn start(at: SocketAddr, regions: Vec<PageRegion>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(at).await?;
    let address = listener.local_addr()?;
    let regions: Arc<[PageRegion]> = regions.into();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let regions = Arc::clone(&regions);
            let service = service_fn(move |request| respond(request, Arc::clone(&regions)));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(address)
}

async fn respond(request: Request<Incoming>, regions: Arc<[PageRegion]>) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query().unwrap_or_default();
    let value = |name: &str| {
        let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        percent_decode_str(&found.unwrap_or_default().replace('+', " ")).decode_utf8_lossy().into_owned()
    };
    let form = Form { at: value("at"), method: value("method"), path: value("path"), user: value("user"), ip: value("ip") };
    let result = match regions.iter().find(|region| region.name == form.at) {
        Some(region) => form.send(region).await,
        None => String::new(),
    };
    let mut response = Response::new(Full::new(page(&form, &regions, &result).into()));
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(
        http::header::CONTENT_SECURITY_POLICY,
        http::HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"),
    );
    Ok(response)
}

/// The request that the page describes.
struct Form {
    at: String,
    method: String,
    path: String,
    user: String,
    ip: String,
}

impl Form {
    /// Sends the request and explains it. Returns the result as HTML.
    async fn send(&self, region: &PageRegion) -> String {
        let mut fields = Vec::new();
        if !self.user.is_empty() {
            fields.push(("x-user-id", self.user.as_str()));
        }
        if !self.ip.is_empty() {
            fields.push(("x-forwarded-for", self.ip.as_str()));
        }
        let method = if self.method == "POST" { Method::POST } else { Method::GET };
        let path = if self.path.starts_with('/') { self.path.as_str() } else { "/" };
        match client::send(region.http, method, path, &fields).await {
            Ok(answer) => {
                let explained = client::send(region.admin, Method::GET, &self.explanation(), &[]).await;
                let why = explained.map_or_else(|error| error, |answer| String::from_utf8_lossy(&answer.body).into_owned());
                let body = String::from_utf8_lossy(&answer.body).into_owned();
                result(region.name, answer.status.as_u16(), &answer.headers, &body, &why)
            }
            Err(error) => format!("<p>{}</p>", escaped(&error)),
        }
    }

    fn explanation(&self) -> String {
        let encode = |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let mut target = format!("/explain?method={}&url={}", encode(&self.method), encode(&self.path));
        for (name, value) in [("user", &self.user), ("ip", &self.ip)] {
            if !value.is_empty() {
                let _ = write!(target, "&{name}={}", encode(value));
            }
        }
        target
    }
}

/// The path of the request through the regions, the response, and the explanation, as HTML.
fn result(at: &str, status: u16, headers: &HeaderMap, body: &str, why: &str) -> String {
    let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let way = match (field("domicile-region"), field("location")) {
        (Some(served), _) if served == at => format!("client &rarr; <b>{at}</b> (served here)"),
        (Some(served), _) => format!("client &rarr; {at} &rarr; mutual TLS &rarr; <b>{}</b>", escaped(served)),
        (None, Some(location)) => format!("client &rarr; {at} &rarr; redirected to <b>{}</b>", escaped(location)),
        (None, None) => format!("client &rarr; {at} &rarr; <b>refused</b>"),
    };
    let mut out = format!("<h2>{way}</h2><table><tr><th>status</th><td>{status}</td></tr>");
    for name in ["domicile-reason", "server-timing", "proxy-status", "domicile-request-id"] {
        if let Some(value) = field(name) {
            let _ = write!(out, "<tr><th>{name}</th><td>{}</td></tr>", escaped(value));
        }
    }
    let _ = write!(out, "</table><pre>{}</pre><h3>Why?</h3><pre>{}</pre>", escaped(body), escaped(why));
    out
}

fn page(form: &Form, regions: &[PageRegion], result: &str) -> String {
    let option = |value: &str, chosen: &str| {
        let selected = if value == chosen { " selected" } else { "" };
        format!("<option{selected}>{value}</option>")
    };
    let at: String = regions.iter().map(|region| option(region.name, &form.at)).collect();
    let method: String = ["GET", "POST"].iter().map(|method| option(method, &form.method)).collect();
    let path = if form.path.is_empty() { "/users/alice/orders/1" } else { &form.path };
    let examples: String = EXAMPLES
        .iter()
        .map(|(title, at, method, path, user, ip)| {
            format!("<li><a href=\"/?at={at}&amp;method={method}&amp;path={path}&amp;user={user}&amp;ip={ip}\">{title}</a></li>")
        })
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Domicile demo</title>\
         <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}\
         pre{{background:#f4f4f4;padding:.7rem;overflow:auto}}th{{text-align:left;padding-right:1rem}}\
         input,select,button{{font:inherit;margin:.2rem}}h2{{font-size:1.2rem}}</style>\
         <h1>Where does a request go?</h1>\
         <form>arriving at <select name=\"at\">{at}</select> <select name=\"method\">{method}</select>\
         <input name=\"path\" size=\"30\" value=\"{}\"> user <input name=\"user\" size=\"8\" value=\"{}\">\
         client address <input name=\"ip\" size=\"14\" value=\"{}\"> <button>Send</button></form>\
         <ul>{examples}</ul>{result}</html>",
        escaped(path),
        escaped(&form.user),
        escaped(&form.ip)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_form_contains_is_escaped() {
        let form = Form {
            at: "eu-west".into(),
            method: "GET".into(),
            path: "/\"><script>".into(),
            user: "<b>".into(),
            ip: String::new(),
        };
        let page = page(&form, &[], "");
        assert!(!page.contains("<script>") && page.contains("/&quot;&gt;&lt;script&gt;") && page.contains("&lt;b&gt;"), "{page}");
    }
}
