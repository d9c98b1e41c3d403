/* The guest ABI of Roost, for kernels in C. The meaning is in docs/spec/guest.md.
 *
 * Generated from the crate pv-abi: change that, then run
 *     cargo run -p c-header >pv-abi/include/roost.h
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef ROOST_H
#define ROOST_H

#include <stddef.h>
#include <stdint.h>

// Type of the note.
#define ROOST_NOTE_ABI_VERSION 1u

// ABI version, major << 16 | minor. A guest must refuse a major it does not know.
#define ROOST_VERSION 0x10000u

// Every upper-half PML4 slot but 256..272 is the guest's.
#define ROOST_FEATURE_WIDE_VA 1u

// A supervisor-mode SYSCALL from outside the shim's text is delivered as event::SYSCALL; CLI and
// STI there have no effect.
#define ROOST_FEATURE_SYSCALL_REFLECTION 2u

// The guest tells of its page-table stores; L1 write-protects no upper-level table. Irrevocable.
// Not offered to native guests.
#define ROOST_FEATURE_NOTES 4u

// msr::RETU_PREFAULT_RIP: an ERETU that maps the address just handled.
#define ROOST_FEATURE_PREFAULT 8u

// call::LOAD_LDT and call::SET_CPUNODE.
#define ROOST_FEATURE_DESCRIPTORS 0x10u

// Interrupt vectors need no end-of-interrupt: delivering one retires it.
#define ROOST_FEATURE_AUTO_EOI 0x20u

// The VM window (window) is mapped. Set by the loader, cannot be enabled later. Not offered to
// native guests.
#define ROOST_FEATURE_VM_WINDOW 0x40u

// call::CONSOLE_WRITE and call::CONSOLE_READ.
#define ROOST_FEATURE_CONSOLE 0x80u

// From outside the shim's text the GS base MSRs mean what they mean on bare hardware in
// supervisor mode: GS_BASE is the supervisor's, KERNEL_GS_BASE the other one, the user's.
#define ROOST_FEATURE_NATIVE_GS 0x100u

// call::SHARE and call::UNSHARE: pages that L1's devices may not use.
#define ROOST_FEATURE_PRIVATE 0x200u

// call::VCPU_START to call::FLUSH_VCPUS: other vCPUs of the VM.
#define ROOST_FEATURE_SMP 0x400u

// timer: the deadline is a word in memory. Not offered to native guests.
#define ROOST_FEATURE_TIMER_WORD 0x800u

// call::DEVICE_READ to call::QUEUE_VECTOR: virtio devices and their calls.
#define ROOST_FEATURE_DEVICES 0x1000u

// A page fault of user mode may come without L1, by what L1 saw of the tables when it was left.
#define ROOST_FEATURE_EARLY_FAULTS 0x2000u

// Base of the KVM leaves; C1 guests look for the signature exactly here.
#define ROOST_CPUID_KVM_BASE 0x40000000u

// KVM feature bit (leaf base + 1, EAX): kvmclock by the new MSRs.
#define ROOST_CPUID_KVM_FEATURE_CLOCKSOURCE2 8u

// KVM feature bit: the clock never runs backwards between vCPUs.
#define ROOST_CPUID_KVM_FEATURE_CLOCKSOURCE_STABLE 0x1000000u

// Leaf base + 0x10: EAX = TSC kHz, EBX = APIC bus kHz.
#define ROOST_CPUID_KVM_TIMING 0x40000010u

// EAX at leaf 0x40000001: msr::KVM_STEAL_TIME.
#define ROOST_CPUID_KVM_FEATURE_STEAL_TIME 0x20u

// Base of Roost's own leaves.
#define ROOST_CPUID_ROOST_BASE 0x40000400u

// Highest leaf of ours.
#define ROOST_CPUID_ROOST_MAX 0x40000402u

// Legal upper-half address range; see linear_address_range.
#define ROOST_MSR_PVM_LINEAR_ADDRESS_RANGE 0x4b564df0u

// Guest-physical address of this vCPU's pvcs::Pvcs; 0 means none.
#define ROOST_MSR_PVM_VCPU_STRUCT 0x4b564df1u

// Event entry: +0 for events from user mode, +512 for events from supervisor mode.
#define ROOST_MSR_PVM_EVENT_ENTRY 0x4b564df4u

// Address of the SYSCALL instruction that returns to user mode (ERETU).
#define ROOST_MSR_PVM_RETU_RIP 0x4b564df5u

// Distance from the event entry for user mode to the one for supervisor mode, bytes.
#define ROOST_MSR_EVENT_ENTRY_SUPERVISOR 0x200ull

// kvmclock: wall clock page (guest-physical address).
#define ROOST_MSR_KVM_WALL_CLOCK_NEW 0x4b564d00u

// kvmclock: per-vCPU time page (guest-physical address, bit 0 enables).
#define ROOST_MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01u

// Steal time: per-vCPU page (guest-physical address, a multiple of 64; bit 0 enables, bits 1 to 5
// are reserved). See steal.
#define ROOST_MSR_KVM_STEAL_TIME 0x4b564d03u

#define ROOST_MSR_TSC 0x10u

#define ROOST_MSR_PLATFORM_ID 0x17u

#define ROOST_MSR_APIC_BASE 0x1bu

#define ROOST_MSR_FEATURE_CONTROL 0x3au

#define ROOST_MSR_TSC_ADJUST 0x3bu

#define ROOST_MSR_BIOS_SIGN_ID 0x8bu

#define ROOST_MSR_MTRR_CAP 0xfeu

#define ROOST_MSR_PLATFORM_INFO 0xceu

#define ROOST_MSR_MISC_FEATURES_ENABLES 0x140u

#define ROOST_MSR_SYSENTER_CS 0x174u

#define ROOST_MSR_SYSENTER_ESP 0x175u

#define ROOST_MSR_SYSENTER_EIP 0x176u

#define ROOST_MSR_MISC_ENABLE 0x1a0u

#define ROOST_MSR_DEBUGCTL 0x1d9u

#define ROOST_MSR_PAT 0x277u

#define ROOST_MSR_MTRR_DEF_TYPE 0x2ffu

#define ROOST_MSR_TSC_DEADLINE 0x6e0u

#define ROOST_MSR_EFER 0xc0000080u

#define ROOST_MSR_STAR 0xc0000081u

#define ROOST_MSR_LSTAR 0xc0000082u

#define ROOST_MSR_CSTAR 0xc0000083u

#define ROOST_MSR_SFMASK 0xc0000084u

#define ROOST_MSR_FS_BASE 0xc0000100u

#define ROOST_MSR_GS_BASE 0xc0000101u

#define ROOST_MSR_KERNEL_GS_BASE 0xc0000102u

#define ROOST_MSR_TSC_AUX 0xc0000103u

#define ROOST_X2APIC_FIRST 0x800u

#define ROOST_X2APIC_LAST 0x8ffu

#define ROOST_X2APIC_ID 0x802u

#define ROOST_X2APIC_VERSION 0x803u

#define ROOST_X2APIC_TPR 0x808u

#define ROOST_X2APIC_PPR 0x80au

#define ROOST_X2APIC_EOI 0x80bu

#define ROOST_X2APIC_LDR 0x80du

#define ROOST_X2APIC_SVR 0x80fu

#define ROOST_X2APIC_ISR0 0x810u

#define ROOST_X2APIC_TMR0 0x818u

#define ROOST_X2APIC_IRR0 0x820u

#define ROOST_X2APIC_ESR 0x828u

#define ROOST_X2APIC_ICR 0x830u

#define ROOST_X2APIC_LVT_TIMER 0x832u

#define ROOST_X2APIC_LVT_THERMAL 0x833u

#define ROOST_X2APIC_LVT_PERF 0x834u

#define ROOST_X2APIC_LVT_LINT0 0x835u

#define ROOST_X2APIC_LVT_LINT1 0x836u

#define ROOST_X2APIC_LVT_ERROR 0x837u

#define ROOST_X2APIC_TIMER_INITIAL 0x838u

#define ROOST_X2APIC_TIMER_CURRENT 0x839u

#define ROOST_X2APIC_TIMER_DIVIDE 0x83eu

#define ROOST_X2APIC_SELF_IPI 0x83fu

// First index.
#define ROOST_EXT_MSR_BASE 0x526f0000u

// Address of a SYSCALL instruction that acts as ERETU, entering L1 to map PVCS.cr2 first.
#define ROOST_EXT_MSR_RETU_PREFAULT_RIP 0x526f0000u

// Lowest address of the text whose supervisor SYSCALLs are hypercalls, not reflections.
#define ROOST_EXT_MSR_REFLECT_START 0x526f0001u

// First address past that text.
#define ROOST_EXT_MSR_REFLECT_END 0x526f0002u

// An interrupt is waiting: whoever sets IF calls IRQ_WIN.
#define ROOST_PVCS_IP 0x100ull

// Virtual interrupt flag of supervisor mode. User mode always counts as enabled.
#define ROOST_PVCS_IF 0x200ull

// An event, or a return being prepared, owns the event fields.
#define ROOST_PVCS_VECTOR_STANDARD 0x100

// An NMI is recorded (or being delivered).
#define ROOST_PVCS_VECTOR_NMI 0x200

// A machine check is recorded (or being delivered).
#define ROOST_PVCS_VECTOR_MCE 0x400

// Everything that forbids delivery of another supervisor-mode event.
#define ROOST_PVCS_VECTOR_OWNED 0xff00

#define ROOST_PVCS_OFFSET_EVENT_FLAGS 0

#define ROOST_PVCS_OFFSET_CR2 8

#define ROOST_PVCS_OFFSET_USER_CS 0x40

#define ROOST_PVCS_OFFSET_EVENT_ERRCODE 0x44

#define ROOST_PVCS_OFFSET_EVENT_VECTOR 0x46

#define ROOST_PVCS_OFFSET_USER_GSBASE 0x48

#define ROOST_PVCS_OFFSET_EFLAGS 0x50

#define ROOST_PVCS_OFFSET_RIP 0x58

#define ROOST_PVCS_OFFSET_RCX 0x60

#define ROOST_PVCS_OFFSET_R11 0x68

// 32-bit user code.
#define ROOST_SEL_USER32_CS 0x23

// User data; SS of both guest modes.
#define ROOST_SEL_USER_DS 0x2b

// 64-bit user code; CS of both guest modes.
#define ROOST_SEL_USER_CS 0x33

// The pair that ERETU returns to without L1: user_cs | user_ss << 16, as the PVCS holds it.
#define ROOST_SEL_USER_CS_SS 0x2b0033u

// GDT slot 15: CPU number for getcpu by LSL (extension: ext::call::SET_CPUNODE).
#define ROOST_SEL_CPUNODE_SLOT 0xf

// Selector of a data descriptor whose limit is the vCPU index, readable by LSL from CPL3.
#define ROOST_SEL_VCPU_INDEX 0x83

#define ROOST_EVENT_DE 0

#define ROOST_EVENT_DB 1

#define ROOST_EVENT_NMI 2

#define ROOST_EVENT_BP 3

#define ROOST_EVENT_OF 4

#define ROOST_EVENT_BR 5

#define ROOST_EVENT_UD 6

#define ROOST_EVENT_NM 7

#define ROOST_EVENT_DF 8

#define ROOST_EVENT_TS 0xa

#define ROOST_EVENT_NP 0xb

#define ROOST_EVENT_SS 0xc

#define ROOST_EVENT_GP 0xd

#define ROOST_EVENT_PF 0xe

#define ROOST_EVENT_MF 0x10

#define ROOST_EVENT_AC 0x11

#define ROOST_EVENT_MC 0x12

#define ROOST_EVENT_XM 0x13

// INT 0x80 from either mode.
#define ROOST_EVENT_INT80 0x80

// RFLAGS bits a guest context may carry; everything else is forced (IF and bit 1 set, rest
// clear). CF PF AF ZF SF TF DF OF NT RF AC ID.
#define ROOST_EVENT_RFLAGS_ALLOWED 0x254dd5ull

// RFLAGS bits that are always set while a guest runs: IF and bit 1.
#define ROOST_EVENT_RFLAGS_FORCED 0x202ull

// RFLAGS bits that no CPU has set while a guest runs: IOPL, VM, those of virtual interrupts, and
// those that are always 0.
#define ROOST_EVENT_RFLAGS_NEVER 0xffffffffffdab028ull

// The flags that arithmetic sets: CF PF AF ZF SF OF.
#define ROOST_EVENT_RFLAGS_ARITHMETIC 0x8d5ull

// Trap flag.
#define ROOST_EVENT_RFLAGS_TF 0x100ull

// Interrupt flag.
#define ROOST_EVENT_RFLAGS_IF 0x200ull

// Resume flag.
#define ROOST_EVENT_RFLAGS_RF 0x10000ull

#define ROOST_PF_PRESENT 1ull

#define ROOST_PF_WRITE 2ull

#define ROOST_PF_USER 4ull

#define ROOST_PF_RESERVED 8ull

#define ROOST_PF_FETCH 0x10ull

// A supervisor SYSCALL from outside the shim's text.
#define ROOST_EXT_EVENT_SYSCALL 0x1f

// First of PVM's hypercall numbers.
#define ROOST_HC_PVM_BASE 0x17088200ull

// Load CR3: (flags, cr3). See LOAD_PGTBL_FLUSH.
#define ROOST_HC_LOAD_PGTBL 0x17088200ull

// Deliver what is pending; clears pvcs::flags::IP.
#define ROOST_HC_IRQ_WIN 0x17088201ull

// Set the virtual interrupt flag and halt, atomically.
#define ROOST_HC_IRQ_HALT 0x17088202ull

// Flush every translation of this vCPU.
#define ROOST_HC_TLB_FLUSH 0x17088203ull

// Flush the translations of the current address space.
#define ROOST_HC_TLB_FLUSH_CURRENT 0x17088204ull

// Flush one address: (gva).
#define ROOST_HC_TLB_INVLPG 0x17088205ull

// Load the user GS selector: (selector); returns the base it brought.
#define ROOST_HC_LOAD_GS 0x17088206ull

// Read an MSR: (index); returns the value, 0 for a bad index.
#define ROOST_HC_RDMSR 0x17088207ull

// Write an MSR: (index, value); returns 0 or EIO.
#define ROOST_HC_WRMSR 0x17088208ull

// Load the three thread-local-storage descriptors: (desc0, desc1, desc2).
#define ROOST_HC_LOAD_TLS 0x17088209ull

// LOAD_PGTBL flag: flush the target's translations.
#define ROOST_HC_LOAD_PGTBL_FLUSH 1ull

// "Not allowed here", as a register value.
#define ROOST_HC_EPERM 0xffffffffffffffffull

// "Refused": WRMSR of a bad index or value.
#define ROOST_HC_EIO 0xfffffffffffffffbull

// "Bad address".
#define ROOST_HC_EFAULT 0xfffffffffffffff2ull

// "Bad argument".
#define ROOST_HC_EINVAL 0xffffffffffffffeaull

// "No such call".
#define ROOST_HC_ENOSYS 0xffffffffffffffdaull

// First number.
#define ROOST_CALL_BASE 0x526f0000ull

// Enable features: (bits); 0 or EINVAL, in which case nothing changed.
#define ROOST_CALL_ENABLE 0x526f0000ull

// Write to the guest's console: (gpa, length); returns the bytes taken.
#define ROOST_CALL_CONSOLE_WRITE 0x526f0001ull

// Read from the guest's console: (gpa, length); returns the bytes given.
#define ROOST_CALL_CONSOLE_READ 0x526f0002ull

// Interrupt vector to raise when console input arrives: (vector), 0 for none.
#define ROOST_CALL_CONSOLE_VECTOR 0x526f0003ull

// End this VM: (reason, gpa, length) where the bytes are a message; see shutdown.
#define ROOST_CALL_SHUTDOWN 0x526f0004ull

// Write a line to L1's log: (gpa, length).
#define ROOST_CALL_LOG 0x526f0005ull

// Notes mode: the PML4 in frame (gfn) may be cached; its upper-level stores are noted.
#define ROOST_CALL_PIN_ROOT 0x526f0006ull

// Notes mode: forget the PML4 in frame (gfn) and every table only it reaches.
#define ROOST_CALL_UNPIN_ROOT 0x526f0007ull

// Notes mode: the table in frame (gfn) is a table no longer.
#define ROOST_CALL_UNPIN_TABLE 0x526f0008ull

// Load the local descriptor table: (gva, entries), entries 0 to unload.
#define ROOST_CALL_LOAD_LDT 0x526f0009ull

// Install the CPU-number descriptor in GDT slot 15: (descriptor).
#define ROOST_CALL_SET_CPUNODE 0x526f000aull

// Read one of L1's counters for this vCPU: (index); see counter.
#define ROOST_CALL_READ_COUNTER 0x526f000bull

// Walk every live shadow root and compare it with the allow-list; returns the violations.
#define ROOST_CALL_CHECK_ROOTS 0x526f000cull

// Take the next deliverable interrupt without an event: returns its vector, 0 if there is none.
// Needs AUTO_EOI. pvcs::flags::IP is clear afterwards.
#define ROOST_CALL_TAKE_IRQ 0x526f000dull

// Let devices use pages again: (gpa, pages, CONVERT_ZERO or 0); 0 or EINVAL.
#define ROOST_CALL_SHARE 0x526f000eull

// Keep devices out of pages: (gpa, pages, CONVERT_ZERO or 0); 0, EINVAL, or one more than the
// number of the first page that is in use, in which case nothing changed.
#define ROOST_CALL_UNSHARE 0x526f000full

// Start a vCPU that is off: (vCPU, entry, argument, cr3); 0 or EINVAL. It begins in supervisor
// mode at the entry, with the argument in RDI, its number in RSI, no stack, and registers as
// after reset.
#define ROOST_CALL_VCPU_START 0x526f0010ull

// Stop this vCPU: it is off when somebody else sees it so; does not return.
#define ROOST_CALL_VCPU_STOP 0x526f0011ull

// Ask whether a vCPU is on: (vCPU); 1 or 0, or EINVAL.
#define ROOST_CALL_VCPU_STATE 0x526f0012ull

// Request an interrupt of several vCPUs: (mask, vector); 0 or EINVAL. Bits of vCPUs that do not
// exist are ignored.
#define ROOST_CALL_SEND_IPI 0x526f0013ull

// Flush translations of several vCPUs: (mask, address or FLUSH_ALL); 0. When it returns none of
// them uses a translation from before: each that runs has flushed as by hypercall::TLB_FLUSH or
// hypercall::TLB_INVLPG, each that does not will before it runs.
#define ROOST_CALL_FLUSH_VCPUS 0x526f0014ull

// Leave the rest of this vCPU's time slice to others: 0.
#define ROOST_CALL_YIELD 0x526f0015ull

// Wait until an interrupt could be delivered, whatever the virtual interrupt flag says, and leave
// that flag as it is: 0.
#define ROOST_CALL_WAIT_IRQ 0x526f0016ull

// Read a register of a device: (slot, offset); its 32 bits, or EINVAL if there is no such slot or
// no such register. See devices.
#define ROOST_CALL_DEVICE_READ 0x526f0017ull

// Write a register of a device: (slot, offset, value); 0 or EINVAL.
#define ROOST_CALL_DEVICE_WRITE 0x526f0018ull

// Tell a device of new buffers in a queue: (slot, queue); 0 or EINVAL. The same as a write of
// QueueNotify.
#define ROOST_CALL_DOORBELL 0x526f0019ull

// Choose how a device interrupts: (slot, vector, vCPU); 0 or EINVAL. From now on it requests that
// vector of that vCPU, in place of the I/O APIC's line; vector 0: it interrupts nobody.
#define ROOST_CALL_DEVICE_VECTOR 0x526f001aull

// Choose how one queue of a device interrupts: (slot, queue << 8 | vector, vCPU); 0 or EINVAL.
// From now on what is used in it requests that vector of that vCPU; vector 0: as DEVICE_VECTOR
// says, whose next call ends it for all queues.
#define ROOST_CALL_QUEUE_VECTOR 0x526f001bull

// The last number.
#define ROOST_CALL_LAST 0x526f001bull

// FLUSH_VCPUS: every address of every address space.
#define ROOST_CALL_FLUSH_ALL 0xffffffffffffffffull

// Pages that one conversion takes at most: 32 MiB.
#define ROOST_CALL_CONVERT_MOST 0x2000ull

// Flag of a conversion: the pages are zeroed while nobody has them.
#define ROOST_CALL_CONVERT_ZERO 1ull

// LOAD_PGTBL flag, notes mode: the root is pinned, as if by PIN_ROOT.
#define ROOST_CALL_LOAD_PGTBL_PINNED 0x100ull

// The guest powered itself off.
#define ROOST_SHUTDOWN_POWEROFF 0ull

// The guest asked for a restart.
#define ROOST_SHUTDOWN_REBOOT 1ull

// The guest gave up (panic).
#define ROOST_SHUTDOWN_CRASH 3ull

// The shim could not start the kernel: the message says why.
#define ROOST_SHUTDOWN_BOOT_FAILED 4ull

// Slots of a VM.
#define ROOST_DEVICES_SLOTS 0x10

// Guest-physical address of slot 0's block in a native guest.
#define ROOST_DEVICES_BASE 0xfeb00000ull

// Bytes from one block to the next.
#define ROOST_DEVICES_STRIDE 0x1000ull

// Line of the I/O APIC that slot 0 has in a native guest; slot n has the n-th after it.
#define ROOST_DEVICES_LINE 8

// Queues that a disk has at most: one for each vCPU up to this number.
#define ROOST_DEVICES_DISK_QUEUES_MOST 4

// Pairs of queues that a network card has at most: one for each vCPU up to this number.
#define ROOST_DEVICES_CARD_PAIRS_MOST 4

// Entries that a queue has at most.
#define ROOST_DEVICES_QUEUE_MOST 0x100u

// A page fault that a shadow entry settled.
#define ROOST_COUNTER_PAGE_FAULT_FILLED 0ull

// A page fault of the guest's own.
#define ROOST_COUNTER_PAGE_FAULT_REFLECTED 1ull

// An access to a device's memory.
#define ROOST_COUNTER_MMIO 2ull

// A hypercall that has no reason of its own.
#define ROOST_COUNTER_HYPERCALL 3ull

// A system call that could not be switched directly.
#define ROOST_COUNTER_SYSCALL_USER 4ull

// A supervisor SYSCALL that became event::SYSCALL.
#define ROOST_COUNTER_SYSCALL_REFLECTED 5ull

// An ERETU that could not be switched directly.
#define ROOST_COUNTER_ERETU 6ull

// An ERETU that maps the page of the last fault.
#define ROOST_COUNTER_ERETU_PREFAULT 7ull

// A #GP of the guest's own.
#define ROOST_COUNTER_GENERAL_PROTECTION 8ull

// RDMSR or WRMSR by instruction.
#define ROOST_COUNTER_RDMSR_WRMSR 9ull

// Another instruction that is emulated.
#define ROOST_COUNTER_EMULATED 0xaull

// The synthetic CPUID.
#define ROOST_COUNTER_SYNTHETIC_CPUID 0xbull

// Any other exception.
#define ROOST_COUNTER_OTHER_EXCEPTION 0xcull

// INT n.
#define ROOST_COUNTER_SOFTWARE_INTERRUPT 0xdull

// L1's timer.
#define ROOST_COUNTER_TIMER 0xeull

// L1's console.
#define ROOST_COUNTER_CONSOLE_INTERRUPT 0xfull

// Any other interrupt.
#define ROOST_COUNTER_OTHER_INTERRUPT 0x10ull

// The CPU refused to enter the guest with the state it had.
#define ROOST_COUNTER_FAILED_ENTRY 0x11ull

// LOAD_PGTBL.
#define ROOST_COUNTER_LOAD_PGTBL 0x12ull

// A flush of whole address spaces.
#define ROOST_COUNTER_FLUSH 0x13ull

// A flush of one address.
#define ROOST_COUNTER_INVLPG 0x14ull

// RDMSR or WRMSR by hypercall.
#define ROOST_COUNTER_HYPERCALL_MSR 0x15ull

// IRQ_HALT or HLT.
#define ROOST_COUNTER_HALT 0x16ull

// CPUID itself, where it traps.
#define ROOST_COUNTER_CPUID 0x17ull

// Another CPU's interrupt: a flush, an interrupt request or a guest's end waits for this one.
#define ROOST_COUNTER_KICK 0x18ull

// First of the counters that are no exit reason.
#define ROOST_COUNTER_SPECIAL 0x1000ull

// All exits.
#define ROOST_COUNTER_EXITS 0x1000ull

// Events delivered.
#define ROOST_COUNTER_EVENTS 0x1001ull

// CR3 writes by L1 and switcher: two at an exit, or as many as were needed without page-table
// isolation; one at a direct switch and at an early fault.
#define ROOST_COUNTER_CR3_WRITES 0x1002ull

// Shadow entries filled.
#define ROOST_COUNTER_FILLS 0x1003ull

// Flushes of this vCPU's translations.
#define ROOST_COUNTER_FLUSHES 0x1004ull

// Switches between the guest's modes that never entered L1.
#define ROOST_COUNTER_DIRECT_SWITCHES 0x1005ull

// Page faults that were delivered without L1.
#define ROOST_COUNTER_EARLY_FAULTS 0x1006ull

// "RoostNat".
#define ROOST_BOOT_MAGIC 0x74614e74736f6f52ull

// Where L1 puts this block.
#define ROOST_BOOT_GPA 0x1000ull

// Where L1 puts the command line; at most a page.
#define ROOST_BOOT_CMDLINE 0x2000ull

// First of the start-up page tables: PML4, PDPT, then one page directory per GiB.
#define ROOST_BOOT_TABLES 0x3000ull

// Lowest address an image may be linked at.
#define ROOST_BOOT_LOWEST 0x100000ull

// The whole note, to be put into a section .note.Roost.
struct roost_elf_note {
  // Bytes of the name, its zero included.
  uint32_t name_size;
  // Bytes of the content.
  uint32_t content_size;
  // ABI_VERSION.
  uint32_t kind;
  // NAME and zeros.
  uint8_t name[8];
  // The version that the kernel was written for, major << 16 | minor.
  uint32_t version;
};

// Layout of the defined part of the page. Used for offsets and for whole copies; shared memory
// itself is only ever accessed field by field with volatile or atomic operations.
struct roost_pvcs {
  // See flags. The virtual interrupt flag and the pending hint.
  uint64_t event_flags;
  // Faulting address of the last #PF delivered.
  uint64_t cr2;
  // Zero.
  uint64_t reserved0[6];
  // User CS selector: written on events from user mode, read by ERETU.
  uint16_t user_cs;
  // User SS selector.
  uint16_t user_ss;
  // Error code of the last event, where its vector has one.
  uint16_t event_errcode;
  // See vector: vector of the last event, with the nesting guard in the high byte.
  uint16_t event_vector;
  // GS base of user mode.
  uint64_t user_gsbase;
  // RFLAGS of the interrupted context, with the *virtual* interrupt flag.
  uint32_t eflags;
  // Zero: protection keys are not offered.
  uint32_t pkru;
  // RIP of the interrupted context.
  uint64_t rip;
  // RCX of the interrupted context.
  uint64_t rcx;
  // R11 of the interrupted context.
  uint64_t r11;
  // Zero.
  uint64_t reserved1[2];
};

// A range of guest-physical memory.
struct roost_span {
  // First byte.
  uint64_t gpa;
  // Bytes.
  uint64_t len;
};

// What L1 tells a native guest: guest-physical address in RSI at its entry.
struct roost_native_boot {
  // NativeBoot::MAGIC.
  uint64_t magic;
  // VERSION.
  uint32_t version;
  // vCPUs of this VM.
  uint32_t vcpus;
  // Bytes of memory, from guest-physical 0.
  uint64_t memory;
  // TSC ticks per second.
  uint64_t tsc_hz;
  // The command line, without a terminating zero.
  struct roost_span cmdline;
  // A boot module (the initrd option); empty when there is none.
  struct roost_span module;
};

#endif  /* ROOST_H */

