//! A virtual local APIC in x2APIC mode: interrupt priority, timer, inter-processor interrupts.
//! May: nothing. Context: irq-off. Input: guest-controlled register writes.

use crate::abi_flaw::{Flaw, planted};
use pv_abi::msr::x2apic;

/// 256 bits, one per vector.
#[derive(Clone, Copy, Debug, Default)]
struct Vectors([u64; 4]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] |= 1 << (vector % 64);
    }

    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] &= !(1 << (vector % 64));
    }

    // A comparison of arrays would be a call.
    const fn is_empty(&self) -> bool {
        let [a, b, c, d] = self.0;
        a | b | c | d == 0
    }

    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 64)] >> (vector % 64) & 1 != 0
    }

    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        Some((64 * word + 63 - self.0[word].leading_zeros() as usize) as u8)
    }

    fn word32(&self, index: u32) -> u32 {
        (self.0[index as usize / 2] >> (32 * (index % 2))) as u32
    }
}

/// What the owner has to do after a register write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Send the inter-processor interrupt this ICR value describes.
    Ipi(u64),
    /// The write is refused: #GP.
    Fault,
}

/// The APIC of one vCPU.
#[derive(Debug)]
pub struct VirtualApic {
    id: u32,
    requested: Vectors,
    in_service: Vectors,
    task_priority: u8,
    spurious: u32,
    lvt: [u32; 6],
    icr: u64,
    timer_initial: u32,
    timer_divide: u32,
    /// TSC value at which the timer fires.
    deadline: Option<u64>,
    /// Something is requested, or the deadline has changed: cheap to test on every entry.
    attention: bool,
    /// So the timer's deadline may be another.
    rearm: bool,
}

/// Those below are refused by the architecture.
const FIRST_VECTOR: u8 = 16;
const MASKED: u32 = 1 << 16;
const TIMER_PERIODIC: u32 = 1 << 17;
const TIMER_DEADLINE: u32 = 2 << 17;
const TIMER_MODE: u32 = 3 << 17;
/// The local vector table.
const LVT_REGISTERS: core::ops::RangeInclusive<u32> = x2apic::LVT_TIMER..=x2apic::LVT_ERROR;

impl VirtualApic {
    /// The APIC of vCPU `id`, as after reset.
    #[must_use]
    pub fn new(id: u32) -> Self {
        Self {
            id,
            requested: Vectors::default(),
            in_service: Vectors::default(),
            task_priority: 0,
            spurious: 0xff,
            lvt: [MASKED; 6],
            icr: 0,
            timer_initial: 0,
            timer_divide: 0,
            deadline: None,
            attention: false,
            rearm: false,
        }
    }

    /// Requests interrupt `vector`. Those that the architecture refuses are dropped.
    pub fn raise(&mut self, vector: u8) {
        if vector >= FIRST_VECTOR {
            self.requested.set(vector);
            self.attention = true;
        }
    }

    /// True if the owner has something to do: an interrupt is requested, or the deadline is
    /// another than when this was last false.
    #[inline]
    #[must_use]
    pub const fn needs_attention(&self) -> bool {
        self.attention
    }

    /// Something is requested, deliverable or not.
    #[inline]
    #[must_use]
    pub const fn has_requests(&self) -> bool {
        !self.requested.is_empty()
    }

    /// The owner has armed its timer and delivered what can be delivered.
    pub fn attended(&mut self) {
        self.attention = self.has_requests();
    }

    fn processor_priority(&self) -> u8 {
        let service = self.in_service.highest().unwrap_or(0) & 0xf0;
        self.task_priority.max(service)
    }

    /// The interrupt to deliver next, if its priority lets it through.
    #[must_use]
    pub fn deliverable(&self) -> Option<u8> {
        let above = |vector: &u8| vector & 0xf0 > self.processor_priority() & 0xf0;
        let vector = self.requested.highest();
        vector.filter(|vector| above(vector) || planted(Flaw::PriorityIgnored))
    }

    /// `vector` has been delivered. With `auto_eoi` it needs no end of interrupt.
    pub fn accept(&mut self, vector: u8, auto_eoi: bool) {
        self.requested.clear(vector);
        if self.deadline.is_some() && vector == self.lvt[0] as u8 {
            self.timer_changed();
        }
        if !auto_eoi {
            self.in_service.set(vector);
        }
    }

    /// The run loop has something to do beside running the guest.
    pub fn ask_for_attention(&mut self) {
        self.attention = true;
    }

    /// The timer may have another deadline than when the owner last armed its own.
    fn timer_changed(&mut self) {
        self.rearm = true;
        self.attention = true;
    }

    /// The owner's timer is perhaps not armed.
    pub const fn timer_to_be_armed(&mut self) {
        self.rearm = true;
    }

    /// True, once, if the owner is to arm its timer anew.
    pub const fn take_rearm(&mut self) -> bool {
        core::mem::replace(&mut self.rearm, false)
    }

