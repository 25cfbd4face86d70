//! Listener options: PROXY protocol, redirects to HTTPS, HSTS and client certificates.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use domicile::demo::certificates::Authority;
use http::{Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Plan, Recorder, TIMEOUT, World, get, log, raw, remember, runtime, whole};

/// Starts a world after `change` has edited the configuration of eu-west.
fn with_listeners(plan: &Plan, change: impl Fn(&World, String) -> String) -> World {
    let mut world = World::prepare(plan);
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    let changed = change(&world, text.clone());
    assert_ne!(changed, text);
    std::fs::write(&world.eu().config, changed).unwrap();
    (0..world.regions.len()).for_each(|index| world.start_region(index).unwrap());
    world
}

#[test]
fn the_proxy_protocol_header_gives_the_client_address_and_is_required() {
    let world = with_listeners(&Plan::default(), |world, text| {
        let old = format!("  - address: \"{}\"\n", world.eu().http);
        let text = text.replace(&old, &format!("{old}    proxy_protocol: {{ from: [127.0.0.1] }}\n"));
        text.replace("from: x-forwarded-for", "from: proxy-protocol")
    });
    let ask = "GET /users/alice/orders/1 HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n";
    let answer = raw(world.eu().http, format!("PROXY TCP4 81.2.69.142 10.0.0.1 4711 80\r\n{ask}").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(world.eu().upstream().seen()[0].headers["x-forwarded-for"], "81.2.69.142");
    // A connection without the PROXY header, or from an address that `from` does not list, gets no response.
    assert_eq!(raw(world.eu().http, ask.as_bytes()), "");
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    other.bind(&"127.0.0.2:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    other.connect(&world.eu().http.into()).unwrap();
    let mut other: TcpStream = other.into();
    other.set_read_timeout(Some(TIMEOUT)).unwrap();
    let _ = other.write_all(format!("PROXY TCP4 81.2.69.142 10.0.0.1 4711 80\r\n{ask}").as_bytes());
    let mut answer = Vec::new();
    let _ = other.read_to_end(&mut answer);
    assert!(answer.is_empty());
    // On a listener without `proxy_protocol`, the PROXY header is a malformed request.
    let plain = World::start();
    let answer = raw(plain.eu().http, format!("PROXY TCP4 81.2.69.142 10.0.0.1 4711 80\r\n{ask}").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer = raw(plain.eu().http, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x50\x00\x50");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    plain.eu().upstream().assert_no_requests();
    assert_eq!(world.eu().upstream().seen().len(), 1);
}

#[test]
fn connections_behind_a_load_balancer_are_limited_by_client_and_the_refused_are_counted() {
    let plan = Plan { extra: "limits: { connections_per_address: 1 }\n".into(), ..Plan::default() };
    let world = with_listeners(&plan, |world, text| {
        let old = format!("  - address: \"{}\"\n", world.eu().http);
        let text = text.replace(&old, &format!("{old}    proxy_protocol: {{ from: [127.0.0.1] }}\n"));
        text.replace("from: x-forwarded-for", "from: proxy-protocol")
    });
    let begin = |client: &str| format!("PROXY TCP4 {client} 10.0.0.1 4711 80\r\nGET /feed/1 HTTP/1.1\r\nHost: a\r\n");
    let mut first = TcpStream::connect(world.eu().http).unwrap();
    first.set_read_timeout(Some(TIMEOUT)).unwrap();
    first.write_all(format!("{}\r\n", begin("81.2.69.142")).as_bytes()).unwrap();
    assert!(first.read(&mut [0; 64]).unwrap() > 0, "the first connection is served, and stays open");
    assert_eq!(raw(world.eu().http, format!("{}\r\n", begin("81.2.69.142")).as_bytes()), "");
    assert!(
        world.eu().metrics().contains("domicile_connections_refused_total{reason=\"connections_per_address\"} 1"),
        "{}",
        world.eu().metrics()
    );
    let other = raw(world.eu().http, format!("{}Connection: close\r\n\r\n", begin("81.2.69.143")).as_bytes());
    assert!(other.starts_with("HTTP/1.1 200"), "another client of the same load balancer is served: {other}");
}

#[test]
fn the_proxy_protocol_comes_before_tls_in_its_second_version_as_well() {
    use domicile::transport::proxy_protocol::{Version, write};
    let world = with_listeners(&Plan::default(), |world, text| {
        let old = format!("{{ address: \"{}\", tls:", world.eu().https);
        let text =
            text.replace(&old, &format!("{{ address: \"{}\", proxy_protocol: {{ from: 127.0.0.1 }}, tls:", world.eu().https));
        text.replace("from: x-forwarded-for", "from: proxy-protocol")
    });
    for (index, client) in ["81.2.69.142:4711", "[2001:db8::1]:4711"].iter().enumerate() {
        let client: SocketAddr = client.parse().unwrap();
        let answer = runtime().block_on(async {
            let mut stream = tokio::net::TcpStream::connect(world.eu().https).await.unwrap();
            stream.write_all(&write(Version::Two, client, client)).await.unwrap();
            let mut stream = crate::support::tls_over(&world, stream, "localhost", &[b"http/1.1"]).await;
            let ask = b"GET /users/alice/orders/1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            stream.write_all(ask).await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            answer
        });
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(world.eu().upstream().seen()[index].headers["x-forwarded-for"], client.ip().to_string());
    }
}

#[test]
fn an_upstream_gets_the_client_address_by_the_proxy_protocol() {
    for version in ["v1", "v2"] {
        // A raw upstream also records the bytes before the HTTP request.
        let upstream = move |_: &'static str| {
            let mut recorder = Recorder::raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            recorder.entry = format!("{{ url: {}, proxy_protocol: {version} }}", recorder.entry);
            vec![recorder]
        };
        let world = World::planned(Plan { upstreams: Box::new(upstream), ..Plan::default() });
        for address in ["81.2.69.142", "81.2.69.143"] {
            let answer = get(world.eu().http, "/users/alice/orders/1", &[("x-forwarded-for", address)]);
            assert_eq!(answer.status, StatusCode::OK);
        }
        let seen = world.eu().upstream().seen();
        if version == "v1" {
            assert!(seen[0].target.starts_with("PROXY TCP4 81.2.69.142 127.0.0.1 0 "), "{:?}", seen[0].target);
            assert!(
                seen[1].target.starts_with("PROXY TCP4 81.2.69.143 "),
                "a connection serves one client: {:?}",
                seen[1].target
            );
        } else {
            let is_complete = |seen: &&crate::support::RecordedRequest| {
                seen.target.contains("QUIT\n!\u{11}\0\u{c}Q\u{2}E") && seen.target.contains("GET /users")
            };
            assert_eq!(seen.iter().filter(is_complete).count(), 2, "{seen:?}");
        }
    }
}

/// For each connection: the PROXY header before the TLS handshake, and the request head after it.
type RecordedConnections = Arc<Mutex<Vec<(String, String)>>>;

/// A TLS upstream that reads a PROXY header line before the handshake, and records that line and the request head.
fn reading_proxy_header_before_tls(config: rustls::ServerConfig) -> (SocketAddr, RecordedConnections) {
    let recorded = RecordedConnections::default();
    let listener = runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (acceptor, records) = (tokio_rustls::TlsAcceptor::from(Arc::new(config)), Arc::clone(&recorded));
    runtime().spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (acceptor, records) = (acceptor.clone(), Arc::clone(&records));
            tokio::spawn(async move {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    line.push(stream.read_u8().await.unwrap());
                }
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let texts = [line, head].map(|bytes| String::from_utf8(bytes).unwrap());
                records.lock().unwrap().push(texts.into());
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await.unwrap();
            });
        }
    });
    (address, recorded)
}