#ifndef __cplusplus
_Static_assert(sizeof(struct roost_elf_note) == 24, "size");
_Static_assert(offsetof(struct roost_elf_note, name_size) == 0, "name_size");
_Static_assert(offsetof(struct roost_elf_note, content_size) == 4, "content_size");
_Static_assert(offsetof(struct roost_elf_note, kind) == 8, "kind");
_Static_assert(offsetof(struct roost_elf_note, name) == 12, "name");
_Static_assert(offsetof(struct roost_elf_note, version) == 20, "version");
_Static_assert(sizeof(struct roost_pvcs) == 128, "size");
_Static_assert(offsetof(struct roost_pvcs, event_flags) == 0, "event_flags");
_Static_assert(offsetof(struct roost_pvcs, cr2) == 8, "cr2");
_Static_assert(offsetof(struct roost_pvcs, reserved0) == 16, "reserved0");
_Static_assert(offsetof(struct roost_pvcs, user_cs) == 64, "user_cs");
_Static_assert(offsetof(struct roost_pvcs, user_ss) == 66, "user_ss");
_Static_assert(offsetof(struct roost_pvcs, event_errcode) == 68, "event_errcode");
_Static_assert(offsetof(struct roost_pvcs, event_vector) == 70, "event_vector");
_Static_assert(offsetof(struct roost_pvcs, user_gsbase) == 72, "user_gsbase");
_Static_assert(offsetof(struct roost_pvcs, eflags) == 80, "eflags");
_Static_assert(offsetof(struct roost_pvcs, pkru) == 84, "pkru");
_Static_assert(offsetof(struct roost_pvcs, rip) == 88, "rip");
_Static_assert(offsetof(struct roost_pvcs, rcx) == 96, "rcx");
_Static_assert(offsetof(struct roost_pvcs, r11) == 104, "r11");
_Static_assert(offsetof(struct roost_pvcs, reserved1) == 112, "reserved1");
_Static_assert(sizeof(struct roost_span) == 16, "size");
_Static_assert(offsetof(struct roost_span, gpa) == 0, "gpa");
_Static_assert(offsetof(struct roost_span, len) == 8, "len");
_Static_assert(sizeof(struct roost_native_boot) == 64, "size");
_Static_assert(offsetof(struct roost_native_boot, magic) == 0, "magic");
_Static_assert(offsetof(struct roost_native_boot, version) == 8, "version");
_Static_assert(offsetof(struct roost_native_boot, vcpus) == 12, "vcpus");
_Static_assert(offsetof(struct roost_native_boot, memory) == 16, "memory");
_Static_assert(offsetof(struct roost_native_boot, tsc_hz) == 24, "tsc_hz");
_Static_assert(offsetof(struct roost_native_boot, cmdline) == 32, "cmdline");
_Static_assert(offsetof(struct roost_native_boot, module) == 48, "module");
#endif
