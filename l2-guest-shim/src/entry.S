/* The shim's entries: everything between L1 and Rust, and between the kernel and Rust.
 *
 * Two texts. `.entry` is one copy with an alias in every vCPU's area of the VM window, where L1
 * and the alias-mates enter it: it finds PVCS, data and stack relative to RIP. The rest is shared
 * code that the kernel calls: it finds its vCPU's area by LSL.
 *
 * The virtual interrupt flag (PVCS.IF) says "the shim may be entered": it is 1 while the kernel
 * runs and 0 in the shim and in user mode. Where it becomes 1, the interrupt-pending bit is
 * tested afterwards; if an interrupt slipped in between, Rust takes it.
 *
 * `Regs`, lowest address first: R15 to RAX, RIP, CS, RFLAGS, RSP, SS. */

    .macro PUSH_GPRS rcx_from, r11_from
    push rax
    push rbx
    push \rcx_from
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push \r11_from
    push r12
    push r13
    push r14
    push r15
    .endm

    .macro POP_GPRS
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

/* An event at \site, where the shim uses an address of the kernel's, goes on at \resume. */
    .macro FIXUP site, resume
    .pushsection .fixups, "a", @progbits
    .quad \site, \resume
    .popsection
    .endm

/* ======== Per-vCPU aliases ================================================================ */

    .section .entry, "ax", @progbits
    .balign 4096
    .global shim_entry_text
shim_entry_text:
.Larea:

/* System call of user mode: LSTAR. The kernel's frame is built on its stack, which is mapped or
 * the guest dies: SS, RSP, RFLAGS, CS, RIP, R11, RCX. RCX and R11 go to the kernel in the frame,
 * so they are free. */
    .global shim_syscall
shim_syscall:
    mov [rip + .Larea + {D_SCRATCH}], rsp
    mov rsp, [rip + .Larea + {D_KERNEL_SP}]
    push {USER_SS}
    push [rip + .Larea + {D_SCRATCH}]
    mov rcx, [rip + .Larea + {P_R11}]
    push rcx
    push {USER_CS}
    mov r11, [rip + .Larea + {P_RIP}]
    push r11
    push rcx
    push r11
    mov rcx, [rip + .Larea + {D_VCPU_INFO}]
    mov byte ptr [rcx + {V_MASK}], 1
    mov byte ptr [rip + .Larea + {D_KERNEL_MODE}], 1
    mov word ptr [rip + .Larea + {P_EVENT_VECTOR}], 0
    or byte ptr [rip + .Larea + {P_IF_BYTE}], {IF_BIT}
    test byte ptr [rip + .Larea + {P_IF_BYTE}], {IP_BIT}
    jnz 1f
    jmp [rip + .Larea + {D_SYSCALL_ENTRY}]
1:  mov rcx, [rip + .Larea + {D_SYSCALL_ENTRY}]

    /* An interrupt waits: as if it had come at the kernel's first instruction, RCX. */
interrupted:
    and byte ptr [rip + .Larea + {P_IF_BYTE}], ~{IF_BIT} & 0xff
    mov [rip + .Larea + {D_SCRATCH}], rsp
    lea rsp, [rip + .Larea + {STACK_TOP}]
    push {USER_SS}
    push [rip + .Larea + {D_SCRATCH}]
    push 2
    push {USER_CS}
    push rcx
    PUSH_GPRS rcx, r11
    lea rsi, [rip + .Larea]
    jmp pending

/* Event from user mode: EVENT_ENTRY. */
    .balign 1024
    .global shim_event
