/* The switcher: every instruction between L1 and a guest.
 *
 * Runs at CPL0 from the window alias of the current CPU, interrupts off, on either CR3: text,
 * block and stacks are mapped at the same addresses in L1's root and in every guest root. The
 * text is the first thing in a CPU's area, so every piece of the area lies at a fixed distance
 * from it and is reached relative to RIP. Names in braces are constants from the Rust side: area
 * offsets, field offsets, selectors and masks. FS, GS and the FPU are never touched, except for
 * the GS base of a direct switch.
 *
 * The window is in every guest's root. A register that is parked in it, on a stack or in the block,
 * is cleared there as soon as it is taken back; addresses (RIP, RSP) and flags may stay.
 *
 * Contracts, by label:
 *   switcher_enter      in: RDI = Context, C stack; returns when the guest is left.
 *   switcher_enter_clear  the same, on a CPU that leaks what is in its buffers.
 *   switcher_syscall    in: SYSCALL from 64-bit CPL3: RCX = RIP, R11 = RFLAGS, everything else
 *                       the guest's, RSP too. Out: direct switch, or return of switcher_enter.
 *   switcher_syscall32  in: SYSCALL from 32-bit CPL3, the same.
 *   page_fault          in: #PF of plain user code where the guest's tables map nothing, as L1 has
 *                       seen. Out: the guest's own event entry, without L1.
 *   switcher_stubs      in: an exception or interrupt frame on the entry stack (from CPL3), on
 *                       an IST stack, or on L1's stack (from CPL0).
 */

    .section .rodata.switcher_cr3_loads, "a", @progbits
    .global switcher_cr3_loads
switcher_cr3_loads:

    .section .switcher, "ax", @progbits
    .balign 4096
    .global switcher_text
switcher_text:
.Larea:

    /* CR3 := RAX, on the way in and out; listed, for L1 takes these away where it stays on guests' roots. */
    .macro LOAD_CR3
99: mov cr3, rax
    .pushsection .rodata.switcher_cr3_loads
    .long 99b - .Larea
    .popsection
    .endm

/* ---- Entering a guest ------------------------------------------------------------------- */

    /* VERW clears the buffers (with microcode that says so). What is loaded after it are the
     * guest's own registers, and addresses. */
    .balign 16
    .global switcher_enter_clear
switcher_enter_clear:
    verw word ptr [rip + data_selector]

    .global switcher_enter
switcher_enter:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rip + .Larea + {L1_RSP}], rsp
    mov [rip + .Larea + {CONTEXT}], rdi

    /* The guest's RAX waits in the block: RAX itself carries CR3 until the last moment. */
    mov rax, [rdi + {RAX}]
    mov [rip + .Larea + {SCRATCH0}], rax
    mov rbx, [rdi + {RBX}]
    mov rdx, [rdi + {RDX}]
    mov rsi, [rdi + {RSI}]
    mov rbp, [rdi + {RBP}]
    mov r8,  [rdi + {R8}]
    mov r9,  [rdi + {R9}]
    mov r10, [rdi + {R10}]
    mov r12, [rdi + {R12}]
    mov r13, [rdi + {R13}]
    mov r14, [rdi + {R14}]
    mov r15, [rdi + {R15}]
    cmp qword ptr [rdi + {SYSRET}], 0
    je 1f

    mov rcx, [rdi + {RIP}]
    mov r11, [rdi + {RFLAGS}]
    mov rsp, [rdi + {RSP}]
    mov rax, [rdi + {CR3}]
    mov rdi, [rdi + {RDI}]
    LOAD_CR3
    mov rax, [rip + .Larea + {SCRATCH0}]
    mov qword ptr [rip + .Larea + {SCRATCH0}], 0
    sysretq

1:  lea rsp, [rip + .Larea + {ENTRY_TOP}]
    push [rdi + {SS}]
    push [rdi + {RSP}]
    push [rdi + {RFLAGS}]
    push [rdi + {CS}]
    push [rdi + {RIP}]
    mov rcx, [rdi + {RCX}]
    mov r11, [rdi + {R11}]
    mov rax, [rdi + {CR3}]
    mov rdi, [rdi + {RDI}]
    LOAD_CR3
    mov rax, [rip + .Larea + {SCRATCH0}]
    mov qword ptr [rip + .Larea + {SCRATCH0}], 0
    .global switcher_iret
switcher_iret:
    iretq

