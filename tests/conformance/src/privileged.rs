//! Privileged instructions, as snippets for either mode.
#![expect(unsafe_code, reason = "machine code and its addresses")]

/// HLT.
pub fn halt() {
    // SAFETY: the vCPU waits, and nothing else.
    unsafe { core::arch::asm!("hlt", options(nostack)) };
}

/// UD2.
pub fn undefined() {
    // SAFETY: an exception, which the caller wants.
    unsafe { core::arch::asm!("ud2", options(nostack)) };
}

/// OUT of a byte.
pub fn out(port: u16, value: u8) {
    // SAFETY: the ports of this machine change no memory.
    unsafe { core::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

macro_rules! in_both_modes {
    ($($name:ident: $($line:literal)*;)*) => {
        pub mod user {
            crate::snippets! { ".user", "ud2"; $($name: $($line)*;)* }

            /// Every one, with its name.
            pub const ALL: &[(&str, fn() -> crate::code::Code)] =
                &[$((stringify!($name), code::$name)),*];
        }
        pub mod kernel {
            crate::snippets! { ".probe", "jmp probe_done"; $($name: $($line)*;)* }
        }
    };
}

in_both_modes! {
    in_al: "in al, dx";
    in_ax: "in ax, dx";
    in_eax: "in eax, dx";
    in_al_imm: "in al, 0x44";
    in_ax_imm: "in ax, 0x44";
    in_eax_imm: "in eax, 0x44";
    out_al: "out dx, al";
    out_ax: "out dx, ax";
    out_eax: "out dx, eax";
    out_al_imm: "out 0x44, al";
    out_ax_imm: "out 0x44, ax";
    out_eax_imm: "out 0x44, eax";
    ins: "insb";
    outs: "outsb";
    rdmsr: "rdmsr";
    wrmsr: "wrmsr";
    cli: "cli";
    sti: "sti";
    hlt: "hlt";
    read_cr0: "mov rax, cr0";
    read_cr2: "mov rax, cr2";
    read_cr3: "mov rax, cr3";
    read_cr4: "mov rax, cr4";
    read_cr8: "mov rax, cr8";
    write_cr0: "mov cr0, rax";
    write_cr2: "mov cr2, rax";
    write_cr3: "mov cr3, rax";
    write_cr4: "mov cr4, rax";
    write_cr8: "mov cr8, rax";
    clts: "clts";
    lmsw: "lmsw ax";
    lmsw_memory: "lmsw [rbx]";
    invlpg: "invlpg [rbx]";
    invlpg_indexed: "invlpg [rbx + rcx * 8 + 0x100]";
    invlpg_gs: "invlpg gs:[rbx]";
    invlpg_32: "invlpg [ebx]";
    wbinvd: "wbinvd";
    invd: "invd";
    xsetbv: "xsetbv";
    lgdt: "lgdt [rbx]";
    lidt: "lidt [rbx]";
    lldt: "lldt ax";
    ltr: "ltr ax";
    sgdt: "sgdt [rbx]";
    sidt: "sidt [rbx]";
    sldt: "sldt eax";
    sldt_memory: "sldt [rbx]";
    str: "str eax";
    smsw: "smsw eax";
    smsw_word: "smsw ax";
    smsw_memory: "smsw [rbx]";
    invpcid: "invpcid rax, [rbx]";
}
