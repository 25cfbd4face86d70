//! Runs the actions of a route at the region that serves the request.

use std::cell::{Cell, RefCell};
use std::hash::{Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;

use http::Request;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HeaderMap, HeaderName, HeaderValue, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING,
};
use tokio::time::Instant;

use crate::decision::permit::Permitted;
use crate::decision::route_of;
use crate::http::body::Body;
use crate::http::names::{X_FORWARDED_METHOD, X_FORWARDED_URI};
use crate::http::pool::BoxedRequest;
use crate::http::sent::Sent;
use crate::model::outcome::Code;
use crate::model::service::ServiceId;
use crate::model::user::Proof;
use crate::passwords::Busy;
use crate::proxy::actions::{Actions, Auth, BasicAuth, Cors, ForwardAuth, remove_in_any_spelling};
use crate::proxy::admission::network_of;
use crate::proxy::intake::cookies;
use crate::services::{Balance, HashKey, Preference, Selection, Upstream};

use super::forward::{self, AttemptOptions, Response};
use super::plan::{Attempts, Selected, Target};
use super::{Forwarding, Stopped};

/// The actions that were done for a request, and are not done again in its next attempt.
#[derive(Default)]
pub(in crate::proxy::request) struct ActionsDone {
    /// The request was counted towards the rate limits.
    is_admitted: Cell<bool>,
    /// The request has its copy for the mirror, or needs none.
    pub(super) is_mirrored: Cell<bool>,
    /// The fields of the authorization service's response for the app server, once it has let the request pass.
    authorization: RefCell<Option<Vec<CopiedField>>>,
}

/// A field for the app server with its values; without a value it is removed.
type CopiedField = (HeaderName, Vec<HeaderValue>);

