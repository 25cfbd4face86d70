//! The environment of scenarios: regions, recording upstreams and clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use domicile::access_log::{AccessLog, Format};
use domicile::app::{App, Launch, StartError};
use domicile::demo::certificates::Authority;
use domicile::transport::listener::{self, BoundPort};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// The timeout for events that should happen at once. It is long, because the machine may be busy.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// One runtime for the clients and upstreams of all scenarios.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}

/// Polls `is_so` until it returns true; panics with `what` after [`TIMEOUT`].
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the other side closes the connection; panics if a byte arrives, or nothing for [`TIMEOUT`].
pub fn assert_closed(stream: &mut std::net::TcpStream) {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let end = std::io::Read::read(stream, &mut [0; 1]).map_err(|error| error.kind());
    assert!(matches!(end, Ok(0) | Err(std::io::ErrorKind::ConnectionReset)), "the connection is not closed: {end:?}");
}

/// A request as an upstream saw it.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

pub type AnyBody = BoxBody<Bytes, std::io::Error>;
pub type Handler = Arc<dyn Fn(Request<Incoming>, Arc<Mutex<Vec<RecordedRequest>>>) -> Reply + Send + Sync>;
pub type Reply = std::pin::Pin<Box<dyn Future<Output = Response<AnyBody>> + Send>>;

/// The protocol of an upstream.
#[derive(Clone)]
pub enum Wire {
    Http1,
    Http2,
    /// HTTP/2 over TLS.
    Tls(Arc<rustls::ServerConfig>),
}

async fn serve_http2<S>(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static, service: S)
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<AnyBody>, Error = std::convert::Infallible>,
    S: Send + 'static,
    S::Future: Send + 'static,
{
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.enable_connect_protocol().serve_connection(TokioIo::new(stream), service).await;
}

/// An upstream that records the requests that it receives.
pub struct Recorder {
    pub address: SocketAddr,
    /// The entry of this upstream in the configuration.
    pub entry: String,
    pub service: &'static str,
    seen: Arc<Mutex<Vec<RecordedRequest>>>,
    accepting: tokio::task::JoinHandle<()>,
    /// Bound to the port after a crash, and not listening.
    reserved: Mutex<Option<socket2::Socket>>,
}

pub fn whole(text: impl Into<Bytes>) -> AnyBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// Reads a request to its end and adds it to the recorded requests.
pub async fn remember(request: Request<Incoming>, seen: &Mutex<Vec<RecordedRequest>>) {
    let (parts, body) = request.into_parts();
    let body = body.collect().await;
    let Ok(body) = body else { return };
    let trailers = body.trailers().cloned();
    let request = RecordedRequest { target: parts.uri.to_string(), headers: parts.headers, body: body.to_bytes(), trailers };
    seen.lock().unwrap().push(request);
}

impl Recorder {
    /// An upstream that responds with its name.
    pub fn start(name: &'static str) -> Self {
        Self::with(Arc::new(move |request, seen| {
            Box::pin(async move {
                if request.uri().path() != "/healthz" {
                    remember(request, &seen).await;
                }
                Response::new(whole(name))
            })
        }))
    }

    /// Makes it an upstream of this service instead of `app`.
    pub fn of_service(self, service: &'static str) -> Self {
        Self { service, ..self }
    }

    pub fn with(handler: Handler) -> Self {
        Self::with_protocol(Wire::Http1, handler)
    }

