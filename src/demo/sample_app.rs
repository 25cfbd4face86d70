//! A sample app server. Its response describes the server and the request; with `?bytes=N` it is N bytes long.
//!
//! After a request for `/demo/down`, it responds with 503 until a request for `/demo/up`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

/// Starts an app server of `region` at an address, whose port may be 0; returns its address.
pub async fn start(region: &str, name: String, at: SocketAddr) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(at).await?;
    let region: Arc<str> = region.into();
    let address = listener.local_addr()?;
    let is_up = Arc::new(AtomicBool::new(true));
    let name: Arc<str> = name.into();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (is_up, name, region) = (Arc::clone(&is_up), Arc::clone(&name), Arc::clone(&region));
            let service = service_fn(move |request| respond(request, Arc::clone(&region), Arc::clone(&name), Arc::clone(&is_up)));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(address)
}

async fn respond(
    request: Request<Incoming>,
    region: Arc<str>,
    name: Arc<str>,
    is_up: Arc<AtomicBool>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = |status, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    };
    Ok(match request.uri().path() {
        "/healthz" if is_up.load(Ordering::Relaxed) => text(StatusCode::OK, "healthy\n".into()),
        "/demo/down" => {
            is_up.store(false, Ordering::Relaxed);
            text(StatusCode::OK, format!("{name} is down now\n"))
        }
        "/demo/up" => {
            is_up.store(true, Ordering::Relaxed);
            text(StatusCode::OK, format!("{name} is up again\n"))
        }
        _ if !is_up.load(Ordering::Relaxed) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{name} is down\n")),
        _ => describe(request, &region, &name).await,
    })
}

/// Describes the request as the app server received it.
async fn describe(request: Request<Incoming>, region: &str, name: &str) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body_bytes = body.collect().await.map_or(0, |body| body.to_bytes().len());
    if let Some(Ok(size)) = parts.uri.query().and_then(|query| query.strip_prefix("bytes=")).map(str::parse) {
        return Response::new(Full::new(vec![b'x'; size].into()));
    }
    let field = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let document = json!({
        "region": region,
        "app": name,
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "client": field("x-forwarded-for"),
        "user": field("x-user-id"),
        "body_bytes": body_bytes,
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{document}\n"))));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
