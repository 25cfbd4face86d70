//! A point on the globe.

/// A point on the globe, in degrees.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Coordinates {
    pub latitude: f32,
    pub longitude: f32,
}

impl Coordinates {
    /// The great-circle distance in kilometres (haversine, mean radius 6,371 km).
    pub fn distance_km(self, other: Self) -> f32 {
        const MEAN_RADIUS_KM: f32 = 6371.0;
        let (from, to) = (self.latitude.to_radians(), other.latitude.to_radians());
        let across = (other.longitude - self.longitude).to_radians();
        let half = ((to - from) / 2.0).sin().powi(2) + from.cos() * to.cos() * (across / 2.0).sin().powi(2);
        2.0 * MEAN_RADIUS_KM * half.sqrt().min(1.0).asin()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_agree_with_the_map() {
        let dublin = Coordinates { latitude: 53.35, longitude: -6.26 };
        let tokyo = Coordinates { latitude: 35.68, longitude: 139.77 };
        assert!((dublin.distance_km(tokyo) - 9585.0).abs() < 25.0);
        assert_eq!(dublin.distance_km(dublin), 0.0);
        let antipode = Coordinates { latitude: -53.35, longitude: 173.74 };
        assert!((dublin.distance_km(antipode) - 20015.0).abs() < 10.0);
    }
}