    pub fn with_protocol(wire: Wire, handler: Handler) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), wire, handler)
    }

    pub fn at(address: SocketAddr, wire: Wire, handler: Handler) -> Self {
        let seen: Arc<Mutex<Vec<RecordedRequest>>> = Arc::default();
        let listener = runtime().block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let recorded = Arc::clone(&seen);
        let scheme = match &wire {
            Wire::Http1 => "http",
            Wire::Http2 => "h2c",
            Wire::Tls(_) => "https",
        };
        let accepting = runtime().spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (handler, seen) = (Arc::clone(&handler), Arc::clone(&recorded));
                let service = service_fn(move |request| {
                    let reply = handler(request, Arc::clone(&seen));
                    async move { Ok::<_, std::convert::Infallible>(reply.await) }
                });
                let wire = wire.clone();
                connections.spawn(async move {
                    match wire {
                        Wire::Http1 => {
                            let builder = hyper::server::conn::http1::Builder::new();
                            let _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                        }
                        Wire::Http2 => serve_http2(stream, service).await,
                        Wire::Tls(config) => {
                            if let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await {
                                serve_http2(stream, service).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, entry: format!("\"{scheme}://{address}\""), service: "app", seen, accepting, reserved: Mutex::default() }
    }

    /// An upstream that responds to every request head with the same bytes, and reads no bodies.
    pub fn raw(answer: impl Into<Bytes>) -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (seen, answer): (Arc<Mutex<Vec<RecordedRequest>>>, Bytes) = (Arc::default(), answer.into());
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let recorded = Arc::clone(&seen);
        let accepting = runtime().spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (answer, seen) = (answer.clone(), Arc::clone(&recorded));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    loop {
                        // A PROXY protocol header of version 2 begins with CRLF CRLF, which otherwise ends a head.
                        while !head.ends_with(b"\r\n\r\n") || head == b"\r\n\r\n" {
                            let Ok(byte) = stream.read_u8().await else { return };
                            head.push(byte);
                        }
                        let target = String::from_utf8_lossy(&head).into_owned();
                        seen.lock().unwrap().push(RecordedRequest {
                            target,
                            headers: HeaderMap::new(),
                            body: Bytes::new(),
                            trailers: None,
                        });
                        head.clear();
                        let _ = stream.write_all(&answer).await;
                    }
                });
            }
        });
        Self { address, entry: format!("\"http://{address}\""), service: "app", seen, accepting, reserved: Mutex::default() }
    }

    pub fn seen(&self) -> Vec<RecordedRequest> {
        self.seen.lock().unwrap().clone()
    }

    pub fn assert_no_requests(&self) {
        assert!(self.seen().is_empty(), "saw {:?}", self.seen());
    }

    /// Closes the port and every connection, as a crash does. When this returns, new connections are refused; the port stays
    /// reserved, so that no server of another test gets it.
    pub fn crash(&self) {
        self.accepting.abort();
        eventually("the port of the upstream is closed", || {
            let socket = socket2::Socket::new(socket2::Domain::for_address(self.address), socket2::Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            let is_closed = socket.bind(&self.address.into()).is_ok();
            if is_closed {
                self.reserved.lock().unwrap().replace(socket);
            }
            is_closed
        });
    }
}

/// The rules of most scenarios: classes, users and routes.
pub const RULES: &str = r#"
client_address: { trust: [127.0.0.0/8], from: x-forwarded-for }
jurisdictions:
  eu: { countries: [EEA] }
  us: { countries: [US] }
  jp: { countries: [JP] }
data:
  public: { stays: anywhere }
  personal:
    stays: home
    needs: inferred
    carried_by: [eu, us]
    transfers: [{ from: us, to: eu, basis: contract, record: DPA 7, until: 2099-12-31 }]
  restricted: { stays: home }
users:
  key: [{ header: x-user-id }, { cookie: uid }]
  directory: { file: "FOLDER/users.csv" }
geoip: { database: "GEOIP", countries: { BR: us-east } }
latency: { every: 50ms, timeout: 5s, settle: 500ms }
routes:
  - { name: account, match: { path: "/account/**" }, data: restricted, home: [directory, refuse] }
  - { name: orders, match: { path: "/users/{user}/orders/**" }, data: personal, home: [directory, refuse], failover: { reads: nearest } }
  - { name: profile, match: { path: "/profile/**" }, data: personal, home: [directory, geoip, refuse] }
  - { name: feed, match: { path: "/feed/**", methods: [GET, HEAD] }, data: public, home: [latency] }
  - { name: rest, match: {}, data: restricted, home: [directory, refuse] }
"#;

pub const USERS: &str = "user,home\nalice,eu-west\nbob,us-east\nchika,ap-northeast\n";

pub const NAMES: [&str; 3] = ["eu-west", "us-east", "ap-northeast"];
const PLACES: [(&str, &str); 3] = [("eu", "[53.35, -6.26]"), ("us", "[38.95, -77.45]"), ("jp", "[35.68, 139.77]")];

