//! The cost of judging a request, by number of regions and routes: nanoseconds and allocations of finding its facts (route, user
//! table, GeoIP) and of deciding.
//!
//!     cargo bench --bench decide
//!
//! Each figure is the median of 31 batches of 2,000 requests, with the fastest and the slowest batch. Each request uses a
//! random route of the whole table, so that the CPU caches are not warm for a single route.
#![allow(unsafe_code, reason = "counting allocations needs a global allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Instant, SystemTime};

use domicile::decision::decide;
use domicile::decision::facts::{Credential, Ingress};
use domicile::decision::policy::chain::{Failover, Reads, Step, Writes};
use domicile::decision::policy::class::ClassId;
use domicile::decision::policy::geography::GeoRules;
use domicile::decision::policy::route::{Conditions, HostPattern, Method, MethodSet, PathPattern, Pattern, Route};
use domicile::decision::policy::rule::{Carriers, Mode, ResidencyRule, Stays, Transfer};
use domicile::decision::policy::{DataClass, Draft, Policy, Region};
use domicile::directory::{self, Directory};
use domicile::engine::facts::{self, Findings};
use domicile::engine::path::Slashes;
use domicile::engine::question::{Identity, Question};
use domicile::engine::snapshot::{JudgingSnapshot, Moment};
use domicile::geoip::GeoIp;
use domicile::model::coordinates::Coordinates;
use domicile::model::day::Day;
use domicile::model::jurisdiction::{Jurisdiction, JurisdictionId, JurisdictionSet};
use domicile::model::region::{RegionId, Registry};
use domicile::model::service::ServiceId;
use domicile::model::user::Evidence;
use domicile::model::vitals::{PolicyHash, Vitals};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BATCHES: usize = 31;
const REQUESTS: usize = 2000;
const JURISDICTIONS: usize = 8;
const USERS: usize = 1000;

fn policy(regions: usize, routes: usize) -> Policy {
    let id = |index| JurisdictionId::new(index).expect("few jurisdictions");
    let region = |index| RegionId::new(index).expect("at most 64 regions");
    let us = Jurisdiction::Named(id(1));
    let transfer = Transfer {
        record: None,
        from: Jurisdiction::Named(id(0)),
        to: JurisdictionSet::default().with(us),
        basis: "contract".into(),
        until: Day::parse("2099-12-31").expect("a date"),
    };
    let rule = ResidencyRule {
        stays: Stays::Home,
        needs: Evidence::Inferred,
        carried_by: Carriers::Anyone,
        transfers: vec![transfer],
        mode: Mode::Enforce,
    };
    let service = ServiceId::new(0).expect("a service");
    let route = |index: usize| {
        let path = format!("/service-{}/v{}/users/{{user}}/items-{index}/**", index % 97, index % 5);
        let host = if index.is_multiple_of(3) { "*.example.com" } else { "*" };
        Route {
            name: format!("r{index}").into(),
            pattern: Pattern {
                hosts: vec![HostPattern::parse(host).expect("a host")],
                paths: vec![PathPattern::parse(&path).expect("a path")],
                methods: MethodSet::ALL,
                conditions: Conditions::default(),
            },
            class: ClassId::new(0).expect("a class"),
            service: Some(service),
            chain: vec![Step::Directory, Step::GeoIp, Step::Refuse],
            failover: Failover { reads: Reads::Nearest, writes: Writes::Never },
            keeps: Default::default(),
            claim: None,
            aliases: Vec::new(),
        }
    };
    let draft = Draft {
        local: region(0),
        regions: (0..regions)
            .map(|index| {
                let at = Coordinates { latitude: (index * 7 % 120) as f32 - 60.0, longitude: (index * 31 % 360) as f32 - 180.0 };
                let jurisdiction = id(index % JURISDICTIONS);
                (
                    region(index),
                    Region {
                        name: format!("region-{index}").into(),
                        jurisdiction,
                        at,
                        has_url: true,
                        has_gateway: true,
                        services: vec![service],
                    },
                )
            })
            .collect(),
        jurisdictions: (0..JURISDICTIONS).map(|index| (id(index), format!("j{index}").into(), vec![])).collect(),
        services: vec![(service, "app".into())],
        classes: vec![DataClass { name: "personal".into(), rule }],
        routes: (0..routes).map(route).collect(),
        geo: GeoRules::default(),
        refuses_unread_credentials: true,
        identification: Vec::new(),
    };
    Policy::compile(draft, |_| PolicyHash::default())
}

