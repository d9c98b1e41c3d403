//! Judges what a vCPU could do or was told: names the rule where it was wrong.

use crate::{
    api::{Access, Gfn, Gpa, Kind, Mode, ShadowMmu},
    cpu::{Source, Translation},
    guest::{Addresses, FRAMES, ROOTS},
    history::{OPEN, Telling, Time},
    oracle::{End, Found, Path, Window},
    step,
    vcpu::Vcpu,
    violation::{Rule, Violation},
};

/// What a translation lets a vCPU do.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    gfn: Gfn,
    mode: Mode,
    write: bool,
    fetch: bool,
}

impl Claim {
    /// What an access that reached `gfn` did.
    #[must_use]
    pub fn access(gfn: Gfn, access: Access) -> Self {
        let Access { kind, mode } = access;
        Self { gfn, mode, write: kind == Kind::Write, fetch: kind == Kind::Fetch }
    }

    /// True if `path` leads to the page at all.
    fn reaches(&self, path: &Path) -> bool {
        path.end == End::Page(self.gfn)
    }

    /// True if `path` allows it, A and D aside.
    fn is_allowed(&self, path: &Path, smep: bool) -> bool {
        let user = self.mode == Mode::User;
        self.reaches(path)
            && (path.user || !user)
            && (path.write || !self.write)
            && (!self.fetch || path.fetch && !(smep && !user && path.user))
    }

    /// True if A, and for a write D, are set as well.
    fn is_exact(&self, path: &Path, smep: bool) -> bool {
        self.is_allowed(path, smep) && path.accessed && (path.dirty || !self.write)
    }

    fn describe(&self) -> String {
        let mode = if self.mode == Mode::User { "user" } else { "kernel" };
        let write = if self.write { ", writable" } else { "" };
        let fetch = if self.fetch { ", executable" } else { "" };
        format!("frame {:#x} for the {mode}{write}{fetch}", self.gfn.0)
    }
}

impl<M: ShadowMmu> Vcpu<M> {
    fn smep(&self) -> bool {
        self.vm.plan.setup.smep
    }

    /// Judges `claim` to `address`, as it was at time `now`.
    #[inline]
    pub(crate) fn judge(
        &mut self,
        address: usize,
        claim: Claim,
        source: Source,
        now: Time,
    ) -> Result<(), Box<Violation>> {
        let (gva, root, smep) = (self.addresses.gva(address), ROOTS[self.root], self.smep());
        if claim.is_exact(&self.vm.oracle.walk(root, gva), smep) {
            self.counts.judged += 1;
            return Ok(());
        }
        let window = self.windows.of(self.root, address, now);
        let found = self.vm.oracle.search(root, gva, window, |path| claim.is_exact(path, smep));
        self.count(found);
        if found != Found::No {
            return Ok(());
        }
        Err(self.accuse(address, claim, source, window))
    }

    /// Nothing in `window` gives `claim`: which rule is that?
    #[cold]
    fn accuse(
        &self,
        address: usize,
        claim: Claim,
        source: Source,
        window: Window,
    ) -> Box<Violation> {
        let (gva, root, smep) = (self.addresses.gva(address), ROOTS[self.root], self.smep());
        let search = |window, wanted: &mut dyn FnMut(&Path) -> bool| {
            self.vm.oracle.search(root, gva, window, wanted) == Found::Yes
        };
        let ever = Window::new(0, window.now);
        // The last walk that allowed it: what ended it should have been noticed.
        let mut last: Option<Path> = None;
        search(ever, &mut |path| {
            if claim.is_allowed(path, smep) && last.is_none_or(|last| last.until < path.until) {
                last = Some(*path);
            }
            false
        });
        let rule = if search(window, &mut |path| claim.is_allowed(path, smep) && path.accessed) {
            Rule::I5
        } else if search(window, &mut |path| claim.is_allowed(path, smep)) {
            Rule::F5
        } else if let Some(last) = last {
            match last.ended {
                _ if self.stale_in_caches(address, claim, source) => Rule::F3,
                (Telling::Silent, _) => Rule::N4,
                (Telling::Note, _) if self.counts.lost > 0 => Rule::N3,
                (Telling::Note, _) => Rule::N1,
                _ => self.windows.rule(self.root, address),
            }
        } else if claim.mode == Mode::User
            && search(ever, &mut |path| claim.reaches(path) && !path.user)
        {
            Rule::S2
        } else {
            Rule::S1
        };
        let from = match source {
            Source::Tlb => "the TLB has",
            Source::Link => "a cached link leads to",
            Source::Walk => "the shadow tables have",
        };
        let mut violation =
            self.violation(rule, format!("at {:#x} {from} {}", gva.0, claim.describe()));
        violation.detail = self.vm.oracle.describe(root, gva);
        violation.detail.extend(self.explain(gva));
        violation.detail.insert(
            0,
            format!(
                "root {:#x}, window from {} ({}) to {}; the walk now, and before:",
                root.0,
                window.starts[0],
                self.windows.rule(self.root, address),
                window.now
            ),
        );
        if let Some(Path { until, ended: (telling, level), .. }) = last
            && until != OPEN
        {
            let how = match telling {
                Telling::Direct => "without a note",
                Telling::Note => "with a note",
                Telling::Silent => "in a root that is not pinned",
            };
            let line =
                format!("allowed until {until}, when an entry of level {level} was stored {how}");
            violation.detail.insert(0, line);
        }
        violation
    }

