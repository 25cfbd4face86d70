//! The way to the collector of traces: requests of the exporter's thread, sent by the control thread.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use opentelemetry_http::{HttpClient, HttpError};
use tokio::sync::{mpsc, oneshot};

use crate::decision::permit::Permitted;
use crate::http::body::Body;
use crate::http::pool::{SendOptions, UpstreamPool};
use crate::model::region::RegionId;
use crate::transport::dial::{Server, authority_of};

/// How long the collector may take to accept a batch.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A batch, and where its result goes.
type Batch = (Request<Bytes>, oneshot::Sender<Result<Response<Bytes>, String>>);

/// Hands batches over to the control thread. The exporter's own thread has no runtime.
#[derive(Debug)]
pub struct CollectorClient(mpsc::Sender<Batch>);

/// The batches that the control thread has to send.
pub struct Batches(mpsc::Receiver<Batch>);

/// A client, and the batches that it hands over.
pub fn channel() -> (CollectorClient, Batches) {
    let (sender, receiver) = mpsc::channel(4);
    (CollectorClient(sender), Batches(receiver))
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (reply, sent) = oneshot::channel();
        self.0.send((request, reply)).await.map_err(|_| "the process is shutting down")?;
        Ok(sent.await.map_err(|_| "the process is shutting down")??)
    }
}

/// Sends the batches until the client is dropped. Spans contain no user data.
pub async fn serve(mut batches: Batches, region: RegionId) {
    let pool = UpstreamPool::of(region);
    let mut has_failed = false;
    while let Some((request, reply)) = batches.0.recv().await {
        let sent = send(&pool, region, request).await;
        let failed = match &sent {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("status {}", response.status().as_u16())),
            Err(error) => Some(error.clone()),
        };
        // Only the first failure in a row, because the exporter tries again and again.
        if let Some(cause) = failed.as_ref().filter(|_| !has_failed) {
            tracing::warn!(cause, "the collector of traces accepts no spans; they are dropped until it does");
        }
        has_failed = failed.is_some();
        let _ = reply.send(sent);
    }
}

async fn send(pool: &UpstreamPool, region: RegionId, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
    let (mut parts, body) = request.into_parts();
    let authority = authority_of(&parts.uri);
    let host = http::HeaderValue::from_str(&authority).map_err(|error| error.to_string())?;
    parts.headers.insert(http::header::HOST, host);
    parts.headers.insert(http::header::CONTENT_LENGTH, body.len().into());
    let path =
        parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse().map_err(|_| "the path is not valid".to_owned())?;
    parts.uri = path;
    let server = Server::cleartext(&authority);
    let permitted = Permitted::without_user_data(region, Box::new(Request::from_parts(parts, Body::whole(body))));
    let exchange = async {
        let sent = pool.send(&server, permitted, &SendOptions::within(TIMEOUT)).await;
        let (response, _) = sent.map_err(|error| error.cause.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err("the collector does not respond".into()))
}
