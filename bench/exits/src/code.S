/* What is measured, and the way there and back. One vCPU, so everything is found relative to RIP.
 *
 * A piece of code reads the TSC into R8, loads the registers of its operation, does it, and ends at
 * exits_end, or has an event that does: every way there is one jump, so that what a piece without an
 * operation takes can be taken off. R8 is kept by everything in between.
 */

    .macro BEGIN
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov r8, rax
    mov rax, r9
    mov rdx, r12
    mov rcx, r13
    .endm

    .macro KERNEL name, operation:vararg
    .balign 16
    .global exits_kernel_\name
exits_kernel_\name:
    BEGIN
    \operation
    jmp exits_end
    .endm

    /* Copied to a page of user mode. Leaves it by its operation. */
    .macro USER name, operation:vararg
    .balign 16
    .global exits_user_\name
exits_user_\name:
    BEGIN
    \operation
    .global exits_user_\name\()_end
exits_user_\name\()_end:
    .endm

    .text
    /* In: RDI = code, RSI = `Registers`. Out: RAX = ticks from R8 to the end. */
    .global exits_run
exits_run:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rip + exits_stack], rsp
    mov r11, rdi
    mov r9, [rsi]
    mov r12, [rsi + 8]
    mov r13, [rsi + 16]
    mov rbx, [rsi + 24]
    mov r10, [rsi + 32]
    mov r8, [rsi + 40]
    jmp r11

    .global exits_end
exits_end:
    rdtsc
    shl rdx, 32
    or rax, rdx
    sub rax, r8
exits_leave:
    mov rsp, [rip + exits_stack]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    cld
    ret

    /* User mode was entered, has read the TSC itself, and has come back with the ticks in R9. */
    .global exits_entered_user
exits_entered_user:
    mov rax, r9
    jmp exits_leave

    .global exits_syscall_entry
exits_syscall_entry:
    jmp exits_end

    .balign 1024
    .global exits_event_entry
exits_event_entry:
    jmp exits_end
    .org exits_event_entry + {SUPERVISOR}
    jmp [rip + exits_handler]

    /* The least that a kernel does with an interrupt: ends it, and returns. */
    .global exits_end_interrupt
exits_end_interrupt:
    mov r14, rsp
    push {USER_DS}
    push r14
    push {RFLAGS}
    push {USER_CS}
    push [rip + exits_pvcs + {PVCS_RIP}]
    push rax
    push rbx
    push r10
    mov eax, {WRMSR}
    mov ebx, {EOI}
    xor r10d, r10d
    syscall
    pop r10
    pop rbx
    pop rax
    mov word ptr [rip + exits_pvcs + {PVCS_VECTOR}], 0
    or dword ptr [rip + exits_pvcs], {IF}
    iretq

    KERNEL nothing
    KERNEL hypercall, syscall
    KERNEL rdmsr, rdmsr
    KERNEL wrmsr, wrmsr
    KERNEL cpuid, .byte 0x0f, 0x01, 0x3c, 0x25, 0x50, 0x56, 0x4d, 0xff, 0x0f, 0xa2
    KERNEL in, in al, dx
    KERNEL out, out dx, al
    KERNEL read_cr0, mov rax, cr0
    KERNEL cli, cli
    KERNEL invlpg, invlpg [rbx]
    KERNEL load, mov eax, [rbx]
    KERNEL store, mov [rbx], eax

    /* Returns to user mode. */
    .balign 16
    .global exits_kernel_eretu
exits_kernel_eretu:
    BEGIN
    .global exits_retu
exits_retu:
    syscall
    ud2

    .balign 16
    .global exits_kernel_eretu_prefault
exits_kernel_eretu_prefault:
    BEGIN
    .global exits_retu_prefault
exits_retu_prefault:
    syscall
    ud2

    /* Those for which R8 is a time to come. */
    .balign 16
    .global exits_kernel_halt
exits_kernel_halt:
    mov rax, r9
    syscall
    jmp exits_end
    .balign 16
    .global exits_kernel_spin
exits_kernel_spin:
    jmp exits_kernel_spin

    USER syscall, syscall
    USER load, mov eax, [rbx]
    USER undefined, ud2
    USER privileged, mov rax, cr0
    USER int80, int 0x80

    /* The other end of a return to user mode: one jump, as everywhere. */
    .balign 16
    .global exits_user_arrive
exits_user_arrive:
    jmp 1f
1:  rdtsc
    shl rdx, 32
    or rax, rdx
    sub rax, r8
    mov r9, rax
    syscall
    .global exits_user_arrive_end
exits_user_arrive_end:

    .section .data.exits, "aw", @progbits
    .balign 8
    .global exits_handler
exits_handler:
    .quad exits_end

    .section .bss.exits, "aw", @nobits
    .balign 4096
    .global exits_pvcs
exits_pvcs:
    .skip 4096
exits_stack:
    .skip 8
    .text
