//! Says where the memory and the registers of a guest are that has died, for a core file.
//! May: nothing. Context: the loop of a CPU, between vCPUs.

use crate::vm::ram::Extent;
use core::fmt;

/// A vCPU's registers, by the names that the line uses.
pub type Registers = [(&'static str, u64); 32];

/// What is told of a guest: one line of JSON.
#[derive(Debug)]
pub struct Description<'a> {
    /// Its number in the bundle.
    pub guest: usize,
    /// Its name; no character in it needs escaping.
    pub name: &'a str,
    /// It has a stock kernel.
    pub stock: bool,
    /// Its memory.
    pub ram: &'a [Extent],
    /// Its vCPUs: their numbers and registers.
    pub vcpus: &'a [(usize, Registers)],
}

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guest, name, stock, .. } = self;
        write!(f, "{{\"guest\":{guest},\"name\":\"{name}\",\"stock\":{stock},\"ram\":[")?;
        for (number, extent) in self.ram.iter().enumerate() {
            let separator = if number == 0 { "" } else { "," };
            let [gpa, hpa, bytes] = [extent.gfn, extent.host, extent.frames].map(|n| n << 12);
            write!(f, "{separator}[{gpa},{hpa},{bytes}]")?;
        }
        write!(f, "],\"vcpus\":[")?;
        for (number, (index, registers)) in self.vcpus.iter().enumerate() {
            write!(f, "{}{{\"index\":{index}", if number == 0 { "" } else { "," })?;
            for (name, value) in registers {
                write!(f, ",\"{name}\":{value}")?;
            }
            write!(f, "}}")?;
        }
        write!(f, "]}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{string::ToString, vec::Vec};

    #[test]
    fn a_description_is_one_line_of_json() {
        let ram = [
            Extent { gfn: 0, host: 0x800, frames: 512 },
            Extent { gfn: 512, host: 0, frames: 512 },
        ];
        let vcpus = [(0, [("rip", u64::MAX); 32]), (1, [("rax", 1); 32])];
        let text =
            Description { guest: 2, name: "g", stock: true, ram: &ram, vcpus: &vcpus }.to_string();
        let start = "{\"guest\":2,\"name\":\"g\",\"stock\":true,\
                     \"ram\":[[0,8388608,2097152],[2097152,0,2097152]],\
                     \"vcpus\":[{\"index\":0,\"rip\":18446744073709551615,";
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with(",\"rax\":1}]}") && !text.contains('\n'), "{text}");
        assert_eq!(text.matches("\"index\":").collect::<Vec<_>>().len(), 2);
    }
}
