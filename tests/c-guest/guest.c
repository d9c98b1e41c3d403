/* A kernel for Roost in C: it prints, calls the hypervisor, takes an exception and an interrupt of
 * the timer, and powers off. All it knows of Roost is in a header generated from the crate pv-abi.
 * docs/guests.md says how it is built.
 *
 * No C library is needed, not even its headers; and no linker script: the linker's usual addresses,
 * from 4 MiB on, are free. Ids like EVT-3 are rules of docs/spec/guest.md. */
#include <roost.h>

#define TIMER_VECTOR 0x40
#define LVT_DEADLINE (2 << 17)
#define UART 0x3f8

/* The note by which a loader knows a native kernel (ST-1). */
__attribute__((section(".note.Roost"), used, aligned(4)))
static const struct roost_elf_note note = {
    .name_size = sizeof "Roost", .content_size = sizeof(uint32_t),
    .kind = ROOST_NOTE_ABI_VERSION, .name = "Roost", .version = ROOST_VERSION,
};

/* The page shared with the hypervisor, of which the first part is defined; both sides write it at
 * any time (PVCS-3). */
volatile struct roost_pvcs pvcs[4096 / sizeof(struct roost_pvcs)] __attribute__((aligned(4096)));
char stack[16384] __attribute__((aligned(16)));

/* What the entry for events of supervisor mode leaves on the stack: what IRETQ takes is last. */
struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t rip, cs, rflags, rsp, ss;
};

#define TEXT(x) #x
#define NUMBER(x) TEXT(x)
#define PVCS(field) "pvcs+" NUMBER(ROOST_PVCS_OFFSET_##field) "(%rip)"
__asm__(
    /* Start (ST-2): RSI is the address of the boot block, and there is no stack. */
    ".globl _start\n"
    "_start: leaq stack+16384(%rip), %rsp; movq %rsi, %rdi; call start; ud2\n"
    /* Events of user mode, which this kernel has not; 512 bytes further those of supervisor mode
     * (EVT-2). RIP, RCX and R11 were saved by the hypervisor. */
    ".balign 1024\n.globl event_entry\nevent_entry: ud2\n"
    ".org event_entry + 512\n"
    "movq %rsp, interrupted(%rip); andq $-16, %rsp\n"
    "pushq $" NUMBER(ROOST_SEL_USER_DS) "; pushq interrupted(%rip); pushq $0x202\n"
    "pushq $" NUMBER(ROOST_SEL_USER_CS) "; pushq " PVCS(RIP) "\n"
    "pushq %rax; pushq %rbx; pushq " PVCS(RCX) "; pushq %rdx; pushq %rsi; pushq %rdi\n"
    "pushq %rbp; pushq %r8; pushq %r9; pushq %r10; pushq " PVCS(R11) "\n"
    "pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
    "movq %rsp, %rdi; cld; call event\n"
    "popq %r15; popq %r14; popq %r13; popq %r12; popq %r11; popq %r10; popq %r9; popq %r8\n"
    "popq %rbp; popq %rdi; popq %rsi; popq %rdx; popq %rcx; popq %rbx; popq %rax; iretq\n"
    ".local interrupted\n.comm interrupted, 8\n");
extern char event_entry[];

/* A hypercall: SYSCALL in supervisor mode (HC-1). */
static uint64_t call(uint64_t number, uint64_t first, uint64_t second, uint64_t third)
{
    register uint64_t r10 __asm__("r10") = second;

    __asm__ volatile("syscall"
                     : "+a"(number)
                     : "b"(first), "r"(r10), "d"(third)
                     : "rcx", "r11", "memory");
    return number;
}

static void write_msr(uint32_t index, uint64_t value)
{
    if (call(ROOST_HC_WRMSR, index, value, 0) != 0)
        call(ROOST_CALL_SHUTDOWN, ROOST_SHUTDOWN_CRASH, 0, 0);
}

/* The CPUID that the hypervisor answers (DET-2): ABI version and features. */
static uint32_t abi_version(uint32_t *offered)
{
    uint32_t eax = ROOST_CPUID_ROOST_BASE + 1, ebx, ecx = 0, edx;

    __asm__ volatile("invlpg 0xffffffffff4d5650\n\tcpuid"
                     : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    *offered = ebx;
    return eax;
}

static void print(const char *text)
{
    for (; *text; text++)
        __asm__ volatile("outb %0, %1" : : "a"(*text), "d"((uint16_t)UART));
}

static void print_number(const char *before, uint64_t number, const char *after)
{
    char digits[21], *first = digits + sizeof digits - 1;

    *first = 0;
    do
        *--first = '0' + number % 10;
    while (number /= 10);
    print(before), print(first), print(after);
}

static volatile unsigned exceptions, interrupts;

/* An event of supervisor mode; the virtual interrupt flag is 0. */
void event(struct frame *frame)
{
    /* The fields are read; from here on the next event may use them (EVT-3). */
    uint32_t rflags = pvcs->eflags;
    uint8_t vector = __atomic_exchange_n(&pvcs->event_vector, 0, __ATOMIC_ACQ_REL);
    if (vector == TIMER_VECTOR) {
        interrupts++;
        write_msr(ROOST_X2APIC_EOI, 0);
    } else if (vector == ROOST_EVENT_UD) {
        exceptions++;
        frame->rip += 2;
    } else {
        print_number("vector ", vector, " has no handler\n");
        call(ROOST_CALL_SHUTDOWN, ROOST_SHUTDOWN_CRASH, 0, 0);
    }
    /* IRETQ cannot restore the virtual flag: the handler does (RET-5, EVT-9). */
    frame->rflags = rflags & ~ROOST_EVENT_RFLAGS_IF;
    if (rflags & ROOST_EVENT_RFLAGS_IF) {
        __atomic_fetch_or(&pvcs->event_flags, ROOST_PVCS_IF, __ATOMIC_ACQ_REL);
        if (pvcs->event_flags & ROOST_PVCS_IP)
            call(ROOST_HC_IRQ_WIN, 0, 0, 0);
    }
}

void start(const struct roost_native_boot *boot)
{
    static const char line[] = "a line of the C guest";
    uint32_t offered, version = abi_version(&offered);

    print_number("hello from C: ", boot->memory >> 20, " MiB of memory\n");
    print_number("ABI version ", version >> 16, offered & ROOST_FEATURE_CONSOLE ? ", a console\n" : "\n");
    write_msr(ROOST_MSR_PVM_VCPU_STRUCT, (uint64_t)pvcs);
    write_msr(ROOST_MSR_PVM_EVENT_ENTRY, (uint64_t)event_entry);
    __asm__ volatile("ud2" : : : "memory");
    print_number("exceptions: ", exceptions, "\n");
    write_msr(ROOST_X2APIC_LVT_TIMER, LVT_DEADLINE | TIMER_VECTOR);
    write_msr(ROOST_MSR_TSC_DEADLINE, __builtin_ia32_rdtsc() + boot->tsc_hz / 100);
    call(ROOST_HC_IRQ_HALT, 0, 0, 0);
    print_number("interrupts: ", interrupts, "\n");
    print_number("bytes logged: ", call(ROOST_CALL_LOG, (uint64_t)line, sizeof line - 1, 0), "\n");
    if (call(0, 0, 0, 0) == ROOST_HC_ENOSYS)
        print("no such call: ENOSYS\n");
    call(ROOST_CALL_SHUTDOWN, ROOST_SHUTDOWN_POWEROFF, 0, 0);
}