/// A region: its proxy and its upstreams.
pub struct Region {
    pub name: &'static str,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub peers: SocketAddr,
    pub admin: SocketAddr,
    pub upstreams: Vec<Recorder>,
    pub config: PathBuf,
    pub ports: Option<Vec<BoundPort>>,
    pub app: Option<App>,
}

/// Three regions on ports that the kernel chose.
pub struct World {
    pub folder: tempfile::TempDir,
    pub authority: Authority,
    pub regions: Vec<Region>,
}

/// The changes that a scenario makes before the proxies start.
pub struct Plan {
    pub rules: BTreeMap<&'static str, String>,
    pub users: BTreeMap<&'static str, String>,
    pub extra: String,
    pub upstreams: Box<dyn Fn(&'static str) -> Vec<Recorder>>,
    pub health: &'static str,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rules: BTreeMap::new(),
            users: BTreeMap::new(),
            extra: String::new(),
            upstreams: Box::new(|name| vec![Recorder::start(name)]),
            health: "off",
        }
    }
}

impl World {
    pub fn start() -> Self {
        Self::planned(Plan::default())
    }

    pub fn planned(plan: Plan) -> Self {
        let mut world = Self::prepare(&plan);
        for index in 0..world.regions.len() {
            world.start_region(index).unwrap_or_else(|error| panic!("{error}"));
        }
        world.wait_until_measured();
        world
    }

    /// Prepares everything without starting the proxies.
    pub fn prepare(plan: &Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("test").unwrap();
        authority.write(&folder.path().join("ca.pem")).unwrap();
        authority.write_site(folder.path(), "site", &["localhost", "127.0.0.1", "*.example.com"]).unwrap();
        let bind = || listener::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let mut regions = Vec::new();
        for name in NAMES {
            authority.write_region(folder.path(), name).unwrap();
            let users = plan.users.get(name).map_or(USERS, |users| users);
            std::fs::write(folder.path().join(format!("users-{name}.csv")), users).unwrap();
            let ports = vec![bind(), bind(), bind(), bind()];
            regions.push(Region {
                name,
                http: ports[0].address,
                https: ports[1].address,
                peers: ports[2].address,
                admin: ports[3].address,
                upstreams: (plan.upstreams)(name),
                config: folder.path().join(format!("{name}.yaml")),
                ports: Some(ports),
                app: None,
            });
        }
        let world = Self { folder, authority, regions };
        for index in 0..world.regions.len() {
            world.write_config(index, plan);
        }
        world
    }

    pub fn write_config(&self, index: usize, plan: &Plan) {
        let own = &self.regions[index];
        let folder = self.folder.path().display();
        let mut regions = String::new();
        for (region, (jurisdiction, at)) in self.regions.iter().zip(PLACES) {
            regions += &format!(
                "  {}:\n    jurisdiction: {jurisdiction}\n    at: {at}\n{}    gateway: \"https://{}\"\n    url: \"http://{}\"\n",
                region.name,
                services(&region.upstreams, plan.health),
                region.peers,
                region.http
            );
        }
        let rules = plan.rules.get(own.name).map_or(RULES, |rules| rules);
        let rules = rules.replace("FOLDER/users.csv", &format!("{folder}/users-{}.csv", own.name));
        let rules =
            rules.replace("GEOIP", &Path::new(env!("CARGO_MANIFEST_DIR")).join("geoip/country.mmdb").display().to_string());
        let text = format!(
            "region: {}\nworkers: 1\nlisten:\n  - address: \"{}\"\n  - {{ address: \"{}\", tls: {{ certificates: [{{ certificate: \"{folder}/site.pem\", key: \"{folder}/site.key\" }}] }} }}\n  - {{ address: \"{}\", peers: true }}\nadmin: {{ address: \"{}\" }}\npeer_tls: {{ certificate: \"{folder}/{{region}}.pem\", key: \"{folder}/{{region}}.key\", authority: \"{folder}/ca.pem\" }}\naudit: {{ directory: \"{folder}/ledger-{{region}}\" }}\nregions:\n{regions}{}\n{rules}",
            own.name, own.http, own.https, own.peers, own.admin, plan.extra
        );
        std::fs::write(&own.config, text).unwrap();
    }

