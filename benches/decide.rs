//! The cost of a decision: nanoseconds and allocations of `match_route` and `decide`, by number of regions and routes.
//!
//!     cargo bench --bench decide
//!
//! Each figure is the median of 31 batches of 2,000 requests, with the fastest and the slowest batch. Each request uses a
//! random route of the whole table, so that the CPU caches are not warm for a single route.
#![allow(unsafe_code, reason = "counting allocations needs a global allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use domicile::decision::facts::{Credential, Facts, Ingress, Lookup};
use domicile::decision::policy::chain::{Failover, Reads, Step, Writes};
use domicile::decision::policy::class::{ClassId, ClassSet};
use domicile::decision::policy::geography::GeoRules;
use domicile::decision::policy::route::{Head, HostPattern, Method, MethodSet, PathPattern, Pattern, Route};
use domicile::decision::policy::rule::{Carriers, Mode, ResidencyRule, Stays, Transfer};
use domicile::decision::policy::{DataClass, Draft, Policy, Region};
use domicile::decision::{decide, match_route};
use domicile::model::coordinates::Coordinates;
use domicile::model::country::CountryCode;
use domicile::model::day::Day;
use domicile::model::jurisdiction::{Jurisdiction, JurisdictionId, JurisdictionSet};
use domicile::model::place::Place;
use domicile::model::region::RegionId;
use domicile::model::user::{Evidence, Proof, Record};
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

fn policy(regions: usize, routes: usize) -> Policy {
    let id = |index| JurisdictionId::new(index).expect("few jurisdictions");
    let region = |index| RegionId::new(index).expect("at most 64 regions");
    let us = Jurisdiction::Named(id(1));
    let transfer = Transfer {
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
    let route = |index: usize| {
        let path = format!("/service-{}/v{}/users/{{user}}/items-{index}/**", index % 97, index % 5);
        let host = if index.is_multiple_of(3) { "*.example.com" } else { "*" };
        Route {
            name: format!("r{index}").into(),
            pattern: Pattern {
                host: HostPattern::parse(host).expect("a host"),
                path: PathPattern::parse(&path).expect("a path"),
                methods: MethodSet::ALL,
            },
            class: ClassId::new(0).expect("a class"),
            chain: vec![Step::Directory, Step::GeoIp, Step::Refuse],
            failover: Failover { reads: Reads::Nearest, writes: Writes::Never },
            upgrades: Vec::new(),
            claim: None,
            aliases: Vec::new(),
            body: None,
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
                    Region { name: format!("region-{index}").into(), jurisdiction, at, has_url: true, has_gateway: true },
                )
            })
            .collect(),
        jurisdictions: (0..JURISDICTIONS).map(|index| (id(index), format!("j{index}").into(), vec![])).collect(),
        classes: vec![DataClass { name: "personal".into(), rule }],
        routes: (0..routes).map(route).collect(),
        geo: GeoRules::default(),
        refuses_unread_credentials: true,
        identification: Vec::new(),
    };
    Policy::compile(draft, |_| PolicyHash::default())
}

/// Median, fastest and slowest batch in nanoseconds per request, and allocations per request.
fn measure(regions: usize, routes: usize) -> (f64, f64, f64, f64) {
    let policy = policy(regions, routes);
    let vitals = Vitals::unmeasured(policy.nearest_first());
    let mut random = fastrand::Rng::with_seed(1);
    let paths: Vec<String> = (0..REQUESTS)
        .map(|_| {
            let index = random.usize(..routes);
            format!("/service-{}/v{}/users/alice/items-{index}/1/details", index % 97, index % 5)
        })
        .collect();
    let record = Record { home: policy.local, jurisdiction: None };
    let germany = CountryCode::parse("DE").expect("a country");
    let once = |path: &str| {
        let head = Head { method: Method::Get, host: "api.example.com", path };
        let facts = Facts {
            route: match_route(&head, &policy),
            ingress: Ingress::Client,
            is_read: true,
            today: Day::parse("2026-11-23").expect("a date"),
            client: IpAddr::from([203, 0, 113, 7]),
            directory: Lookup::Found(record),
            caller: Lookup::NotAsked,
            caller_proof: Proof::Proven,
            token: Lookup::NotAsked,
            credential: Credential::Absent,
            hint: None,
            proof: Proof::Proven,
            place: Lookup::Found(Place::in_country(germany)),
            place_is_stale: false,
            peer: None,
            claimed: Some(ClassSet::EMPTY),
            vitals: &vitals,
        };
        black_box(decide(black_box(&facts), &policy));
    };
    paths.iter().for_each(|path| once(path));
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    paths.iter().for_each(|path| once(path));
    let allocations = (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64 / REQUESTS as f64;
    let mut batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let started = Instant::now();
            paths.iter().for_each(|path| once(path));
            started.elapsed().as_nanos() as f64 / REQUESTS as f64
        })
        .collect();
    batches.sort_by(f64::total_cmp);
    (batches[BATCHES / 2], batches[0], batches[BATCHES - 1], allocations)
}

fn main() {
    println!("{:>8} {:>8} {:>12} {:>20} {:>14}", "regions", "routes", "median ns", "fastest-slowest ns", "allocations");
    for regions in [4, 16, 64] {
        for routes in [10, 1_000, 10_000] {
            let (median, fastest, slowest, allocations) = measure(regions, routes);
            println!("{regions:>8} {routes:>8} {median:>12.0} {:>20} {allocations:>14.3}", format!("{fastest:.0}-{slowest:.0}"));
            assert_eq!(allocations, 0.0, "a decision must not allocate");
        }
    }
}