/* ---- The direct switch ------------------------------------------------------------------- */

    /* Leaves user mode: saves the user context in the PVCS, takes up supervisor mode.
     * RAX is parked in SCRATCH0; RCX and R11 are free once they are saved. */
    .macro DIRECT_TO_SMOD gs
    mov [rip + .Larea + {SCRATCH0}], rax
    mov rax, [rip + .Larea + {PVCS}]
    mov [rax + {PVCS_RIP}], rcx
    mov [rax + {PVCS_RCX}], rcx
    mov [rax + {PVCS_R11}], r11
    mov [rax + {PVCS_EFLAGS}], r11d
    mov dword ptr [rax + {PVCS_USER_CS}], {USER_CS_SS}
    .if \gs
    rdgsbase rcx
    mov [rax + {PVCS_USER_GSBASE}], rcx
    mov rcx, [rip + .Larea + {SMOD_GSBASE}]
    wrgsbase rcx
    .else
    mov [rip + .Larea + {SCRATCH1}], rdx
    mov r11, rax
    mov ecx, {MSR_GS_BASE}
    rdmsr
    mov [r11 + {PVCS_USER_GSBASE}], eax
    mov [r11 + {PVCS_USER_GSBASE} + 4], edx
    mov eax, [rip + .Larea + {SMOD_GSBASE}]
    mov edx, [rip + .Larea + {SMOD_GSBASE} + 4]
    wrmsr
    mov rdx, [rip + .Larea + {SCRATCH1}]
    mov qword ptr [rip + .Larea + {SCRATCH1}], 0
    .endif
    mov rcx, [rip + .Larea + {SMOD_CR3}]
    mov cr3, rcx
    mov dword ptr [rip + .Larea + {MODE}], {MODE_SUPERVISOR}
    inc qword ptr [rip + .Larea + {DIRECT_TO_SMOD}]
    mov rcx, [rip + .Larea + {LSTAR}]
    mov r11d, {RFLAGS_FORCED}
    mov rax, [rip + .Larea + {SCRATCH0}]
    mov qword ptr [rip + .Larea + {SCRATCH0}], 0
    sysretq
    .endm

    /* Leaves supervisor mode: the user context comes from the PVCS, each field read once.
     * Falls through to a full exit, registers as SYSCALL left them, if this is no plain ERETU. */
    .macro DIRECT_TO_UMOD gs, slow
    cmp rcx, [rip + .Larea + {RETU_RETURN}]
    jne \slow
    mov [rip + .Larea + {SCRATCH0}], rax
    mov rax, [rip + .Larea + {PVCS}]
    cmp dword ptr [rax + {PVCS_USER_CS}], {USER_CS_SS}
    jne 3f
    .if \gs
    mov rcx, [rax + {PVCS_USER_GSBASE}]
    shl rcx, 16
    sar rcx, 16
    wrgsbase rcx
    .else
    mov [rip + .Larea + {SCRATCH1}], rdx
    mov r11, rax
    mov rdx, [rax + {PVCS_USER_GSBASE}]
    shl rdx, 16
    sar rdx, 16
    mov eax, edx
    shr rdx, 32
    mov ecx, {MSR_GS_BASE}
    wrmsr
    mov rdx, [rip + .Larea + {SCRATCH1}]
    mov qword ptr [rip + .Larea + {SCRATCH1}], 0
    mov rax, r11
    .endif
    mov word ptr [rax + {PVCS_EVENT_VECTOR}], {VECTOR_STANDARD}
    mov rcx, [rip + .Larea + {UMOD_CR3}]
    mov cr3, rcx
    mov dword ptr [rip + .Larea + {MODE}], {MODE_USER}
    inc qword ptr [rip + .Larea + {DIRECT_TO_UMOD}]
    mov r11d, [rax + {PVCS_EFLAGS}]
    and r11d, {RFLAGS_ALLOWED}
    or r11d, {RFLAGS_FORCED}
    mov rcx, [rax + {PVCS_RIP}]
    cmp rcx, [rax + {PVCS_RCX}]
    jne 2f
    cmp r11, [rax + {PVCS_R11}]
    jne 2f
    test r11d, {RFLAGS_STEPPING}
    jnz 2f
    cmp rcx, [rip + sysret_limit]
    jae 2f
    mov rax, [rip + .Larea + {SCRATCH0}]
    mov qword ptr [rip + .Larea + {SCRATCH0}], 0
    sysretq

