//! Drops everything of an L1, for RESET and for its end (spec section 8.3).

use crate::{
    abi::{
        answer::Answer,
        server::{Server, lock},
    },
    backend::Backend,
    flaw::{self, Flaw},
};
use pv_abi::l0::Features;
use std::{
    collections::BTreeMap,
    sync::{RwLockWriteGuard, TryLockError, atomic::Ordering::SeqCst},
    thread,
    time::Duration,
};

impl<B: Backend> Server<B> {
    /// Kicks every vCPU that is in RUN.
    pub(super) fn kick_all(&self) {
        // A VM is locked before the state.
        let vms: Vec<_> = lock(&self.state).vms.values().cloned().collect();
        for vm in vms {
            let inner = vm.lock();
            let running = inner.vcpus.values().filter(|slot| slot.body.is_none());
            running.for_each(|slot| slot.kick.kick());
        }
    }

    /// Serves RESET: drops everything of this L1 but the caller's page.
    pub(super) fn reset(&self, caller: usize) {
        if self.page(caller).is_none() {
            return;
        }
        let _alone = self.alone();
        // Another CPU's RESET may have taken it away meanwhile.
        let Some(page) = self.page(caller) else { return };
        self.drop_everything(Some(caller));
        self.answer(page, Answer::OK);
    }

    /// Drops everything of an L1 that has ended (rule L0-RST-2).
    pub fn power_off(&self) {
        let _alone = self.alone();
        self.drop_everything(None);
    }

    /// Waits until no call is served, and holds up those to come.
    fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.resetting.store(true, SeqCst);
        let alone = loop {
            self.kick_all();
            match self.gate.try_write() {
                Ok(alone) => break alone,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                // A call that has begun ends soon: every RUN is kicked.
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_micros(100)),
            }
        };
        self.resetting.store(false, SeqCst);
        alone
    }

    fn drop_everything(&self, keeper: Option<usize>) {
        let vms = {
            let mut state = lock(&self.state);
            if flaw::is(Flaw::ResetKeepsVms) {
                BTreeMap::new()
            } else {
                (state.enabled, state.withdrawn) = (Features::empty(), Features::empty());
                std::mem::take(&mut state.vms)
            }
        };
        for vm in vms.values() {
            self.end_mappings(&mut vm.lock());
        }
        drop(vms);
        for (cpu, page) in lock(&self.pages).iter_mut().enumerate() {
            if Some(cpu) != keeper && !flaw::is(Flaw::ResetKeepsPages) {
                *page = None;
            }
        }
    }
}
