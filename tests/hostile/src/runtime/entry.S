/* Start, the way into a trial and the ways out of it. Two vCPUs, each with ways of its own, so
 * everything is found relative to RIP; what belongs to the second has names that start with
 * `second_`.
 *
 * `.gate` and `.state` are mapped in every address space; all else of the guest in its own alone.
 * A trial may leave anything in its registers and in the memory it can reach: the ways out rely on
 * nothing but these pages until they have loaded the guest's own root. */

    .section .text.start, "ax", @progbits
    /* Start (ST-2). In: RSI = GPA of the boot block. */
    .global guest_start
guest_start:
    lea rsp, [rip + stack_top]
    mov rdi, rsi
    xor ebp, ebp
    call {guest_main}
    ud2

    /* Start of the second vCPU (SMP-2). */
    .global second_start
second_start:
    lea rsp, [rip + second_stack_top]
    xor ebp, ebp
    call {second_main}
    ud2

    /* Start of one that makes trouble. In: RDI = random. */
    .global restless_start
restless_start:
    lea rsp, [rip + second_stack_top]
    xor ebp, ebp
    call {restless}
    ud2

    /* Leaves a trial: all registers to `trial_state`, the guest's own root, the caller of
     * trial_enter. RFLAGS are plain (EVT-11). */
    .macro LEAVE kind, of
    mov [rip + \of\()trial_state + {S_RSP}], rsp
    lea rsp, [rip + \of\()trial_state + {S_RSP}]
    PUSH_ALL
    mov r12d, \kind
    jmp \of\()trial_left
    .endm

    /* The ways of one vCPU. */
    .macro WAYS of
    /* Runs a trial. In: RDI = root of its address space, RSI = 0 for supervisor mode, by IRETQ of
     * trial_frame, 1 for user mode, by ERETU of the PVCS; RDX = bits
     * to set in event_flags; trial_state has the registers. Out: EAX
     * says by which way it was left; trial_state has the registers as they were then. */
    .global \of\()trial_enter
\of\()trial_enter:
    PUSH_KEPT
    mov r12, rsi
    mov [rip + \of\()trial_kernel_rsp], rsp
    /* From here on an event finds its way out. */
    lock or [rip + \of\()pvcs], rdx
    lea rax, [rip + kernel_root]
    cmp rax, rdi
    je 1f
    mov eax, {LOAD_PGTBL}
    xor ebx, ebx
    mov r10, rdi
    syscall
1:  lea rsp, [rip + \of\()trial_state]
    test r12, r12
    jnz 2f
    POP_ALL
    lea rsp, [rip + \of\()trial_frame]
    iretq
2:  POP_ALL
    mov rsp, [rip + \of\()trial_state + {S_RSP}]
    .global \of\()retu_instruction
\of\()retu_instruction:
    syscall
    ud2

    .balign 1024
    .global \of\()event_entry
\of\()event_entry:
    LEAVE {KIND_USER_EVENT}, \of
    .org \of\()event_entry + {SUPERVISOR}
    LEAVE {KIND_SUPERVISOR_EVENT}, \of
    .global \of\()syscall_entry
\of\()syscall_entry:
    LEAVE {KIND_SYSCALL}, \of

\of\()trial_left:
    mov eax, {LOAD_PGTBL}
    xor ebx, ebx
    lea r10, [rip + kernel_root]
    syscall
    /* Whoever comes here without having gone in is the guest's own bug. */
    xor ebx, ebx
    xchg rbx, [rip + \of\()trial_kernel_rsp]
    test rbx, rbx
    jz 1f
    mov rsp, rbx
    mov eax, r12d
    POP_KEPT
    ret
1:  lea rsp, [rip + \of\()stack_top]
    xor ebp, ebp
    call {lost}
    ud2
    .endm

    .section .gate, "ax", @progbits
    WAYS
    WAYS second_

    /* A vCPU that stops as soon as it is started, in any address space. */
    .global stop_start
stop_start:
    mov eax, {VCPU_STOP}
    syscall
    ud2

    .macro STATE of
    .balign 16
    .global \of\()trial_state
\of\()trial_state:
    .skip {S_SIZE}
    .global \of\()trial_frame
\of\()trial_frame:
    .skip 40
    .endm

    .section .state, "aw", @progbits
    .balign 4096
    STATE
    STATE second_

    .macro OWN of
    .balign 4096
    .global \of\()pvcs
\of\()pvcs:
    .skip 4096
\of\()trial_kernel_rsp:
    .skip 8
    .balign 16
    .skip 131072
\of\()stack_top:
    .endm

    .section .bss.guest, "aw", @nobits
    .balign 4096
    .global kernel_root
kernel_root:
    .skip 4096
    OWN
    OWN second_
