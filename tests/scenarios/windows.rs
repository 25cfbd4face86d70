//! Flow-control windows of bodies that nobody reads.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use http::{Method, Request, Response};

use crate::support::{Plan, Recorder, World, eventually, runtime};

/// An upstream that responds to uploads at once and to all other requests with an endless body. It records the window of each
/// endless body before any of it is read, and counts the bodies that are reset.
fn endless(windows: &Arc<Mutex<Vec<usize>>>, resets: &Arc<AtomicUsize>) -> Recorder {
    let mut recorder = Recorder::start("endless");
    recorder.crash();
    let listener = runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    recorder.address = listener.local_addr().unwrap();
    recorder.entry = format!("\"h2c://{}\"", recorder.address);
    let (windows, resets) = (Arc::clone(windows), Arc::clone(resets));
    runtime().spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (windows, resets) = (Arc::clone(&windows), Arc::clone(&resets));
            tokio::spawn(async move {
                let handshake = h2::server::Builder::new().max_send_buffer_size(1 << 30).handshake::<_, Bytes>(stream).await;
                let Ok(mut connection) = handshake else { return };
                let mut uploads = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if request.method() == Method::POST {
                        respond.send_response(Response::new(()), true).unwrap();
                        uploads.push(request.into_body());
                        continue;
                    }
                    let mut body = respond.send_response(Response::new(()), false).unwrap();
                    let index = {
                        let mut windows = windows.lock().unwrap();
                        windows.push(0);
                        windows.len() - 1
                    };
                    let (windows, resets) = (Arc::clone(&windows), Arc::clone(&resets));
                    tokio::spawn(async move {
                        body.reserve_capacity(1 << 29);
                        let next = |body: &mut h2::SendStream<Bytes>, cx: &mut std::task::Context<'_>| match body.poll_reset(cx) {
                            Poll::Ready(_) => Poll::Ready(None),
                            Poll::Pending => body.poll_capacity(cx),
                        };
                        while let Some(Ok(window)) = std::future::poll_fn(|cx| next(&mut body, cx)).await {
                            windows.lock().unwrap()[index] = window;
                        }
                        resets.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    recorder
}

/// Sends a request and waits for the response head.
fn begin(sender: &mut h2::client::SendRequest<Bytes>) -> Response<h2::RecvStream> {
    let request = Request::get("http://a.test/users/alice/orders/1").body(()).unwrap();
    runtime().block_on(async {
        let answer = sender.clone().ready().await.unwrap().send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(answer.status(), 200);
        answer
    })
}

/// A client that reads no response: its stream windows are zero.
fn client_with_zero_windows(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let handshake = h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream).await;
        let (sender, connection) = handshake.unwrap();
        tokio::spawn(connection);
        sender
    })
}

/// A world in which the responses of `eu-west` are endless, with the window of each response and the number of resets.
fn endless_world(limits: &str) -> (World, Arc<Mutex<Vec<usize>>>, Arc<AtomicUsize>) {
    let (windows, resets): (Arc<Mutex<Vec<usize>>>, Arc<AtomicUsize>) = Default::default();
    let (seen, ended) = (Arc::clone(&windows), Arc::clone(&resets));
    let upstreams = Box::new(move |name| match name {
        "eu-west" => vec![endless(&seen, &ended)],
        _ => vec![Recorder::start(name)],
    });
    let extra = format!("limits: {{ connection_buffer: 1MiB, {limits} }}\n");
    (World::planned(Plan { upstreams, extra, ..Plan::default() }), windows, resets)
}

const BUFFER: usize = 1 << 20;
const NARROW: usize = 64 << 10;

#[test]
fn unread_responses_get_narrow_windows_once_the_connection_buffer_is_used_up() {
    for asked in ["eu-west", "us-east"] {
        let (world, windows, resets) = endless_world("");
        let mut sender = client_with_zero_windows(if asked == "eu-west" { world.eu().http } else { world.us().http });
        let mut answers: Vec<_> = (0..6).map(|_| begin(&mut sender)).collect();
        // The measured round trip decides whether a body gets a half or a quarter of the buffer.
        eventually("the windows are known", || windows.lock().unwrap().iter().filter(|window| **window > 0).count() == 6);
        let given = windows.lock().unwrap().clone();
        let (wide, narrow) = given.split_at(given.iter().position(|window| *window == NARROW).unwrap());
        assert_eq!(wide.iter().sum::<usize>(), BUFFER, "{given:?}");
        assert!(narrow.len() >= 2 && narrow.iter().all(|window| *window == NARROW), "{given:?}");
        answers.remove(0);
        eventually("one response is reset", || resets.load(Ordering::Relaxed) == 1);
        answers.push(begin(&mut sender));
        eventually("the next response gets a wide window", || {
            windows.lock().unwrap().get(6).is_some_and(|window| *window > NARROW)
        });
    }
}

#[test]
fn the_body_buffers_limit_the_windows_of_all_connections_together() {
    let (world, windows, _) = endless_world("body_buffers: 512KiB");
    let mut clients: Vec<_> = (0..3).map(|_| client_with_zero_windows(world.eu().http)).collect();
    let _answers: Vec<_> = clients.iter_mut().map(begin).collect();
    eventually("two wide windows fit", || *windows.lock().unwrap() == [256 << 10, 256 << 10, NARROW]);
}

#[test]
fn an_upload_keeps_its_window_when_it_has_been_answered() {
    for asked in ["eu-west", "us-east"] {
        let (world, windows, _) = endless_world("");
        let mut sender = client_with_zero_windows(if asked == "eu-west" { world.eu().http } else { world.us().http });
        let mut uploads: Vec<_> = (0..4)
            .map(|_| {
                let request = Request::post("http://a.test/users/alice/orders").body(()).unwrap();
                runtime().block_on(async {
                    let (answer, mut upload) = sender.clone().ready().await.unwrap().send_request(request, false).unwrap();
                    upload.send_data(Bytes::from_static(b"a part"), false).unwrap();
                    let answer = answer.await.unwrap();
                    assert!(answer.status() == 200 && answer.body().is_end_stream());
                    upload
                })
            })
            .collect();
        let _first = begin(&mut sender);
        eventually("no wide window is left", || *windows.lock().unwrap() == [NARROW]);
        uploads.remove(0).send_data(Bytes::new(), true).unwrap();
        let mut later = Vec::new();
        eventually("the window of the first upload is free again", || {
            later.push(begin(&mut sender));
            eventually("it gets a window", || windows.lock().unwrap().get(later.len()).is_some_and(|window| *window > 0));
            windows.lock().unwrap()[later.len()] > NARROW
        });
    }
}