#[test]
fn a_tls_upstream_gets_the_proxy_header_before_the_handshake_for_ipv4_and_ipv6() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("upstreams").unwrap();
    authority.write(&folder.path().join("ca.pem")).unwrap();
    authority.write_site(folder.path(), "app", &["app.internal"]).unwrap();
    let mut config = crate::streams::server_config(folder.path());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (address, recorded) = reading_proxy_header_before_tls(config);
    let ca = folder.path().join("ca.pem");
    let upstreams = move |_: &'static str| {
        let mut recorder = Recorder::start("app");
        let tls = format!("tls: {{ authority: \"{}\", name: app.internal }}", ca.display());
        recorder.entry = format!("{{ url: \"https://{address}\", {tls}, proxy_protocol: v1 }}");
        vec![recorder]
    };
    let world = World::planned(Plan { upstreams: Box::new(upstreams), ..Plan::default() });
    for client in ["81.2.69.142", "2001:218::1"] {
        assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[("x-forwarded-for", client)]).status, StatusCode::OK);
    }
    let seen = recorded.lock().unwrap();
    let lines: Vec<_> = seen.iter().map(|(line, head)| (line.as_str(), head.starts_with("GET /users/alice/orders/1 "))).collect();
    let [(first, true), (second, true)] = lines[..] else { panic!("{seen:?}") };
    assert!(first.starts_with("PROXY TCP4 81.2.69.142 127.0.0.1 0 "), "{first}");
    // The listener's address is IPv4, which a TCP6 header cannot hold, so the header has `::` instead.
    assert!(second.starts_with("PROXY TCP6 2001:218::1 :: 0 "), "{second}");
}

