/* The ways into a kernel and out of it: start, events, system calls of user mode, the way to user
 * mode, hypercalls. GS leads to what is each vCPU's own (`Local`): in supervisor mode it always does.
 *
 * On every entry from the hypervisor RIP, RCX, R11, RFLAGS, CS and SS are set, and all other
 * registers are as they were (docs/spec/guest.md, EVT-11). */

    .section .text.l2_guest_entry, "ax", @progbits

    /* Start (ST-2). In: RSI = GPA of the boot block, RDI = the function to call with it, which does
     * not return. No stack yet. */
    .global l2_guest_start
l2_guest_start:
    lea rsp, [rip + l2_guest_stack_top]
    xchg rdi, rsi
    xor ebp, ebp
    call rsi
    ud2

    /* Start of another vCPU (SMP-2). In: RDI = its `Local`, with the stack behind it. */
    .global l2_guest_start_other
l2_guest_start_other:
    lea rsp, [rdi + {LOCAL} + {STACK}]
    xor ebp, ebp
    call {other}
    ud2

    /* Leaves user mode (EVT-1, EVT-5): registers to the `Registers` that l2_guest_enter_user was
     * given, and returns from it with `kind`. The virtual interrupt flag is still 0, so nothing
     * comes between. RCX and R11 are in the PVCS. */
    .macro LEAVE_USER kind
    mov gs:[{USER_RSP}], rsp
    mov rsp, gs:[{USER}]
    lea rsp, [rsp + {REGISTERS_RSP}]
    PUSH_ALL
    mov rax, gs:[{USER_RSP}]
    mov [rsp + {REGISTERS_RSP}], rax
    mov rsp, gs:[{KERNEL_RSP}]
    cld
    mov eax, \kind
    POP_KEPT
    ret
    .endm

    /* Event from user mode. */
    .balign 1024
    .global l2_guest_event_entry
l2_guest_event_entry:
    LEAVE_USER {KIND_EVENT}

    /* Event from supervisor mode (EVT-2), 512 bytes further. Builds a `Frame` on the current stack:
     * what IRETQ takes, and all registers. The virtual interrupt flag is 0. */
    .org l2_guest_event_entry + {SUPERVISOR}
    mov gs:[{EVENT_RSP}], rsp
    /* C code may use 128 bytes below its stack pointer. */
    lea rsp, [rsp - 128]
    and rsp, -16
    push {USER_DS}
    push gs:[{EVENT_RSP}]
    push {RFLAGS}
    push {USER_CS}
    mov r11, gs:[{PVCS_R11}]
    push gs:[{PVCS_RIP}]
    mov rcx, gs:[{PVCS_RCX}]
    PUSH_ALL
    mov rdi, rsp
    cld
    call {event}
    POP_ALL
    /* From smod to smod (RET-5). The handler has restored the virtual interrupt flag. */
    iretq

    /* System call of user mode. */
    .global l2_guest_syscall_entry
l2_guest_syscall_entry:
    LEAVE_USER {KIND_SYSCALL}

    /* Enters user mode (RET-1) with the `Registers` at RDI; the PVCS holds the rest, and the virtual
     * interrupt flag is 0. Returns when user mode is left: EAX says by which entry. */
    .global l2_guest_enter_user
l2_guest_enter_user:
    PUSH_KEPT
    mov gs:[{KERNEL_RSP}], rsp
    mov gs:[{USER}], rdi
    mov rsp, [rdi + {REGISTERS_RSP}]
    mov gs:[{USER_RSP}], rsp
    mov rsp, rdi
    POP_ALL
    mov rsp, gs:[{USER_RSP}]
    .global l2_guest_retu
l2_guest_retu:
    syscall
    ud2

    /* A hypercall (HC-1). In: RDI = number, RSI, RDX, RCX, R8 = arguments. Out: RAX. */
    .global l2_guest_hypercall
l2_guest_hypercall:
    push rbx
    mov rax, rdi
    mov rbx, rsi
    mov r10, rdx
    mov rdx, rcx
    mov rsi, r8
    syscall
    pop rbx
    ret

    .section .bss.l2_guest, "aw", @nobits
    .balign 4096
    .global l2_guest_local
l2_guest_local:
    .skip {LOCAL}
    .skip {STACK}
l2_guest_stack_top:
    .text
