//! Loads what judgement needs without opening ports, and checks the files that a configuration names.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::{self, AssertedCase, Config, Problem, Settings};
use crate::decision::policy::Policy;
use crate::decision::policy::route::{Method, RouteId};
use crate::directory::{Directory, Person};
use crate::engine;
use crate::engine::explain::{Explanation, Query};
use crate::engine::snapshot::JudgingSnapshot;
use crate::http::tunnel::CONNECT;
use crate::model::day::Day;
use crate::model::region::Registry;
use crate::model::vitals::Vitals;
use crate::proxy::actions::Actions;
use crate::services::Services;
use crate::session::Seal;
use crate::transport::tls::{ClientTls, PeerTls};

use super::super::files::Stamp;
use super::super::{StartError, status};
use super::{check_own_region, directory, geoip, passwords, tokens};

/// Explains a request, with what its route does for it.
pub async fn explain(
    judging: &Arc<JudgingSnapshot>,
    actions: &[Option<Arc<Actions>>],
    vitals: &Vitals,
    query: &Query,
) -> Result<Explanation, String> {
    let mut explanation = engine::explain::explain(judging, vitals, query).await?;
    let route = explanation.route;
    let of_route = |route: RouteId| actions.get(route.index()).and_then(Option::as_ref);
    if Method::of(&query.method) == Method::Connect && !route.and_then(of_route).is_some_and(|own| own.upgrades.allow(CONNECT)) {
        let name = route.map_or("no route matches it", |route| &judging.policy.routes.all()[route.index()].name);
        return Err(format!("CONNECT gets a 405 response: the `upgrades` of its route ({name}) do not contain `connect`"));
    }
    let own = explanation.route.filter(|_| explanation.proceeds).and_then(of_route);
    explanation.actions = own.map_or(Vec::new(), |actions| actions.summary(|id| judging.policy.service_name(id).to_owned()));
    Ok(explanation)
}

/// The policy and the tables for judging without sockets and certificates, and the actions of the routes.
pub type Offline = (Arc<JudgingSnapshot>, Vec<Option<Arc<Actions>>>);