shim_event:
    mov [rip + .Larea + {D_SCRATCH}], rsp
    lea rsp, [rip + .Larea + {STACK_TOP}]
    cmp word ptr [rip + .Larea + {P_EVENT_VECTOR}], {VECTOR_PAGE_FAULT}
    jne 1f
    cmp qword ptr [rip + .Larea + {D_PAGE_FAULT}], 0
    je 1f
    mov r11, [rip + .Larea + {D_VCPU_INFO}]
    cmp byte ptr [r11 + {V_MASK}], 0
    jne 1f

    /* A page fault, events are open, and the kernel's handler masks them: what `user_event` does.
     * The frame: SS, RSP, RFLAGS (IF is set), CS, RIP, error code, R11, RCX. RCX and R11 go to the
     * kernel in it, so they are free. The PVCS is released before the first store, which may fault;
     * what the kernel cannot take ends the VM. */
    mov byte ptr [r11 + {V_MASK}], 1
    mov rcx, [rip + .Larea + {P_CR2}]
    mov [r11 + {V_CR2}], rcx
    mov r11, [rip + .Larea + {D_KERNEL_SP}]
    mov word ptr [rip + .Larea + {P_EVENT_VECTOR}], 0
    movzx ecx, word ptr [rip + .Larea + {P_ERROR}]
    or ecx, {ERROR_USER}
    mov [r11 - 48], rcx
    mov rcx, [rip + .Larea + {P_RCX}]
    mov [r11 - 64], rcx
    mov rcx, [rip + .Larea + {P_R11}]
    mov [r11 - 56], rcx
    mov rcx, [rip + .Larea + {P_RIP}]
    mov [r11 - 40], rcx
    movzx ecx, word ptr [rip + .Larea + {P_USER_CS}]
    mov [r11 - 32], rcx
    mov ecx, [rip + .Larea + {P_EFLAGS}]
    mov [r11 - 24], rcx
    mov rcx, [rip + .Larea + {D_SCRATCH}]
    mov [r11 - 16], rcx
    movzx ecx, word ptr [rip + .Larea + {P_USER_SS}]
    mov [r11 - 8], rcx
    lea rsp, [r11 - 64]
    mov word ptr [rip + .Larea + {D_KERNEL_MODE}], {KERNEL_MODE_PREFAULT}
    or byte ptr [rip + .Larea + {P_IF_BYTE}], {IF_BIT}
    test byte ptr [rip + .Larea + {P_IF_BYTE}], {IP_BIT}
    jnz 2f
    jmp [rip + .Larea + {D_PAGE_FAULT}]
2:  mov rcx, [rip + .Larea + {D_PAGE_FAULT}]
    jmp interrupted

1:  movzx ecx, word ptr [rip + .Larea + {P_USER_SS}]
    push rcx
    push [rip + .Larea + {D_SCRATCH}]
    mov ecx, [rip + .Larea + {P_EFLAGS}]
    push rcx
    movzx ecx, word ptr [rip + .Larea + {P_USER_CS}]
    push rcx
    push [rip + .Larea + {P_RIP}]
    PUSH_GPRS [rip + .Larea + {P_RCX}], [rip + .Larea + {P_R11}]
    mov rdi, rsp
    lea rsi, [rip + .Larea]
    cld
    movabs rax, offset shim_user_event
    call rax
    jmp leave

/* Event from supervisor mode: EVENT_ENTRY + 512. */
    .org shim_event + 512
    mov [rip + .Larea + {D_SCRATCH}], rsp
    test dword ptr [rip + .Larea + {P_EFLAGS}], {RFLAGS_IF}
    jz nested
    mov rcx, [rip + .Larea + {P_RIP}]
    lea r11, [rip + leave_window_end]
    cmp rcx, r11
    jae 2f
    lea r11, [rip + leave_window]
    cmp rcx, r11
    jae 1f
2:  lea rsp, [rip + .Larea + {STACK_TOP}]
    push {USER_SS}
    push [rip + .Larea + {D_SCRATCH}]
    mov ecx, [rip + .Larea + {P_EFLAGS}]
    push rcx
    push {USER_CS}
    push [rip + .Larea + {P_RIP}]
    /* In the window all registers are the kernel's already, and the rest of its context lies
     * where RSP points: it counts as having arrived there. */
1:  PUSH_GPRS [rip + .Larea + {P_RCX}], [rip + .Larea + {P_R11}]
    mov rdi, rsp
    lea rsi, [rip + .Larea]
    cld
    movabs rax, offset shim_kernel_event
    call rax

/* To where `Regs` at RSP says. IF is 0. */
    .global shim_leave
shim_leave:
leave:
    cmp byte ptr [rip + .Larea + {D_KERNEL_MODE}], 0
    je leave_to_user
    POP_GPRS
leave_window:
    or byte ptr [rip + .Larea + {P_IF_BYTE}], {IF_BIT}
    test byte ptr [rip + .Larea + {P_IF_BYTE}], {IP_BIT}
    jnz 1f
    iretq
1:  and byte ptr [rip + .Larea + {P_IF_BYTE}], ~{IF_BIT} & 0xff
leave_window_end:
    PUSH_GPRS rcx, r11
    lea rsi, [rip + .Larea]

/* RSP = Regs of the kernel, RSI = area: takes what is pending. */
    .global shim_pending_entry
shim_pending_entry:
pending:
    mov rdi, rsp
    cld
    movabs rax, offset shim_pending
    call rax
    jmp leave

