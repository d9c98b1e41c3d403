//! A virtual I/O APIC: 24 lines, each routed to a vector.
//! May: nothing. Context: run-loop. Input: guest-controlled register accesses.

/// Where native guests find it.
pub const BASE: u64 = 0xfec0_0000;
/// Bytes of its window.
pub const SIZE: u64 = 0x1000;

/// Its lines.
pub const LINES: usize = 24;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
/// Delivery status and remote IRR are read-only.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;

/// The registers.
#[derive(Debug)]
pub struct IoApic {
    select: u8,
    id: u32,
    routes: [u64; LINES],
    lines: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { select: 0, id: 0, routes: [MASKED; LINES], lines: 0 }
    }
}

impl IoApic {
    /// Reads the 32-bit register at `offset` of the window.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match (offset, self.select) {
            (0, select) => select.into(),
            (0x10, 0) => self.id,
            (0x10, 1) => ((LINES as u32 - 1) << 16) | 0x11,
            (0x10, select) => match self.route_index(select) {
                Some((line, false)) => self.routes[line] as u32,
                Some((line, true)) => (self.routes[line] >> 32) as u32,
                None => 0,
            },
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset`; returns the vector to raise, if a line that is
    /// active was unmasked.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<u8> {
        match (offset, self.select) {
            (0, _) => self.select = value as u8,
            (0x10, 0) => self.id = value & 0x0f00_0000,
            (0x10, select) => {
                let (line, high) = self.route_index(select)?;
                let route = &mut self.routes[line];
                *route = if high {
                    *route & 0xffff_ffff | u64::from(value) << 32
                } else {
                    *route & !0xffff_ffff | u64::from(value) & 0x1_ffff & !READ_ONLY
                };
                if self.lines >> line & 1 == 1 && *route & LEVEL != 0 {
                    return self.vector(line);
                }
            }
            _ => {}
        }
        None
    }

    fn route_index(&self, select: u8) -> Option<(usize, bool)> {
        let line = usize::from(select.checked_sub(0x10)?) / 2;
        (line < LINES).then_some((line, select & 1 == 1))
    }

    fn vector(&self, line: usize) -> Option<u8> {
        let route = self.routes[line];
        (route & MASKED == 0).then_some(route as u8)
    }

    /// Sets the state of `line`; returns the vector to raise.
    pub fn set_line(&mut self, line: usize, active: bool) -> Option<u8> {
        let was = self.lines >> line & 1 == 1;
        self.lines = self.lines & !(1 << line) | u32::from(active) << line;
        let level = self.routes[line] & LEVEL != 0;
        if active && (level || !was) { self.vector(line) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ioapic: &mut IoApic, register: u32, value: u32) -> Option<u8> {
        ioapic.write(0, register);
        ioapic.write(0x10, value)
    }

    #[test]
    fn edges_raise_once_and_masks_hold_them() {
        let mut ioapic = IoApic::default();
        assert_eq!(ioapic.set_line(4, true), None, "masked after reset");
        ioapic.set_line(4, false);
        set(&mut ioapic, 0x10 + 8, 0x41);
        assert_eq!(ioapic.set_line(4, true), Some(0x41));
        assert_eq!(ioapic.set_line(4, true), None, "no edge");
    }

    #[test]
    fn an_active_level_is_seen_when_it_is_unmasked() {
        let mut ioapic = IoApic::default();
        ioapic.set_line(4, true);
        assert_eq!(set(&mut ioapic, 0x10 + 8, 0x42 | LEVEL as u32), Some(0x42));
    }

    #[test]
    fn registers_read_back() {
        let mut ioapic = IoApic::default();
        set(&mut ioapic, 0x11, 0x0300_0000);
        assert_eq!(ioapic.read(0x10), 0x0300_0000);
        ioapic.write(0, 1);
        assert_eq!(ioapic.read(0x10) >> 16, 23);
        ioapic.write(0, 0xff);
        assert_eq!(ioapic.read(0x10), 0, "no such register");
    }
}
