//! Holds the programs of L2: a few instructions each, that run wherever they are copied to.
//! May: unsafe, asm. Context: any.
//!
//! What a program takes in registers and what it does is said at each. `done` is OUT of EAX to
//! `layout::DONE_PORT` (0xf0). Every endless loop looks at the time in R15 and is done with 0xdead
//! after it, so that an L0 that loses a deadline or a kick fails a check and does not hang it.
#![expect(unsafe_code, reason = "machine code as data")]

use core::arch::global_asm;

macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident: $($line:literal)*;)*) => {
        global_asm!(
            ".section .rodata.l2, \"a\", @progbits",
            $(
                ".balign 16",
                concat!(".global l2_", stringify!($name)),
                concat!("l2_", stringify!($name), ":"),
                $($line,)*
                concat!(".global l2_", stringify!($name), "_end"),
                concat!("l2_", stringify!($name), "_end:"),
            )*
            ".text",
        );
        $(
            $(#[$doc])*
            pub fn $name() -> &'static [u8] {
                unsafe extern "C" {
                    #[link_name = concat!("l2_", stringify!($name))]
                    static START: u8;
                    #[link_name = concat!("l2_", stringify!($name), "_end")]
                    static END: u8;
                }
                let (start, end) = (&raw const START, &raw const END);
                // SAFETY: both labels are in one section of constants, in this order.
                unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) }
            }
        )*
    };
}

/// EAX of a loop whose time was up.
pub const TIME_UP: u32 = 0xdead;

