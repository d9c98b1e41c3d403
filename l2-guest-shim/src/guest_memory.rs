//! Guest memory as devices use it, so that they can be tested on a host.
//! May: nothing. Context: shim. Input: guest-controlled addresses.

/// Memory by guest-physical address. What is outside it, or not aligned, is `None`.
pub trait Memory {
    /// Fills `out` from `gpa`. Each byte is read once; the kernel may write them meanwhile.
    fn read(&self, gpa: u64, out: &mut [u8]) -> Option<()>;
    /// Stores `bytes` at `gpa`.
    fn write(&self, gpa: u64, bytes: &[u8]) -> Option<()>;
    /// Reads 16 bits; what is read afterwards is no older.
    fn load16(&self, gpa: u64) -> Option<u16>;
    /// Reads 32 bits; what is read afterwards is no older.
    fn load32(&self, gpa: u64) -> Option<u32>;
    /// Stores 16 bits; what was stored before is seen by who sees them.
    fn store16(&self, gpa: u64, value: u16) -> Option<()>;
    /// Stores 32 bits likewise.
    fn store32(&self, gpa: u64, value: u32) -> Option<()>;
    /// Stores `new` in 32 bits that are `old`; else what they are.
    fn exchange32(&self, gpa: u64, old: u32, new: u32) -> Option<Result<(), u32>>;
}

/// Some memory for tests.
#[cfg(test)]
pub mod fake {
    use super::Memory;
    use std::cell::RefCell;

    /// Memory from address 0 on.
    #[derive(Debug)]
    pub struct Ram(RefCell<Vec<u8>>);

    impl Ram {
        /// Pages of zeros.
        pub fn new(pages: usize) -> Self {
            Self(RefCell::new(vec![0; pages << 12]))
        }

        fn get<const N: usize>(&self, gpa: u64) -> Option<[u8; N]> {
            let aligned = gpa.is_multiple_of(N as u64);
            let mut bytes = [0; N];
            self.read(gpa, &mut bytes).filter(|()| aligned)?;
            Some(bytes)
        }
    }

    impl Memory for Ram {
        fn read(&self, gpa: u64, out: &mut [u8]) -> Option<()> {
            let start = usize::try_from(gpa).ok()?;
            out.copy_from_slice(self.0.borrow().get(start..start.checked_add(out.len())?)?);
            Some(())
        }

        fn write(&self, gpa: u64, bytes: &[u8]) -> Option<()> {
            let start = usize::try_from(gpa).ok()?;
            let mut all = self.0.borrow_mut();
            all.get_mut(start..start.checked_add(bytes.len())?)?.copy_from_slice(bytes);
            Some(())
        }

        fn load16(&self, gpa: u64) -> Option<u16> {
            self.get(gpa).map(u16::from_le_bytes)
        }

        fn load32(&self, gpa: u64) -> Option<u32> {
            self.get(gpa).map(u32::from_le_bytes)
        }

        fn store16(&self, gpa: u64, value: u16) -> Option<()> {
            self.load16(gpa)?;
            self.write(gpa, &value.to_le_bytes())
        }

        fn store32(&self, gpa: u64, value: u32) -> Option<()> {
            self.load32(gpa)?;
            self.write(gpa, &value.to_le_bytes())
        }

        fn exchange32(&self, gpa: u64, old: u32, new: u32) -> Option<Result<(), u32>> {
            let is = self.load32(gpa)?;
            if is != old {
                return Some(Err(is));
            }
            self.store32(gpa, new).map(Ok)
        }
    }
}
