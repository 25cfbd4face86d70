//! Peers: authentication by certificate, and disagreement about the home of a user.

use std::collections::BTreeMap;

use domicile::app::StartError;
use domicile::demo::certificates::Authority;
use domicile::transport::tls::{CertificateFiles, PeerFiles, PeerTls};
use http::{Method, StatusCode};

use crate::support::{NAMES, Plan, World, eventually, get, http2, post, raw, read, request, runtime, whole};

/// Three regions, one of which starts with the certificate that `make` writes.
fn with_certificate(region: usize, make: impl Fn(&World)) -> (World, Result<(), StartError>) {
    let mut world = World::prepare(&Plan { extra: "limits: { connect_timeout: 5s }\n".into(), ..Plan::default() });
    make(&world);
    for index in (0..NAMES.len()).filter(|index| *index != region) {
        world.start_region(index).unwrap();
    }
    let started = world.start_region(region);
    (world, started)
}

#[test]
fn a_peer_with_a_foreign_certificate_is_refused_in_both_directions() {
    let (world, started) =
        with_certificate(1, |world| Authority::new("foreign").unwrap().write_region(world.folder.path(), "us-east").unwrap());
    started.unwrap();
    let outward = get(world.us().http, "/users/alice/orders/1", &[]);
    assert_eq!(outward.status.as_u16() / 100, 5, "{outward:?}");
    let inward = post(world.eu().http, "/users/bob/orders/1", &[], "x");
    assert_eq!(inward.status.as_u16() / 100, 5, "{inward:?}");
    world.eu().upstream().assert_no_requests();
    world.us().upstream().assert_no_requests();
}

#[test]
fn a_certificate_of_another_region_is_refused_at_start() {
    let (world, started) = with_certificate(1, |world| {
        for ending in ["pem", "key"] {
            let at = |name| world.folder.path().join(format!("{name}.{ending}"));
            std::fs::copy(at("ap-northeast"), at("us-east")).unwrap();
        }
    });
    let error = started.unwrap_err().to_string();
    assert!(error.contains("names the region `ap-northeast`, but this process runs in `us-east`"), "{error}");
    drop(world);
}

#[test]
fn a_gateway_that_proves_to_be_another_region_gets_nothing() {
    // In us-east, the gateway of eu-west has the address of ap-northeast, whose certificate is genuine.
    let world = World::start();
    let text = std::fs::read_to_string(&world.us().config).unwrap();
    let misled = text
        .replace(&format!("gateway: \"https://{}\"", world.eu().peers), &format!("gateway: \"https://{}\"", world.jp().peers));
    std::fs::write(&world.us().config, misled).unwrap();
    world.us().reload().unwrap();
    let answer = post(world.us().http, "/users/alice/orders/1", &[], "secret");
    assert_eq!(answer.status.as_u16() / 100, 5, "{answer:?}");
    world.assert_no_requests(&["eu-west", "ap-northeast"]);
}

/// Requests alice's orders from eu-west's gateway with this TLS configuration; `None` if there is no response.
fn ask_gateway(world: &World, config: std::sync::Arc<rustls::ClientConfig>) -> Option<StatusCode> {
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(world.eu().peers).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.ok()?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.ok()?;
        tokio::spawn(connection);
        let target = "https://localhost/users/alice/orders/1";
        let answer = sender.send_request(request(Method::GET, target, "", &[], whole(""))).await.ok()?;
        Some(answer.status())
    })
}

/// A TLS configuration that presents the certificate of `region`.
pub fn showing(world: &World, region: &str) -> std::sync::Arc<rustls::ClientConfig> {
    let at = |ending: &str| world.folder.path().join(format!("{region}.{ending}"));
    let own = CertificateFiles { certificate: at("pem"), key: at("key") };
    let files = PeerFiles { own, authority: world.folder.path().join("ca.pem"), revoked: vec![] };
    PeerTls::load(&files).unwrap().client_for("eu-west")
}