2:  mov [rip + .Larea + {ENTRY_TOP} - 16], rsp
    mov qword ptr [rip + .Larea + {ENTRY_TOP} - 8], {USER_SS}
    mov [rip + .Larea + {ENTRY_TOP} - 24], r11
    mov qword ptr [rip + .Larea + {ENTRY_TOP} - 32], {USER_CS}
    mov [rip + .Larea + {ENTRY_TOP} - 40], rcx
    mov rcx, [rax + {PVCS_RCX}]
    mov r11, [rax + {PVCS_R11}]
    mov rax, [rip + .Larea + {SCRATCH0}]
    mov qword ptr [rip + .Larea + {SCRATCH0}], 0
    lea rsp, [rip + .Larea + {ENTRY_TOP} - 40]
    jmp switcher_iret

3:  mov rax, [rip + .Larea + {SCRATCH0}]
    jmp \slow
    .endm

    /* A page fault of the guest's own, if it is one for certain: user mode, 64-bit selectors, nothing
     * but an absent page, and that page. What L1 does to deliver it, in fewer steps.
     * Stack: error, RIP, CS, RFLAGS, RSP, SS; everything else the guest's, or L1's if it has erred. */
page_fault:
    push rax
    cmp dword ptr [rip + .Larea + {MODE}], {MODE_USER}
    jne 1f
    mov rax, cr2
    shr rax, 12
    cmp rax, [rip + .Larea + {ABSENT_PAGE}]
    jne 1f
    mov eax, [rsp + 8]
    and eax, ~({PF_WRITE} | {PF_FETCH})
    cmp eax, {PF_USER}
    jne 1f
    cmp dword ptr [rsp + 24], {USER_CS}
    jne 1f
    cmp dword ptr [rsp + 48], {USER_SS}
    jne 1f
    test dword ptr [rsp + 32], {RFLAGS_NEVER}
    jnz 1f

    mov rax, [rip + .Larea + {PVCS}]
    mov [rax + {PVCS_RCX}], rcx
    mov [rax + {PVCS_R11}], r11
    mov rcx, [rsp + 16]
    mov [rax + {PVCS_RIP}], rcx
    mov ecx, [rsp + 32]
    and ecx, {RFLAGS_ALLOWED}
    or ecx, {RFLAGS_FORCED}
    mov [rax + {PVCS_EFLAGS}], ecx
    mov rcx, cr2
    mov [rax + {PVCS_CR2}], rcx
    mov [rip + .Larea + {EARLY_FAULT}], rcx
    mov ecx, [rsp + 8]
    mov [rip + .Larea + {EARLY_FAULT} + 8], rcx
    or ecx, {VECTOR_PAGE_FAULT} << 16
    mov dword ptr [rax + {PVCS_USER_CS}], {USER_CS_SS}
    mov [rax + {PVCS_ERROR}], ecx
    rdgsbase rcx
    mov [rax + {PVCS_USER_GSBASE}], rcx
    mov rcx, [rip + .Larea + {SMOD_GSBASE}]
    wrgsbase rcx
    mov qword ptr [rip + .Larea + {ABSENT_PAGE}], {NO_PAGE}
    inc qword ptr [rip + .Larea + {EARLY_FAULTS}]
    mov rcx, [rip + .Larea + {SMOD_CR3}]
    mov cr3, rcx
    mov dword ptr [rip + .Larea + {MODE}], {MODE_SUPERVISOR}
    mov rcx, [rip + .Larea + {EVENT_ENTRY}]
    mov [rsp + 16], rcx
    mov r11d, {RFLAGS_FORCED}
    mov [rsp + 32], r11
    pop rax
    mov qword ptr [rsp - 8], 0
    add rsp, 8
    jmp switcher_iret

1:  pop rax
    push {PAGE_FAULT}
    jmp exception

    .balign 16
    .global switcher_syscall
switcher_syscall:
    cmp dword ptr [rip + .Larea + {MODE}], {MODE_SUPERVISOR}
    je 1f
    ja syscall_exit
    DIRECT_TO_SMOD 1
1:  DIRECT_TO_UMOD 1, syscall_exit

    /* The same without FSGSBASE. */
    .balign 16
    .global switcher_syscall_msr
switcher_syscall_msr:
    cmp dword ptr [rip + .Larea + {MODE}], {MODE_SUPERVISOR}
    je 1f
    ja syscall_exit
    DIRECT_TO_SMOD 0
