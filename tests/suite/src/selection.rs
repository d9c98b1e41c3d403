//! Chooses checks by the names of their groups and their own.
//! May: nothing. Input: the command line, trusted.

/// Which checks a run is to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection<'a> {
    /// Checks to make: groups and `group.check` names. `None` for all.
    only: Option<&'a str>,
    /// Checks not to make.
    skip: Option<&'a str>,
}

impl<'a> Selection<'a> {
    /// Takes `only=NAMES` or `skip=NAMES`; `None` if it is another option.
    pub fn take(&mut self, key: &str, names: &'a str) -> Option<()> {
        match key {
            "only" => self.only = Some(names),
            "skip" => self.skip = Some(names),
            _ => return None,
        }
        Some(())
    }

    /// Whether the check `group.name` is to be made.
    #[must_use]
    pub fn chosen(&self, group: &str, name: &str) -> bool {
        let named = |list: &str| {
            list.split(',').any(|wanted| match wanted.split_once('.') {
                Some((wanted, start)) => wanted == group && name.starts_with(start),
                None => wanted == group,
            })
        };
        self.only.is_none_or(named) && !self.skip.is_some_and(named)
    }

    /// The first name of which `exists` knows no check: a typing error must not pass.
    pub fn unknown(&self, exists: impl Fn(&Self) -> bool) -> Option<&'a str> {
        let lists = [self.only, self.skip].into_iter().flatten();
        lists
            .flat_map(|list| list.split(','))
            .find(|name| !exists(&Self { only: Some(name), skip: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_single_checks_are_chosen() {
        let mut choice = Selection::default();
        assert!(choice.chosen("any", "thing"));
        assert_eq!(choice.take("only", "map,run.kick"), Some(()));
        assert_eq!(choice.take("skip", "map.huge"), Some(()));
        assert_eq!(choice.take("flips", "7"), None);
        assert!(choice.chosen("map", "batches") && choice.chosen("run", "kick_before"));
        assert!(!choice.chosen("map", "huge") && !choice.chosen("run", "deadline"));
        assert!(!choice.chosen("maps", "batches"));
    }

    #[test]
    fn names_of_nothing_are_found() {
        let choice = Selection { only: Some("map,mop"), skip: None };
        assert_eq!(choice.unknown(|one| one.chosen("map", "a")), Some("mop"));
        assert_eq!(Selection::default().unknown(|_| false), None);
    }
}