#[test]
fn cleartext_clients_are_redirected_to_https_and_get_hsts_there() {
    let world = with_listeners(&Plan::default(), |world, text| {
        let old = format!("  - address: \"{}\"\n", world.eu().http);
        let port = world.eu().https.port();
        let text = text.replace(&old, &format!("{old}    redirect_to_https: {port}\n"));
        text.replace(&format!("\"{}\", tls:", world.eu().https), &format!("\"{}\", hsts: 365d, tls:", world.eu().https))
    });
    let answer = get(world.eu().http, "/users/alice/orders/../orders/1?a=b", &[]);
    assert_eq!(answer.status, StatusCode::PERMANENT_REDIRECT);
    let port = world.eu().https.port();
    assert_eq!(answer.headers["location"], format!("https://app.example.com:{port}/users/alice/orders/1?a=b"));
    assert!(!answer.headers.contains_key("strict-transport-security"), "browsers ignore HSTS over cleartext");
    // A gRPC client follows no redirects, and is not served over cleartext either.
    let call = runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(world.eu().http).await.unwrap();
        let (io, executor) = (hyper_util::rt::TokioIo::new(stream), hyper_util::rt::TokioExecutor::new());
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        tokio::spawn(connection);
        let fields = [("content-type", "application/grpc"), ("te", "trailers")];
        let call = crate::support::request(http::Method::POST, "http://localhost/users/alice/orders/1", "", &fields, whole(""));
        crate::support::read(sender.send_request(call).await.unwrap()).await.unwrap()
    });
    assert_eq!(call.code(), "route.none");
    world.eu().upstream().assert_no_requests();
    runtime().block_on(async {
        let mut sender = crate::support::http2(&world, world.eu().https, "localhost").await;
        let ask = crate::support::request(http::Method::GET, "https://localhost/users/alice/orders/1", "", &[], whole(""));
        let answer = sender.send_request(ask).await.unwrap();
        assert_eq!(answer.headers()["strict-transport-security"], "max-age=31536000");
    });
}

#[test]
fn a_client_may_prove_itself_by_certificate_and_nobody_forges_it() {
    let seen_by: crate::support::Handler = Arc::new(|request, seen| {
        Box::pin(async move {
            remember(request, &seen).await;
            Response::new(whole("ok"))
        })
    });
    let plan = Plan { upstreams: Box::new(move |_| vec![Recorder::with(Arc::clone(&seen_by))]), ..Plan::default() };
    for required in [false, true] {
        let clients = Authority::new("clients").unwrap();
        let world = with_listeners(&plan, |world, text| {
            let folder = world.folder.path();
            clients.write(&folder.join("clients.pem")).unwrap();
            clients.write_site(folder, "client", &["client.test"]).unwrap();
            let authority = folder.join("clients.pem");
            let tls =
                format!("tls: {{ clients: {{ authority: \"{}\", required: {required} }}, certificates:", authority.display());
            let abroad = std::fs::read_to_string(&world.us().config).unwrap();
            std::fs::write(&world.us().config, abroad.replace("tls: { certificates:", &tls)).unwrap();
            text.replace("tls: { certificates:", &tls)
        });
        let ask = |pair: Option<&'static str>| {
            let world = &world;
            runtime().block_on(async move {
                let Ok(mut stream) = connect(world, world.eu().https, pair).await else { return String::new() };
                let head = "GET /users/alice/orders/1 HTTP/1.1\r\nHost: localhost\r\nClient-Cert: :Zm9yZ2Vk:\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(head.as_bytes()).await;
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer).await;
                answer
            })
        };
        assert!(ask(Some("client")).starts_with("HTTP/1.1 200"));
        let shown = world.eu().upstream().seen().last().unwrap().headers["client-cert"].clone();
        assert!(shown.as_bytes().starts_with(b":MII") && shown != ":Zm9yZ2Vk:", "{shown:?}");
        assert_eq!(ask(None).starts_with("HTTP/1.1 200"), !required);
        assert_eq!(ask(Some("site")), "", "the certificate is signed by another authority");
        let seen = world.eu().upstream().seen();
        assert_eq!(seen.len(), if required { 1 } else { 2 });
        assert!(seen[1..].iter().all(|seen| !seen.headers.contains_key("client-cert")));
        // A request that arrives in us-east carries the same client certificate to the owner.
        runtime().block_on(async {
            let mut stream = connect(&world, world.us().https, Some("client")).await.unwrap();
            let head =
                "GET /users/alice/orders/1 HTTP/1.1\r\nHost: localhost\r\nClient-Cert: :Zm9yZ2Vk:\r\nConnection: close\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        });
        let seen = world.eu().upstream().seen();
        assert_eq!(seen.last().unwrap().headers.get_all("client-cert").iter().collect::<Vec<_>>(), [&shown]);
        world.us().upstream().assert_no_requests();
    }
}