    pub fn start_region(&mut self, index: usize) -> Result<(), StartError> {
        let region = &mut self.regions[index];
        let launch = Launch {
            config: region.config.clone(),
            inherited: region.ports.take().unwrap_or_default(),
            access_log: Some(access_log()),
            ..Launch::default()
        };
        region.app = Some(App::start(launch)?);
        Ok(())
    }

    /// Waits until every region has measured all regions, because an unmeasured region is tried even if it is down.
    pub fn wait_until_measured(&self) {
        for region in &self.regions {
            for other in NAMES {
                region.wait_for_health(other, "up");
            }
        }
    }

    pub fn region(&self, name: &str) -> &Region {
        self.regions.iter().find(|region| region.name == name).unwrap()
    }

    pub fn eu(&self) -> &Region {
        self.region("eu-west")
    }

    pub fn us(&self) -> &Region {
        self.region("us-east")
    }

    pub fn jp(&self) -> &Region {
        self.region("ap-northeast")
    }

    /// Asserts that no proxy and no upstream of these regions has served a request.
    pub fn assert_no_requests(&self, names: &[&str]) {
        for name in names {
            let region = self.region(name);
            region.upstreams.iter().for_each(Recorder::assert_no_requests);
            assert_eq!(region.sum_of("domicile_requests_total"), 0.0, "{name}'s proxy saw a request");
        }
    }
}

/// The services of a region in the configuration, in the short form if there is only `app`.
fn services(upstreams: &[Recorder], health: &str) -> String {
    let mut services = BTreeMap::<_, Vec<_>>::new();
    upstreams.iter().for_each(|upstream| services.entry(upstream.service).or_default().push(upstream.entry.clone()));
    let check = if health.is_empty() { String::new() } else { format!("health: {health}") };
    match services.get("app") {
        Some(app) if services.len() == 1 => format!("    upstreams: [{}]\n    {check}\n", app.join(", ")),
        _ => {
            let service = |(name, entries): (&&str, &Vec<String>)| {
                let check = if check.is_empty() { String::new() } else { format!(", {check}") };
                format!("      {name}: {{ upstreams: [{}]{check} }}\n", entries.join(", "))
            };
            format!("    services:\n{}", services.iter().map(service).collect::<String>())
        }
    }
}

impl Region {
    /// The only upstream of a service.
    pub fn upstream_of(&self, service: &str) -> &Recorder {
        let [upstream] = &self.upstreams.iter().filter(|upstream| upstream.service == service).collect::<Vec<_>>()[..] else {
            panic!("{} has another number of upstreams of {service}", self.name)
        };
        upstream
    }

    pub fn wait_for_service(&self, region: &str, service: &str, is_up: bool) {
        let wanted = format!("domicile_service_up{{region=\"{region}\",service=\"{service}\"}} {}", u8::from(is_up));
        eventually(&format!("{} sees {service} of {region}: {is_up}", self.name), || self.metrics().contains(&wanted));
    }

    pub fn metrics(&self) -> String {
        let answer = get(self.admin, "/metrics", &[]);
        String::from_utf8(answer.body.to_vec()).unwrap()
    }

    /// The sum of all series whose name begins with `metric`.
    pub fn sum_of(&self, metric: &str) -> f64 {
        let metrics = self.metrics();
        let lines = metrics.lines().filter(|line| line.starts_with(metric) && !line.starts_with('#'));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    pub fn wait_for_health(&self, region: &str, state: &str) {
        let wanted = format!("domicile_region_health{{region=\"{region}\",state=\"{state}\"}} 1");
        eventually(&format!("{} sees {region} as {state}", self.name), || self.metrics().contains(&wanted));
    }

    /// The lines of the ledger about requests and commands.
    pub fn ledger(&self, world: &World) -> Vec<serde_json::Value> {
        let file = world.folder.path().join(format!("ledger-{}/ledger.jsonl", self.name));
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let is_other = |kind: &serde_json::Value| ["process", "checkpoint", "settlement"].iter().any(|other| kind == other);
        lines.filter(|line| !is_other(&line["kind"])).collect()
    }

    /// The settlements of the ledger.
    pub fn settlements(&self, world: &World) -> Vec<serde_json::Value> {
        let file = world.folder.path().join(format!("ledger-{}/ledger.jsonl", self.name));
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["kind"] == "settlement").collect()
    }

