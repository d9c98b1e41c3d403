//! States the rule of the direct switch as pure functions: the oracle for `entry.S`.
//! May: nothing. Input: guest-controlled.
//!
//! Spec: guest ABI parts 1.5 (SYSCALL from user mode) and 1.7 (ERETU). A SYSCALL that these
//! functions do not let through is a full exit and L1 does the same work, slowly.

use crate::{block::NO_PAGE, mode};
use pv_abi::{
    PAGE_SHIFT,
    addr::Gva,
    event::{PF, RFLAGS_ALLOWED, RFLAGS_FORCED, RFLAGS_RF, RFLAGS_TF, pf},
    pvcs::{Pvcs, vector},
    selectors::USER_CS_SS,
};

/// Lowest RIP that SYSRET never returns to: the last page of the lower half is left to IRET, so
/// that a SYSCALL at its very end cannot make SYSRET see a non-canonical address.
pub const SYSRET_LIMIT: u64 = 0x7fff_ffff_f000;

/// What the direct switch reads of the CPU's block.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "named after the block's fields")]
pub struct Rules {
    pub mode: u32,
    pub retu_return: u64,
    pub lstar: u64,
    pub smod_gsbase: u64,
    pub event_entry: u64,
    pub absent_page: u64,
}

/// Registers that a SYSCALL or a page fault involves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "registers")]
pub struct Registers {
    pub rip: u64,
    pub rcx: u64,
    pub r11: u64,
    pub rflags: u64,
    pub gsbase: u64,
}

/// How the switcher leaves for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// By SYSRETQ.
    Sysret,
    /// By IRETQ.
    Iret,
}

/// SYSCALL from user mode: the registers in supervisor mode, or `None` for a full exit.
/// `at` holds RCX and R11 as SYSCALL left them.
pub fn to_supervisor(rules: &Rules, pvcs: &mut Pvcs, at: Registers) -> Option<Registers> {
    if rules.mode != mode::USER {
        return None;
    }
    pvcs.user_cs = USER_CS_SS as u16;
    pvcs.user_ss = (USER_CS_SS >> 16) as u16;
    pvcs.rip = at.rcx;
    pvcs.rcx = at.rcx;
    pvcs.r11 = at.r11;
    pvcs.eflags = at.r11 as u32;
    pvcs.user_gsbase = at.gsbase;
    Some(Registers {
        rip: rules.lstar,
        rcx: rules.lstar,
        r11: RFLAGS_FORCED,
        rflags: RFLAGS_FORCED,
        gsbase: rules.smod_gsbase,
    })
}

/// A page fault at `address`, with the hardware's `error` code, of code with `selectors`, which are CS and
/// SS << 16: the registers in supervisor mode, or `None` for an exit.
pub fn page_fault(
    rules: &mut Rules,
    pvcs: &mut Pvcs,
    at: Registers,
    (address, error, selectors): (u64, u64, u32),
) -> Option<Registers> {
    let absent = error & !(pf::WRITE | pf::FETCH) == pf::USER;
    let known = absent && address >> PAGE_SHIFT == rules.absent_page;
    if rules.mode != mode::USER || selectors != USER_CS_SS || !known {
        return None;
    }
    rules.absent_page = NO_PAGE;
    pvcs.user_cs = USER_CS_SS as u16;
    pvcs.user_ss = (USER_CS_SS >> 16) as u16;
    (pvcs.event_vector, pvcs.event_errcode) = (vector::STANDARD | u16::from(PF), error as u16);
    (pvcs.rip, pvcs.rcx, pvcs.r11) = (at.rip, at.rcx, at.r11);
    pvcs.eflags = (at.rflags & RFLAGS_ALLOWED | RFLAGS_FORCED) as u32;
    (pvcs.cr2, pvcs.user_gsbase) = (address, at.gsbase);
    Some(Registers {
        rip: rules.event_entry,
        rcx: rules.event_entry,
        r11: RFLAGS_FORCED,
        rflags: RFLAGS_FORCED,
        gsbase: rules.smod_gsbase,
    })
}