/// Loads everything that judgement needs, and the actions of the routes. `people` replace the user table.
pub fn offline(file: &Path, region: Option<&str>, today: Day, people: Option<&[Person<'_>]>) -> Result<Offline, StartError> {
    let mut registry = Registry::default();
    let Config { policy, settings, .. } = config::load(file, region, &mut registry, today).map_err(StartError::Config)?;
    let (geoip, _) = geoip(&settings, None)?;
    let directory = match people {
        Some(people) => Some(Arc::new(Directory::of(people, &registry)?)),
        None => directory(&settings, &registry, None, false)?.0,
    };
    let geoip_max_age = settings.geoip.as_ref().and_then(|settings| settings.max_age);
    let slashes = settings.slashes;
    let judging = JudgingSnapshot { policy, slashes, geoip, geoip_max_age, directory };
    Ok((Arc::new(judging), settings.actions))
}

/// Judges the requests of the file's own `case` assertions, with the user table and the GeoIP database that it names.
pub fn check_cases(config: &Config, registry: &Registry) -> Result<(), Vec<StartError>> {
    if config.cases.is_empty() {
        return Ok(());
    }
    let settings = &config.settings;
    let opened = geoip(settings, None).and_then(|(geoip, _)| Ok((geoip, directory(settings, registry, None, false)?.0)));
    let (geoip, directory) = opened.map_err(|error| vec![error])?;
    let geoip_max_age = settings.geoip.as_ref().and_then(|settings| settings.max_age);
    let (policy, slashes) = (config.policy.clone(), settings.slashes);
    let judging = JudgingSnapshot { policy, slashes, geoip, geoip_max_age, directory };
    judge_cases(&config.cases, &judging).map_err(|error| vec![error])
}

/// Judges requests, and reports those that are not judged as expected.
pub(super) fn judge_cases(cases: &[AssertedCase], judging: &JudgingSnapshot) -> Result<(), StartError> {
    if cases.is_empty() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let mut wrong = Vec::new();
    for case in cases {
        let JudgingSnapshot { policy, slashes, geoip, geoip_max_age, directory } = judging;
        let mut policy = policy.clone();
        policy.local = case.at;
        let (geoip, directory) = (geoip.clone(), directory.clone());
        let there = Arc::new(JudgingSnapshot { policy, slashes: *slashes, geoip, geoip_max_age: *geoip_max_age, directory });
        let vitals = Vitals::unmeasured(there.policy.nearest_first());
        let message = match runtime.block_on(engine::explain::explain(&there, &vitals, &case.query)) {
            Ok(explanation) if explanation.is_as_expected(&case.expect) => continue,
            Ok(explanation) => {
                let (expected, found) = (&case.expect, &explanation.outcome);
                format!("this case does not hold: expected `{expected}`, found `{found}`\n{}", explanation.text().trim_end())
            }
            Err(error) => error,
        };
        wrong.push(Problem { message, ..case.place.clone() });
    }
    if wrong.is_empty() { Ok(()) } else { Err(StartError::Config(wrong)) }
}

/// Opens every file that a loaded configuration names, and adds the errors of unusable files to `wrong`. Returns notes about files and
/// transfers that are not valid, or will soon not be.
pub fn check_files(config: &Config, registry: &Registry, wrong: &mut Vec<StartError>) -> Vec<String> {
    let Config { policy, settings, .. } = config;
    if let Some(files) = &settings.peer_tls {
        let local = policy.region_name(policy.local);
        let peers = PeerTls::load(files).map_err(StartError::from);
        wrong.extend(peers.and_then(|peers| check_own_region(&peers, &files.own.certificate, local)).err());
    }
    let challenges = Arc::default();
    for mut files in settings.listeners.iter().filter_map(|listener| listener.tls.clone()) {
        // A certificate that ACME has not fetched yet is not an error, and `check` writes no placeholder.
        let fetched = files.acme.as_ref().map(|acme| acme.pair()).filter(|pair| !pair.certificate.exists());
        files.certificates.retain(|pair| fetched.as_ref() != Some(pair));
        wrong.extend(ClientTls::load(&files, &challenges).err().map(StartError::from));
    }
    let geoip = geoip(settings, None).map(|(geoip, _)| geoip).map_err(|error| wrong.push(error)).ok().flatten();
    wrong.extend(directory(settings, registry, None, false).err());
    wrong.extend(tokens(settings, None).err());
    wrong.extend(settings.seal.as_ref().and_then(|seal| Seal::open_keys(seal).err()).map(StartError::from));
    wrong.extend(passwords(settings, None).err());
    wrong.extend(Services::new(&settings.services, None, |_, _| false).err().map(StartError::from));
    wrong.extend(unwritable(settings));
    let now = SystemTime::now();
    let table_changed = settings.directory.as_ref().and_then(|directory| Stamp::of(&directory.file).modified());
    status::expiring(policy, settings, geoip.as_deref(), table_changed).iter().filter_map(|expiring| expiring.note(now)).collect()
}

/// Notes about the transfers of a policy that have ended, or will soon.
pub fn ending_transfers(policy: &Policy) -> Vec<String> {
    let now = SystemTime::now();
    status::expiring_transfers(policy).iter().filter_map(|transfer| transfer.note(now)).collect()
}

/// The folders of a configuration that do not exist, although the process writes into them.
fn unwritable(settings: &Settings) -> Vec<StartError> {
    let access_log = settings.access_log.as_ref().and_then(|settings| settings.output.file());
    let written = [("admin.socket", settings.admin.socket.as_deref()), ("access_log.output.file", access_log)];
    let missing = written.into_iter().filter_map(|(option, file)| {
        let folder = file?.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())?;
        Some(StartError::System(std::io::Error::other(format!(
            "`{option}`: the folder `{}` does not exist; create it",
            folder.display()
        ))))
    });
    missing.collect()
}
