//! Makes Linux system calls without a C library in between.
#![expect(unsafe_code, reason = "the SYSCALL instruction")]

use core::arch::asm;

/// Splits a raw result into value and error number.
///
/// # Errors
/// The positive error number that the kernel returned.
pub const fn checked(result: i64) -> Result<u64, i32> {
    if result < 0 && result >= -4095 { Err(-result as i32) } else { Ok(result as u64) }
}

macro_rules! define {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $register:tt),*)) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The call must be one whose effects the program can bear: see its manual page.
        #[inline(always)]
        pub unsafe fn $name(number: i64 $(, $arg: u64)*) -> i64 {
            let result;
            // SAFETY: the kernel changes RAX, RCX and R11 only; what else the call does is the
            // caller's promise.
            unsafe {
                asm!(
                    "syscall",
                    inlateout("rax") number => result,
                    $(in($register) $arg,)*
                    lateout("rcx") _,
                    lateout("r11") _,
                    options(nostack),
                );
            }
            result
        }
    };
}

define! {
    /// A call without arguments.
    syscall0()
}
define! {
    /// A call with one argument.
    syscall1(a: "rdi")
}
define! {
    /// A call with two arguments.
    syscall2(a: "rdi", b: "rsi")
}
define! {
    /// A call with three arguments.
    syscall3(a: "rdi", b: "rsi", c: "rdx")
}
define! {
    /// A call with four arguments.
    syscall4(a: "rdi", b: "rsi", c: "rdx", d: "r10")
}
define! {
    /// A call with six arguments.
    syscall6(a: "rdi", b: "rsi", c: "rdx", d: "r10", e: "r8", f: "r9")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_split() {
        assert_eq!(checked(-2), Err(2));
        assert_eq!(checked(-4096), Ok(-4096_i64 as u64));
        assert_eq!(checked(7), Ok(7));
    }

    #[test]
    fn the_kernel_answers() {
        // SAFETY: getpid has no effect.
        let pid = unsafe { syscall0(libc::SYS_getpid) };
        assert_eq!(checked(pid), Ok(u64::from(std::process::id())));
    }
}