#[test]
pub fn a_peer_that_negotiates_nothing_gets_no_http1() {
    // A revocation closes only HTTP/2 connections of peers, so peers must not use HTTP/1.1.
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start();
    let mut config = (*showing(&world, "us-east")).clone();
    config.alpn_protocols.clear();
    let answer = runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(world.eu().peers).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.unwrap();
        stream.write_all(b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    });
    assert_eq!(String::from_utf8_lossy(&answer), "");
    world.eu().upstream().assert_no_requests();
}

#[test]
fn the_port_for_peers_is_for_peers_of_this_policy() {
    let world = World::start();
    assert_eq!(raw(world.eu().peers, b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\n\r\n").len(), 7, "only a TLS alert");
    world.authority.write_region(world.folder.path(), "atlantis").unwrap();
    assert_eq!(ask_gateway(&world, showing(&world, "atlantis")), None, "a region that is not configured");
    assert_eq!(ask_gateway(&world, showing(&world, "eu-west")), None, "a peer with the certificate of eu-west itself");
    world.authority.write_site(world.folder.path(), "nobody", &["localhost"]).unwrap();
    assert_eq!(ask_gateway(&world, showing(&world, "nobody")), None, "a certificate of the same authority that names no region");
    let mut anonymous = (*showing(&world, "us-east")).clone();
    anonymous.client_auth_cert_resolver = std::sync::Arc::new(NoCertificate);
    assert_eq!(ask_gateway(&world, std::sync::Arc::new(anonymous)), None, "no certificate at all");
    // A genuine peer gets a response: 421, because its request has no envelope.
    assert_eq!(ask_gateway(&world, showing(&world, "us-east")), Some(StatusCode::MISDIRECTED_REQUEST));
    world.eu().upstream().assert_no_requests();
}

/// The stream window in the second SETTINGS of `eu-west`, for a peer that announces the window `own` and sends no request.
fn window_for_peer(world: &World, own: u32) -> u32 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS_ACK: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(world.eu().peers).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(showing(world, "us-east")).connect(name, stream).await.unwrap();
        let settings = [&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4][..], &own.to_be_bytes()].concat();
        stream.write_all(&[PREFACE, &settings].concat()).await.unwrap();
        let mut windows = Vec::new();
        while windows.len() < 2 {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            stream.read_exact(&mut payload).await.unwrap();
            if let [.., 4, 0, _, _, _, _] = head {
                let setting = payload.chunks(6).find(|setting| setting[..2] == [0, 4]);
                windows.push(u32::from_be_bytes(setting.expect("an initial window")[2..].try_into().unwrap()));
                stream.write_all(SETTINGS_ACK).await.unwrap();
            }
        }
        assert_eq!(windows[0], 64 << 10, "the peer's settings are not known yet");
        windows[1]
    })
}

#[test]
fn a_peer_gets_the_window_that_it_announces_before_its_first_request() {
    let world = World::start();
    assert_eq!(window_for_peer(&world, 1 << 20), 1 << 20);
    assert_eq!(window_for_peer(&world, u32::MAX >> 1), 16 << 20, "the window is at most 16 MiB");
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_client_that_plays_a_peer_is_a_client() {
    let world = World::start();
    let envelope = "v=1, id=\"x\", client=\"81.2.69.142\", home=\"us-east\", evidence=\"recorded\", country=\"US\", class=\"public\", \
                    policy=\"00000000000000000000000000000000\", https=?1, question=?0, again=?0";
    let fields = [("domicile-request", envelope), ("domicile-probe", "?1"), ("domicile-data-class", "public")];
    let answer = get(world.us().http, "/users/alice/orders/1", &fields);
    assert_eq!(answer.text(), "eu-west");
    let seen = world.eu().upstream().seen();
    assert!(seen[0].headers.keys().all(|name| !name.as_str().starts_with("domicile-")), "{:?}", seen[0].headers);
    assert_eq!(seen[0].headers["x-forwarded-for"], "127.0.0.1");
}

#[test]
fn peers_that_disagree_on_an_owner_write_nowhere() {
    // alice's home is eu-west in the user table of us-east, and us-east in that of eu-west.
    let moved = "user,home\nalice,us-east\n".to_owned();
    let world = World::planned(Plan { users: BTreeMap::from([("eu-west", moved)]), ..Plan::default() });
    for answer in
        [post(world.us().http, "/users/alice/orders/1", &[], "x"), post(world.us().http, "/users/alice/orders/1", &[], "")]
    {
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "peer.disagree"),
            "a client never gets a 421"
        );
    }
    world.eu().upstream().assert_no_requests();
    world.us().upstream().assert_no_requests();
}