async fn connect(
    world: &World,
    address: SocketAddr,
    pair: Option<&str>,
) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    use rustls_pki_types::pem::PemObject;
    let file = |name: &str| world.folder.path().join(name);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match pair {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let chain = vec![rustls_pki_types::CertificateDer::from_pem_file(file(&format!("{name}.pem"))).unwrap()];
            let key = rustls_pki_types::PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let stream = tokio::net::TcpStream::connect(address).await?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
}

#[test]
fn a_host_that_requires_client_certificates_is_refused_at_other_listeners() {
    let more = domicile::transport::listener::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().address;
    let clients = Authority::new("clients").unwrap();
    let world = with_listeners(&Plan::default(), |world, text| {
        let folder = world.folder.path();
        clients.write(&folder.join("clients.pem")).unwrap();
        world.authority.write_site(folder, "guarded", &["guarded.test"]).unwrap();
        let path = folder.display();
        let guarded = format!(
            "listen:\n  - {{ address: \"{more}\", tls: {{ clients: {{ authority: \"{path}/clients.pem\", required: true }}, certificates: [{{ certificate: \"{path}/guarded.pem\", key: \"{path}/guarded.key\" }}] }} }}\n"
        );
        text.replace("listen:\n", &guarded)
    });
    let ask = |host: &str| {
        runtime().block_on(async {
            let mut stream = connect(&world, world.eu().https, None).await.unwrap();
            let head = format!("GET /users/alice/orders/1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            answer
        })
    };
    assert!(ask("guarded.test").starts_with("HTTP/1.1 421"));
    // Browsers reuse an HTTP/2 connection for several hosts (RFC 9113 section 9.1.1), so each request is checked.
    let coalesced = runtime().block_on(async {
        let mut sender = crate::support::http2(&world, world.eu().https, "localhost").await;
        let ask = crate::support::request(
            http::Method::GET,
            "https://guarded.test/users/alice/orders/1",
            "",
            &[],
            crate::support::whole(""),
        );
        crate::support::read(sender.send_request(ask).await.unwrap()).await.unwrap()
    });
    assert_eq!((coalesced.status.as_u16(), coalesced.code().as_str()), (421, "request.wrong_site"));
    world.eu().upstream().assert_no_requests();
    assert!(ask("nobodys.test").starts_with("HTTP/1.1 200"), "a host in no certificate is served under the first one");
}

#[test]
fn an_expired_certificate_is_reported_and_served() {
    let _ = log();
    let world = World::prepare(&Plan::default());
    let mut expired = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    (expired.not_before, expired.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2020, 2, 1));
    let key = rcgen::KeyPair::generate().unwrap();
    let folder = world.folder.path();
    std::fs::write(folder.join("site.pem"), expired.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(folder.join("site.key"), key.serialize_pem()).unwrap();
    let world = crate::exits::start_all(world);
    let file = world.folder.path().join("site.pem").display().to_string();
    let is_reported = |line: &str| line.contains(&file) && line.contains("has expired on 2020-02-01; renew it");
    assert!(log().lines().any(is_reported), "the log does not name the certificate");
    assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).text(), "eu-west");
}
