//! The activity names that Aryeo is known to send: data, open to unknown ones.

/// The known names, in Aryeo's order: its published enumeration, then those seen in its web
/// interface and in its older subscriptions.
pub fn activities() -> impl Iterator<Item = &'static str> {
    include_str!("activities.txt").lines()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_activity_is_an_upper_case_name_that_occurs_once() {
        let names: Vec<_> = activities().collect();
        assert!(names.len() >= 68);
        for name in &names {
            assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{name:?}");
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name}");
        }
    }
}
