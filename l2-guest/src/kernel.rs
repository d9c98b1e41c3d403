//! Starts a kernel: what its file says, its first instruction, the registration of its entries.
//! May: unsafe. Context: boot. Input: trusted.

/// Makes a program a kernel: `kernel!(main, event)`.
///
/// `main` is a `fn(&'static Boot) -> !` and is called with interrupts disabled. `event` is a
/// `fn(&Event)` and is called for each event of supervisor mode, with interrupts disabled: an
/// interrupt that it has ended, or an exception whose cause it has removed, goes on where it
/// happened when it returns.
///
/// The program gets the ELF note that says what it is, `_start`, and a panic handler that prints
/// and ends the VM.
#[macro_export]
macro_rules! kernel {
    ($main:path, $event:path $(,)?) => {
        #[used]
        #[unsafe(link_section = ".note.Roost")]
        static __L2_GUEST_NOTE: $crate::pv_abi::elf_note::ElfNote =
            $crate::pv_abi::elf_note::ElfNote::CURRENT;

        extern "C" fn __l2_guest_main(boot: u64) -> ! {
            // SAFETY: called once, by `_start`, with what the hypervisor gave it.
            unsafe { $crate::__private::start(boot, $main, $event) }
        }

        ::core::arch::global_asm!(
            ".section .text._start, \"ax\", @progbits",
            ".global _start",
            "_start:",
            "lea rdi, [rip + {main}]",
            "jmp l2_guest_start",
            ".text",
            main = sym __l2_guest_main,
        );

        #[panic_handler]
        fn __l2_guest_panic(info: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::__private::panic(info)
        }
    };
}

/// What the macros of this crate expand to.
#[doc(hidden)]
pub mod __private {
    #![expect(unsafe_code, reason = "the hypervisor's word, and labels in assembly")]

    use crate::{
        boot::Boot,
        console::Console,
        event::{self, Event},
        frame, hypercall,
        local::Local,
        println,
    };
    use core::{
        fmt::{self, Write},
        panic::PanicInfo,
    };
    use pv_abi::ext::Shutdown;

    /// Prepares what the library needs and calls `main`.
    ///
    /// # Safety
    /// Called once, at the start, with the address that the hypervisor passed.
    pub unsafe fn start(boot: u64, main: fn(&'static Boot) -> !, handler: fn(&Event)) -> ! {
        // SAFETY: the caller's promise.
        let boot = unsafe { Boot::take(boot) };
        // SAFETY: no other vCPU was started, and nothing was delivered or taken yet.
        unsafe {
            event::set_handler(handler);
            frame::init(boot);
            Local::first().register();
        }
        main(boot)
    }

    /// Prints.
    pub fn print(text: fmt::Arguments<'_>) {
        // The console does not fail.
        let _ = Console.write_fmt(text);
    }

    /// Prints the reason and ends the VM with it.
    pub fn panic(info: &PanicInfo<'_>) -> ! {
        println!("{info}");
        // A message with arguments is on the console only.
        hypercall::shutdown(Shutdown::Crash, info.message().as_str().unwrap_or_default())
    }

    /// The bytes from one label to another.
    ///
    /// # Safety
    /// They are two labels of one section of constants, in this order.
    pub unsafe fn between(start: &'static u8, end: *const u8) -> &'static [u8] {
        // SAFETY: the caller's promise.
        unsafe {
            let length = end.offset_from_unsigned(start);
            core::slice::from_raw_parts(start, length)
        }
    }
}
