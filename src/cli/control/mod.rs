//! `domicile reload`: reloads the configuration and all files of the running process.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use http::Request;
use http_body_util::BodyExt;

use crate::admin::COMMAND;
use crate::config;
use crate::decision::permit::Permitted;
use crate::http::body::Body;
use crate::http::pool::{SendOptions, UpstreamPool};
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::transport::dial::{HttpVersion, Server};

use super::{Outcome, Source, say};

/// Maximum time of a reload; a user table of millions of rows takes seconds to load.
const TIMEOUT: Duration = Duration::from_secs(150);

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    source: Source,
    /// Accept a user table that has lost more users than `users.directory.max_loss` allows.
    #[arg(long)]
    accept_loss: bool,
}

pub(super) fn run(options: &Options) -> Outcome {
    let Source { config: file, region } = &options.source;
    let today = Day::of(SystemTime::now());
    let config = config::load(file, region.as_deref(), &mut Registry::default(), today)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let address = config.settings.admin.address;
    let target = if options.accept_loss { "/reload?accept_loss=true" } else { "/reload" };
    let request = Request::post(target).header("host", address.to_string()).header(COMMAND, "reload").body(Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let server = Server {
        authority: address.to_string().into(),
        tls: None,
        http_version: HttpVersion::Http1,
        addresses: None,
        opened: Arc::default(),
    };
    let runtime = tokio::runtime::LocalRuntime::new().map_err(|error| error.to_string())?;
    let (status, answer) = runtime.block_on(async {
        let permitted = Permitted::without_user_data(config.policy.local, Box::new(request));
        let sent = UpstreamPool::of(config.policy.local).send(&server, permitted, &SendOptions::within(TIMEOUT)).await;
        let failed = "cannot reach the control plane; check that Domicile runs and that `admin.address` is correct";
        let (response, _) = sent.map_err(|error| format!("{failed} ({})", error.cause))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok::<_, String>((head.status, String::from_utf8_lossy(&body).into_owned()))
    })?;
    if !status.is_success() {
        return Err(answer.trim_end().to_owned());
    }
    say(&answer)?;
    Ok(ExitCode::SUCCESS)
}
