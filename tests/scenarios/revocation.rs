//! All exchanges with a peer end when its certificate is revoked: downloads, uploads and tunnels.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Response;
use http_body_util::BodyExt as _;

use crate::exits::{Download, downloads, send, start_all};
use crate::streams::{echoing, open_http1, speak};
use crate::support::{Plan, Recorder, TIMEOUT, Wire, World, eventually, whole};

/// First the owner revokes the region that carries the exchange, then the carrying region revokes the owner.
const REVOCATIONS: [(&str, &str); 2] = [("eu-west", "us-east"), ("us-east", "eu-west")];

/// A world in which one region has a list of revoked certificates.
struct Revocable {
    world: World,
    list: PathBuf,
    revoking: &'static str,
}

impl Revocable {
    fn start(plan: &Plan, revoking: &'static str) -> Self {
        let world = World::prepare(plan);
        let list = world.folder.path().join("revoked.pem");
        world.authority.write_revoked(&list, &[]).unwrap();
        let config = &world.region(revoking).config;
        let text = std::fs::read_to_string(config).unwrap();
        let with_list = text.replace("/ca.pem\" }", &format!("/ca.pem\", revoked: \"{}\" }}", list.display()));
        assert_ne!(with_list, text);
        std::fs::write(config, with_list).unwrap();
        Self { world: start_all(world), list, revoking }
    }

    fn revoke(&self, regions: &[&str]) {
        self.world.authority.write_revoked(&self.list, regions).unwrap();
        self.world.region(self.revoking).reload().unwrap();
    }
}

#[test]
fn a_download_ends_when_the_certificate_of_its_peer_is_revoked() {
    for (revoking, revoked) in REVOCATIONS {
        let (upstreams, [abroad, at_home]) = downloads(["abroad", "at-home"]);
        let revocable = Revocable::start(&Plan { upstreams: Box::new(upstreams), ..Plan::default() }, revoking);
        let world = &revocable.world;
        let mut far = Download::begin(world.us().http, "abroad");
        let mut near = Download::begin(world.eu().http, "at-home");
        send(&abroad, "one");
        send(&at_home, "one");
        far.read_until("one");
        near.read_until("one");
        // A reload that revokes nothing ends nothing.
        revocable.revoke(&[]);
        send(&abroad, "two");
        far.read_until("two");
        revocable.revoke(&[revoked]);
        eventually("the app server's response is ended", || abroad.is_closed());
        assert!(!far.ends_complete(), "the client sees that the download is incomplete");
        send(&at_home, "two");
        near.read_until("two");
        drop(at_home);
        assert!(near.ends_complete(), "the download of a client in eu-west goes on");
        world.us().upstream().assert_no_requests();
        world.assert_no_requests(&["ap-northeast"]);
    }
}

#[test]
fn a_tunnel_ends_when_the_certificate_of_its_peer_is_revoked() {
    for (revoking, revoked) in REVOCATIONS {
        let revocable = Revocable::start(&echoing(Wire::Http1), revoking);
        let open = |address| {
            let (tunnel, answer) = open_http1(address, "/users/alice/orders/live", "");
            assert!(answer.starts_with("http/1.1 101"), "{answer}");
            tunnel
        };
        let (mut far, mut near) = (open(revocable.world.us().http), open(revocable.world.eu().http));
        revocable.revoke(&[]);
        speak(&mut far, b"before");
        revocable.revoke(&[revoked]);
        let mut rest = Vec::new();
        if let Err(error) = far.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the tunnel must be closed, not only idle");
        }
        assert!(rest.is_empty());
        speak(&mut near, b"still here");
    }
}

#[test]
fn an_upload_ends_when_the_certificate_of_its_peer_is_revoked() {
    for (revoking, revoked) in REVOCATIONS {
        let (received, ended): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let counts = (Arc::clone(&received), Arc::clone(&ended));
        let upstreams = move |_: &'static str| {
            let (received, ended) = (Arc::clone(&counts.0), Arc::clone(&counts.1));
            vec![Recorder::with(Arc::new(move |request, _| {
                let (received, ended) = (Arc::clone(&received), Arc::clone(&ended));
                Box::pin(async move {
                    if request.method() == http::Method::POST {
                        let mut body = request.into_body();
                        while let Some(Ok(frame)) = body.frame().await {
                            received.fetch_add(frame.into_data().map_or(0, |data| data.len()), Ordering::SeqCst);
                        }
                        ended.fetch_add(1, Ordering::SeqCst);
                    }
                    Response::new(whole("stored"))
                })
            }))]
        };
        let revocable = Revocable::start(&Plan { upstreams: Box::new(upstreams), ..Plan::default() }, revoking);
        let mut upload = TcpStream::connect(revocable.world.us().http).unwrap();
        upload.set_read_timeout(Some(TIMEOUT)).unwrap();
        upload.write_all(b"POST /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nfirst").unwrap();
        eventually("the app server has the first bytes", || received.load(Ordering::SeqCst) == 5);
        revocable.revoke(&[]);
        upload.write_all(b"second").unwrap();
        eventually("the upload goes on", || received.load(Ordering::SeqCst) == 11);
        revocable.revoke(&[revoked]);
        eventually("the app server sees the end", || ended.load(Ordering::SeqCst) == 1);
        let border_bytes = || revocable.world.us().sum_of("domicile_border_bytes_total");
        eventually("the bytes of the refused upload are counted", || border_bytes() == 11.0);
        let _ = upload.write_all(b"third");
        let mut answer = Vec::new();
        let _ = upload.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
        assert_eq!(received.load(Ordering::SeqCst), 11, "no byte followed");
    }
}
