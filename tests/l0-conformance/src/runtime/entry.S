/* The ways in: PVH (EBX = physical address of hvm_start_info, 32-bit protected mode without paging),
 * a second CPU from its start-up IPI, exceptions and interrupts; and the way to CPL3 and back.
 * Everything lies where it is linked; the first 4 GiB are mapped where they lie, for every CPL. */

    .section .note.Xen, "a", @note
    .balign 4
    .long 4                     /* name size */
    .long 4                     /* description size */
    .long 18                    /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_start

    .section .boot, "awx", @progbits
    .code32
    .global pvh_start
pvh_start:
    cld
    movl $boot_stack_top, %esp
    movl $boot_pdpt + 7, boot_pml4
    movl $boot_pd + 7, %eax
    movl $boot_pdpt, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $0x87, %eax
    movl $boot_pd, %edi
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    movl %ebx, %esi
    movl $main_cpu, %edi
    jmp long_mode

    /* A second CPU, after its trampoline: 32-bit protected mode, flat segments. */
    .global second_cpu_32
second_cpu_32:
    movl next_stack_top, %esp
    movl $second_cpu, %edi

    /* EDI = where to go on in long mode, with RSI as first argument. */
long_mode:
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax            /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $0xc0000080, %ecx      /* EFER: LME, NXE */
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    andl $0xfffffff3, %eax      /* not EM, TS */
    orl $0x80010002, %eax       /* PG, WP, MP */
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $1f
    .code64
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    xorl %ebp, %ebp
    movl %edi, %eax
    movl %esi, %edi
    callq *%rax
    ud2

    /* Copied to a page below 1 MiB; a start-up IPI leads there in real mode, CS = page, IP = 0. */
    .section .rodata.trampoline, "a", @progbits
    .code16
    .global trampoline
trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl trampoline_gdt_pointer - trampoline
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $0x18, $trampoline_32 + {TRAMPOLINE} - trampoline
    .code32
trampoline_32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $second_cpu_32, %eax
    jmp *%eax
    .balign 4
trampoline_gdt_pointer:
    .word 31
    .long gdt
    .global trampoline_end
trampoline_end:

    .data
    .balign 8
    .global gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 0x08 64-bit code */
    .quad 0x00cf93000000ffff    /* 0x10 data */
    .quad 0x00cf9b000000ffff    /* 0x18 32-bit code */
    .quad 0x00cff3000000ffff    /* 0x20 data, CPL3 */
    .quad 0x00affb000000ffff    /* 0x28 64-bit code, CPL3 */
    .quad 0, 0                  /* 0x30 TSS, written at start */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
    .global next_stack_top
next_stack_top:
    .long 0

    .code64
    .text
    /* 256 entries of 16 bytes. Each pushes an error code, if the CPU did not, and its vector. */
    .balign 16
    .global vector_entries
vector_entries:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || (vector == 10) || (vector == 11) || (vector == 12) || (vector == 13) || (vector == 14) || (vector == 17) || (vector == 21)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp vector_common
    .set vector, vector + 1
    .endr

vector_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    movq %rsp, %rbp
    andq $-16, %rsp
    cld
    callq interrupted
    movq %rbp, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

    /* user_run(rdi = registers, 5 quads: RAX RBX RCX RDX, RIP): runs code at CPL3 until it takes an
     * exception, which leads to user_back. RAX to RDX are stored back. */
    .global user_run
user_run:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdi
    movq %rsp, user_kernel_rsp(%rip)
    pushq $0x23
    leaq user_stack_top(%rip), %rax
    pushq %rax
    pushq $2
    pushq $0x2b
    pushq 32(%rdi)
    movq (%rdi), %rax
    movq 8(%rdi), %rbx
    movq 16(%rdi), %rcx
    movq 24(%rdi), %rdx
    iretq
    .global user_back
user_back:
    movl $0x10, %esi
    movl %esi, %ds
    movl %esi, %es
    movq user_kernel_rsp(%rip), %rsp
    popq %rdi
    movq %rax, (%rdi)
    movq %rbx, 8(%rdi)
    movq %rcx, 16(%rdi)
    movq %rdx, 24(%rdi)
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    retq

    /* call_probe(rdi = 16 quads by register number, esi = 0 OUT, 1 VMCALL, 2 VMMCALL): calls L0
     * with these registers, but RSP, and stores what they are afterwards. */
    .global call_probe
call_probe:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdi
    leaq 1f(%rip), %rax
    cmpl $1, %esi
    jb 2f
    leaq 3f(%rip), %rax
    je 2f
    leaq 4f(%rip), %rax
2:  movq %rax, probe_target(%rip)
    movq (%rdi), %rax
    movq 8(%rdi), %rcx
    movq 16(%rdi), %rdx
    movq 24(%rdi), %rbx
    movq 40(%rdi), %rbp
    movq 48(%rdi), %rsi
    movq 64(%rdi), %r8
    movq 72(%rdi), %r9
    movq 80(%rdi), %r10
    movq 88(%rdi), %r11
    movq 96(%rdi), %r12
    movq 104(%rdi), %r13
    movq 112(%rdi), %r14
    movq 120(%rdi), %r15
    movq 56(%rdi), %rdi
    jmp *probe_target(%rip)
1:  outl %eax, %dx
    jmp 5f
3:  vmcall
    jmp 5f
4:  vmmcall
5:  xchgq %rdi, (%rsp)
    movq %rax, (%rdi)
    movq %rcx, 8(%rdi)
    movq %rdx, 16(%rdi)
    movq %rbx, 24(%rdi)
    movq %rbp, 40(%rdi)
    movq %rsi, 48(%rdi)
    popq %rax
    movq %rax, 56(%rdi)
    movq %r8, 64(%rdi)
    movq %r9, 72(%rdi)
    movq %r10, 80(%rdi)
    movq %r11, 88(%rdi)
    movq %r12, 96(%rdi)
    movq %r13, 104(%rdi)
    movq %r14, 112(%rdi)
    movq %r15, 120(%rdi)
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    retq

    .bss
    .balign 4096
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096
    .skip {STACK_SIZE}
boot_stack_top:
    .skip 4096
user_stack_top:
user_kernel_rsp:
    .skip 8
probe_target:
    .skip 8
