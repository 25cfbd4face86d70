//! The environment of the demo: app servers, relays, certificates, configurations and proxies of three regions.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::access_log::AccessLog;
use crate::app::{App, Launch};
use crate::transport::listener::{self, BoundPort};

use super::certificates::Authority;
use super::page::{self, PageRegion};
use super::{relay, sample_app};

/// A region of the demo.
pub struct DemoRegion {
    pub name: &'static str,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub admin: SocketAddr,
    /// The app servers of the service `app`.
    pub apps: Vec<SocketAddr>,
    /// The only app server of the service `search`.
    pub search: SocketAddr,
    gateway: SocketAddr,
}

const NAMES: [&str; 3] = ["eu-west", "us-east", "ap-northeast"];

/// Median round trips in milliseconds between Azure's North Europe, East US and Japan East, by index in `NAMES` (Microsoft,
/// Azure network round-trip latency statistics, CC BY 4.0).
const ROUND_TRIPS: [(usize, usize, u64); 3] = [(0, 1, 72), (1, 2, 164), (0, 2, 232)];

/// The running demo. Call [`World::stop`] to end it, because dropping it neither drains the proxies nor removes the folder.
pub struct World {
    pub regions: Vec<DemoRegion>,
    /// Holds certificates, configurations and ledgers; [`World::stop`] removes it.
    pub folder: PathBuf,
    /// Where the page of the demo is.
    pub page: SocketAddr,
    proxies: Vec<App>,
    _runtime: tokio::runtime::Runtime,
}

/// The ports of a region, bound before its configuration is written.
struct Ports {
    http: BoundPort,
    https: BoundPort,
    peers: BoundPort,
    admin: BoundPort,
}

impl World {
    /// Builds and starts the demo. `geoip` is the GeoIP database; `more` is appended to each configuration. With `keeps_ports`, the
    /// regions have the same ports at each start.
    pub fn start(geoip: &Path, more: &str, access_log: Option<AccessLog>, keeps_ports: bool) -> Result<Self, String> {
        if !geoip.exists() {
            return Err(format!(
                "`{}` does not exist: run the demo from the checkout, or name a GeoIP database with --geoip",
                geoip.display()
            ));
        }
        let failed = |error: io::Error| format!("the demo cannot start: {error}");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(failed)?;
        let folder = std::env::temp_dir().join(format!("domicile-demo-{}", std::process::id()));
        write_files(&folder).map_err(failed)?;
        let mut regions = Vec::new();
        let mut ports = Vec::new();
        for (number, name) in (0..).zip(NAMES) {
            let bound = if keeps_ports { Ports::bind(number) } else { Ports::bind_any() };
            let bound = bound.map_err(|error| error.to_string())?;
            let (apps, search) = runtime.block_on(start_apps(name, keeps_ports.then_some(number))).map_err(failed)?;
            let (http, https, admin) = (bound.http.address, bound.https.address, bound.admin.address);
            regions.push(DemoRegion { name, http, https, admin, apps, search, gateway: bound.peers.address });
            ports.push(bound);
        }
        let mut proxies = Vec::new();
        for (index, bound) in ports.into_iter().enumerate() {
            let gateways = runtime.block_on(start_relays(&regions, index)).map_err(failed)?;
            let config = folder.join(format!("{}.yaml", regions[index].name));
            std::fs::write(&config, configuration(&regions, index, &gateways, &folder, geoip) + more).map_err(failed)?;
            let inherited = vec![bound.http, bound.https, bound.peers, bound.admin];
            let launch =
                Launch { config, region: None, inherited, workers: Some(1), access_log: access_log.clone(), ..Launch::default() };
            proxies.push(App::start(launch).map_err(|error| error.to_string())?);
        }
        let of_page = |region: &DemoRegion| PageRegion { name: region.name, http: region.http, admin: region.admin };
        let usual = SocketAddr::from(([127, 0, 0, 1], PAGE_PORT));
        let at = if keeps_ports { usual } else { any_port() };
        let page = page::start(at, regions.iter().map(of_page).collect());
        let page =
            runtime.block_on(page).or_else(|_| runtime.block_on(page::start(any_port(), regions.iter().map(of_page).collect())));
        Ok(Self { regions, folder, page: page.map_err(failed)?, proxies, _runtime: runtime })
    }

    /// Drains the proxies and removes the demo's folder.
    pub fn stop(self) {
        let draining: Vec<_> = self.proxies.into_iter().map(|proxy| std::thread::spawn(|| proxy.shut_down())).collect();
        for proxy in draining {
            // An error means that the thread panicked, which has been printed already.
            let _ = proxy.join();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }

    /// Whether another process has one of the ports that the documentation names.
    pub fn has_other_ports(&self) -> bool {
        let is_other = |address: &SocketAddr| !(PAGE_PORT..FIRST_PORT + 30).contains(&address.port());
        self.regions.iter().flat_map(|region| [&region.http, &region.https, &region.admin]).chain([&self.page]).any(is_other)
    }

    pub fn region(&self, name: &str) -> &DemoRegion {
        self.regions.iter().find(|region| region.name == name).expect("the demo has a region of this name")
    }
}

/// A port that the kernel chooses.
fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// The port of the page.
const PAGE_PORT: u16 = 8100;

/// The first port of the first region. Each region has ten.
const FIRST_PORT: u16 = 8110;

impl Ports {
    /// The ports of the region with this number, which are the same at each start unless another process uses them.
    fn bind(region: u16) -> Result<Self, listener::BindError> {
        let first = FIRST_PORT + region * 10;
        let usual = |offset: u16| {
            let address = SocketAddr::from(([127, 0, 0, 1], first + offset));
            listener::bind(address, 1).or_else(|_| listener::bind(any_port(), 1))
        };
        Ok(Self { http: usual(0)?, https: usual(1)?, admin: usual(2)?, peers: usual(3)? })
    }

