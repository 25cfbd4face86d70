//! The client of the control plane, at its Unix socket or its address.

use std::time::Duration;

use http::{Method, Request};
use http_body_util::BodyExt;

use crate::admin::{self, COMMAND};
use crate::config;
use crate::decision::permit::Permitted;
use crate::http::body::Body;
use crate::http::pool::{SendOptions, UpstreamPool};
use crate::model::region::RegionId;
use crate::transport::dial::{Server, UNIX};

use super::Source;

/// Maximum time of a reload; a user table of millions of rows takes seconds to load.
const TIMEOUT: Duration = Duration::from_secs(150);

/// Sends requests to the control plane of the process that runs with a configuration.
pub(super) struct Client {
    settings: admin::Settings,
    region: RegionId,
    /// Whether the command line, the environment or the file names a region.
    names_region: bool,
}

impl Client {
    pub(super) fn of(source: &Source) -> Result<Self, String> {
        let Source { config: file, region } = source;
        // Only the address, so that a file with mistakes keeps nobody from the process that runs.
        let (settings, names_region) = config::admin_of(file, region.as_deref())
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
        Ok(Self { settings, region: RegionId::new(0).expect("there is a first region"), names_region })
    }

    /// A client for commands, which the process must accept.
    pub(super) fn with_commands(source: &Source) -> Result<Self, String> {
        let client = Self::of(source)?;
        if client.settings.socket.is_none() && !client.settings.accepts_commands {
            // Whether it runs at all comes first.
            client.send(Method::GET, "/livez")?;
            return Err("the process accepts no commands; write `admin: { socket: /run/domicile/control.sock }` into its configuration, and restart it".into());
        }
        Ok(client)
    }

    /// Sends a request. The error is the reason why it was not carried out.
    pub(super) fn send(&self, method: Method, target: &str) -> Result<String, String> {
        let address = self.settings.address.to_string();
        let authority = match &self.settings.socket {
            Some(path) => format!("{UNIX}{}", path.display()),
            None => address.clone(),
        };
        let request = Request::builder().method(method).uri(target).header("host", address).header(COMMAND, "confirm");
        let request = request.body(Body::empty()).map_err(|error| error.to_string())?;
        let server = Server::cleartext(&authority);
        let runtime = tokio::runtime::LocalRuntime::new().map_err(|error| error.to_string())?;
        let (status, answer) = runtime.block_on(async {
            let permitted = Permitted::without_user_data(self.region, Box::new(request));
            let sent = UpstreamPool::of(self.region).send(&server, permitted, &SendOptions::within(TIMEOUT)).await;
            let failed = if self.names_region {
                "cannot reach the control plane; check that Domicile runs; if `admin` has changed since it started, restart it"
            } else {
                "cannot reach the control plane: no region is named, so the `admin` of none is known; add `--region NAME`, or set DOMICILE_REGION"
            };
            let (response, _) = sent.map_err(|error| format!("{failed} ({})", error.cause))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok::<_, String>((head.status, String::from_utf8_lossy(&body).into_owned()))
        })?;
        if status.is_success() { Ok(answer) } else { Err(answer.trim_end().to_owned()) }
    }
}
