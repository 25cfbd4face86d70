//! The stable codes that say why a request was not served as asked.

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Why a request was refused, failed or sent elsewhere: the metric label, the ledger field and the problem code.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The dotted name, the same in every release.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

codes! {
    /// No route matches.
    RouteNone = "route.none",
    /// No step of the chain found a home.
    HomeUnresolved = "home.unresolved",
    /// A verified token names a region that is none of ours.
    HomeUnknown = "home.unknown_region",
    /// The directory could not be asked, and guessing instead is not allowed.
    DirectoryUnavailable = "directory.unavailable",
    /// No region may process this data for this user.
    NowhereCleared = "residency.nowhere_cleared",
    /// Who the user is, is not known well enough for this data.
    EvidenceTooWeak = "residency.evidence_too_weak",
    /// The home itself may not process this data for this user.
    HomeNotCleared = "residency.home_not_cleared",
    /// The proxy the client came to may not carry this data, and the client has nowhere to be sent.
    CarrierNotCleared = "residency.carrier_not_cleared",
    /// A peer names a data class this policy does not have.
    ClassUnknown = "residency.class_unknown",
    /// The upstream labelled its answer with a class that may not go to the asker.
    AnswerNotCleared = "residency.answer_not_cleared",
    /// The same after a write: the write stands.
    AnswerWithheld = "residency.answer_withheld",
    /// The rules changed while the request was under way, and no longer allow it.
    NoLongerCleared = "residency.no_longer_cleared",
    /// The home is down and its failover setting keeps the request there.
    HomeDown = "failover.home_down",
    /// Every region that may process this data is down.
    AllDown = "failover.all_down",
    /// A peer asks for what this region does not own.
    Misdirected = "peer.misdirected",
    /// Two peers disagree about who owns a request.
    PeersDisagree = "peer.disagree",
    /// A peer speaks a protocol this region does not understand.
    PeerMalformed = "peer.malformed",
    /// A request came back to where it had been.
    Loop = "proxy.loop",
    /// The ledger could not take a line that must be there first.
    LedgerUnavailable = "ledger.unavailable",
    /// No upstream is up, or none could be reached.
    UpstreamUnreachable = "upstream.unreachable",
    /// The upstream broke off or answered what is not HTTP.
    UpstreamBad = "upstream.bad_response",
    /// The upstream did not answer in time.
    UpstreamTimeout = "upstream.timeout",
    /// The request is malformed or ambiguous.
    RequestMalformed = "request.malformed",
    /// The request's body is larger than the limit.
    BodyTooLarge = "request.body_too_large",
    /// The request's head is larger than the limit.
    HeadTooLarge = "request.head_too_large",
    /// The target is longer than the limit.
    TargetTooLong = "request.target_too_long",
    /// The client stopped sending its request.
    RequestTimeout = "request.timeout",
    /// This server is no tunnel.
    MethodNotAllowed = "request.method_not_allowed",
    /// The connection was made for another host.
    WrongSite = "request.wrong_site",
    /// The route opens no tunnel of this protocol.
    UpgradeRefused = "request.upgrade_refused",
    /// More connections or requests than the limits allow.
    Overloaded = "proxy.overloaded",
    /// The whole request took longer than the limit.
    DeadlineExceeded = "proxy.deadline_exceeded",
}
