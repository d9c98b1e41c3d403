//! Snippets of supervisor-mode code.
#![expect(unsafe_code, reason = "machine code and its addresses")]

use crate::snippets;

snippets! {
    ".probe", "jmp probe_done";
    nothing: "nop";
    selectors: "mov eax, cs" "mov ebx, ss" "pushfq" "pop rcx";
    synthetic_cpuid: "invlpg [0xffffffffff4d5650]" "cpuid";
    half_synthetic: "invlpg [0xffffffffff4d5650]";
    cpuid: "cpuid";
    hypercall: "syscall";
    hypercall_with_flags: "pushfq" "or qword ptr [rsp], 0x40cd5" "popfq" "pushfq" "pop rbx" "syscall";
    mov_from_cr3: "mov rax, cr3";
    lar_lsl: "xor ecx, ecx" "xor edi, edi" "lar eax, ebx" "setz cl" "lsl edx, ebx" "setz dil";
    load_fs: "mov fs, ebx";
    read_gs: "mov eax, gs";
    undefined: "ud2";
    undefined_with_flags: "push 0x40cd7" "popfq" "ud2";
    divide: "xor eax, eax" "xor edx, edx" "div eax";
    int3: "int3";
    int4: "int 4";
    int80: "int 0x80";
    int21: "int 0x21";
    int0: "int 0";
    icebp: ".byte 0xf1";
    load_stack: "mov rax, [rbp]";
    load_ds: "mov ds, ebx";
    x87_error: "fninit" "push 0x37b" "fldcw [rsp]" "fld1" "fldz" "fdivp" "fwait";
    swapgs: "swapgs";
    sysret: "sysretq";
    rdpmc: "rdpmc";
    sti_cli: "sti" "cli";
    load: "mov rax, [rbx]";
    store: "mov [rbx], rax";
    jump: "jmp rbx";
    rdmsr: "rdmsr";
    wrmsr: "wrmsr";
    rdtscp: "rdtscp";
    rdpid: "rdpid rax";
}
