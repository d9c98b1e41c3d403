/* Macros that keep general registers on the stack: for every native kernel's assembly, whose text
 * this stands before. */

    /* In the order of `Registers`, but for RSP. */
    .macro PUSH_ALL
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    push \register
    .endr
    .endm

    .macro POP_ALL
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
    pop \register
    .endr
    .endm

    /* Those that the C convention keeps. */
    .macro PUSH_KEPT
    .irp register, rbp, rbx, r12, r13, r14, r15
    push \register
    .endr
    .endm

    .macro POP_KEPT
    .irp register, r15, r14, r13, r12, rbx, rbp
    pop \register
    .endr
    .endm
