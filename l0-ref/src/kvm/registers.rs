//! Translates register groups between the ABI and KVM, and refuses what no CPU could hold.
//! Input: guest-controlled values.

use crate::backend::Refused;
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR,
    kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use pv_abi::l0::{
    regs::{Debug, EventFlags, Events, Gprs, Segment, Special, Table, attr},
    run::Event,
};

/// Bits of CR0 that exist.
const CR0: u64 = 0xe005_003f;
const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
/// EFER: SCE, LME, LMA, NXE. SVME, above all, is not L2's.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
/// Bits of KVM's shadow of the next instruction.
const SHADOW_MOV_SS: u8 = 1;
const SHADOW_STI: u8 = 2;

/// General registers of KVM.
#[must_use]
pub fn gprs_from(regs: &kvm_regs) -> Gprs {
    let r = regs;
    let gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    Gprs { gpr, rip: r.rip, rflags: r.rflags }
}

/// General registers for KVM.
///
/// # Errors
/// RIP is no address.
pub fn gprs_to(gprs: &Gprs) -> Result<kvm_regs, Refused> {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = gprs.gpr;
    if !is_canonical(gprs.rip) {
        return Err(Refused::BadValue);
    }
    Ok(kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: gprs.rip,
        rflags: gprs.rflags,
    })
}

/// With 57 bits, as the largest CPUs have; a CPU with fewer refuses by itself.
const fn is_canonical(address: u64) -> bool {
    ((address << 7) as i64 >> 7) as u64 == address
}

fn segment_from(segment: &kvm_segment) -> Segment {
    let bit = |set: u8, mask: u16| if set != 0 { mask } else { 0 };
    let attributes = u16::from(segment.type_) & attr::TYPE
        | bit(segment.s, attr::CODE_OR_DATA)
        | u16::from(segment.dpl & 3) << attr::DPL_SHIFT
        | bit(segment.present, attr::PRESENT)
        | bit(segment.avl, attr::AVAILABLE)
        | bit(segment.l, attr::LONG)
        | bit(segment.db, attr::DEFAULT_BIG)
        | bit(segment.g, attr::GRANULARITY)
        | bit(segment.unusable, attr::UNUSABLE);
    Segment { base: segment.base, limit: segment.limit, selector: segment.selector, attributes }
}

fn segment_to(segment: &Segment) -> Result<kvm_segment, Refused> {
    let has = |mask: u16| u8::from(segment.attributes & mask != 0);
    if segment.attributes & 0x7000 != 0 || !is_canonical(segment.base) {
        return Err(Refused::BadValue);
    }
    Ok(kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (segment.attributes & attr::TYPE) as u8,
        present: has(attr::PRESENT),
        dpl: (segment.attributes >> attr::DPL_SHIFT & 3) as u8,
        db: has(attr::DEFAULT_BIG),
        s: has(attr::CODE_OR_DATA),
        l: has(attr::LONG),
        g: has(attr::GRANULARITY),
        avl: has(attr::AVAILABLE),
        unusable: has(attr::UNUSABLE),
        padding: 0,
    })
}

fn table_to(table: &Table) -> Result<kvm_dtable, Refused> {
    let limit = u16::try_from(table.limit).map_err(|_| Refused::BadValue)?;
    if !is_canonical(table.base) {
        return Err(Refused::BadValue);
    }
    Ok(kvm_dtable { base: table.base, limit, padding: [0; 3] })
}

fn table_from(table: &kvm_dtable) -> Table {
    Table { base: table.base, limit: table.limit.into() }
}