programs! {
    /// HLT, then done with EAX + 1, and so on.
    halts: "2: hlt" "inc eax" "out 0xf0, eax" "jmp 2b";
    /// Done with EAX, EAX + 1, ...
    counts: "2: out 0xf0, eax" "inc eax" "jmp 2b";
    /// Spins until the time in R15, then done with `TIME_UP`. RBX, and the 8 bytes at RSI, count
    /// turns.
    spins: "2: inc rbx" "mov [rsi], rbx" "rdtsc" "shl rdx, 32" "or rax, rdx" "cmp rax, r15" "jb 2b"
        "mov eax, 0xdead" "out 0xf0, eax" "jmp 2b";
    /// OUT of 1, 2, 4 bytes of EAX to DX; then IN of 4, 2, 1 bytes, each done; done.
    ports: "out dx, al" "out dx, ax" "out dx, eax"
        "in eax, dx" "out 0xf0, eax" "mov eax, -1" "in ax, dx" "out 0xf0, eax"
        "mov eax, -1" "in al, dx" "out 0xf0, eax" "hlt";
    /// OUTS of RCX bytes at RSI to DX, then done.
    out_string: "cld" "rep outsb" "mov eax, ecx" "out 0xf0, eax" "hlt";
    /// OUTS of RCX 4-byte elements at RSI to DX, then done.
    out_string_32: "cld" "rep outsd" "mov eax, ecx" "out 0xf0, eax" "hlt";
    /// INS of RCX bytes to RDI from DX, then done.
    in_string: "cld" "rep insb" "mov eax, ecx" "out 0xf0, eax" "hlt";
    /// Stores RAX at RDI with 1, 2, 4, 8 bytes, then done.
    stores: "mov [rdi], al" "mov [rdi], ax" "mov [rdi], eax" "mov [rdi], rax" "out 0xf0, eax" "hlt";
    /// Loads from RDI with 8, 4, 2, 1 bytes into RAX, RBX, RCX, RDX; then done.
    loads: "mov rax, [rdi]" "mov ebx, [rdi]" "movzx ecx, word ptr [rdi]" "movzx edx, byte ptr [rdi]"
        "out 0xf0, eax" "hlt";
    /// Stores RAX at RDI, then done.
    store: "mov [rdi], rax" "out 0xf0, eax" "hlt";
    /// Loads RAX from RDI, then done.
    load: "mov rax, [rdi]" "out 0xf0, eax" "hlt";
    /// Loads EAX from RDI, then done.
    load_32: "mov eax, [rdi]" "out 0xf0, eax" "hlt";
    /// Stores 16 bytes of XMM0 at RDI, then done.
    store_16: "movq xmm0, rax" "movups [rdi], xmm0" "out 0xf0, eax" "hlt";
    /// Jumps to RDI.
    jumps: "jmp rdi";
    /// Looks at the 8 bytes at RDI, each R8 bytes further, RCX times; they must be RBX, each R9
    /// more. Done with how many are not.
    verifies: "xor eax, eax" "2: cmp [rdi], rbx" "je 3f" "inc eax" "3: add rdi, r8" "add rbx, r9"
        "dec rcx" "jnz 2b" "out 0xf0, eax" "hlt";
    /// Writes RBX to RDI, each R8 bytes further, RCX times; then done.
    writes: "2: mov [rdi], rbx" "add rdi, r8" "dec rcx" "jnz 2b" "mov eax, ebx" "out 0xf0, eax" "hlt";
    /// Waits until the 8 bytes at RDI are RBX, or the time in R15; then done with 1, or `TIME_UP`.
    awaits: "2: rdtsc" "shl rdx, 32" "or rax, rdx" "cmp rax, r15" "jae 3f" "cmp [rdi], rbx" "jne 2b"
        "mov eax, 1" "out 0xf0, eax" "3: mov eax, 0xdead" "out 0xf0, eax" "hlt";
    /// Writes RBX to RSI, then as `awaits`.
    meets: "mov [rsi], rbx" "2: rdtsc" "shl rdx, 32" "or rax, rdx" "cmp rax, r15" "jae 3f"
        "cmp [rdi], rbx" "jne 2b" "mov eax, 1" "out 0xf0, eax" "3: mov eax, 0xdead" "out 0xf0, eax"
        "hlt";
    /// CPUID of EAX, ECX; all four results to RDI; done; again with what L1 sets.
    cpuids: "2: cpuid" "mov [rdi], eax" "mov [rdi + 4], ebx" "mov [rdi + 8], ecx"
        "mov [rdi + 12], edx" "out 0xf0, eax" "jmp 2b";
    /// RCX times CPUID of leaf R8, then done.
    cpuid_loop: "mov r9, rcx" "2: mov eax, r8d" "xor ecx, ecx" "cpuid" "dec r9" "jnz 2b"
        "out 0xf0, eax" "hlt";
    /// R9 times RDMSR of ECX, then done.
    rdmsr_loop: "2: rdmsr" "dec r9" "jnz 2b" "out 0xf0, eax" "hlt";
    /// R9 turns of nothing, then done.
    empty_loop: "2: dec r9" "jnz 2b" "out 0xf0, eax" "hlt";
    /// RDMSR of ECX; EDX:EAX to RDI; done; again.
    rdmsrs: "2: rdmsr" "mov [rdi], eax" "mov [rdi + 4], edx" "out 0xf0, eax" "jmp 2b";
    /// WRMSR of EDX:EAX to ECX, then done, and again.
    wrmsrs: "2: wrmsr" "out 0xf0, eax" "jmp 2b";
    /// VMCALL with RAX and the rest, then done with EAX.
    vmcall: "vmcall" "out 0xf0, eax" "hlt";
    /// VMMCALL with RAX and the rest, then done with EAX.
    vmmcall: "vmmcall" "out 0xf0, eax" "hlt";
    /// A triple fault.
    faults_thrice: "lidt [rdi]" "ud2";
    /// STI and HLT; done with EAX afterwards.
    opens_and_halts: "sti" "hlt" "out 0xf0, eax" "hlt";
    /// Done, STI, NOP, done.
    sti_between: "out 0xf0, eax" "sti" "nop" "nop" "out 0xf0, eax" "hlt";
    /// All general registers but RSP to RDI by number, then done.
    shows_registers: "mov [rdi], rax" "mov [rdi + 8], rcx" "mov [rdi + 16], rdx" "mov [rdi + 24], rbx"
        "mov [rdi + 32], rsp" "mov [rdi + 40], rbp" "mov [rdi + 48], rsi" "mov [rdi + 56], rdi"
        "mov [rdi + 64], r8" "mov [rdi + 72], r9" "mov [rdi + 80], r10" "mov [rdi + 88], r11"
        "mov [rdi + 96], r12" "mov [rdi + 104], r13" "mov [rdi + 112], r14" "mov [rdi + 120], r15"
        "out 0xf0, eax" "hlt";
    /// DR0 to DR3, DR6, DR7, CR2 and CR8 to RDI, then done.
    shows_special: "mov rax, dr0" "mov [rdi], rax" "mov rax, dr1" "mov [rdi + 8], rax"
        "mov rax, dr2" "mov [rdi + 16], rax" "mov rax, dr3" "mov [rdi + 24], rax"
        "mov rax, dr6" "mov [rdi + 32], rax" "mov rax, dr7" "mov [rdi + 40], rax"
        "mov rax, cr2" "mov [rdi + 48], rax" "mov rax, cr8" "mov [rdi + 56], rax"
        "out 0xf0, eax" "hlt";
    /// XMM0 and XMM15's low halves to RDI, changes both by one, then done.
    shows_vectors: "movq [rdi], xmm0" "movq [rdi + 8], xmm15" "movq rax, xmm0" "inc rax"
        "movq xmm0, rax" "out 0xf0, eax" "hlt";
    /// CR8 = 9, then 3, then done.
    lowers_priority: "mov eax, 9" "mov cr8, rax" "mov eax, 3" "mov cr8, rax" "out 0xf0, eax" "hlt";
    /// The TSC to RDI, then done, and again.
    tells_time: "2: rdtsc" "mov [rdi], eax" "mov [rdi + 4], edx" "out 0xf0, eax" "jmp 2b";
    /// Reads and counts where mappings flip: looks whether the 8 bytes at RDI are RBX (stale: then
    /// RDX counts at RSI), adds one at RDI + 8 and at RSI + 8; done only after the time in R15.
    flips: "2: cmp [rdi], rbx" "jne 3f" "inc qword ptr [rsi]" "3: lock inc qword ptr [rdi + 8]"
        "inc qword ptr [rsi + 8]" "rdtsc" "shl rdx, 32" "or rax, rdx" "cmp rax, r15" "jb 2b"
        "mov eax, 0xdead" "out 0xf0, eax" "jmp 2b";
    /// Writes RBX, RBX + 1, ... to pages RDI to RSI, over and over, until the time in R15.
    dirties: "mov r8, rdi" "2: mov [rdi], rbx" "inc rbx" "add rdi, 0x1000" "cmp rdi, rsi" "jb 2b"
        "mov rdi, r8" "rdtsc" "shl rdx, 32" "or rax, rdx" "cmp rax, r15" "jb 2b"
        "mov eax, 0xdead" "out 0xf0, eax" "hlt";
    /// 32-bit: EAX + EBX, stored at EDI, then done.
    protected_sum: ".code32" "add eax, ebx" "mov [edi], eax" "out 0xf0, eax" "hlt" ".code64";
    /// Local APIC on, its timer at vector 0x50 for RBX ticks; STI; HLT; done.
    apic_timer: "mov edi, 0xfee00000" "mov dword ptr [rdi + 0xf0], 0x1ff"
        "mov dword ptr [rdi + 0x3e0], 0xb" "mov dword ptr [rdi + 0x320], 0x50"
        "mov [rdi + 0x380], ebx" "sti" "hlt" "out 0xf0, eax" "hlt";
    /// Local APIC on, without the 8259; its timer at vector 0x52 for EBX ticks; STI; done; then HLT
    /// and done, again and again. An L0 that forgets to wake it hangs no longer than the timer.
    apic_waits: "mov edi, 0xfee00000" "mov dword ptr [rdi + 0xf0], 0x1ff"
        "mov dword ptr [rdi + 0x350], 0x10000" "mov dword ptr [rdi + 0x3e0], 0xb"
        "mov dword ptr [rdi + 0x320], 0x52" "mov [rdi + 0x380], ebx" "sti" "out 0xf0, eax"
        "2: hlt" "inc eax" "out 0xf0, eax" "jmp 2b";
    /// Local APIC on; I/O APIC pin EBX to vector 0x51, edge; STI; done; HLT; done.
    io_apic_waits: "mov edi, 0xfee00000" "mov dword ptr [rdi + 0xf0], 0x1ff"
        "mov dword ptr [rdi + 0x350], 0x10000"
        "mov esi, 0xfec00000" "lea ecx, [rbx * 2 + 0x11]" "mov [rsi], ecx"
        "mov dword ptr [rsi + 0x10], 0" "dec ecx" "mov [rsi], ecx" "mov dword ptr [rsi + 0x10], 0x51"
        "sti" "out 0xf0, eax" "2: hlt" "inc eax" "out 0xf0, eax" "jmp 2b";
    /// The local APIC's id to RDI, then sends INIT and SIPI to page RCX to APIC id EBX; then waits
    /// until the 8 bytes at RSI are not 0 or the time in R15; done with them.
    apic_starts: "mov r8d, 0xfee00000" "mov dword ptr [r8 + 0xf0], 0x1ff" "shl ebx, 24"
        "mov [r8 + 0x310], ebx" "mov dword ptr [r8 + 0x300], 0x4500"
        "or ecx, 0x4600" "mov [r8 + 0x310], ebx" "mov [r8 + 0x300], ecx"
        "2: rdtsc" "shl rdx, 32" "or rax, rdx" "cmp rax, r15" "jae 3f" "mov rax, [rsi]" "test rax, rax"
        "jz 2b" "out 0xf0, eax" "3: mov eax, 0xdead" "out 0xf0, eax" "hlt";
    /// 16-bit, at a page's start: stores 0x77 at DS:0xff0 (DS = CS), then HLT.
    started: ".code16" "mov ax, cs" "mov ds, ax" "mov byte ptr [0xff0], 0x77" "2: hlt" "jmp 2b"
        ".code64";
}