    /// Ports that the kernel chooses, so that several demos run on one machine.
    fn bind_any() -> Result<Self, listener::BindError> {
        let any = || listener::bind(any_port(), 1);
        Ok(Self { http: any()?, https: any()?, admin: any()?, peers: any()? })
    }
}

fn write_files(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let authority = Authority::new("Domicile demo authority")?;
    authority.write(&folder.join("ca.pem"))?;
    for name in NAMES {
        authority.write_region(folder, name)?;
    }
    authority.write_site(folder, "site", &["localhost", "127.0.0.1"])?;
    std::fs::write(folder.join("users.csv"), include_str!("../../config/users.csv"))
}

/// The two app servers of a region, and its search. With the number of the region, they keep their ports from start to start.
async fn start_apps(region: &'static str, number: Option<u16>) -> io::Result<(Vec<SocketAddr>, SocketAddr)> {
    let app = async |name: &str, offset: u16| {
        let usual = number.map(|number| SocketAddr::from(([127, 0, 0, 1], FIRST_PORT + number * 10 + offset)));
        let name = format!("{region}-{name}");
        match usual {
            Some(usual) => match sample_app::start(region, name.clone(), usual).await {
                Err(_) => sample_app::start(region, name, any_port()).await,
                started => started,
            },
            None => sample_app::start(region, name, any_port()).await,
        }
    };
    Ok((vec![app("a", 4).await?, app("b", 5).await?], app("search", 6).await?))
}

/// The addresses at which region `from` connects to the gateways: its own directly, the others through relays.
async fn start_relays(regions: &[DemoRegion], from: usize) -> io::Result<Vec<SocketAddr>> {
    let mut gateways = Vec::new();
    for (to, region) in regions.iter().enumerate() {
        let pair = (from.min(to), from.max(to));
        let round_trip =
            ROUND_TRIPS.iter().find(|(a, b, _)| (*a, *b) == pair).map(|(_, _, millis)| Duration::from_millis(*millis));
        gateways.push(match round_trip {
            Some(round_trip) => relay::start(region.gateway, round_trip / 2).await?,
            None => region.gateway,
        });
    }
    Ok(gateways)
}

/// A configuration like `config/three-regions.yaml`, with the demo's own ports and files.
fn configuration(regions: &[DemoRegion], local: usize, gateways: &[SocketAddr], folder: &Path, geoip: &Path) -> String {
    let places = [("eu", "[53.35, -6.26]"), ("us", "[38.95, -77.45]"), ("jp", "[35.68, 139.77]")];
    let health = "health: { path: /healthz, every: 200ms, timeout: 1s, rise: 1, fall: 2 }";
    let mut text = String::new();
    for ((region, gateway), (jurisdiction, at)) in regions.iter().zip(gateways).zip(places) {
        let apps: Vec<_> = region.apps.iter().map(|app| format!("http://{app}")).collect();
        text += &format!(
            "  {}:\n    jurisdiction: {jurisdiction}\n    at: {at}\n    services:\n      app: {{ upstreams: [{}], {health} }}\n      search: {{ upstreams: [\"http://{}\"], {health} }}\n    gateway: https://{gateway}\n    url: http://{}\n",
            region.name,
            apps.join(", "),
            region.search,
            region.http
        );
    }
    let own = &regions[local];
    let folder = folder.display();
    let geoip = geoip.display();
    let rules = include_str!("rules.yaml");
    format!(
        "region: {name}\nworkers: 1\nlisten:\n  - address: \"{http}\"\n  - {{ address: \"{https}\", tls: {{ certificates: [{{ certificate: {folder}/site.pem, key: {folder}/site.key }}] }} }}\n  - {{ address: \"{peers}\", peers: true }}\nadmin: {{ address: \"{admin}\" }}\npeer_tls: {{ certificate: \"{folder}/{{region}}.pem\", key: \"{folder}/{{region}}.key\", authority: {folder}/ca.pem }}\nregions:\n{text}audit: {{ directory: \"{folder}/ledger/{{region}}\" }}\n{rules}",
        name = own.name,
        http = own.http,
        https = own.https,
        peers = own.gateway,
        admin = own.admin,
    )
    .replace("USERS_FILE", &format!("{folder}/users.csv"))
    .replace("GEOIP_FILE", &geoip.to_string())
}
