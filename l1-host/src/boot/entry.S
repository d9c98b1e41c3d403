/* What L1's entry points share: builds tables that map the first 4 GiB where they lie, under the image
 * and in the direct map, enters long mode, calls l1_main. */

/* From 32-bit protected mode, on boot_gdt, to 64-bit code at \label, which follows. */
    .macro ENTER_LONG_MODE label
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0x20, %eax            /* PAE, and nothing that firmware has left */
    movl %eax, %cr4
    movl $0xc0000080, %ecx      /* EFER: SCE, LME, NXE */
    rdmsr
    orl $0x901, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax      /* not CD, not NW: INIT sets both */
    orl $0x80010000, %eax       /* PG, WP */
    movl %eax, %cr0
    ljmp $8, $\label

    .code64
\label:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    .endm

    .section .boot, "awx", @progbits
    .code32
/* Where every loader's entry goes on: 32-bit protected mode, flat segments, paging off. EBX is the
 * physical address of what the loader hands over, ESI says whose it is (`Loader` of entry.rs). */
loaded:
    cli
    cld
    movl $boot_stack_top, %esp

    /* PML4[0], [256] (the image) and [258] (the direct map) -> PDPT -> four page directories of 2 MiB pages. */
    movl $boot_pdpt + 3, %eax
    movl %eax, boot_pml4
    movl %eax, boot_pml4 + 256 * 8
    movl %eax, boot_pml4 + 258 * 8
    movl $boot_pd + 3, %eax
    movl $boot_pdpt, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $0x83, %eax
    movl $boot_pd, %edi
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b

    lgdt boot_gdt_pointer
    ENTER_LONG_MODE boot64
    movabsq $l1_main, %rax
    movabsq $l1_stack_top, %rsp
    movl %ebx, %edi             /* ESI is the second argument as it is */
    xorl %ebp, %ebp
    callq *%rax
    ud2

    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 64-bit code */
    .quad 0x00cf93000000ffff    /* data */
    .quad 0x00cf9b000000ffff    /* 32-bit code */
boot_gdt_pointer:
    .word 31
    .quad boot_gdt              /* 32-bit code reads half of it */
ap_wakeup32_pointer:
    .long ap_wakeup32
    .word 24

/* An application processor starts in real mode at a page below 1 MiB to which this is copied, or at
 * ap_wakeup, and goes the same way. Its stack is in `ap_stack` and its root in `ap_root`, if it is expected. */
    .global ap_trampoline
    .global ap_trampoline_end
    .code16
ap_trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $24, $ap_start32
ap_gdt_pointer:
    .word 31
    .long boot_gdt
ap_trampoline_end:

/* Where one goes on that the firmware wakes: 64-bit code, on the firmware's descriptors, which are flat, and
 * tables, which need map nothing but the page of this code where it lies. They may have five levels, which
 * cannot be changed while they are in use; so paging goes, and with it all that is the firmware's. */
    .code64
    .global ap_wakeup
ap_wakeup:
    cli
    cld
    movq %cr4, %rax
    btrq $17, %rax              /* PCIDE: with it, paging cannot be turned off */
    movq %rax, %cr4
    lgdt boot_gdt_pointer(%rip)
    ljmpl *ap_wakeup32_pointer(%rip)

    .code32
ap_wakeup32:
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
ap_start32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %ss
    ENTER_LONG_MODE ap64
    movabsq $ap_main, %rax
    jmpq *%rax

/* In L1's image, which the start-up tables and L1's own both map. */
    .section .text.ap, "ax", @progbits
ap_main:
    xorl %ecx, %ecx
    xchgq %rcx, ap_stack(%rip)
    testq %rcx, %rcx
    jz 1f
    movq ap_root(%rip), %rax
    movq %rax, %cr3
    movq %rcx, %rsp
    xorl %ebp, %ebp
    callq l1_ap_main
    ud2
1:  cli
    hlt
    jmp 1b

    .section .boot.bss, "aw", @nobits
    .balign 4096
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096
    .skip 4096
boot_stack_top:

/* The boot CPU's stack, above a page that stays unmapped. */
    .section .bss.stack, "aw", @nobits
    .balign 4096
    .global l1_stack_guard
l1_stack_guard:
    .skip 4096
    .skip {STACK_SIZE}
l1_stack_top:
