//! The tour: sends sample requests that show each feature, and prints each result and whether it is the expected one.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use super::client::{self, ClientResponse};
use super::world::{DemoRegion, World};

/// Maximum time until every proxy notices that a region went down or came back up.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(20);

/// The expected result of a request.
#[derive(Clone, Copy)]
enum Expect {
    ServedBy(&'static str),
    /// Redirected to this region, and served there.
    Redirected(&'static str),
    Refused(u16, &'static str),
}

/// One request of the tour.
struct Sample {
    name: &'static str,
    /// The region whose proxy receives the request.
    at: &'static str,
    from: &'static str,
    user: Option<&'static str>,
    method: Method,
    path: &'static str,
    expect: Expect,
}

const fn get(
    name: &'static str,
    at: &'static str,
    from: &'static str,
    user: Option<&'static str>,
    path: &'static str,
    expect: Expect,
) -> Sample {
    Sample { name, at, from, user, method: Method::GET, path, expect }
}

const GERMANY: &str = "91.64.0.1";
const AMERICA: &str = "8.8.8.8";
const JAPAN: &str = "133.11.0.1";
const BRAZIL: &str = "177.1.1.1";

fn with_all_regions_up() -> Vec<Sample> {
    use Expect::{Redirected, Refused, ServedBy};
    vec![
        get("a user at home", "eu-west", GERMANY, None, "/users/alice/orders/1", ServedBy("eu-west")),
        get("the same user abroad", "us-east", AMERICA, None, "/users/alice/orders/1", ServedBy("eu-west")),
        Sample {
            method: Method::POST,
            ..get("a write from abroad", "us-east", AMERICA, None, "/users/alice/orders/1", ServedBy("eu-west"))
        },
        get("a user of another region", "eu-west", GERMANY, None, "/users/chika/orders/1", ServedBy("ap-northeast")),
        get("unknown user, by country", "us-east", GERMANY, None, "/profile/me", ServedBy("eu-west")),
        get("unknown user, by country", "eu-west", JAPAN, None, "/profile/me", ServedBy("ap-northeast")),
        get("a country without a home", "us-east", BRAZIL, None, "/profile/me", Refused(451, "residency.nowhere_cleared")),
        get("public data, anyone", "ap-northeast", BRAZIL, None, "/feed/1", ServedBy("ap-northeast")),
        get("restricted data, at home", "eu-west", GERMANY, Some("alice"), "/account/1", ServedBy("eu-west")),
        get("restricted data, abroad", "us-east", AMERICA, Some("alice"), "/account/1", Redirected("eu-west")),
        get("restricted, unknown user", "us-east", AMERICA, None, "/account/1", Refused(403, "home.unresolved")),
        get("home not cleared", "us-east", AMERICA, None, "/users/erin/orders/1", Refused(451, "residency.home_not_cleared")),
    ]
}

fn with_us_east_down() -> Vec<Sample> {
    use Expect::{Refused, ServedBy};
    vec![
        get("failover of a read", "us-east", AMERICA, None, "/users/bob/orders/1", ServedBy("eu-west")),
        Sample {
            method: Method::POST,
            ..get("no failover of a write", "us-east", AMERICA, None, "/users/bob/orders/1", Refused(503, "failover.home_down"))
        },
        get("no failover on this route", "us-east", AMERICA, None, "/profile/me", Refused(503, "failover.home_down")),
        get("public data, other region", "us-east", AMERICA, None, "/feed/1", ServedBy("eu-west")),
    ]
}

fn without_search_in_us_east() -> Vec<Sample> {
    use Expect::ServedBy;
    vec![
        get("search, by another region", "us-east", AMERICA, None, "/search/boots", ServedBy("eu-west")),
        get("the other service, at home", "us-east", AMERICA, None, "/users/bob/orders/1", ServedBy("us-east")),
    ]
}

/// Sends the sample requests and prints one line for each. Returns whether all results are the expected ones.
pub async fn tour(world: &World) -> Result<bool, String> {
    for region in &world.regions {
        let series = format!("domicile_region_health{{region=\"{}\",state=\"up\"}} 1", region.name);
        wait_for(world, &series, &format!("{} is up", region.name)).await?;
    }
    println!(
        "{:<26} {:<13} {:<13} {:<13} {:<9} {:<13} {:<34} {:>6}",
        "request", "arrives at", "from", "home", "evidence", "served by", "verdict", "ms"
    );
    let mut all_expected = true;
    for sample in with_all_regions_up() {
        all_expected &= show(world, &sample).await?;
    }
    switch(world, "us-east", "app", "down").await?;
    println!("  -- the app servers of us-east go down --");
    for sample in with_us_east_down() {
        all_expected &= show(world, &sample).await?;
    }
    switch(world, "us-east", "app", "up").await?;
    println!("  -- the app servers of us-east are up again --");
    all_expected &=
        show(world, &get("a user at home again", "us-east", AMERICA, None, "/users/bob/orders/1", Expect::ServedBy("us-east")))
            .await?;
    switch(world, "us-east", "search", "down").await?;
    println!("  -- the service `search` of us-east goes down --");
    for sample in without_search_in_us_east() {
        all_expected &= show(world, &sample).await?;
    }
    Ok(all_expected)
}

async fn show(world: &World, sample: &Sample) -> Result<bool, String> {
    let explained = explain(world, sample).await?;
    let mut fields = vec![("x-forwarded-for", sample.from)];
    fields.extend(sample.user.map(|user| ("x-user-id", user)));
    let started = Instant::now();
    let mut response = client::send(world.region(sample.at).http, sample.method.clone(), sample.path, &fields).await?;
    let was_redirected = response.status == StatusCode::TEMPORARY_REDIRECT;
    if was_redirected {
        response = follow(&response, sample, &fields).await?;
    }
    let took = started.elapsed();
    let body = response.json();
    let served_by = body["region"].as_str().filter(|_| response.status.is_success()).unwrap_or("-");
    let code = body["code"].as_str().unwrap_or_default();
    let is_expected = match sample.expect {
        Expect::ServedBy(region) => !was_redirected && served_by == region,
        Expect::Redirected(region) => was_redirected && served_by == region,
        Expect::Refused(status, expected) => response.status.as_u16() == status && code == expected,
    };
    let verdict = match (was_redirected, response.status.is_success()) {
        (true, _) => "redirect".to_owned(),
        (false, true) => "proceed".to_owned(),
        (false, false) => format!("{} {code}", response.status.as_u16()),
    };
    let text = |name: &str| explained["home"][name].as_str().unwrap_or("-").to_owned();
    println!(
        "{:<26} {:<13} {:<13} {:<13} {:<9} {:<13} {:<34} {:>6.1}{}",
        sample.name,
        sample.at,
        sample.from,
        text("region"),
        text("evidence"),
        served_by,
        verdict,
        took.as_secs_f64() * 1000.0,
        if is_expected { "" } else { "  WRONG" }
    );
    Ok(is_expected)
}

/// Follows a redirect.
async fn follow(redirect: &ClientResponse, sample: &Sample, fields: &[(&str, &str)]) -> Result<ClientResponse, String> {
    let location = redirect.headers.get("location").and_then(|value| value.to_str().ok());
    let location = location.ok_or("the redirect has no valid `Location` header")?;
    let url: http::Uri = location.parse().map_err(|_| format!("`{location}` is not a valid URL"))?;
    let address = url
        .authority()
        .and_then(|authority| authority.as_str().parse().ok())
        .ok_or_else(|| format!("`{location}` has no IP address and port"))?;
    client::send(address, sample.method.clone(), url.path(), fields).await
}

/// Fetches the proxy's explanation of the request.
async fn explain(world: &World, sample: &Sample) -> Result<serde_json::Value, String> {
    let region = world.region(sample.at);
    let user = sample.user.map_or(String::new(), |user| format!("&user={user}"));
    let target = format!(
        "/explain?format=json&method={}&ip={}&url=http://{}{}{user}",
        sample.method, sample.from, region.http, sample.path
    );
    Ok(client::send(region.admin, Method::GET, &target, &[]).await?.json())
}

/// Takes the app servers of a service down or up, and waits until the health checks of every proxy show it.
async fn switch(world: &World, region: &str, service: &str, state: &str) -> Result<(), String> {
    let DemoRegion { apps, search, .. } = world.region(region);
    let apps = if service == "app" { apps } else { std::slice::from_ref(search) };
    for app in apps {
        client::send(*app, Method::POST, &format!("/demo/{state}"), &[]).await?;
    }
    let is_up = u8::from(state == "up");
    let series = format!("domicile_service_up{{region=\"{region}\",service=\"{service}\"}} {is_up}");
    wait_for(world, &series, &format!("{service} of {region} is {state}")).await
}

/// Waits until the metrics of every proxy contain `wanted`.
async fn wait_for(world: &World, wanted: &str, what: &str) -> Result<(), String> {
    let deadline = Instant::now() + HEALTH_TIMEOUT;
    for watcher in &world.regions {
        while !metrics(watcher.admin).await?.contains(wanted) {
            if Instant::now() > deadline {
                return Err(format!("{} did not notice that {what}", watcher.name));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn metrics(admin: std::net::SocketAddr) -> Result<String, String> {
    let response = client::send(admin, Method::GET, "/metrics", &[]).await?;
    Ok(String::from_utf8_lossy(&response.body).into_owned())
}
