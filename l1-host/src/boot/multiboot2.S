/* Multiboot2 entry: 32-bit protected mode, flat segments, paging off, EAX = magic number, EBX =
 * physical address of the boot information (Multiboot2 Specification 2.0, section 3.3). UEFI's boot
 * services are over: nobody asks to keep them. */

    .section .boot, "awx", @progbits
    .balign 8
multiboot2_header:
    .long 0xe85250d6            /* magic */
    .long 0                     /* 32-bit protected mode of i386 */
    .long multiboot2_header_end - multiboot2_header
    .long -(0xe85250d6 + (multiboot2_header_end - multiboot2_header))
    /* Cannot start without: modules (3), the memory map (6). */
    .word 1, 0
    .long 16
    .long 3, 6
    /* Where to start; the ELF header names the other entry. */
    .word 3, 0
    .long 12
    .long multiboot2_start
    .balign 8
    /* Modules start at pages. */
    .word 6, 0
    .long 8
    .word 0, 0
    .long 8
multiboot2_header_end:

    .code32
multiboot2_start:
    movl ${MULTIBOOT2}, %esi
    cmpl $0x36d76289, %eax
    je loaded
    ud2
