//! Holds pieces of hostile machine code, which are copied to where they run.
//! May: unsafe, asm. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "machine code and its addresses")]

/// Defines functions that return the bytes of pieces of code: `name: "instruction" ...;`.
macro_rules! pieces {
    ($($name:ident: $($line:literal)*;)*) => {
        core::arch::global_asm!(
            ".section .rodata.pieces, \"a\"",
            $(
                concat!(".global piece_", stringify!($name)),
                concat!("piece_", stringify!($name), ":"),
                $($line,)*
                concat!(".global piece_", stringify!($name), "_end"),
                concat!("piece_", stringify!($name), "_end:"),
            )*
            ".text",
        );
        $(
            #[doc = concat!($("`", $line, "` ",)*)]
            pub fn $name() -> &'static [u8] {
                unsafe extern "C" {
                    #[link_name = concat!("piece_", stringify!($name))]
                    static START: u8;
                    #[link_name = concat!("piece_", stringify!($name), "_end")]
                    static END: u8;
                }
                let (start, end) = (&raw const START, &raw const END);
                // SAFETY: the labels are around the piece, which is constant.
                unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) }
            }
        )*
    };
}

pieces! {
    call: "call rax";
    described: "lar ecx, eax" "lsl edx, eax" "verr ax" "verw ax" "int3";
    disable_events: "wrmsr" "ud2";
    divide: "xor eax, eax" "xor edx, edx" "div eax";
    exchange_tables: "mov [rbx], rax" "mov rcx, [rdx]" "mov [rbx], rsi" "mov [rdx], rcx" "int3";
    far_return: "push rax" "push rbx" "retfq";
    fetch_nowhere: "mov cr3, rax" "nop";
    frame: "mov rbp, rax" "mov rbx, [rbp + 8]" "int3";
    general_protection: "mov eax, 0xfff8" "mov ds, eax";
    guard: "mov [rbx], rax" "ud2";
    halt: "hlt" "int3";
    icebp: ".byte 0xf1" "int3";
    int3: "int3";
    int80: "int 0x80";
    iret32: "iretd";
    iretq: "iretq";
    irq_halt: "mov eax, 0x17088202" "syscall" "int3";
    jump: "jmp rbx";
    load: "mov rax, [rbx]" "int3";
    load_16: "mov ax, [rbx]" "int3";
    load_32: "mov eax, [rbx]" "int3";
    load_8: "mov al, [rbx]" "int3";
    loads: "mov ds, eax" "mov es, eax" "mov fs, eax" "mov gs, eax" "int3";
    locked: "lock add [rbx], eax";
    mov_ss: "mov ss, eax" "ud2";
    mov_ss_icebp: "mov ss, [rbx]" ".byte 0xf1" "int3";
    mov_ss_int3: "mov ss, [rbx]" "int3";
    mov_ss_int80: "mov ss, [rbx]" "int 0x80";
    mov_ss_mov_ss: "mov ss, [rbx]" "mov ss, [rbx]" "syscall" "int3";
    mov_ss_syscall: "mov ss, [rbx]" "syscall" "int3";
    mov_ss_ud2: "mov ss, [rbx]" "ud2";
    nops: "mov ecx, 30" "2: dec ecx" "jnz 2b" "int3";
    popf: "popfq" "int3";
    push: "mov rsp, rax" "push rbx" "int3";
    rdmsr: "rdmsr" "int3";
    read_cr3: "mov rax, cr3" "int3";
    ret: "push rax" "ret";
    // The store is to the instruction behind it, which is of eight bytes.
    rewritten: "mov [rdi], rbp" ".byte 0xcc,0xcc,0xcc,0xcc,0xcc,0xcc,0xcc,0xcc" "int3";
    set_debug: "mov dr0, rbx" "mov dr1, rbp" "mov dr2, rsi" "mov dr3, rdi" "mov dr7, rax" "int3";
    sti_cli: "sti" "nop" "cli" "sti" "cli" "int3";
    sti_syscall: "sti" "syscall" "int3";
    store: "mov [rbx], rax" "int3";
    store_16: "mov [rbx], ax" "int3";
    store_32: "mov [rbx], eax" "int3";
    store_8: "mov [rbx], al" "int3";
    stores: "2: inc qword ptr [rbx]" "dec ecx" "jnz 2b" "int3";
    swapgs: "swapgs" "int3";
    syscall: "syscall";
    sysenter: "sysenter";
    through: "mov fs, eax" "mov rbx, fs:[rcx]" "mov gs, eax" "mov gs:[rcx], rbx" "int3";
    touch: "mov rax, [rbx]" "mov [rbx], rax" "mov rcx, rax" "int3";
    touch_and_call: "mov rax, 0x17088201" "mov [rbx], rcx" "syscall" "int3";
    touch_and_emulate: "mov [rbx], rcx" "in al, 0x42" "int3";
    touch_at_once: "mov [rbx], rax" "int3";
    touch_string: "mov rdi, rbx" "mov ecx, 4" "rep stosb" "int3";
    ud2: "ud2";
    wrfsbase: "wrfsbase rax" "rdfsbase rbx" "int3";
    wrgsbase: "wrgsbase rax" "rdgsbase rbx" "int3";
    write_cr3: "mov cr3, rax" "int3";
    write_words: "mov [rbx], rax" "mov [rbx + 8], rcx" "mov [rbx + 16], rdx"
        "mov [rbx + 24], rsi" "mov [rbx + 32], rdi" "mov [rbx + 40], r8" "syscall";
    wrmsr: "wrmsr" "int3";
}
