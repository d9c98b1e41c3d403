/* PVH entry: 32-bit protected mode, flat segments, paging off, EBX = physical address of
 * hvm_start_info (Xen public documentation, "PVH start of day"). */

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
    movl ${PVH}, %esi
    jmp loaded
