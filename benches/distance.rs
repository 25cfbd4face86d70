//! The throughput of one body between distant regions, in MB/s. The demo's relays add the delay of the real distances.
//!
//!     cargo bench --bench distance
//!
//! Each figure is computed from the time difference between a longer and a shorter body, so that connection setup and the
//! first round trips do not count. It is the median of three pairs, with the slowest and the fastest. `computed` is two thirds
//! of the window for this distance (half of `limits.connection_buffer`) per round trip: `h2` returns capacity in thirds of a window, so
//! up to a third of it is idle. A body that does not arrive completely ends the benchmark with an error.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use domicile::demo::World;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const PAIRS: usize = 3;
const MIB: usize = 1 << 20;
const BUFFERS: [usize; 2] = [4 * MIB, 16 * MIB];

/// The region that receives the request, the user, and the round trip to the user's home region in the demo, in milliseconds.
const DISTANCES: [(&str, &str, u64); 3] = [("eu-west", "bob", 72), ("us-east", "chika", 164), ("eu-west", "chika", 232)];

fn main() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    println!("connection_buffer   round trip        body   MB/s   slowest-fastest   computed");
    for buffer in BUFFERS {
        let world = World::start(
            Path::new("geoip/country.mmdb"),
            &format!("limits: {{ body: unlimited, connection_buffer: {}MiB }}\n", buffer / MIB),
            None,
            false,
        )?;
        for (region, user, millis) in DISTANCES {
            let address = world.region(region).http;
            let round_trip = Duration::from_millis(millis);
            for is_upload in [false, true] {
                let rates = runtime.block_on(rates(address, user, is_upload, buffer))?;
                println!(
                    "{:>13} MiB {:>9} ms {:>11} {:>6.1} {:>17} {:>10.1}",
                    buffer / MIB,
                    millis,
                    if is_upload { "upload" } else { "response" },
                    rates[PAIRS / 2],
                    format!("{:.1}-{:.1}", rates[0], rates[PAIRS - 1]),
                    (buffer / 2) as f64 * 2.0 / 3.0 / round_trip.as_secs_f64() / 1e6
                );
            }
        }
        world.stop();
    }
    Ok(())
}

/// MB/s of each pair, from the slowest to the fastest.
async fn rates(address: SocketAddr, user: &str, is_upload: bool, buffer: usize) -> Result<Vec<f64>, String> {
    let (short, long) = (buffer, buffer * 4);
    let mut rates = Vec::new();
    // The first pair is discarded, because the regions have just started.
    for _ in 0..=PAIRS {
        let more = time(address, user, is_upload, long).await?.saturating_sub(time(address, user, is_upload, short).await?);
        rates.push((long - short) as f64 / more.as_secs_f64() / 1e6);
    }
    rates.remove(0);
    rates.sort_by(f64::total_cmp);
    Ok(rates)
}

/// The time from the request to the end of the response, for a body of `size` bytes.
async fn time(address: SocketAddr, user: &str, is_upload: bool, size: usize) -> Result<Duration, String> {
    let target = format!("/users/{user}/orders/1");
    let request = if is_upload {
        Request::builder().method(Method::POST).uri(target).body(Full::new(Bytes::from(vec![b'x'; size])))
    } else {
        Request::builder().uri(format!("{target}?bytes={size}")).body(Full::default())
    };
    let mut request = request.map_err(|error| error.to_string())?;
    request.headers_mut().insert("host", "demo.test".parse().expect("a host name is a valid header value"));
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let started = Instant::now();
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    let taken = started.elapsed();
    let is_complete = if is_upload {
        let report: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        report["body_bytes"] == size
    } else {
        body.len() == size
    };
    if status.is_success() && is_complete { Ok(taken) } else { Err(format!("{status}: {}", String::from_utf8_lossy(&body))) }
}
