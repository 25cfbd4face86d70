//! Splits the requests of a route between services by weight, for canaries.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::model::service::ServiceId;

/// The services of a route and their weights. The route is judged by the first one with a weight above 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Split {
    shares: Vec<(ServiceId, Box<str>, u32)>,
    total: u32,
}

impl Split {
    /// Services with their names and weights.
    pub fn new(shares: Vec<(ServiceId, Box<str>, u32)>) -> Self {
        let total = shares.iter().map(|(_, _, weight)| weight).sum();
        Self { shares, total }
    }

    pub fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.shares.iter().map(|(service, _, _)| *service)
    }

    /// The service for this user. Equal users get the same service in all processes, and on all routes with the same services.
    pub fn service_for(&self, user: impl Hash) -> Option<ServiceId> {
        let mut hasher = DefaultHasher::new();
        self.shares.iter().for_each(|(_, name, _)| name.hash(&mut hasher));
        user.hash(&mut hasher);
        let mut left = (hasher.finish() % u64::from(self.total.max(1))) as u32;
        let found = self.shares.iter().find(|(_, _, weight)| {
            let is_here = left < *weight;
            left = left.saturating_sub(*weight);
            is_here
        });
        found.map(|(service, _, _)| *service)
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (_, name, weight)) in self.shares.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(out, "{separator}`{name}` {weight}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_split_by_weight_and_stay_where_they_are() {
        let service = |index| ServiceId::new(index).unwrap();
        let split = |old, new| Split::new(vec![(service(0), "app".into(), old), (service(1), "app-next".into(), new)]);
        let canaries = |split: &Split| (0..10_000).filter(|user| split.service_for(user) == Some(service(1))).collect::<Vec<_>>();
        let (few, more) = (canaries(&split(95, 5)), canaries(&split(80, 20)));
        assert!((400..=600).contains(&few.len()) && (1_850..=2_150).contains(&more.len()), "{} {}", few.len(), more.len());
        assert!(few.iter().all(|user| more.contains(user)), "a user who has the new version keeps it when its share grows");
        assert!(canaries(&split(1, 0)).is_empty());
    }
}
