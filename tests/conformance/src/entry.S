/* A C1 kernel's entries: start, events, system calls, the way to user mode and back, and the way
 * into supervisor-mode probes and back. Two vCPUs, each with entries of its own, so everything is
 * found relative to RIP; what belongs to the second has names that start with `second_`. */

    /* All registers and RFLAGS, exactly as they are, to a `State`. Changes RSP only. */
    .macro STORE_STATE state
    mov [rip + \state + {S_RSP}], rsp
    lea rsp, [rip + \state + {S_FLAGS} + 8]
    pushfq
    lea rsp, [rip + \state + {S_RSP}]
    PUSH_ALL
    .endm

    .section .entry, "ax", @progbits
    .global guest_start
guest_start:
    STORE_STATE start_state
    lea rsp, [rip + boot_stack_top]
    mov rdi, rsi
    xor ebp, ebp
    call guest_main
    ud2

    .global second_start
second_start:
    STORE_STATE second_start_state
    lea rsp, [rip + second_stack_top]
    xor ebp, ebp
    call second_main
    ud2

    /* Leaves user mode: everything to `user_state`; back on the kernel stack that enter_user
     * left. EAX says which entry it was. */
    .macro LEAVE_USER kind, of
    STORE_STATE \of\()user_state
    mov rsp, [rip + \of\()user_kernel_rsp]
    mov eax, \kind
    POP_KEPT
    ret
    .endm

    /* The entries of one vCPU. */
    .macro ENTRIES of
    /* Event from user mode: +0. Event from supervisor mode: +512. */
    .balign 1024
    .global \of\()event_entry
\of\()event_entry:
    LEAVE_USER 1, \of
    .org \of\()event_entry + 512
    /* RCX, R11 and RFLAGS as they came, for the checks; then, on the current stack below a red
     * zone, an IRETQ frame and all registers. */
    mov [rip + \of\()kernel_entry_state], rcx
    mov [rip + \of\()kernel_entry_state + 8], r11
    mov [rip + \of\()event_rsp], rsp
    lea rsp, [rsp - 128]
    pushfq
    pop [rip + \of\()kernel_entry_state + 16]
    and rsp, -16
    push 0
    push {USER_DS}
    push [rip + \of\()event_rsp]
    push 0
    push {USER_CS}
    mov rcx, [rip + \of\()current_pvcs]
    mov r11, [rcx + {PVCS_R11}]
    push [rcx + {PVCS_RIP}]
    mov rcx, [rcx + {PVCS_RCX}]
    PUSH_ALL
    mov rdi, rsp
    cld
    call \of\()kernel_event
    POP_ALL
    /* The handler stored RFLAGS without the interrupt flag; the virtual one is its business. */
    iretq

    .global \of\()syscall_entry
\of\()syscall_entry:
    LEAVE_USER 0, \of

    /* Enters user mode with `user_state`; the PVCS is filled. Returns when it is left. */
    .global \of\()enter_user
\of\()enter_user:
    PUSH_KEPT
    mov [rip + \of\()user_kernel_rsp], rsp
    lea rsp, [rip + \of\()user_state]
    POP_ALL
    mov rsp, [rip + \of\()user_state + {S_RSP}]
    .global \of\()retu_instruction
\of\()retu_instruction:
    syscall
    ud2
    .endm

    ENTRIES
    ENTRIES second_

    /* A second ERETU, for RETU_PREFAULT_RIP. */
    .global enter_user_prefault
enter_user_prefault:
    PUSH_KEPT
    mov [rip + user_kernel_rsp], rsp
    lea rsp, [rip + user_state]
    POP_ALL
    mov rsp, [rip + user_state + {S_RSP}]
    .global retu_prefault_instruction
retu_prefault_instruction:
    syscall
    ud2

    /* Entries that read the time before anything else, into `measured`. */
    .macro MEASURE
    rdtsc
    mov [rip + measured], eax
    mov [rip + measured + 4], edx
    .endm

    .balign 1024
    .global measured_event_entry
measured_event_entry:
    MEASURE
    jmp event_entry
    .org measured_event_entry + 512
    jmp event_entry + 512
    .global measured_syscall_entry
measured_syscall_entry:
    MEASURE
    jmp syscall_entry

    /* The way to user mode with the time before it in R15. */
    .global enter_user_measured
enter_user_measured:
    PUSH_KEPT
    mov [rip + user_kernel_rsp], rsp
    lea rsp, [rip + user_state]
    POP_ALL
    mov rsp, [rip + user_state + {S_RSP}]
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov r15, rax
    .global measured_retu_instruction
measured_retu_instruction:
    syscall
    ud2

    /* Runs supervisor-mode code at `probe_target` with the registers of `probe_state`; returns
     * when it jumps to probe_done, as every snippet does at its end and the event handler does
     * after an exception. */
    .global enter_probe
enter_probe:
    PUSH_KEPT
    mov [rip + probe_kernel_rsp], rsp
    push {RFLAGS}
    popfq
    lea rsp, [rip + probe_state]
    POP_ALL
    mov rsp, [rip + probe_state + {S_RSP}]
    jmp [rip + probe_target]
    .global probe_done
probe_done:
    STORE_STATE probe_state
    mov rsp, [rip + probe_kernel_rsp]
    push {RFLAGS}
    popfq
    POP_KEPT
    ret

    /* RDI = 16 values of 16 bytes for XMM0 to XMM15, behind them the x87 control word and MXCSR. */
    .global load_vectors
load_vectors:
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups xmm\number, [rdi + 16 * \number]
    .endr
    fldcw [rdi + 256]
    ldmxcsr [rdi + 260]
    ret
    /* The way back. */
    .global store_vectors
store_vectors:
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups [rdi + 16 * \number], xmm\number
    .endr
    fnstcw [rdi + 256]
    stmxcsr [rdi + 260]
    ret

    .section .bss.guest, "aw", @nobits
    .macro VARIABLES of
    .balign 4096
    .global \of\()pvcs
\of\()pvcs:
    .skip 4096
    .global \of\()user_state
\of\()user_state:
    .skip {S_SIZE}
    .global \of\()start_state
\of\()start_state:
    .skip {S_SIZE}
    .global \of\()current_pvcs
\of\()current_pvcs:
    .skip 8
    .global \of\()kernel_entry_state
\of\()kernel_entry_state:
    .skip 24
\of\()user_kernel_rsp:
    .skip 8
\of\()event_rsp:
    .skip 8
    .endm

    VARIABLES
    VARIABLES second_
    .balign 4096
    .skip 65536
    .global boot_stack_top
boot_stack_top:
    .skip 32768
    .global second_stack_top
second_stack_top:
    .skip 32768
    .global probe_stack_top
probe_stack_top:
    .global probe_state
probe_state:
    .skip {S_SIZE}
    .global probe_target
probe_target:
    .skip 8
    .global measured
measured:
    .skip 8
probe_kernel_rsp:
    .skip 8
