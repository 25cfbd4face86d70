//! Stable codes for the reasons why a request is refused, fails or is redirected.

macro_rules! codes {
    (
        $($(#[$doc:meta])* $variant:ident = $text:literal,)*;
        $($(#[$rule_doc:meta])* $rule:ident = $rule_text:literal,)*
    ) => {
        /// Why a request was refused, failed or was redirected: the metric label, the ledger field and the problem code.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
            /// The request is malformed or ambiguous.
            Malformed(Rule),
        }

        /// The rule that a malformed request breaks.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Rule { $($(#[$rule_doc])* $rule,)* }

        impl Code {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)* $(Self::Malformed(Rule::$rule),)*];

            /// The dotted name, which is the same in every release.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    $(Self::Malformed(Rule::$rule) => $rule_text,)*
                }
            }
        }
    };
}

codes! {
    /// No route matches.
    RouteNone = "route.none",
    /// No step of the chain found a home.
    HomeUnresolved = "home.unresolved",
    /// A verified token names a region that is not in the policy.
    HomeUnknown = "home.unknown_region",
    /// The directory lookup failed or named a region that is not in the policy, and a guess is not allowed.
    DirectoryUnavailable = "directory.unavailable",
    /// No region may process this data for this user.
    NowhereCleared = "residency.nowhere_cleared",
    /// The evidence for the user's home is too weak for this data.
    EvidenceTooWeak = "residency.evidence_too_weak",
    /// The home region may not process this data for this user.
    HomeNotCleared = "residency.home_not_cleared",
    /// The proxy that the client reached cannot or may not carry this data, and the client cannot be redirected.
    CarrierNotCleared = "residency.carrier_not_cleared",
    /// The request has a token that does not verify.
    TokenUnverified = "token.unverified",
    /// The request has a credential that the app may read and this proxy cannot.
    CredentialUnread = "token.other_credential",
    /// A peer names a data class that is not in the policy.
    ClassUnknown = "residency.class_unknown",
    /// The upstream labelled its response with a data class that the requesting region may not receive.
    ResponseNotCleared = "residency.answer_not_cleared",
    /// As `ResponseNotCleared`, for a write that the upstream has already processed.
    ResponseWithheld = "residency.answer_withheld",
    /// The policy changed while the request was in flight and no longer allows it.
    NoLongerCleared = "residency.no_longer_cleared",
    /// The home is down, and the failover setting allows no other region.
    HomeDown = "failover.home_down",
    /// Every region that may process this data is down.
    AllDown = "failover.all_down",
    /// No region that may serve the request has the service of its route.
    ServiceMissing = "failover.service_missing",
    /// The route does not admit clients of this network.
    ClientDenied = "route.client_denied",
    /// The route needs a user name and a password, and the request has none, or not the right ones.
    PasswordRefused = "route.password_refused",
    /// The request exceeds a rate limit of its route.
    RateLimited = "route.rate_limited",
    /// A peer sent a request that this region does not own or may not process.
    Misdirected = "peer.misdirected",
    /// Two regions disagree about the home of a request.
    PeersDisagree = "peer.disagree",
    /// The envelope of a peer's request is missing, repeated or malformed.
    PeerMalformed = "peer.malformed",
    /// Request loop detected.
    Loop = "proxy.loop",
    /// The ledger could not write the line that must precede a transfer.
    LedgerUnavailable = "ledger.unavailable",
    /// No upstream is up, or none could be reached.
    UpstreamUnreachable = "upstream.unreachable",
    /// The upstream broke the connection or sent an invalid response.
    UpstreamBad = "upstream.bad_response",
    /// The upstream did not respond in time.
    UpstreamTimeout = "upstream.timeout",
    /// The request body is larger than the limit.
    BodyTooLarge = "request.body_too_large",
    /// The request head is larger than the limit.
    HeadTooLarge = "request.head_too_large",
    /// The request target is longer than the limit.
    TargetTooLong = "request.target_too_long",
    /// The client sent its request too slowly, or stopped sending it.
    RequestTimeout = "request.timeout",
    /// No route allows this `CONNECT` request.
    MethodNotAllowed = "request.method_not_allowed",
    /// The connection's certificate does not cover the requested host.
    WrongSite = "request.wrong_site",
    /// The route does not allow an upgrade to this protocol.
    UpgradeRefused = "request.upgrade_refused",
    /// A WebSocket handshake asks for another version than 13, the only one of RFC 6455.
    WebSocketVersion = "request.websocket_version",
    /// There are more connections or requests than the limits allow.
    Overloaded = "proxy.overloaded",
    /// The whole request took longer than the limit.
    DeadlineExceeded = "proxy.deadline_exceeded",

    ;

    /// The request line is not valid, or a line of the head does not end with CRLF.
    Line = "request.malformed_line",
    /// The request target is not valid, or has a form that its method does not allow.
    Target = "request.malformed_target",
    /// A header field is not valid.
    Header = "request.malformed_header",
    /// The host is missing, repeated, not valid, or differs from the target.
    Host = "request.malformed_host",
    /// The fields that give the length of the body contradict each other, or servers read them differently.
    Length = "request.malformed_length",
    /// The path has no canonical form, or servers read it differently.
    Path = "request.malformed_path",
    /// The key of a WebSocket handshake is missing or not valid.
    Upgrade = "request.malformed_upgrade",
    /// `Max-Forwards` is not a number.
    Hops = "request.malformed_max_forwards",
    /// The request names two users, or a user that cannot be decoded.
    User = "request.malformed_user",
    /// The body broke off or was framed wrongly.
    Body = "request.malformed_body",
    /// A stream of HTTP/2 broke the rules of RFC 9113; it was reset without a response.
    Stream = "request.malformed_stream",
}
