//! The less busy of two healthy upstreams drawn by chance (Mitzenmacher's power of two choices).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::{Upstream, Upstreams};

/// One worker's outstanding requests. Workers do not count each other's: a draw needs only to be roughly right, and a
/// shared counter would be the one contended line of the hot path.
#[derive(Default)]
pub struct Load {
    outstanding: RefCell<HashMap<Box<str>, Rc<Cell<usize>>>>,
}

/// A request that an upstream is busy with, until it is dropped.
pub struct Busy(Rc<Cell<usize>>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Load {
    /// Takes an upstream that is up and not among `tried`; `None` if there is none.
    pub fn take(&self, upstreams: &Upstreams, tried: &[Arc<Upstream>]) -> Option<(Arc<Upstream>, Busy)> {
        let fits = |upstream: &&Arc<Upstream>| upstream.is_up() && !tried.iter().any(|other| Arc::ptr_eq(other, upstream));
        let count = upstreams.all().iter().filter(fits).count();
        let nth = |index: usize| upstreams.all().iter().filter(fits).nth(index);
        let first = nth(fastrand::usize(..count.max(1)))?;
        let second = nth(fastrand::usize(..count)).unwrap_or(first);
        let (first_cell, second_cell) = (self.cell(first), self.cell(second));
        let (upstream, cell) = if second_cell.get() < first_cell.get() { (second, second_cell) } else { (first, first_cell) };
        cell.set(cell.get() + 1);
        Some((Arc::clone(upstream), Busy(cell)))
    }

    fn cell(&self, upstream: &Upstream) -> Rc<Cell<usize>> {
        let mut outstanding = self.outstanding.borrow_mut();
        if let Some(cell) = outstanding.get(upstream.authority()) {
            return Rc::clone(cell);
        }
        Rc::clone(outstanding.entry(upstream.authority().into()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Settings, Speaks, Target, Upstreams};
    use super::*;
    use std::sync::atomic::Ordering;

    fn upstreams() -> Upstreams {
        let target = |name: &str| Target { authority: name.into(), speaks: Speaks::Http1, tls: None, proxy_protocol: None };
        Upstreams::new(Settings { targets: vec![target("a:1"), target("b:1"), target("c:1")], check: None }, None).unwrap()
    }

    #[test]
    fn a_busy_upstream_gets_less_and_an_idle_one_more() {
        let (upstreams, load) = (upstreams(), Load::default());
        let held: Vec<_> = (0..300).map(|_| load.take(&upstreams, &[]).unwrap()).collect();
        for upstream in upstreams.all() {
            let share = held.iter().filter(|(taken, _)| Arc::ptr_eq(taken, upstream)).count();
            assert!((95..=105).contains(&share), "two choices keep the load even: {share}");
        }
        drop(held);
        assert_eq!(load.cell(&upstreams.all()[0]).get(), 0);
    }

    #[test]
    fn what_is_down_or_tried_is_not_taken() {
        let (upstreams, load) = (upstreams(), Load::default());
        upstreams.all()[0].state.up.store(false, Ordering::Relaxed);
        let tried = [Arc::clone(&upstreams.all()[1])];
        for _ in 0..50 {
            assert_eq!(load.take(&upstreams, &tried).unwrap().0.authority(), "c:1");
        }
        upstreams.all()[2].state.up.store(false, Ordering::Relaxed);
        assert!(load.take(&upstreams, &tried).is_none());
    }
}