#[test]
fn a_user_that_moves_is_found_by_asking_again() {
    let world = World::start();
    // alice moves, and the user table of eu-west changes first.
    let moved = "user,home\nalice,us-east\nbob,us-east\nchika,ap-northeast\n";
    std::fs::write(world.folder.path().join("users-eu-west.csv"), moved).unwrap();
    let _ = world.eu().reload();
    assert_eq!(post(world.us().http, "/users/alice/orders/1", &[], "x").code(), "peer.disagree");
    std::fs::write(world.folder.path().join("users-us-east.csv"), moved).unwrap();
    let _ = world.us().reload();
    assert_eq!(post(world.us().http, "/users/alice/orders/1", &[], "x").text(), "us-east");
    assert_eq!(world.eu().upstream().seen().len(), 0);
}

#[test]
fn identity_and_origin_survive_the_way_between_peers() {
    let world = World::start();
    let fields = [("x-forwarded-for", "91.64.0.1"), ("x-user-id", "chika")];
    let answer = get(world.us().http, "/profile/me", &fields);
    assert_eq!(answer.status, StatusCode::OK);
    let seen = &world.jp().upstream().seen()[0];
    assert_eq!(
        (&seen.headers["x-forwarded-for"], &seen.headers["x-user-id"]),
        (&"91.64.0.1".parse().unwrap(), &"chika".parse().unwrap())
    );
    let metrics = world.jp().metrics();
    assert!(
        metrics.contains(
            r#"domicile_requests_total{home="ap-northeast",route="profile",served_by="ap-northeast",status="2xx",verdict="proceed"} 1"#
        ),
        "{metrics}"
    );
}

#[test]
fn a_stranger_is_served_where_the_first_proxy_placed_it() {
    let world = World::start();
    let answer = get(world.us().http, "/profile/me", &[("x-forwarded-for", "91.64.0.1")]);
    assert_eq!(answer.text(), "eu-west");
    let answer = runtime().block_on(async {
        let mut sender = http2(&world, world.us().https, "localhost").await;
        let fields = [("x-forwarded-for", "91.64.0.1"), ("baggage", "user=alice"), ("traceparent", "00-1-2-01")];
        read(sender.send_request(request(Method::GET, "https://localhost/profile/me", "", &fields, whole(""))).await.unwrap())
            .await
            .unwrap()
    });
    assert_eq!(answer.text(), "eu-west");
    let seen = world.eu().upstream().seen();
    assert!(
        !seen[1].headers.contains_key("baggage") && !seen[1].headers.contains_key("traceparent"),
        "tracing headers do not cross the border"
    );
}

#[test]
fn a_revoked_peer_is_refused_in_both_directions() {
    let world = World::prepare(&Plan::default());
    world.authority.write_revoked(&world.folder.path().join("revoked.pem"), &["us-east"]).unwrap();
    for region in [world.eu(), world.us()] {
        let text = std::fs::read_to_string(&region.config).unwrap();
        let list = world.folder.path().join("revoked.pem");
        let text = text.replace("/ca.pem\" }", &format!("/ca.pem\", revoked: \"{}\" }}", list.display()));
        assert!(text.contains("revoked:"));
        std::fs::write(&region.config, text).unwrap();
    }
    let mut world = world;
    (0..NAMES.len()).for_each(|index| world.start_region(index).unwrap());
    for answer in [get(world.us().http, "/users/alice/orders/1", &[]), post(world.eu().http, "/users/bob/orders/1", &[], "x")] {
        assert_eq!(answer.status.as_u16() / 100, 5, "{answer:?}");
    }
    world.eu().upstream().assert_no_requests();
    world.us().upstream().assert_no_requests();
    world.eu().wait_for_health("ap-northeast", "up");
}

