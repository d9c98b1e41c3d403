//! Defines named pieces of machine code that checks run in either mode.

/// Where a snippet lies.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Its first instruction.
    pub start: u64,
    /// Past its last instruction of its own.
    pub end: u64,
}

/// Defines a module `code` of snippets: `name: "instruction" ...;`. Each ends, after its own
/// instructions, with `$tail`.
#[macro_export]
macro_rules! snippets {
    ($section:literal, $tail:literal; $($name:ident: $($line:literal)*;)*) => {
        core::arch::global_asm!(
            concat!(".section ", $section, ", \"ax\", @progbits"),
            $(
                concat!(".balign 16\n.global ", $section, "_", stringify!($name)),
                concat!($section, "_", stringify!($name), ":"),
                $($line,)*
                concat!(".global ", $section, "_", stringify!($name), "_end"),
                concat!($section, "_", stringify!($name), "_end:"),
                $tail,
            )*
            ".text",
        );
        /// The snippets' addresses.
        pub mod code {
            use $crate::code::Code;
            $(
                #[doc = concat!($("`", $line, "` ",)*)]
                pub fn $name() -> Code {
                    unsafe extern "C" {
                        #[link_name = concat!($section, "_", stringify!($name))]
                        static START: u8;
                        #[link_name = concat!($section, "_", stringify!($name), "_end")]
                        static END: u8;
                    }
                    Code { start: &raw const START as u64, end: &raw const END as u64 }
                }
            )*
        }
    };
}
