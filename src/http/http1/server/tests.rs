use std::pin::pin;

use bytes::BytesMut;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::transport::stream::Stream;

/// A client, and the server side of its connection.
async fn connected() -> (TcpStream, Rc<ServerConnection>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let stream = Stream::Plain(listener.accept().await.unwrap().0);
    let hour = Duration::from_secs(3600);
    let limits = HeadLimits { bytes: 4096, fields: 20, target_bytes: 200, timeout: hour, keep_alive: hour };
    let io = BufferedStream::new(stream, BytesMut::new(), hour);
    (client, ServerConnection::new(io, Instant::now(), limits, false, &Deadlines::default()))
}

/// Sends `requests` over a connection that `handle` serves, and returns the responses.
fn serve<F>(requests: &str, handle: impl Fn(Result<Request<Body>, Code>) -> F) -> String
where
    F: Future<Output = Response<Body>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut client, connection) = connected().await;
        client.write_all(requests.as_bytes()).await.unwrap();
        let ended = connection.serve(handle, pin!(std::future::pending())).await;
        assert!(matches!(ended, Ended::Closed { .. }));
        drop(connection.take_stream());
        let mut responses = String::new();
        client.read_to_string(&mut responses).await.unwrap();
        responses
    })
}

#[test]
fn a_body_that_has_ended_does_not_read_the_body_of_the_next_request() {
    let first: RefCell<Option<Body>> = RefCell::default();
    let requests = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none\
                    POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\ntwo";
    let responses = serve(requests, async |request| {
        let (head, mut body) = request.unwrap().into_parts();
        if head.uri.path() == "/1" {
            let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
            first.replace(Some(body));
            return Response::new(Body::whole(data));
        }
        let mut stale = first.take().unwrap();
        assert!(stale.is_end_stream() && stale.frame().await.is_none());
        Response::new(Body::whole(body.collect().await.unwrap().to_bytes()))
    });
    let bodies: Vec<_> = responses.split("\r\n\r\n").skip(1).map(|body| &body[..3]).collect();
    assert_eq!(bodies, ["one", "two"]);
}

/// Opens a tunnel for a client that resets the connection, or whose connection is aborted, before the response; returns whether
/// anything still holds the request or the connection.
fn holds_on_to_a_tunnel(is_aborted: bool) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut client, connection) = connected().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        client.shutdown().await.unwrap();
        let client = RefCell::new(Some(client));
        let request: Rc<()> = Rc::default();
        let weak = (Rc::downgrade(&request), Rc::downgrade(&connection));
        let held = RefCell::new(Some((request, Rc::clone(&connection))));
        let handle = async |_| {
            let (request, channel) = held.take().unwrap();
            let opener = Rc::clone(&channel);
            opener.hand_over(Box::new(move |_| Box::pin(async move { drop((request, channel)) })));
            if is_aborted {
                opener.abort();
                drop(opener);
                return std::future::pending().await;
            }
            // The connection sees the end of the client's sending side before the reset, and does not read again.
            tokio::task::yield_now().await;
            let client = client.take().unwrap();
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
            Response::new(Body::empty())
        };
        assert!(matches!(connection.serve(handle, pin!(std::future::pending())).await, Ended::Gone | Ended::Tunnel(_)));
        drop((connection.take_stream(), connection));
        weak.0.upgrade().is_some() || weak.1.upgrade().is_some()
    })
}

#[test]
fn a_tunnel_that_cannot_be_opened_is_forgotten() {
    assert!(!holds_on_to_a_tunnel(false));
    assert!(!holds_on_to_a_tunnel(true));
}