    /// True if only the hardware's caches still have `claim`.
    fn stale_in_caches(&self, address: usize, claim: Claim, source: Source) -> bool {
        if source == Source::Walk {
            return false;
        }
        let access = Access { kind: Kind::Read, mode: claim.mode };
        let Ok([_, _, walked]) = self.cpu.look(&self.vm.world, self.request(address, access))
        else {
            return false;
        };
        walked.is_none_or(|(found, _)| {
            self.vm.world.guest_frame(found.hpa) != Some(claim.gfn)
                || claim.write && !found.write
                || claim.fetch && !found.fetch
        })
    }

    /// Looks at what the hardware could do at each address that was flushed.
    pub(crate) fn sweep(
        &mut self,
        flushed: impl Fn(&Addresses, usize) -> bool,
    ) -> Result<(), Box<Violation>> {
        for address in 0..self.addresses.mapped() {
            if flushed(&self.addresses, address) {
                self.enter();
                self.look(address)?;
            }
        }
        Ok(())
    }

    /// Judges all that the hardware could do at `address`.
    pub(crate) fn look(&mut self, address: usize) -> Result<(), Box<Violation>> {
        self.counts.looks += 1;
        for mode in [Mode::Supervisor, Mode::User] {
            let request = self.request(address, Access { kind: Kind::Read, mode });
            let looked = self.cpu.look(&self.vm.world, request);
            let now = self.vm.oracle.clock.now();
            for found in looked.map_err(|broken| self.broken(broken))? {
                let Some((found, source)) = found else { continue };
                let claim = self.claim(mode, found, source);
                self.judge(address, claim, source, now)?;
            }
        }
        Ok(())
    }

    fn claim(&self, mode: Mode, found: Translation, source: Source) -> Claim {
        Claim {
            gfn: self.vm.world.guest_frame(found.hpa).unwrap_or(Gfn(FRAMES)),
            mode,
            // A write through a TLB entry without D walks again.
            write: found.write && (found.dirty || source != Source::Tlb),
            fetch: found.fetch,
        }
    }

    /// A fault that began at `start` was reflected with `code`.
    pub(crate) fn judge_refusal(
        &mut self,
        address: usize,
        access: Access,
        code: u64,
        start: Time,
    ) -> Result<(), Box<Violation>> {
        let smep = self.smep();
        let wanted = |path: &Path| path.error(access, smep) == Some(code);
        self.judge_fault(address, access, start, wanted, || format!("refused with {code:#x}"))
    }

    /// A fault that began at `start` was said to be a device's at `gpa`.
    pub(crate) fn judge_device(
        &mut self,
        address: usize,
        access: Access,
        gpa: Gpa,
        start: Time,
    ) -> Result<(), Box<Violation>> {
        let smep = self.smep();
        let wanted = |path: &Path| {
            gpa.gfn().0 >= FRAMES
                && path.end == End::Page(gpa.gfn())
                && path.permits(access, smep)
                && path.accessed
        };
        let what = || format!("said to reach a device at {:#x}", gpa.0);
        self.judge_fault(address, access, start, wanted, what)
    }

    fn judge_fault(
        &mut self,
        address: usize,
        access: Access,
        start: Time,
        wanted: impl Fn(&Path) -> bool,
        what: impl FnOnce() -> String,
    ) -> Result<(), Box<Violation>> {
        let (gva, root) = (self.addresses.gva(address), ROOTS[self.root]);
        if wanted(&self.vm.oracle.walk(root, gva)) {
            self.counts.judged += 1;
            return Ok(());
        }
        let window = Window::new(start, self.vm.oracle.clock.now());
        let found = self.vm.oracle.search(root, gva, window, wanted);
        self.count(found);
        if found != Found::No {
            return Ok(());
        }
        let access = step::words(access);
        let mut violation =
            self.violation(Rule::F4, format!("{access} {:#x} was {}", gva.0, what()));
        violation.detail = self.vm.oracle.describe(root, gva);
        Err(violation)
    }
}
