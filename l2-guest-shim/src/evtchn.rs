//! Event channels with the two-level bitmap, as a model without memory of its own.
//! May: nothing. Context: shim. Input: guest-controlled.

use crate::xen::errno;

/// Ports at most: the two-level bitmap holds 4096, a few hundred are plenty.
pub const PORTS: usize = 512;

/// What a port is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Nothing: may be handed out.
    Free,
    /// The console's ring.
    Console,
    /// The store's ring.
    Store,
    /// A virtual interrupt.
    Virq(u32),
    /// An inter-processor interrupt to the vCPU the port is bound to.
    Ipi,
    /// Nothing yet: the kernel has made it for a device to bind itself to.
    Unbound,
    /// A ring of the disk with the first number: that with the second.
    Disk(u8, u8),
    /// A ring of the network card with the first number, or both: of the pair with the second.
    Card(u8, u8),
}

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// What raises it.
    pub binding: Binding,
    /// The vCPU that is told.
    pub vcpu: u32,
}

const FREE: Port = Port { binding: Binding::Free, vcpu: 0 };

/// All ports of the guest. Port 0 is never handed out: kernels take it for "none".
#[derive(Debug)]
pub struct Ports([Port; PORTS]);

impl Ports {
    /// No port bound.
    #[must_use]
    pub const fn new() -> Self {
        Self([FREE; PORTS])
    }

    /// Hands out a port for `binding` on `vcpu`.
    ///
    /// # Errors
    /// `EEXIST` for a virtual interrupt that the vCPU has bound already, `ENOSPC` if all ports
    /// are in use.
    pub fn bind(&mut self, binding: Binding, vcpu: u32) -> Result<u32, i64> {
        let wanted = Port { binding, vcpu };
        if matches!(binding, Binding::Virq(_)) && self.0.contains(&wanted) {
            return Err(errno::EEXIST);
        }
        let free = self.0[1..].iter().position(|port| port.binding == Binding::Free);
        let number = free.ok_or(errno::ENOSPC)? + 1;
        self.0[number] = wanted;
        Ok(number as u32)
    }

    /// The port with `number`, if it is in use.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn get(&self, number: u32) -> Result<Port, i64> {
        let port =
            self.0.get(number as usize).copied().filter(|port| port.binding != Binding::Free);
        port.ok_or(errno::EINVAL)
    }

    /// Frees a port.
    ///
    /// # Errors
    /// `EINVAL` if it was not in use.
    pub fn close(&mut self, number: u32) -> Result<(), i64> {
        self.get(number)?;
        self.0[number as usize] = FREE;
        Ok(())
    }

    /// Moves a port to another vCPU.
    ///
    /// # Errors
    /// `EINVAL` for ports whose vCPU is fixed: per-vCPU interrupts and free ones.
    pub fn set_vcpu(&mut self, number: u32, vcpu: u32) -> Result<(), i64> {
        match self.get(number)?.binding {
            Binding::Virq(_) | Binding::Ipi => Err(errno::EINVAL),
            _ => {
                self.0[number as usize].vcpu = vcpu;
                Ok(())
            }
        }
    }

    /// A device binds itself to a port that the kernel made for it, or that it was bound to before:
    /// the vCPU that is told.
    ///
    /// # Errors
    /// `EINVAL` if the port is another's.
    pub fn attach(&mut self, number: u32, binding: Binding) -> Result<u32, i64> {
        let port = self.get(number)?;
        if port.binding != Binding::Unbound && port.binding != binding {
            return Err(errno::EINVAL);
        }
        self.0[number as usize].binding = binding;
        Ok(port.vcpu)
    }

    /// The port bound to `binding` on `vcpu`.
    #[must_use]
    pub fn find(&self, binding: Binding, vcpu: u32) -> Option<u32> {
        let wanted = Port { binding, vcpu };
        self.0.iter().position(|&port| port == wanted).map(|number| number as u32)
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_zero_is_nobodys() {
        let mut ports = Ports::new();
        assert_eq!(ports.bind(Binding::Console, 0), Ok(1));
        assert_eq!(ports.get(0), Err(errno::EINVAL));
        assert_eq!(ports.get(PORTS as u32), Err(errno::EINVAL));
    }

    #[test]
    fn a_virq_is_bound_once_per_vcpu() {
        let mut ports = Ports::new();
        let timer = Binding::Virq(0);
        let first = ports.bind(timer, 0).unwrap();
        assert_eq!(ports.bind(timer, 0), Err(errno::EEXIST));
        assert!(ports.bind(timer, 1).is_ok());
        assert_eq!(ports.find(timer, 0), Some(first));
        assert_eq!(ports.close(first), Ok(()));
        assert_eq!(ports.close(first), Err(errno::EINVAL));
        assert_eq!(ports.find(timer, 0), None);
    }

    #[test]
    fn a_device_binds_itself_to_what_was_made_for_it() {
        let mut ports = Ports::new();
        let ipi = ports.bind(Binding::Ipi, 0).unwrap();
        let unbound = ports.bind(Binding::Unbound, 3).unwrap();
        assert_eq!(ports.attach(ipi, Binding::Disk(0, 0)), Err(errno::EINVAL));
        assert_eq!(ports.attach(0, Binding::Disk(0, 0)), Err(errno::EINVAL));
        assert_eq!(ports.attach(unbound, Binding::Disk(0, 0)), Ok(3));
        assert_eq!(ports.attach(unbound, Binding::Disk(0, 0)), Ok(3));
        assert_eq!(ports.attach(unbound, Binding::Disk(1, 0)), Err(errno::EINVAL));
        assert_eq!(ports.attach(unbound, Binding::Disk(0, 1)), Err(errno::EINVAL));
        assert_eq!(ports.get(unbound).unwrap().binding, Binding::Disk(0, 0));
    }

    #[test]
    fn running_out_is_an_error() {
        let mut ports = Ports::new();
        for _ in 1..PORTS {
            ports.bind(Binding::Ipi, 0).unwrap();
        }
        assert_eq!(ports.bind(Binding::Ipi, 0), Err(errno::ENOSPC));
        assert_eq!(ports.set_vcpu(1, 1), Err(errno::EINVAL), "an IPI stays where it is");
    }
}