    /// When the timer has to be looked at, as a TSC value. A periodic one has not as long as
    /// nothing would come of it: else a period shorter than an exit would leave the guest no time
    /// to change it.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let lvt = self.lvt[0];
        let vector = lvt as u8;
        let idle = lvt & MASKED != 0 || vector < FIRST_VECTOR || self.requested.has(vector);
        self.deadline.filter(|_| lvt & TIMER_MODE != TIMER_PERIODIC || !idle)
    }

    /// Sets the deadline as the guest's word says it, if the timer is in deadline mode.
    pub fn set_deadline(&mut self, deadline: Option<u64>) {
        if self.lvt[0] & TIMER_MODE == TIMER_DEADLINE {
            self.deadline = deadline;
        }
    }

    /// Fires the timer if its time has come.
    pub fn poll_timer(&mut self, now: u64) {
        let Some(deadline) = self.deadline.filter(|&deadline| now >= deadline) else { return };
        let lvt = self.lvt[0];
        self.timer_changed();
        self.deadline = (lvt & TIMER_MODE == TIMER_PERIODIC).then(|| {
            let period = self.period();
            deadline + (now - deadline) / period * period + period
        });
        if lvt & MASKED == 0 {
            self.raise(lvt as u8);
        }
    }

    fn period(&self) -> u64 {
        let code = (self.timer_divide & 3) | (self.timer_divide >> 1 & 4);
        let divisor = if code == 7 { 1 } else { 2u64 << code };
        let period = (u64::from(self.timer_initial) * divisor).max(1);
        if planted(Flaw::TimerEarly) { period.div_ceil(2) } else { period }
    }

    /// The TSC-deadline register.
    #[must_use]
    pub fn read_deadline(&self) -> u64 {
        if self.lvt[0] & TIMER_MODE == TIMER_DEADLINE { self.deadline.unwrap_or(0) } else { 0 }
    }

    /// Writes the TSC-deadline register: ignored in other timer modes; 0 disarms.
    pub fn write_deadline(&mut self, value: u64) {
        if self.lvt[0] & TIMER_MODE == TIMER_DEADLINE {
            self.deadline = (value != 0).then_some(value);
            self.timer_changed();
        }
    }

    /// Reads register `index` (an x2APIC MSR number); `None` is a #GP.
    #[must_use]
    pub fn read(&self, index: u32, now: u64) -> Option<u64> {
        let value = match index {
            x2apic::ID => self.id,
            x2apic::VERSION => 0x0005_0014,
            x2apic::TPR => self.task_priority.into(),
            x2apic::PPR => self.processor_priority().into(),
            x2apic::LDR => (self.id >> 4) << 16 | 1 << (self.id & 15),
            x2apic::SVR => self.spurious,
            x2apic::ESR => 0,
            x2apic::ICR => return Some(self.icr),
            x2apic::TIMER_INITIAL => self.timer_initial,
            x2apic::TIMER_CURRENT => self.current_count(now),
            x2apic::TIMER_DIVIDE => self.timer_divide,
            index if LVT_REGISTERS.contains(&index) => {
                self.lvt[(index - x2apic::LVT_TIMER) as usize]
            }
            index if (x2apic::ISR0..x2apic::ISR0 + 8).contains(&index) => {
                self.in_service.word32(index - x2apic::ISR0)
            }
            index if (x2apic::TMR0..x2apic::TMR0 + 8).contains(&index) => 0,
            index if (x2apic::IRR0..x2apic::IRR0 + 8).contains(&index) => {
                self.requested.word32(index - x2apic::IRR0)
            }
            _ => return None,
        };
        Some(value.into())
    }

    fn current_count(&self, now: u64) -> u32 {
        let Some(deadline) = self.deadline else { return 0 };
        if self.lvt[0] & TIMER_MODE == TIMER_DEADLINE {
            return 0;
        }
        let per_count = self.period() / u64::from(self.timer_initial.max(1));
        (deadline.saturating_sub(now) / per_count.max(1)) as u32
    }

    /// Writes register `index`.
    pub fn write(&mut self, index: u32, value: u64, now: u64) -> Effect {
        let low = value as u32;
        if value >> 32 != 0 && index != x2apic::ICR {
            return Effect::Fault;
        }
        // The end of an interrupt is of interest to those that wait.
        self.attention |= index != x2apic::EOI || !self.requested.is_empty();
        match index {
            x2apic::TPR => self.task_priority = low as u8,
            x2apic::EOI => {
                if low != 0 {
                    return Effect::Fault;
                }
                if let Some(vector) = self.in_service.highest() {
                    self.in_service.clear(vector);
                }
            }
            x2apic::SVR => self.spurious = low & 0x1ff,
            x2apic::ESR if low == 0 => {}
            x2apic::ICR => {
                self.icr = value & !(1 << 12);
                return Effect::Ipi(self.icr);
            }
            x2apic::SELF_IPI if low <= 0xff => self.raise(low as u8),
            x2apic::TIMER_INITIAL => {
                self.timer_initial = low;
                if self.lvt[0] & TIMER_MODE != TIMER_DEADLINE {
                    self.deadline = (low != 0).then(|| now + self.period());
                }
                self.rearm = true;
            }
            x2apic::TIMER_DIVIDE => self.timer_divide = low & 0b1011,
            x2apic::LVT_TIMER => {
                if (low ^ self.lvt[0]) & TIMER_MODE != 0 {
                    self.deadline = None;
                }
                self.lvt[0] = low & (TIMER_MODE | MASKED | 0xff);
                self.rearm = true;
            }
            index if LVT_REGISTERS.contains(&index) => {
                self.lvt[(index - x2apic::LVT_TIMER) as usize] = low & (MASKED | 0x7ff);
            }
            _ => return Effect::Fault,
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apic() -> VirtualApic {
        let mut apic = VirtualApic::new(0);
        apic.write(x2apic::LVT_TIMER, 0x40 | u64::from(TIMER_DEADLINE), 0);
        apic
    }

    #[test]
    fn priority_decides_what_is_delivered() {
        let mut apic = apic();
        apic.raise(0x31);
        apic.raise(0x51);
        assert_eq!(apic.deliverable(), Some(0x51));
        apic.accept(0x51, false);
        assert_eq!(apic.deliverable(), None, "0x31 waits for 0x51 to end");
        apic.raise(0x60);
        assert_eq!(apic.deliverable(), Some(0x60), "a higher class interrupts");
        apic.write(x2apic::EOI, 0, 0);
        assert_eq!(apic.deliverable(), Some(0x60));
        apic.accept(0x60, true);
        assert_eq!(apic.deliverable(), Some(0x31), "no end of interrupt was needed");
        apic.write(x2apic::TPR, 0x30, 0);
        assert_eq!(apic.deliverable(), None);
    }

    #[test]
    fn the_deadline_timer_fires_once() {
        let mut apic = apic();
        apic.write_deadline(1000);
        apic.poll_timer(999);
        assert_eq!(apic.deliverable(), None);
        apic.poll_timer(1000);
        assert_eq!((apic.deliverable(), apic.deadline()), (Some(0x40), None));
        apic.write_deadline(5);
        apic.write_deadline(0);
        assert_eq!(apic.deadline(), None);
    }

    #[test]
    fn the_periodic_timer_skips_what_was_missed() {
        let mut apic = apic();
        apic.write(x2apic::LVT_TIMER, u64::from(TIMER_PERIODIC) | 0x41, 0);
        apic.write(x2apic::TIMER_DIVIDE, 0b1011, 0);
        apic.write(x2apic::TIMER_INITIAL, 100, 0);
        apic.poll_timer(350);
        assert_eq!(apic.deliverable(), Some(0x41));
        assert_eq!(apic.read(x2apic::TIMER_CURRENT, 360), Some(40));
        apic.accept(0x41, false);
        assert_eq!(apic.deadline(), Some(400));
    }

    #[test]
    fn a_periodic_timer_rests_while_nothing_would_come_of_it() {
        let mut apic = apic();
        apic.write(x2apic::LVT_TIMER, u64::from(TIMER_PERIODIC) | 0x41, 0);
        apic.write(x2apic::TIMER_DIVIDE, 0b1011, 0);
        apic.write(x2apic::TIMER_INITIAL, 1, 0);
        assert_eq!(apic.deadline(), Some(1));
        apic.poll_timer(10);
        assert_eq!(apic.deadline(), None, "its interrupt is requested");
        apic.accept(0x41, false);
        assert!(apic.needs_attention() && apic.deadline() == Some(11));
        apic.write(x2apic::LVT_TIMER, u64::from(TIMER_PERIODIC | MASKED) | 0x41, 0);
        assert_eq!(apic.deadline(), None, "it is masked");
        assert_eq!(apic.read(x2apic::TIMER_CURRENT, 10), Some(1), "it counts all the same");
        apic.write(x2apic::LVT_TIMER, u64::from(TIMER_PERIODIC) | 0xf, 0);
        assert_eq!(apic.deadline(), None, "its vector is refused");
    }

    #[test]
    fn divisors_are_powers_of_two() {
        let mut apic = apic();
        apic.timer_initial = 1;
        for (code, divisor) in [(0b1011, 1), (0, 2), (1, 4), (3, 16), (0b1000, 32), (0b1010, 128)] {
            apic.timer_divide = code;
            assert_eq!(apic.period(), divisor, "{code:#b}");
        }
    }

    #[test]
    fn bad_writes_fault() {
        let mut apic = apic();
        assert_eq!(apic.write(x2apic::EOI, 1, 0), Effect::Fault);
        assert_eq!(apic.write(x2apic::TPR, 1 << 32, 0), Effect::Fault);
        assert_eq!(apic.write(x2apic::IRR0, 0, 0), Effect::Fault);
        assert_eq!(apic.read(0x8ff, 0), None);
        apic.raise(3);
        assert_eq!(apic.deliverable(), None, "exception vectors cannot be requested");
    }
}