    pub fn upstream(&self) -> &Recorder {
        &self.upstreams[0]
    }

    pub fn reload(&self) -> Result<(), String> {
        runtime().block_on(self.app.as_ref().unwrap().reload())
    }
}

/// A response with its complete body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The code of a refusal, from the problem document or from `grpc-message`.
    pub fn code(&self) -> String {
        if let Some(message) = self.headers.get("grpc-message") {
            return message.to_str().unwrap().split(['(', ')']).nth(1).unwrap().to_owned();
        }
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        problem["code"].as_str().unwrap_or_default().to_owned()
    }
}

pub fn get(address: SocketAddr, target: &str, fields: &[(&str, &str)]) -> Answer {
    send(address, Method::GET, target, fields, whole(""))
}

pub fn post(address: SocketAddr, target: &str, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    send(address, Method::POST, target, fields, whole(body))
}

pub fn send(address: SocketAddr, method: Method, target: &str, fields: &[(&str, &str)], body: AnyBody) -> Answer {
    runtime().block_on(try_send(address, method, target, fields, body)).unwrap()
}

pub fn request(method: Method, target: &str, host: &str, fields: &[(&str, &str)], body: AnyBody) -> Request<AnyBody> {
    let mut request = Request::builder().method(method).uri(target);
    if !host.is_empty() {
        request = request.header("host", host);
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

pub async fn try_send(
    address: SocketAddr,
    method: Method,
    target: &str,
    fields: &[(&str, &str)],
    body: AnyBody,
) -> Result<Answer, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let answer = sender.send_request(request(method, target, "app.example.com", fields, body)).await;
    read(answer.map_err(|error| error.to_string())?).await
}

pub async fn read(answer: Response<Incoming>) -> Result<Answer, String> {
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?;
    let trailers = body.trailers().cloned();
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers })
}

/// Sends these bytes unchanged, and reads until the server closes the connection.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A body whose frames come from a channel. The body ends when the sender is dropped.
pub fn pieces() -> (tokio::sync::mpsc::UnboundedSender<Frame<Bytes>>, AnyBody) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    (sender, ChannelBody(receiver).boxed())
}

struct ChannelBody(tokio::sync::mpsc::UnboundedReceiver<Frame<Bytes>>);

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.get_mut().0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// An HTTP/2 connection over TLS that trusts the world's authority.
pub async fn http2(world: &World, address: SocketAddr, name: &str) -> hyper::client::conn::http2::SendRequest<AnyBody> {
    let stream = tls(world, address, name, &[b"h2"]).await;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("an HTTP/2 handshake");
    tokio::spawn(connection);
    sender
}

/// A TLS connection that trusts the world's authority and offers these protocols.
pub async fn tls(world: &World, address: SocketAddr, name: &str, alpn: &[&[u8]]) -> tokio_rustls::client::TlsStream<TcpStream> {
    tls_over(world, TcpStream::connect(address).await.unwrap(), name, alpn).await
}

/// Like [`tls`], on a connection that may already have been used.
pub async fn tls_over(
    world: &World,
    stream: TcpStream,
    name: &str,
    alpn: &[&[u8]],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(world.folder.path().join("ca.pem")).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a TLS handshake")
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The lines of the log that tests read, and the access log that writes to the same place.
fn logs() -> &'static (Lines, AccessLog) {
    static LOGS: OnceLock<(Lines, AccessLog)> = OnceLock::new();
    LOGS.get_or_init(|| {
        let lines = Lines::default();
        let (access_log, guard) = AccessLog::start(lines.clone(), Format::Json).unwrap();
        // The guard would wait for the last lines at the end of the process.
        std::mem::forget(guard);
        (lines, access_log)
    })
}

fn access_log() -> AccessLog {
    logs().1.clone()
}

/// The log of all proxies in this process: requests, and since the first call tables and certificates, as JSON lines. A line of a
/// request appears a moment after its response.
pub fn log() -> String {
    static STARTED: Once = Once::new();
    let lines = &logs().0;
    STARTED.call_once(|| {
        let filter = "domicile::app::build=info,domicile::transport::tls=warn,domicile::proxy::request::attempts=warn";
        let subscriber = tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(|| logs().0.clone());
        tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
    });
    String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
}
