//! Interim answers (RFC 9110 section 15.2): passed on before the answer itself. `100` is ours to give: the proxy itself asked
//! for the body.

use std::pin::Pin;

use http::{HeaderMap, Request, Response};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::http::body::Body;
use crate::http::pool::Listener;

use super::super::headers;
use super::super::ingress::Back;

/// Interim answers on their way to whoever asked.
pub(super) struct Interim {
    answers: UnboundedReceiver<Response<()>>,
    back: Back,
}

impl Interim {
    /// Listens for those to this request.
    pub(super) fn of(request: &mut Request<Body>, back: Back) -> Self {
        Self { answers: Listener::put_into(request), back }
    }

    /// Does the work, passing on what comes meanwhile and may be passed on.
    pub(super) async fn during<T, W>(mut self, mut work: Pin<&mut W>, may_pass: impl Fn(&HeaderMap) -> bool) -> T
    where
        W: Future<Output = T>,
    {
        loop {
            tokio::select! {
                biased;
                Some(answer) = self.answers.recv() => self.pass(answer, &may_pass).await,
                done = work.as_mut() => {
                    // The answer may come with the last of them.
                    while let Ok(answer) = self.answers.try_recv() {
                        self.pass(answer, &may_pass).await;
                    }
                    return done;
                }
            }
        }
    }

    async fn pass(&self, mut answer: Response<()>, may_pass: &impl Fn(&HeaderMap) -> bool) {
        if may_pass(answer.headers()) {
            headers::scrub_answer(answer.headers_mut());
            self.back.inform(answer).await;
        }
    }
}
