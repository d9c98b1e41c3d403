//! Gives a program the C `main` as its entry.
//!
//! The standard library's own start-up opens `/dev/null` for closed standard streams and aborts
//! where there is none; the first process of a bare initramfs may well be in that place.

/// Makes `$body`, a safe `fn() -> u8`, the program's entry and its result the exit status.
///
/// With `$quick`, a program whose first argument vector entry equals it does nothing and
/// succeeds: the cheapest program to execute.
#[macro_export]
macro_rules! entry {
    ($body:ident, $quick:literal) => {
        #[cfg(test)]
        const _: fn() -> u8 = $body;

        #[cfg(not(test))]
        mod entry_point {
            #![expect(unsafe_code, reason = "the symbol that the C start-up code calls")]

            use core::ffi::{CStr, c_char, c_int};

            /// What the C start-up code calls.
            // SAFETY: no other item of the program is called `main` (a test has one of its own).
            #[unsafe(no_mangle)]
            extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
                if count > 0 {
                    // SAFETY: the start-up code passes `count` valid strings.
                    let name = unsafe { CStr::from_ptr(*arguments) };
                    if name == $quick {
                        return 0;
                    }
                }
                c_int::from(super::$body())
            }
        }
    };
}
