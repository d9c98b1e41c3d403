//! Snippets of supervisor-mode code.
#![expect(unsafe_code, reason = "machine code and its addresses")]

use crate::snippets;

snippets! {
    ".probe", "jmp probe_done";
    selectors: "mov eax, cs" "mov ebx, ss" "pushfq" "pop rcx";
    synthetic_cpuid: "invlpg [0xffffffffff4d5650]" "cpuid";
    half_synthetic: "invlpg [0xffffffffff4d5650]";
    cpuid: "cpuid";
    hypercall: "syscall";
    hypercall_with_flags: "pushfq" "or qword ptr [rsp], 0x40cd5" "popfq" "pushfq" "pop rbx" "syscall";
    lar_lsl: "xor ecx, ecx" "xor edi, edi" "lar eax, ebx" "setz cl" "lsl edx, ebx" "setz dil";
    load_fs: "mov fs, ebx";
    read_gs: "mov eax, gs";
    undefined: "ud2";
    undefined_with_flags: "push 0x40cd7" "popfq" "ud2";
    cmpxchg16b: "push 0x202" "popfq" "add r8, rbx" "mov r9, [rsi]" "cmpxchg16b [rsi]"
        "mov r9, [rdi]" "pushfq" "pop rax";
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
    nops: "nop" "nop" "nop" "nop";
    step_nop: "push 0x302" "popfq" "nop" "nop";
    step_hypercall: "push 0x302" "popfq" "syscall" "nop" "nop";
    step_in: "push 0x302" "popfq" "in al, 0x42" "nop" "nop";
    step_rdmsr: "push 0x302" "popfq" "rdmsr" "nop" "nop";
    step_wrmsr: "push 0x302" "popfq" "wrmsr" "nop" "nop";
    step_cpuid: "push 0x302" "popfq" "invlpg [0xffffffffff4d5650]" "cpuid" "nop" "nop";
    step_cr0: "push 0x302" "popfq" "mov rax, cr0" "nop" "nop";
    step_cli: "push 0x302" "popfq" "cli" "nop" "nop";
    step_hlt: "push 0x302" "popfq" "hlt" "nop" "nop";
    step_load: "push 0x302" "popfq" "mov eax, [rbx]" "nop" "nop";
    mov_ss_hypercall: "mov ss, [rbx]" "syscall";
    read_dr0: "mov rax, dr0";
    read_dr1: "mov rax, dr1";
    read_dr2: "mov rax, dr2";
    read_dr3: "mov rax, dr3";
    read_dr4: ".byte 0x0f, 0x21, 0xe0";
    read_dr5: ".byte 0x0f, 0x21, 0xe8";
    read_dr6: "mov rax, dr6";
    read_dr7: "mov rax, dr7";
    write_dr0: "mov dr0, rax";
    write_dr1: "mov dr1, rax";
    write_dr2: "mov dr2, rax";
    write_dr3: "mov dr3, rax";
    write_dr4: ".byte 0x0f, 0x23, 0xe0";
    write_dr5: ".byte 0x0f, 0x23, 0xe8";
    write_dr6: "mov dr6, rax";
    write_dr7: "mov dr7, rax";
    sti_cli: "sti" "cli";
    popf: "push 2" "popfq" "pushfq" "pop rax";
    count_down: "2: dec rcx" "jnz 2b";
    load: "mov rax, [rbx]";
    store: "mov [rbx], rax";
    jump: "jmp rbx";
    load_8: "mov al, [rbx]";
    load_high: "mov ah, [rbx]";
    load_16: "mov ax, [rbx]";
    load_32: "mov eax, [rbx]";
    load_zx_8: "movzx eax, byte ptr [rbx]";
    load_zx_16: "movzx eax, word ptr [rbx]";
    load_zx_16_64: "movzx rax, word ptr [rbx]";
    load_sx_8: "movsx eax, byte ptr [rbx]";
    load_sx_16_64: "movsx rax, word ptr [rbx]";
    load_sx_32: "movsxd rax, dword ptr [rbx]";
    load_indexed: "mov eax, [rbx + rcx * 4]";
    load_displaced: "mov eax, [rbx + 0x10]";
    load_32_bit_address: "mov eax, [ebx + 0x10]";
    load_absolute: "movabs eax, [0x40000010]";
    load_gs_relative: "mov eax, gs:[rbx]";
    store_8: "mov [rbx], al";
    store_16: "mov [rbx], ax";
    store_32: "mov [rbx], eax";
    store_imm: "mov dword ptr [rbx], 0x10055";
    store_imm_8: "mov byte ptr [rbx], 0x55";
    store_r15: "mov [rbx], r15d";
    store_absolute: "movabs [0x40000000], eax";
    xgetbv: "xor ecx, ecx" "xgetbv";
    store_xmm: "movups [rbx + 0], xmm0" "movups [rbx + 16], xmm1" "movups [rbx + 32], xmm2"
        "movups [rbx + 48], xmm3" "movups [rbx + 64], xmm4" "movups [rbx + 80], xmm5"
        "movups [rbx + 96], xmm6" "movups [rbx + 112], xmm7" "movups [rbx + 128], xmm8"
        "movups [rbx + 144], xmm9" "movups [rbx + 160], xmm10" "movups [rbx + 176], xmm11"
        "movups [rbx + 192], xmm12" "movups [rbx + 208], xmm13" "movups [rbx + 224], xmm14"
        "movups [rbx + 240], xmm15";
    store_ymm: "vmovups [rbx + 0], ymm0" "vmovups [rbx + 32], ymm1" "vmovups [rbx + 64], ymm2"
        "vmovups [rbx + 96], ymm3" "vmovups [rbx + 128], ymm4" "vmovups [rbx + 160], ymm5"
        "vmovups [rbx + 192], ymm6" "vmovups [rbx + 224], ymm7" "vmovups [rbx + 256], ymm8"
        "vmovups [rbx + 288], ymm9" "vmovups [rbx + 320], ymm10" "vmovups [rbx + 352], ymm11"
        "vmovups [rbx + 384], ymm12" "vmovups [rbx + 416], ymm13" "vmovups [rbx + 448], ymm14"
        "vmovups [rbx + 480], ymm15";
    far_jump: "push 0x23" "push rbx" "retfq";
    or_to_memory: "or [rbx], eax";
    move_string: "mov rsi, rbx" "lea rdi, [rsp - 512]" "movsd";
    load_vector: "movups xmm0, [rbx]";
    timed_nothing: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r8, rax" "mov rax, r9" "mov rcx, r9" "mov edx, 0x3ff"  "rdtsc" "shl rdx, 32" "or rax, rdx";
    timed_hypercall: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r8, rax" "mov rax, r9" "mov rcx, r9" "mov edx, 0x3ff" "syscall" "rdtsc" "shl rdx, 32" "or rax, rdx";
    timed_rdmsr: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r8, rax" "mov rax, r9" "mov rcx, r9" "mov edx, 0x3ff" "rdmsr" "rdtsc" "shl rdx, 32" "or rax, rdx";
    timed_cpuid: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r8, rax" "mov rax, r9" "mov rcx, r9" "mov edx, 0x3ff" "invlpg [0xffffffffff4d5650]" "cpuid" "rdtsc" "shl rdx, 32" "or rax, rdx";
    timed_out: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r8, rax" "mov rax, r9" "mov rcx, r9" "mov edx, 0x3ff" "out dx, al" "rdtsc" "shl rdx, 32" "or rax, rdx";
    timed_cr0: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r8, rax" "mov rax, r9" "mov rcx, r9" "mov edx, 0x3ff" "mov rax, cr0" "rdtsc" "shl rdx, 32" "or rax, rdx";
    timed_load: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r8, rax" "mov rax, r9" "mov rcx, r9" "mov edx, 0x3ff" "mov rax, [rbx]" "rdtsc" "shl rdx, 32" "or rax, rdx";
    timed_store: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r8, rax" "mov rax, r9" "mov rcx, r9" "mov edx, 0x3ff" "mov [rbx], rax" "rdtsc" "shl rdx, 32" "or rax, rdx";
    read_cr4_int3: "mov rax, cr4" "int3";
    fxsave: "fxsave64 [rbx]";
    rdtscp: "rdtscp";
    rdpid: "rdpid rax";
    read_fs_base: "rdfsbase rax";
    read_gs_base: "rdgsbase rax";
    write_fs_base: "wrfsbase rbx";
    write_gs_base: "wrgsbase rbx";
}
