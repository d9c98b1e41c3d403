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
    undefined: "ud2";
    sti_cli: "sti" "cli";
    load: "mov rax, [rbx]";
    store: "mov [rbx], rax";
    jump: "jmp rbx";
    rdmsr: "rdmsr";
    wrmsr: "wrmsr";
    rdtscp: "rdtscp";
    rdpid: "rdpid rax";
}