leave_to_user:
    mov rax, [rsp + {R_RIP}]
    mov [rip + .Larea + {P_RIP}], rax
    mov eax, [rsp + {R_SS}]
    shl eax, 16
    mov ax, [rsp + {R_CS}]
    mov [rip + .Larea + {P_USER_CS}], eax
    mov eax, [rsp + {R_RFLAGS}]
    mov [rip + .Larea + {P_EFLAGS}], eax
    mov rax, [rsp + {R_RCX}]
    mov [rip + .Larea + {P_RCX}], rax
    mov rax, [rsp + {R_R11}]
    mov [rip + .Larea + {P_R11}], rax
    mov word ptr [rip + .Larea + {P_EVENT_VECTOR}], {VECTOR_STANDARD}
    POP_GPRS
    mov rsp, [rsp + 24]
    cmp byte ptr [rip + .Larea + {D_PREFAULT}], 0
    jne 1f
    jmp [rip + .Larea + {D_RETU}]
1:  mov byte ptr [rip + .Larea + {D_PREFAULT}], 0
    jmp [rip + .Larea + {D_RETU_PREFAULT}]

/* A fault of the shim's own, on whatever stack it has. */
nested:
    push {USER_SS}
    push [rip + .Larea + {D_SCRATCH}]
    mov ecx, [rip + .Larea + {P_EFLAGS}]
    push rcx
    push {USER_CS}
    push [rip + .Larea + {P_RIP}]
    PUSH_GPRS [rip + .Larea + {P_RCX}], [rip + .Larea + {P_R11}]
    mov rdi, rsp
    lea rsi, [rip + .Larea]
    mov rbx, rsp
    and rsp, -16
    cld
    movabs rax, offset shim_nested
    call rax
    mov rsp, rbx
    POP_GPRS
    iretq

    .global shim_entry_text_end
shim_entry_text_end:

/* ======== Shared text ===================================================================== */

    .text

/* \reg = this vCPU's area. */
    .macro FIND_AREA reg, reg32, base
    mov \reg32, {VCPU_INDEX}
    lsl \reg32, \reg32
    shl \reg, {STRIDE_SHIFT}
    movabs \base, {VCPU_AREA}
    add \reg, \base
    .endm

/* Start: RDI = boot block, RSI = vCPU index. */
    .global shim_start
shim_start:
    mov rax, rsi
    shl rax, {STRIDE_SHIFT}
    movabs rsp, {VCPU_AREA} + {STACK_TOP}
    add rsp, rax
    xor ebp, ebp
    call shim_main
    ud2

/* Hypercall of a kernel: jumped to instead of its SYSCALL, with the return address on its stack.
 * EAX = number, arguments in RDI, RSI, RDX, R10, R8; result in RAX. RCX, R11, R9, RBX, RBP, R12
 * to R15 come back as they were. Handlers are C functions (a1, a2, a3, a4, a5, area). */
    .balign 16
    .global shim_hypercall
shim_hypercall:
    push rcx
    push r11
    FIND_AREA r11, r11d, rcx
    and byte ptr [r11 + {P_IF_BYTE}], ~{IF_BIT} & 0xff
    /* The top two words of the stack, which is empty. They tell the area's address, too. */
    mov [r11 + {STACK_TOP} - 8], rsp
    mov [r11 + {STACK_TOP} - 16], r9
    lea rsp, [r11 + {STACK_TOP} - 16]
    /* Whatever DF is: a hypervisor's own SYSCALL entry clears it, so kernels need not. */
    cld
    cmp eax, {HYPERCALLS}
    jae 2f
    mov rcx, r10
    mov r9, r11
    lea r10, [rip + shim_hypercall_table]
    mov eax, eax
    call [r10 + 8 * rax]
1:  lea r11, [rsp + 16 - {STACK_TOP}]
    pop r9
    pop rsp
    mov rcx, [r11 + {D_VCPU_INFO}]
    cmp word ptr [rcx], {PENDING_UNMASKED}
    je 4f
    cmp byte ptr [r11 + {D_HALT}], 0
    jne 3f
    or byte ptr [r11 + {P_IF_BYTE}], {IF_BIT}
    test byte ptr [r11 + {P_IF_BYTE}], {IP_BIT}
    jnz 4f
    pop r11
    pop rcx
    ret

2:  mov edi, eax
    mov rsi, r11
    call shim_unknown_hypercall
    jmp 1b

    /* The kernel waits. The event that ends it arrives here, on the kernel's stack. */
3:  mov byte ptr [r11 + {D_HALT}], 0
    push rax
    mov eax, {IRQ_HALT}
    syscall
    pop rax
    pop r11
    pop rcx
    ret

    /* Something is to be delivered first: the call counts as done. */
4:  and byte ptr [r11 + {P_IF_BYTE}], ~{IF_BIT} & 0xff
    mov byte ptr [r11 + {D_HALT}], 0
    mov [r11 + {D_SCRATCH}], rsp
    mov rcx, rsp
    lea rsp, [r11 + {STACK_TOP}]
    push {USER_SS}
    lea r11, [rcx + 24]
    push r11
    push {RFLAGS_RESUME}
    push {USER_CS}
    push [rcx + 16]
    PUSH_GPRS [rcx + 8], [rcx]
    FIND_AREA rsi, esi, rax
    jmp [rsi + {D_PENDING}]

