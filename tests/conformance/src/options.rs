//! Reads the command line: which checks, and what else is asked for.
//! May: nothing. Input: the command line, trusted.

use suite::selection::Selection;

/// What a run is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options<'a> {
    /// Which checks to make.
    pub selection: Selection<'a>,
    /// Break the ABI in this way, and end by it.
    pub die: Option<&'a str>,
    /// What to do instead of, or beside, checks.
    pub task: Task,
    /// Make checks that take seconds.
    pub slow: bool,
    /// Do not judge what operations cost, though the hypervisor counts it.
    pub any_cost: bool,
    /// Wait long for other vCPUs: time is a busy host's.
    pub patient: bool,
}

/// What a run is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// The checks.
    #[default]
    Judge,
    /// Their names and rules.
    List,
    /// What operations cost.
    Measure,
    /// Every way into the hypervisor and out of it, so many times.
    Ways(u64),
    /// Write numbered blocks to a disk, and say which are durable.
    Durable,
    /// Leave words for other guests to find, and give way to them so many times.
    Leave(u64),
    /// Look for these, so many times.
    Look(u64),
    /// Look for these in memory, and restart until so many seconds have passed.
    Live(u64),
    /// Send so many frames to another guest that does the same.
    Talk(u64),
    /// Send so many frames.
    Flood(u64),
    /// Talk to the network outside.
    Outside,
    /// Exchange packets with the guest that has this address among sockets.
    Dial(u64),
    /// Send back what is typed.
    Echo,
}

impl<'a> Options<'a> {
    /// Reads words. Those with a dot before an equals sign are the hypervisor's.
    ///
    /// # Errors
    /// The first word that it does not know.
    pub fn parse(line: &'a str) -> Result<Self, &'a str> {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            options.take(word).ok_or(word)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: &'a str) -> Option<()> {
        match word.split_once('=') {
            Some((key, _)) if key.contains('.') => {}
            Some(("die", case)) => self.die = Some(case),
            Some(("ways", rounds)) => self.task = Task::Ways(rounds.parse().ok()?),
            None if word == "durable" => self.task = Task::Durable,
            Some(("leave", rounds)) => self.task = Task::Leave(rounds.parse().ok()?),
            Some(("look", rounds)) => self.task = Task::Look(rounds.parse().ok()?),
            Some(("live", seconds)) => self.task = Task::Live(seconds.parse().ok()?),
            Some(("talk", rounds)) => self.task = Task::Talk(rounds.parse().ok()?),
            Some(("flood", count)) => self.task = Task::Flood(count.parse().ok()?),
            Some(("dial", cid)) => self.task = Task::Dial(cid.parse().ok()?),
            Some((key, names)) => return self.selection.take(key, names),
            None if word == "list" => self.task = Task::List,
            None if word == "measure" => self.task = Task::Measure,
            None if word == "echo" => self.task = Task::Echo,
            None if word == "outside" => self.task = Task::Outside,
            None if word == "slow" => self.slow = true,
            None if word == "any-cost" => self.any_cost = true,
            None if word == "patient" => self.patient = true,
            None => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        let options = Options::parse("only=msr slow roost.dirty-check=9").unwrap();
        assert!(options.slow && !options.any_cost && options.task == Task::Judge);
        assert!(options.selection.chosen("msr", "star"));
        assert!(!options.selection.chosen("apic", "nesting"));
        assert_eq!(Options::parse("die=x").unwrap().die, Some("x"));
        assert_eq!(Options::parse("ways=12").unwrap().task, Task::Ways(12));
        assert_eq!(Options::parse("list").unwrap().task, Task::List);
        assert_eq!(Options::parse("talk=9").unwrap().task, Task::Talk(9));
        assert_eq!(Options::parse("").unwrap(), Options::default());
    }

    #[test]
    fn wrong_words_are_named() {
        assert!(Options::parse("patient").unwrap().patient);
        for word in ["slowly", "onyl=msr", "quiet", "ways=many"] {
            assert_eq!(Options::parse(word), Err(word));
        }
    }
}