/// ERETU: the registers in user mode, or `None` for a full exit.
pub fn to_user(rules: &Rules, pvcs: &mut Pvcs, at: Registers) -> Option<(Registers, Leave)> {
    let selectors = u32::from(pvcs.user_cs) | u32::from(pvcs.user_ss) << 16;
    if rules.mode != mode::SUPERVISOR || at.rcx != rules.retu_return || selectors != USER_CS_SS {
        return None;
    }
    pvcs.event_vector = vector::STANDARD;
    let rflags = u64::from(pvcs.eflags) & RFLAGS_ALLOWED | RFLAGS_FORCED;
    let sysret = pvcs.rip == pvcs.rcx
        && rflags == pvcs.r11
        && rflags & (RFLAGS_TF | RFLAGS_RF) == 0
        && pvcs.rip < SYSRET_LIMIT;
    let user = Registers {
        rip: pvcs.rip,
        rcx: pvcs.rcx,
        r11: pvcs.r11,
        rflags,
        gsbase: Gva(pvcs.user_gsbase).canonicalized().0,
    };
    Some((user, if sysret { Leave::Sysret } else { Leave::Iret }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(mode: u32) -> Rules {
        Rules {
            mode,
            retu_return: 0x1002,
            lstar: 0x5000,
            smod_gsbase: 0xffff_8880_0000_0000,
            event_entry: 0x6000,
            absent_page: 0x7_ffff,
        }
    }

    fn at(rcx: u64) -> Registers {
        Registers { rip: 0, rcx, r11: 0x246, rflags: 0x2, gsbase: 0x7000 }
    }

    #[test]
    fn syscall_saves_the_user_context() {
        let mut pvcs = Pvcs { event_vector: vector::STANDARD, cr2: 9, ..Pvcs::default() };
        let after = to_supervisor(&rules(mode::USER), &mut pvcs, at(0x40_1000)).unwrap();
        assert_eq!((after.rip, after.rcx, after.r11), (0x5000, 0x5000, 0x202));
        assert_eq!(after.gsbase, 0xffff_8880_0000_0000);
        assert_eq!(
            (pvcs.rip, pvcs.rcx, pvcs.r11, pvcs.eflags),
            (0x40_1000, 0x40_1000, 0x246, 0x246)
        );
        assert_eq!((pvcs.user_cs, pvcs.user_ss, pvcs.user_gsbase), (0x33, 0x2b, 0x7000));
        assert_eq!((pvcs.event_vector, pvcs.cr2), (vector::STANDARD, 9), "left alone");
    }

    #[test]
    fn eretu_restores_it() {
        let mut pvcs = Pvcs::default();
        to_supervisor(&rules(mode::USER), &mut pvcs, at(0x40_1000)).unwrap();
        let (user, leave) = to_user(&rules(mode::SUPERVISOR), &mut pvcs, at(0x1002)).unwrap();
        assert_eq!((user.rip, user.rflags, user.gsbase), (0x40_1000, 0x246, 0x7000));
        assert_eq!((leave, pvcs.event_vector), (Leave::Sysret, vector::STANDARD));
    }

    #[test]
    fn an_absent_page_is_told_once() {
        let (mut rules, mut pvcs) = (rules(mode::USER), Pvcs::default());
        let user = Registers { rip: 0x40_1000, rflags: 0x1_0ad7, ..at(0x1234) };
        let write = (0x7fff_fabc, pf::USER | pf::WRITE, USER_CS_SS);
        let after = page_fault(&mut rules, &mut pvcs, user, write).unwrap();
        assert_eq!((after.rip, after.rcx, after.r11, after.rflags), (0x6000, 0x6000, 0x202, 0x202));
        assert_eq!((pvcs.event_vector, pvcs.event_errcode, pvcs.cr2), (0x10e, 6, 0x7fff_fabc));
        assert_eq!((pvcs.rip, pvcs.rcx, pvcs.r11), (0x40_1000, 0x1234, 0x246));
        assert_eq!((pvcs.eflags, pvcs.user_gsbase), (0x1_0ad7 & 0x25_4dd5 | 0x202, 0x7000));
        assert_eq!(page_fault(&mut rules, &mut pvcs, user, write), None);
    }

    #[test]
    fn other_faults_are_exits() {
        let fault = |mode, fault| {
            page_fault(&mut rules(mode), &mut Pvcs::default(), at(0), fault).is_some()
        };
        let error = pf::USER;
        assert!(fault(mode::USER, (0x7fff_f000, error, USER_CS_SS)));
        assert!(fault(mode::USER, (0x7fff_ffff, error | pf::FETCH, USER_CS_SS)));
        assert!(!fault(mode::USER, (0x8000_0000, error, USER_CS_SS)), "the page behind");
        assert!(!fault(mode::USER, (0x7fff_f000, error | pf::PRESENT, USER_CS_SS)));
        assert!(!fault(mode::USER, (0x7fff_f000, error | pf::RESERVED, USER_CS_SS)));
        assert!(!fault(mode::USER, (0x7fff_f000, error, 0x2b_0023)), "32-bit code");
        assert!(!fault(mode::SUPERVISOR, (0x7fff_f000, error, USER_CS_SS)));
        for bit in 1..32 {
            assert!(!fault(1 << bit, (0x7fff_f000, error, USER_CS_SS)));
        }
    }

    #[test]
    fn every_inhibitor_forces_an_exit() {
        for bit in 1..32 {
            let mut pvcs = Pvcs { user_cs: 0x33, user_ss: 0x2b, ..Pvcs::default() };
            assert!(to_supervisor(&rules(1 << bit), &mut pvcs, at(0)).is_none());
            assert!(to_user(&rules(1 | 1 << bit), &mut pvcs, at(0x1002)).is_none());
        }
    }

    #[test]
    fn sysret_is_for_plain_returns_only() {
        let leave = |change: fn(&mut Pvcs)| {
            let mut pvcs = Pvcs {
                user_cs: 0x33,
                user_ss: 0x2b,
                rip: 0x40_0000,
                rcx: 0x40_0000,
                r11: 0x202,
                eflags: 0x202,
                ..Pvcs::default()
            };
            change(&mut pvcs);
            to_user(&rules(mode::SUPERVISOR), &mut pvcs, at(0x1002)).map(|(_, leave)| leave)
        };
        assert_eq!(leave(|_| ()), Some(Leave::Sysret));
        assert_eq!(leave(|p| p.rcx = 0), Some(Leave::Iret));
        assert_eq!(leave(|p| p.eflags = 0x302), Some(Leave::Iret), "TF");
        assert_eq!(leave(|p| (p.rip, p.rcx) = (1 << 47, 1 << 47)), Some(Leave::Iret));
        assert_eq!(leave(|p| (p.rip, p.rcx) = (!0, !0)), Some(Leave::Iret));
        assert_eq!(leave(|p| p.eflags = 0x3202), Some(Leave::Sysret), "IOPL is dropped");
        assert_eq!(leave(|p| p.user_cs = 0x23), None, "32-bit code takes the slow way");
    }
}