impl Forwarding<'_> {
    /// The service that gets the request: that of the route, or another one of its split, if an app server of it is up in this
    /// region and was not tried.
    pub(super) fn service(&self, attempts: &Attempts) -> Option<ServiceId> {
        let judged = self.lease.judged();
        let judged_by = route_of(&judged.decision.trail, judged.moment.policy()).and_then(|route| route.service);
        let Some(split) = self.context.actions.as_ref().and_then(|actions| actions.split.as_ref()) else { return judged_by };
        let question = &self.intake.question;
        let chosen = match judged.user.as_ref().or(question.identity.caller.as_ref()) {
            Some((user, _)) => split.service_for(user),
            None => split.service_for(network_of(question.client)),
        };
        let has_another =
            |id: &ServiceId| self.context.snapshot.services.get(*id).is_some_and(|service| attempts.is_left(service));
        chosen.filter(has_another).or(judged_by)
    }

    /// The upstream of the service that this request should get.
    pub(super) fn preference(&self, service: Option<ServiceId>, request: &Request<Body>) -> Preference {
        let Some(service) = service.and_then(|service| self.context.snapshot.services.get(service)) else {
            return Preference::None;
        };
        match &service.settings.balance {
            Balance::LeastBusy => Preference::None,
            Balance::Hash(key) => self.hash_of(key, request).map_or(Preference::None, Preference::Hash),
            Balance::Sticky(sticky) => {
                let opened = |value| service.sticky.as_ref()?.open(value);
                cookies(request.headers(), &sticky.cookie).find_map(opened).map_or(Preference::None, Preference::Upstream)
            }
        }
    }

    /// The hash of the key in a request; `None` if the request has no such key.
    fn hash_of(&self, key: &HashKey, request: &Request<Body>) -> Option<u64> {
        let mut hasher = std::hash::DefaultHasher::new();
        match key {
            HashKey::User => self.lease.judged().user.as_ref().map(|(user, _)| user.hash(&mut hasher))?,
            HashKey::Header(name) => request.headers().get(name)?.as_bytes().hash(&mut hasher),
            HashKey::Cookie(name) => cookies(request.headers(), name).next()?.hash(&mut hasher),
        }
        Some(hasher.finish())
    }

    /// Keeps the session at the upstream that has served it, if the request preferred none, or one that has failed or is down, ejected
    /// or gone. A session whose upstream was only full returns to it.
    pub(super) fn stick(&self, target: &Target, preference: Preference, has_failed: bool, response: &mut Response) {
        let Target::Upstream(_, Selected { service, upstream, .. }) = target else { return };
        let stays = matches!(preference, Preference::Upstream(fingerprint) if !has_failed && service.can_serve(fingerprint));
        let Some(sticky) = service.sticky.as_ref().filter(|_| !stays) else { return };
        if let Some(cookie) = sticky.cookie(upstream, self.intake.is_https) {
            response.head.headers.append(SET_COOKIE, cookie);
        }
    }

    /// Whether the actions of the route let this region serve the request. A request counts once towards the rate limits.
    pub(super) fn admit(&self, request: &Request<Body>) -> Result<(), Code> {
        let Some(actions) = &self.context.actions else { return Ok(()) };
        let client = self.intake.question.client;
        if !actions.clients.admit(client) {
            return Err(Code::ClientDenied);
        }
        if actions.rate_limits.is_empty() || self.done.is_admitted.replace(true) {
            return Ok(());
        }
        let judged = self.lease.judged();
        let route = route_of(&judged.decision.trail, judged.moment.policy()).map_or("", |route| &route.name);
        let now = std::time::Instant::now();
        // A key that is only claimed could be that of another user, or a new one for each request.
        let caller = self.intake.question.identity.caller.as_ref().filter(|(_, proof)| *proof > Proof::Claimed);
        let user = caller.map(|(user, _)| user.as_str());
        for (index, limit) in actions.rate_limits.iter().enumerate() {
            let key = limit.key(client, user, request.headers());
            self.context.worker.shared.rates.take(limit, (route, index), &key, now).map_err(|exceeded| {
                self.context.exceeded.set(Some(exceeded));
                Code::RateLimited
            })?;
        }
        Ok(())
    }

    /// Whether the route's CORS settings answer the request, which is a preflight.
    pub(super) fn answers_preflight(&self) -> bool {
        self.intake.preflight.is_some() && self.cors().is_some()
    }

    fn cors(&self) -> Option<&Cors> {
        self.context.actions.as_ref()?.cors.as_ref()
    }

    /// The response of the route itself, which needs no app server.
    pub(super) fn answer(&self, asked: &HeaderMap) -> Option<Response> {
        if let (Some(cors), Some(origin)) = (self.cors(), &self.intake.preflight) {
            return Some(Response::of_proxy(cors.preflight(origin, asked)));
        }
        let answer = self.context.actions.as_ref()?.answer.as_ref()?;
        let response = self.context.with_values(self.intake, &self.lease.judged(), |values| answer.response(values))?;
        Some(Response::of_proxy(response))
    }

    /// Changes the target and the header fields of a request as its route says.
    pub(super) fn act(&self, request: &mut Request<Body>, actions: &Actions) {
        actions.rewrite.apply(request);
        for (name, values) in self.done.authorization.borrow().iter().flatten() {
            remove_in_any_spelling(request.headers_mut(), name);
            for value in values {
                request.headers_mut().append(name, value.clone());
            }
        }
        if let Some(Auth::Basic(_)) = &actions.auth {
            // The password is for this proxy.
            remove_in_any_spelling(request.headers_mut(), &AUTHORIZATION);
        }
        let edits = &actions.request_headers;
        if !edits.is_empty() {
            let judged = self.lease.judged();
            self.context.with_values(self.intake, &judged, |values| edits.apply(request.headers_mut(), values));
        }
    }

    /// Asks the authorization service of the route, once for all attempts. Returns its response if it does not let the request pass.
    pub(super) async fn authorize(
        &self,
        target: &Target,
        permitted: &Permitted<BoxedRequest>,
    ) -> Result<Option<Response>, Stopped> {
        let is_local = matches!(target, Target::Proxy(_) | Target::Upstream(..));
        let Some(auth) = self.context.actions.as_ref().and_then(|actions| actions.auth.as_ref()).filter(|_| is_local) else {
            return Ok(None);
        };
        // A preflight has no credentials (Fetch standard).
        if self.done.authorization.borrow().is_some() || self.answers_preflight() {
            return Ok(None);
        }
        let Auth::Forward(auth) = auth else { return Ok(None) };
        let response = self.ask(auth, permitted).await?;
        if !response.head.status.is_success() {
            return Ok(Some(response));
        }
        let values = |name| response.head.headers.get_all(name).iter().cloned().collect();
        self.done.authorization.replace(Some(auth.copy.iter().map(|name| (name.clone(), values(name))).collect()));
        Ok(None)
    }

    /// Checks the user name and the password of a request that this region would serve next, before it takes an app server. Once for
    /// all attempts, and within the rate limits of the route.
    pub(super) async fn check_password(&self, attempts: &Attempts, request: &Request<Body>) -> Result<(), Code> {
        let is_local = attempts.next_region() == Some(self.context.snapshot.policy().local);
        let Some(Auth::Basic(basic)) =
            self.context.actions.as_ref().and_then(|actions| actions.auth.as_ref()).filter(|_| is_local)
        else {
            return Ok(());
        };
        if self.done.authorization.borrow().is_some() || self.answers_preflight() {
            return Ok(());
        }
        self.admit(request)?;
        let user = self.admit_by_password(basic, request.headers()).await?;
        let named = basic.header.iter().map(|header| (header.clone(), vec![user.clone()]));
        self.done.authorization.replace(Some(named.collect()));
        Ok(())
    }

    async fn admit_by_password(&self, basic: &BasicAuth, headers: &HeaderMap) -> Result<HeaderValue, Code> {
        if let (Some(passwords), Some((user, password))) =
            (self.context.snapshot.passwords.get(&basic.file), basic.presented(headers))
        {
            let checks = &self.context.worker.shared.password_checks;
            let admitted = pin!(passwords.admit(checks, &user, password.as_bytes()));
            if self.while_cleared(admitted).await?.map_err(|_: Busy| Code::Overloaded)?
                && let Ok(user) = HeaderValue::from_str(&user)
            {
                return Ok(user);
            }
        }
        self.context.challenge.replace(Some(basic.challenge.clone()));
        Err(Code::PasswordRefused)
    }

    /// Asks until an upstream of the authorization service responds. The question may be repeated, because it is a GET.
    async fn ask(&self, auth: &ForwardAuth, permitted: &Permitted<BoxedRequest>) -> Result<Response, Stopped> {
        let progress = Default::default();
        let (limits, mut tried, mut is_fresh) = (&self.context.snapshot.limits, Vec::new(), false);
        loop {
            let options = AttemptOptions { body: &progress, upgrade: None, informational: None, is_fresh, ..self.options };
            let mut selected = self.select_authorizer(auth, &tried).await?;
            let mut question = Box::new(question(auth, &selected.upstream.base, permitted.request()));
            self.adapt_headers(question.headers_mut());
            let upstream = Arc::clone(&selected.upstream);
            let question = permitted.with_question(question);
            let work = pin!(forward::to_upstream(&self.context.worker, limits, &mut selected, question, None, &options));
            let failure = match self.while_cleared(work).await? {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            match failure.sent {
                Sent::Stale if !is_fresh => is_fresh = true,
                _ if tried.len() + 1 < limits.attempts => tried.push(upstream),
                _ => return Err(Stopped::Refused(failure.code)),
            }
        }
    }

    async fn select_authorizer(&self, auth: &ForwardAuth, tried: &[Arc<Upstream>]) -> Result<Selected, Code> {
        let service = self.context.snapshot.services.get(auth.service).ok_or(Code::UpstreamUnreachable)?;
        let deadline = self.options.deadline.map(Instant::into_std);
        match self.context.worker.load.select_or_queue(service, tried, Preference::None, deadline).await {
            Selection::Upstream(upstream, outstanding) => {
                Ok(Selected { service: Arc::clone(service), upstream, outstanding: Some(outstanding) })
            }
            Selection::Full => Err(Code::Overloaded),
            Selection::None => Err(Code::UpstreamUnreachable),
        }
    }
}

/// The question to the authorization service: a GET without a body, with the header fields of the request, and its method and target
/// in two more. Fields that are copied from the response are left out, except credentials, which the service may exchange.
fn question(auth: &ForwardAuth, base: &str, request: &Request<Body>) -> Request<Body> {
    let mut question = Request::new(Body::empty());
    *question.headers_mut() = request.headers().clone();
    let copied = auth.copy.iter().filter(|name| ![AUTHORIZATION, COOKIE].contains(name));
    for name in [CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TE, TRAILER, TRANSFER_ENCODING].iter().chain(copied) {
        remove_in_any_spelling(question.headers_mut(), name);
    }
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    for (name, value) in [(X_FORWARDED_METHOD, request.method().as_str()), (X_FORWARDED_URI, target)] {
        let value = HeaderValue::from_bytes(value.as_bytes()).expect("a method and a target have no control characters");
        question.headers_mut().insert(name, value);
    }
    *question.uri_mut() = format!("{base}{}", auth.path).parse().expect("the configuration has valid paths");
    question
}