/// A moment with real tables: a user table of a thousand users and the bundled GeoIP database.
fn moment(policy: Policy) -> Moment {
    let mut registry = Registry::default();
    for region in policy.regions.iter() {
        let number = registry.regions.number(policy.region_name(region));
        assert_eq!(number, Some(region.index()), "the registry numbers the regions like the policy");
    }
    let mut table = tempfile::Builder::new().suffix(".csv").tempfile().expect("a temporary file");
    writeln!(table, "user,home").expect("room for the table");
    for user in 0..USERS {
        writeln!(table, "user-{user},region-{}", user % policy.regions.iter().count()).expect("room for the table");
    }
    let settings = directory::Settings { file: table.path().into(), max_loss: 10, stale_after: None };
    let database = Path::new(env!("CARGO_MANIFEST_DIR")).join("geoip/country.mmdb");
    let snapshot = JudgingSnapshot {
        policy,
        slashes: Slashes::Merge,
        geoip: Some(Arc::new(GeoIp::open(&database).expect("the bundled database"))),
        geoip_max_age: None,
        directory: Some(Arc::new(Directory::open(&settings, &registry).expect("the table"))),
    };
    Moment::live(Arc::new(snapshot), SystemTime::now())
}

fn question(random: &mut fastrand::Rng, routes: usize) -> Question {
    let index = random.usize(..routes);
    let user = random.usize(..USERS);
    Question {
        ingress: Ingress::Client,
        method: Method::Get,
        host: "api.example.com".into(),
        path: format!("/service-{}/v{}/users/user-{user}/items-{index}/1/details", index % 97, index % 5),
        is_read: true,
        client: IpAddr::from(random.u32(..).to_be_bytes()),
        fields: Default::default(),
        identity: Identity { credential: Credential::Absent, ..Identity::default() },
        is_preflight: false,
        ignores_hint: Default::default(),
        envelope: None,
    }
}

/// The facts of a request. Tables in memory answer at once.
fn find<'q>(question: &'q Question, moment: &Moment) -> Findings<'q> {
    let finding = pin!(facts::find(question, &[], moment));
    match finding.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(findings) => findings,
        Poll::Pending => unreachable!("no table is remote"),
    }
}

/// The cost of one request.
struct Cost {
    median: f64,
    fastest: f64,
    slowest: f64,
    allocations: f64,
}

fn measure(mut batch: impl FnMut()) -> Cost {
    batch();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    batch();
    let allocations = (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64 / REQUESTS as f64;
    let mut times: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let started = Instant::now();
            batch();
            started.elapsed().as_nanos() as f64 / REQUESTS as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    Cost { median: times[BATCHES / 2], fastest: times[0], slowest: times[BATCHES - 1], allocations }
}

fn main() {
    println!(
        "{:>8} {:>8} {:>10} {:>12} {:>18} {:>12}",
        "regions", "routes", "step", "median ns", "fastest-slowest ns", "allocations"
    );
    for regions in [4, 16, 64] {
        for routes in [10, 1_000, 10_000] {
            let moment = moment(policy(regions, routes));
            let vitals = Vitals::unmeasured(moment.policy().nearest_first());
            let mut random = fastrand::Rng::with_seed(1);
            let questions: Vec<_> = (0..REQUESTS).map(|_| question(&mut random, routes)).collect();
            let findings: Vec<_> = questions.iter().map(|question| find(question, &moment)).collect();
            let finding = measure(|| questions.iter().for_each(|question| drop(black_box(find(question, &moment)))));
            let deciding = measure(|| {
                for finding in &findings {
                    black_box(decide(black_box(&finding.facts(&vitals)), moment.policy()));
                }
            });
            assert_eq!(deciding.allocations, 0.0, "a decision must not allocate");
            for (step, cost) in [("facts", finding), ("decide", deciding)] {
                let Cost { median, fastest, slowest, allocations } = cost;
                let range = format!("{fastest:.0}-{slowest:.0}");
                println!("{regions:>8} {routes:>8} {step:>10} {median:>12.0} {range:>18} {allocations:>12.3}");
            }
        }
    }
}
