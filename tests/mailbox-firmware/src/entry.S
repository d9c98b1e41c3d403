/* The ways in: PVH (EBX = physical address of hvm_start_info, 32-bit protected mode without paging), and
 * the other processors' from their start-up interrupt; and the way out, into L1. Everything lies where it
 * is linked; the first 4 GiB are mapped where they lie. */

    .section .note.Xen, "a", @note
    .balign 4
    .long 4                     /* name size */
    .long 4                     /* description size */
    .long 18                    /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_start

    /* From 32-bit protected mode to 64-bit code at \label, which follows, on the tables in EAX and with
     * the bits of CR4 in EDX. */
    .macro ENTER_LONG_MODE label
    movl %eax, %cr3
    movl %edx, %cr4
    movl $0xc0000080, %ecx      /* EFER: LME */
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax      /* not CD, not NW: INIT sets both */
    orl $0x80000000, %eax       /* PG */
    movl %eax, %cr0
    ljmp $8, $\label
    .code64
\label:
    .endm

    .section .boot, "awx", @progbits
    .code32
    .global pvh_start
pvh_start:
    cli
    cld
    movl $stack_top, %esp
    movl $pdpt + 3, pml4
    movl $pml4 + 3, pml5
    movl $page_directories + 3, %eax
    movl $pdpt, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $0x83, %eax
    movl $page_directories, %edi
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    lgdt gdt_pointer
    movl $pml4, %eax
    movl $0x20, %edx            /* PAE */
    ENTER_LONG_MODE boot64
    movl %ebx, %edi
    xorl %ebp, %ebp
    callq firmware_main
    ud2

    /* Copied to a page below 1 MiB; a start-up interrupt leads there in real mode, CS = page, IP = 0. */
    .global trampoline
    .global trampoline_end
    .code16
trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl trampoline_gdt_pointer - trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $24, $other32
trampoline_gdt_pointer:
    .word 31
    .long gdt
trampoline_end:

    /* Five levels of tables if the CPU knows them: who is woken has to cope. */
    .code32
other32:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %ss
    movl $7, %eax
    xorl %ecx, %ecx
    cpuid
    movl $pml4, %eax
    movl $0x20, %edx            /* PAE */
    btl $16, %ecx               /* LA57 */
    jnc 3f
    movl $pml5, %eax
    orl $0x1000, %edx           /* LA57 */
3:  ENTER_LONG_MODE other64
    movl $1, %eax
    lock xaddl %eax, others(%rip)
    incl %eax
    imull ${OTHER_STACK}, %eax
    leaq other_stacks(%rip), %rsp
    addq %rax, %rsp
    xorl %ebp, %ebp
    callq other_main
    ud2

    /* enter_l1(edi = entry, esi = start info): 32-bit protected mode, flat segments, EBX = start info. */
    .global enter_l1
enter_l1:
    movl %esi, %ebx
    ljmpl *leave_pointer(%rip)
    .code32
leave:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx      /* EFER: not LME */
    rdmsr
    andl $0xfffffeff, %eax
    wrmsr
    xorl %eax, %eax
    movl %eax, %cr4
    jmp *%edi

    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 0x08 64-bit code */
    .quad 0x00cf93000000ffff    /* 0x10 data */
    .quad 0x00cf9b000000ffff    /* 0x18 32-bit code */
gdt_pointer:
    .word 31
    .quad gdt
leave_pointer:
    .long leave
    .word 24

    .bss
    .balign 4096
pml5:
    .skip 4096
pml4:
    .skip 4096
pdpt:
    .skip 4096
page_directories:
    .skip 4 * 4096
    .skip 0x10000
stack_top:
other_stacks:
    .skip {MOST_OTHERS} * {OTHER_STACK}
others:
    .skip 4
    .code64
    .text