/// Segments, tables and control registers of KVM.
#[must_use]
pub fn special_from(sregs: &kvm_sregs) -> Special {
    Special {
        cs: segment_from(&sregs.cs),
        ds: segment_from(&sregs.ds),
        es: segment_from(&sregs.es),
        fs: segment_from(&sregs.fs),
        gs: segment_from(&sregs.gs),
        ss: segment_from(&sregs.ss),
        tr: segment_from(&sregs.tr),
        ldt: segment_from(&sregs.ldt),
        gdt: table_from(&sregs.gdt),
        idt: table_from(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        reserved: 0,
    }
}

/// The same for KVM; what only KVM can judge, it does.
///
/// # Errors
/// A value that no CPU can hold.
pub fn special_to(special: &Special) -> Result<kvm_sregs, Refused> {
    let s = special;
    let has = |value: u64, bits: u64| value & bits != 0;
    let bad = s.cr0 & !CR0 != 0
        || has(s.cr0, CR0_PG) && !has(s.cr0, CR0_PE)
        || has(s.cr0, CR0_NW) && !has(s.cr0, CR0_CD)
        || s.cr8 > 15
        || s.efer & !EFER != 0
        || s.reserved != 0;
    if bad {
        return Err(Refused::BadValue);
    }
    Ok(kvm_sregs {
        cs: segment_to(&s.cs)?,
        ds: segment_to(&s.ds)?,
        es: segment_to(&s.es)?,
        fs: segment_to(&s.fs)?,
        gs: segment_to(&s.gs)?,
        ss: segment_to(&s.ss)?,
        tr: segment_to(&s.tr)?,
        ldt: segment_to(&s.ldt)?,
        gdt: table_to(&s.gdt)?,
        idt: table_to(&s.idt)?,
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt_bitmap: [0; 4],
    })
}

/// Whether EFER may have this value in an L2.
#[must_use]
pub const fn efer_is_good(value: u64) -> bool {
    value & !EFER == 0
}

/// Debug registers of KVM.
#[must_use]
pub fn debug_from(regs: &kvm_debugregs) -> Debug {
    Debug { address: regs.db, dr6: regs.dr6, dr7: regs.dr7 }
}

/// Debug registers for KVM.
///
/// # Errors
/// A value that no CPU can hold.
pub fn debug_to(debug: &Debug) -> Result<kvm_debugregs, Refused> {
    let addresses = debug.address.iter().all(|address| is_canonical(*address));
    if !addresses || debug.dr6 >> 32 != 0 || debug.dr7 >> 32 != 0 {
        return Err(Refused::BadValue);
    }
    Ok(kvm_debugregs { db: debug.address, dr6: debug.dr6, dr7: debug.dr7, ..Default::default() })
}

/// Pending events of KVM. `mp_state` is in the ABI's numbers.
#[must_use]
pub fn events_from(events: &kvm_vcpu_events, mp_state: u32) -> Events {
    let exception = &events.exception;
    let (injected, error) = if exception.injected != 0 || exception.pending != 0 {
        let error = (exception.has_error_code != 0).then_some(exception.error_code);
        Event::Exception { vector: exception.nr, error }.encode()
    } else if events.nmi.injected != 0 {
        Event::Nmi.encode()
    } else if events.interrupt.injected != 0 {
        Event::Interrupt(events.interrupt.nr).encode()
    } else {
        (0, 0)
    };
    let mut flags = EventFlags::empty();
    flags.set(EventFlags::NMI_PENDING, events.nmi.pending != 0);
    flags.set(EventFlags::NMI_MASKED, events.nmi.masked != 0);
    flags.set(EventFlags::STI_SHADOW, events.interrupt.shadow & SHADOW_STI != 0);
    flags.set(EventFlags::MOV_SS_SHADOW, events.interrupt.shadow & SHADOW_MOV_SS != 0);
    Events {
        injected,
        error,
        flags: flags.bits(),
        mp_state,
        sipi_vector: events.sipi_vector,
        reserved: [0; 11],
    }
}

/// Pending events for KVM.
///
/// # Errors
/// No event.
pub fn events_to(events: &Events) -> Result<kvm_vcpu_events, Refused> {
    let mut out = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SHADOW
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR,
        sipi_vector: events.sipi_vector,
        ..Default::default()
    };
    let event = Event::decode(events.injected, events.error).map_err(|_| Refused::BadValue)?;
    if let Some(event) = event {
        inject_into(&mut out, event);
    }
    let flags = EventFlags::from_bits_truncate(events.flags);
    out.nmi.pending = flags.contains(EventFlags::NMI_PENDING).into();
    out.nmi.masked = flags.contains(EventFlags::NMI_MASKED).into();
    if flags.contains(EventFlags::STI_SHADOW) {
        out.interrupt.shadow |= SHADOW_STI;
    }
    if flags.contains(EventFlags::MOV_SS_SHADOW) {
        out.interrupt.shadow |= SHADOW_MOV_SS;
    }
    Ok(out)
}

/// Adds an event that is to be delivered.
pub fn inject_into(events: &mut kvm_vcpu_events, event: Event) {
    match event {
        Event::Interrupt(vector) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
            events.interrupt.soft = 0;
        }
        Event::Nmi => events.nmi.injected = 1,
        Event::Exception { vector, error } => {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = error.is_some().into();
            events.exception.error_code = error.unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_round_trip() {
        for attributes in [0x0a9b, 0x0c93, 0x8000, 0x008b] {
            let segment = Segment { base: 1 << 40, limit: 0xfffff, selector: 0x10, attributes };
            assert_eq!(segment_from(&segment_to(&segment).unwrap()), segment);
        }
        let reserved = Segment { attributes: 0x1000, ..Segment::default() };
        assert!(segment_to(&reserved).is_err());
    }

    #[test]
    fn impossible_values_are_refused() {
        let good = Special { cr0: CR0_PE | CR0_PG, efer: 0x500, ..Special::default() };
        assert!(special_to(&good).is_ok());
        for bad in [
            Special { cr0: CR0_PG, ..good },
            Special { cr0: 1 << 32, ..good },
            Special { cr0: CR0_NW, ..good },
            Special { efer: 1 << 12, ..good },
            Special { cr8: 16, ..good },
            Special { gdt: Table { base: 0, limit: 0x1_0000 }, ..good },
            Special { idt: Table { base: 1 << 60, limit: 0 }, ..good },
        ] {
            assert_eq!(special_to(&bad).unwrap_err(), Refused::BadValue, "{bad:?}");
        }
        assert!(gprs_to(&Gprs { rip: 1 << 62, ..Gprs::default() }).is_err());
        assert!(debug_to(&Debug { dr7: 1 << 32, ..Debug::default() }).is_err());
    }

    #[test]
    fn events_round_trip() {
        let (injected, error) = Event::Exception { vector: 14, error: Some(2) }.encode();
        let flags = (EventFlags::NMI_MASKED | EventFlags::STI_SHADOW).bits();
        let events = Events { injected, error, flags, ..Events::default() };
        assert_eq!(events_from(&events_to(&events).unwrap(), 0), events);
    }
}
