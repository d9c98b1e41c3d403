/* A C1 kernel's entries: start, events, system calls, the way to user mode and back.
 * One vCPU, so everything is found relative to RIP. */

    .section .note.Roost, "a", @note
    .balign 4
    .long 6
    .long 4
    .long 1
    .asciz "Roost"
    .balign 4
    .long {ABI_VERSION}

    .section .entry, "ax", @progbits
    .global guest_start
guest_start:
    lea rsp, [rip + boot_stack_top]
    mov rdi, rsi
    xor ebp, ebp
    call guest_main
    ud2

    .macro PUSH_ALL
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    .endm

    .macro POP_ALL
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    .endm

    /* Leaves user mode: the user's registers to `user_registers`, except RCX and R11, which the
     * PVCS holds; back on the kernel stack that enter_user left. AL says which entry it was. */
    .macro LEAVE_USER kind
    mov [rip + user_registers + {U_RSP}], rsp
    lea rsp, [rip + user_registers + {U_END}]
    PUSH_ALL
    mov rsp, [rip + kernel_rsp]
    mov eax, \kind
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
    .endm

    /* Event from user mode: +0. Event from supervisor mode: +512. */
    .balign 1024
    .global event_entry
event_entry:
    LEAVE_USER 1
    .org event_entry + 512
    /* The current stack, below a red zone, as an IRETQ frame and all registers. */
    mov [rip + event_scratch], rsp
    sub rsp, 128
    and rsp, -16
    push 0
    push {USER_DS}
    push [rip + event_scratch]
    push 0
    push {USER_CS}
    push [rip + pvcs + {PVCS_RIP}]
    mov rcx, [rip + pvcs + {PVCS_RCX}]
    mov r11, [rip + pvcs + {PVCS_R11}]
    PUSH_ALL
    mov rdi, rsp
    call kernel_event
    POP_ALL
    /* The handler stored RFLAGS with the interrupt flag taken out; the virtual flag is its
     * business too. */
    iretq

    .global syscall_entry
syscall_entry:
    LEAVE_USER 0

    /* Enters user mode with `user_registers`; the PVCS is filled. Returns when it is left. */
    .global enter_user
enter_user:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rip + kernel_rsp], rsp
    lea rsp, [rip + user_registers]
    POP_ALL
    mov rsp, [rip + user_registers + {U_RSP}]
    .global retu_instruction
retu_instruction:
    syscall
    ud2

    /* rdi = number, rsi.. = arguments as the ABI has them: RBX, R10, RDX, RSI. */
    .global hypercall_raw
hypercall_raw:
    push rbx
    mov rax, rdi
    mov rbx, rsi
    mov r10, rdx
    mov rdx, rcx
    mov rsi, r8
    syscall
    pop rbx
    ret

    .section .bss.guest, "aw", @nobits
    .balign 4096
    .global pvcs
pvcs:
    .skip 4096
    .skip 65536
    .global boot_stack_top
boot_stack_top:
    .global user_registers
user_registers:
    .skip {U_SIZE}
kernel_rsp:
    .skip 8
event_scratch:
    .skip 8