1:  DIRECT_TO_UMOD 0, syscall_exit

sysret_limit:
    .quad {SYSRET_LIMIT}
data_selector:
    .word {L1_DS}

/* ---- Leaving a guest --------------------------------------------------------------------- */

    /* RAX = Context. Saves what every exit saves in the same way. */
    .macro SAVE_COMMON
    mov [rax + {RBX}], rbx
    mov [rax + {RDX}], rdx
    mov [rax + {RSI}], rsi
    mov [rax + {RDI}], rdi
    mov [rax + {RBP}], rbp
    mov [rax + {R8}], r8
    mov [rax + {R9}], r9
    mov [rax + {R10}], r10
    mov [rax + {R11}], r11
    mov [rax + {R12}], r12
    mov [rax + {R13}], r13
    mov [rax + {R14}], r14
    mov [rax + {R15}], r15
    mov [rax + {RCX}], rcx
    .endm

    .global switcher_syscall32
switcher_syscall32:
    mov [rip + .Larea + {SCRATCH0}], rax
    mov rax, [rip + .Larea + {L1_CR3}]
    LOAD_CR3
    mov rax, [rip + .Larea + {CONTEXT}]
    mov qword ptr [rax + {REASON}], {EXIT_SYSCALL32}
    mov qword ptr [rax + {CS}], {USER32_CS}
    jmp 1f

syscall_exit:
    mov [rip + .Larea + {SCRATCH0}], rax
    mov rax, [rip + .Larea + {L1_CR3}]
    LOAD_CR3
    mov rax, [rip + .Larea + {CONTEXT}]
    mov qword ptr [rax + {REASON}], {EXIT_SYSCALL}
    mov qword ptr [rax + {CS}], {USER_CS}
1:  SAVE_COMMON
    mov [rax + {RIP}], rcx
    mov [rax + {RFLAGS}], r11
    mov [rax + {RSP}], rsp
    mov qword ptr [rax + {SS}], {USER_SS}
    mov rcx, [rip + .Larea + {SCRATCH0}]
    mov [rax + {RAX}], rcx
    mov qword ptr [rip + .Larea + {SCRATCH0}], 0
    jmp leave

    /* Stack: vector, error, RIP, CS, RFLAGS, RSP, SS; everything else the guest's. */
exception_exit:
    push rax
    mov rax, [rip + .Larea + {L1_CR3}]
    LOAD_CR3
    mov rax, [rip + .Larea + {CONTEXT}]
    SAVE_COMMON
    pop [rax + {RAX}]
    pop [rax + {REASON}]
    pop [rax + {ERROR}]
    pop [rax + {RIP}]
    pop [rax + {CS}]
    pop [rax + {RFLAGS}]
    pop [rax + {RSP}]
    pop [rax + {SS}]
    mov qword ptr [rsp - 64], 0

    /* Back to the caller of switcher_enter. No guest value stays in a register. */
leave:
    mov rsp, [rip + .Larea + {L1_RSP}]
    xor ecx, ecx
    xor edx, edx
    xor esi, esi
    xor edi, edi
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    cld
    /* With SMAP there is CLAC instead of the first three bytes. */
    .global switcher_no_clac
switcher_no_clac:
    ret
    nop
    nop
    ret

/* ---- Exceptions and interrupts ------------------------------------------------------------ */

    /* Stack as in exception_exit. */
exception:
    test byte ptr [rsp + 24], 3
    jnz exception_exit
    test byte ptr [rsp + 34], {RFLAGS_VM_BYTE}
    jnz switcher_virtual_8086

    push rax
    lea rax, [rip + switcher_iret]
    cmp [rsp + 24], rax
    je failed_iret
    pop rax

    /* L1 itself was interrupted, on its own CR3 and stack. */
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
    cld
    mov rdi, rsp
    lea rsi, [rip + .Larea]
    call [rip + .Larea + {L1_TRAP}]
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
    add rsp, 16
    iretq

    /* The IRETQ to the guest faulted: the registers are the guest's, its frame lies where RSP
     * pointed. Dresses that frame up as an exit of its own.
     * Stack: RAX, vector, error, RIP, CS, RFLAGS, RSP, SS of the fault. */