/* The kernel's IRET: jumped to with RAX, R11, RCX, flags and an IRET frame on its stack. */
    .balign 16
    .global shim_iret
shim_iret:
    FIND_AREA r11, r11d, rcx
    and byte ptr [r11 + {P_IF_BYTE}], ~{IF_BIT} & 0xff
    mov rcx, [r11 + {D_VCPU_INFO}]
    test byte ptr [rsp + 40], 3
    jz 2f

    /* To user mode. Its RFLAGS always have IF, so events are open: one that waits goes first. */
    cmp byte ptr [rcx], 0
    jne iret_slow
    test dword ptr [rsp + 48], {RFLAGS_IF}
    jz iret_slow
    mov byte ptr [rcx + {V_MASK}], 0
    mov eax, [rsp + 64]
    shl eax, 16
    mov ax, [rsp + 40]
    mov [r11 + {P_USER_CS}], eax
    mov rax, [rsp + 32]
    mov [r11 + {P_RIP}], rax
    mov eax, [rsp + 48]
    mov [r11 + {P_EFLAGS}], eax
    mov rax, [rsp + 16]
    mov [r11 + {P_RCX}], rax
    mov rax, [rsp + 8]
    mov [r11 + {P_R11}], rax
    mov word ptr [r11 + {P_EVENT_VECTOR}], {VECTOR_STANDARD}
    mov byte ptr [r11 + {D_KERNEL_MODE}], 0
    mov rax, [rsp]
    mov rsp, [rsp + 56]
    cmp byte ptr [r11 + {D_PREFAULT}], 0
    jne 1f
    .global shim_retu
shim_retu:
    syscall
1:  mov byte ptr [r11 + {D_PREFAULT}], 0
    .global shim_retu_prefault
shim_retu_prefault:
    syscall

    /* To the kernel. */
2:  mov eax, [rsp + 48]
    shr eax, 9
    and eax, 1
    xor eax, 1
    mov [rcx + {V_MASK}], al
    cmp word ptr [rcx], {PENDING_UNMASKED}
    je iret_slow
    mov qword ptr [rsp + 40], {USER_CS}
    mov qword ptr [rsp + 64], {USER_SS}
    mov rax, [rsp]
    or byte ptr [r11 + {P_IF_BYTE}], {IF_BIT}
    test byte ptr [r11 + {P_IF_BYTE}], {IP_BIT}
    jnz 3f
    mov r11, [rsp + 8]
    mov rcx, [rsp + 16]
    lea rsp, [rsp + 32]
    iretq
3:  and byte ptr [r11 + {P_IF_BYTE}], ~{IF_BIT} & 0xff
    mov qword ptr [rsp + 40], {KERNEL_CS}

    /* By way of Rust: R11 = area, IF = 0, the stack as at the start. */
iret_slow:
    mov rcx, rsp
    lea rsp, [r11 + {STACK_TOP}]
    push [rcx + 64]
    push [rcx + 56]
    push [rcx + 48]
    push [rcx + 40]
    push [rcx + 32]
    mov rax, [rcx]
    PUSH_GPRS [rcx + 16], [rcx + 8]
    FIND_AREA rsi, esi, rax
    mov rbx, rsi
    mov rdi, rsp
    cld
    call shim_iret_slow
    jmp [rbx + {D_LEAVE}]

/* The GS base of user mode, called by the kernel on its own stack, IF = 1: with carry RAX := base,
 * without base := RDI. Keeps all but RAX, RCX and flags. A base that is not canonical is made so
 * by ERETU. */
    .balign 16
    .global shim_gsbase
shim_gsbase:
    jc 1f
    FIND_AREA rax, eax, rcx
    mov [rax + {P_USER_GSBASE}], rdi
    ret
1:  FIND_AREA rax, eax, rcx
    mov rax, [rax + {P_USER_GSBASE}]
    ret

/* Copies RDX bytes from RSI to RDI, either of which may be an address of the kernel's that is
 * not mapped; returns the bytes not copied. A fault ends the copy. */
    .global shim_copy
shim_copy:
    mov rcx, rdx
    shr rcx, 3
    and edx, 7
1:  rep movsq
    mov ecx, edx
2:  rep movsb
    xor eax, eax
    ret
3:  lea rax, [rdx + 8 * rcx]
    ret
4:  mov rax, rcx
    ret
    FIXUP 1b, 3b
    FIXUP 2b, 4b