#[test]
fn a_peer_that_is_revoked_meanwhile_is_cut_off() {
    let mut world = World::prepare(&Plan::default());
    let (list, other) = (world.folder.path().join("revoked.pem"), world.folder.path().join("other.pem"));
    world.authority.write_revoked(&list, &[]).unwrap();
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    let text = text.replace("/ca.pem\" }", &format!("/ca.pem\", revoked: \"{}\" }}", list.display()));
    std::fs::write(&world.eu().config, text).unwrap();
    (0..NAMES.len()).for_each(|index| world.start_region(index).unwrap());
    world.wait_until_measured();
    let ask = || get(world.us().http, "/users/alice/orders/1", &[]);
    assert_eq!(ask().text(), "eu-west");
    // The list of another authority comes first in the same file.
    Authority::new("other").unwrap().write_revoked(&other, &[]).unwrap();
    world.authority.write_revoked(&list, &["us-east"]).unwrap();
    let both = std::fs::read_to_string(&other).unwrap() + &std::fs::read_to_string(&list).unwrap();
    std::fs::write(&list, both).unwrap();
    world.eu().reload().unwrap();
    let before = world.eu().upstream().seen().len();
    eventually("the peer's connections are closed", || ask().status.as_u16() / 100 == 5);
    let after = world.eu().upstream().seen().len();
    assert!((0..10).all(|_| ask().status.as_u16() / 100 == 5));
    assert_eq!(world.eu().upstream().seen().len(), after, "no request of the peer arrives any more");
    assert!(after <= before + 1, "at most one request arrived during the reload");
    world.jp().wait_for_health("eu-west", "up");
    std::fs::write(&list, "no list at all").unwrap();
    assert!(world.eu().reload().unwrap_err().contains("revoked.pem"));
}

#[test]
fn silent_connections_to_the_port_for_peers_leave_room_for_peers() {
    use std::net::TcpStream;
    let world = World::planned(Plan { extra: "limits: { handshakes: 10, header_timeout: 30s }\n".into(), ..Plan::default() });
    // More silent connections than one address may have.
    let connect_silently = |_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.2:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&world.eu().peers.into()).unwrap();
        TcpStream::from(socket)
    };
    let silent: Vec<_> = (0..20).map(connect_silently).collect();
    let open = format!("domicile_connections{{listener=\"{}\"}} ", world.eu().peers);
    let count = || {
        let metrics = world.eu().metrics();
        metrics.lines().find_map(|line| line.strip_prefix(&open)?.parse::<usize>().ok()).unwrap_or(0)
    };
    eventually("all but one are closed", || silent.iter().filter(|stream| is_open(stream)).count() <= 1);
    assert!(count() >= 1);
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "eu-west");
}

/// Whether the connection is still open.
fn is_open(stream: &std::net::TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    stream.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn clients_get_session_tickets_and_peers_do_not() {
    let world = World::start();
    let file = |name: &str| world.folder.path().join(name);
    let files = PeerFiles {
        own: CertificateFiles { certificate: file("us-east.pem"), key: file("us-east.key") },
        authority: file("ca.pem"),
        revoked: vec![],
    };
    let peer = PeerTls::load(&files).unwrap().client_for("eu-west");
    runtime().block_on(async {
        let tcp = tokio::net::TcpStream::connect(world.eu().peers).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let stream = tokio_rustls::TlsConnector::from(peer).connect(name, tcp).await.unwrap();
        assert_eq!(tickets_received(stream).await, 0);
        let stream = crate::support::tls(&world, world.eu().https, "localhost", &[b"h2"]).await;
        assert!(tickets_received(stream).await > 0);
    });
}

/// The number of TLS session tickets that arrived before the server's first HTTP/2 settings.
async fn tickets_received(mut stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>) -> u32 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.unwrap();
    assert!(stream.read(&mut [0; 100]).await.unwrap() > 0);
    stream.get_ref().1.tls13_tickets_received()
}