failed_iret:
    mov rax, [rsp + 48]
    push rcx
    mov rcx, [rsp + 24]
    mov [rax - 8], rcx
    mov rcx, [rsp + 16]
    or ecx, {EXIT_FAILED}
    mov [rax - 16], rcx
    pop rcx
    mov qword ptr [rsp - 8], 0
    sub rax, 16
    xchg rax, [rsp]
    pop rsp
    jmp exception_exit

    /* No CPU goes from 64-bit mode to virtual-8086 mode. QEMU's emulator does, for a 32-bit IRET at
     * CPL3 with VM set; the CS it then has says nothing of its privilege. */
    .global switcher_virtual_8086
switcher_virtual_8086:
    or qword ptr [rsp], {EXIT_VIRTUAL_8086}
    jmp exception_exit

    /* NMI, #DB, #MC, #DF: on an IST stack of the window. From CPL3 they are exits like any other.
     * From CPL0 the first stage leaves the CR3 and the stack it found, both of which may be
     * anyone's, and goes back to exactly them: nothing the switcher does needs to be restarted.
     * Stack: vector, error, RIP, CS, RFLAGS, RSP, SS. */
    .macro IST_ENTRY index
    test byte ptr [rsp + 24], 3
    jnz exception_exit
    test byte ptr [rsp + 34], {RFLAGS_VM_BYTE}
    jnz switcher_virtual_8086
    .if \index == 1
    push rax
    lea rax, [rip + stub_db]
    cmp [rsp + 24], rax
    je nested_debug
    pop rax
    .endif
    push rax
    push rcx
    push rdx
    mov rcx, cr3
    mov rax, [rip + .Larea + {L1_CR3}]
    mov cr3, rax
    mov rdx, rsp
    mov rsp, [rip + .Larea + {IST_PRIVATE} + 8 * \index]
    jmp ist_common
    .endm

ist_nmi:
    IST_ENTRY 0
ist_db:
    IST_ENTRY 1
ist_mc:
    IST_ENTRY 2
ist_df:
    IST_ENTRY 3

    /* A #DB before the first instruction of the #DB's stub: it lies where the first one lay. What
     * that one left, a guest, cannot be gone back to. (ICEBP after a MOV SS that read what is watched;
     * in QEMU's emulator, a step that touches what is watched.) Stack: RAX, vector, error, frame. */
nested_debug:
    mov rax, [rip + .Larea + {L1_CR3}]
    LOAD_CR3
    mov rax, [rip + .Larea + {CONTEXT}]
    mov qword ptr [rax + {REASON}], {EXIT_LOST}
    SAVE_COMMON
    pop [rax + {RAX}]
    mov qword ptr [rsp - 8], 0
    jmp leave

    /* RCX = CR3 and RDX = window stack to go back to, where RDX, RCX, RAX and the frame lie. */
ist_common:
    push rcx
    push rdx
    push [rdx + 72]
    push [rdx + 64]
    push [rdx + 56]
    push [rdx + 48]
    push [rdx + 40]
    push [rdx + 32]
    push [rdx + 24]
    push [rdx + 16]
    push rbx
    push [rdx + 8]
    push [rdx]
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
    cld
    mov rdi, rsp
    lea rsi, [rip + .Larea]
    call [rip + .Larea + {L1_TRAP}]
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
    add rsp, 16
    pop rbx
    add rsp, 64
    pop rdx
    pop rcx
    mov rsp, rdx
    mov cr3, rcx
    pop rdx
    pop rcx
    pop rax
    mov qword ptr [rsp - 8], 0
    mov qword ptr [rsp - 16], 0
    mov qword ptr [rsp - 24], 0
    add rsp, 16
    iretq

    /* One stub of 16 bytes per vector. */
    .balign 16
    .global switcher_stubs
switcher_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
    .if vector == 1
stub_db:
    .endif
    push 0
    .endif
    .if vector != {PAGE_FAULT}
    push vector
    .endif
    .if vector == 1
    jmp ist_db
    .elseif vector == 2
    jmp ist_nmi
    .elseif vector == 8
    jmp ist_df
    .elseif vector == {PAGE_FAULT}
    jmp page_fault
    .elseif vector == 18
    jmp ist_mc
    .else
    jmp exception
    .endif
    .set vector, vector + 1
    .endr

    .balign 4096
    .global switcher_text_end
switcher_text_end:

    .section .rodata.switcher_cr3_loads
    .global switcher_cr3_loads_end
switcher_cr3_loads_end:
