//! The numbers that the process assigns to names.

use std::collections::HashMap;

use super::super::service::MAX_SERVICES;
use super::MAX_REGIONS;

/// The numbers of names, for regions, jurisdictions and services.
///
/// INVARIANT: a name keeps its number until the process ends, so that all snapshots of the process agree on what a number
/// means.
#[derive(Clone, Debug)]
pub struct Names {
    names: Vec<Box<str>>,
    numbers: HashMap<Box<str>, usize>,
    most: usize,
}

impl Names {
    fn up_to(most: usize) -> Self {
        Self { names: Vec::new(), numbers: HashMap::new(), most }
    }

    /// The number of `name`, which is assigned now if it has none; `None` if all numbers are taken.
    pub fn number(&mut self, name: &str) -> Option<usize> {
        if let Some(known) = self.find(name) {
            return Some(known);
        }
        if self.names.len() == self.most {
            return None;
        }
        self.names.push(name.into());
        self.numbers.insert(name.into(), self.names.len() - 1);
        Some(self.names.len() - 1)
    }

    pub fn find(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    pub fn name(&self, number: usize) -> &str {
        self.names.get(number).map_or("?", |name| name)
    }
}

/// The numbers that this process has assigned.
#[derive(Clone, Debug)]
pub struct Registry {
    pub regions: Names,
    pub jurisdictions: Names,
    pub services: Names,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            regions: Names::up_to(MAX_REGIONS),
            jurisdictions: Names::up_to(MAX_REGIONS),
            services: Names::up_to(MAX_SERVICES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_and_the_sixty_fifth_gets_none() {
        let mut names = Names::up_to(MAX_REGIONS);
        for index in 0..MAX_REGIONS {
            assert_eq!(names.number(&format!("r{index}")), Some(index));
        }
        assert_eq!(names.number("one-too-many"), None);
        assert_eq!(names.number("r7"), Some(7));
    }
}
