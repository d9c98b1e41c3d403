/* Start, the way into a trial and the ways out of it, and hypercalls. One vCPU, so everything is
 * found relative to RIP; a second one would have these addresses lead to pages of its own.
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

    .section .gate, "ax", @progbits
    /* Runs a trial. In: RDI = root of its address space, RSI = 0 for supervisor mode, by IRETQ of
     * trial_frame, 1 for user mode, by ERETU of the PVCS; RDX = bits
     * to set in event_flags; trial_state has the registers. Out: EAX
     * says by which way it was left; trial_state has the registers as they were then. */
    .global trial_enter
trial_enter:
    PUSH_KEPT
    mov r12, rsi
    mov [rip + trial_kernel_rsp], rsp
    /* From here on an event finds its way out. */
    lock or [rip + pvcs], rdx
    lea rax, [rip + kernel_root]
    cmp rax, rdi
    je 1f
    mov eax, {LOAD_PGTBL}
    xor ebx, ebx
    mov r10, rdi
    syscall
1:  lea rsp, [rip + trial_state]
    test r12, r12
    jnz 2f
    POP_ALL
    lea rsp, [rip + trial_frame]
    iretq
2:  POP_ALL
    mov rsp, [rip + trial_state + {S_RSP}]
    .global retu_instruction
retu_instruction:
    syscall
    ud2

    /* Leaves a trial: all registers to `trial_state`, the guest's own root, the caller of
     * trial_enter. RFLAGS are plain (EVT-11). */
    .macro LEAVE kind
    mov [rip + trial_state + {S_RSP}], rsp
    lea rsp, [rip + trial_state + {S_RSP}]
    PUSH_ALL
    mov r12d, \kind
    jmp trial_left
    .endm

    .balign 1024
    .global event_entry
event_entry:
    LEAVE {KIND_USER_EVENT}
    .org event_entry + {SUPERVISOR}
    LEAVE {KIND_SUPERVISOR_EVENT}
    .global syscall_entry
syscall_entry:
    LEAVE {KIND_SYSCALL}

trial_left:
    mov eax, {LOAD_PGTBL}
    xor ebx, ebx
    lea r10, [rip + kernel_root]
    syscall
    /* Whoever comes here without having gone in is the guest's own bug. */
    xor ebx, ebx
    xchg rbx, [rip + trial_kernel_rsp]
    test rbx, rbx
    jz 1f
    mov rsp, rbx
    mov eax, r12d
    POP_KEPT
    ret
1:  lea rsp, [rip + stack_top]
    xor ebp, ebp
    call {lost}
    ud2

    .section .state, "aw", @progbits
    .balign 4096
    .global trial_state
trial_state:
    .skip {S_SIZE}
    .global trial_frame
trial_frame:
    .skip 40

    .section .bss.guest, "aw", @nobits
    .balign 4096
    .global pvcs
pvcs:
    .skip 4096
    .global kernel_root
kernel_root:
    .skip 4096
trial_kernel_rsp:
    .skip 8
    .balign 16
    .skip 131072
stack_top:
