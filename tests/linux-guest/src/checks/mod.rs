//! Lists all checks, in the order in which they run.

mod clocks;
mod copy_on_write;
mod cpuid;
mod execute;
mod exits;
mod faults;
mod hashing;
mod identity;
mod int80;
mod kernel_log;
mod ldt;
mod memory_stress;
mod out_of_memory;
mod ping_pong;
mod privileged;
mod segment_bases;
mod shared_file;
mod signal_stack;
mod signals;
mod tracing;
mod undisturbed;
mod vdso;
mod vector_state;
mod vsyscall;

use crate::check::Check;

macro_rules! checks {
    ($($name:ident = $run:path,)*) => {
        /// All checks. The kernel's log comes last, to see what the others did to it.
        pub const ALL: &[Check] = &[$(Check { name: stringify!($name), run: $run }),*];
    };
}

checks! {
    proc = identity::run,
    cpuid = cpuid::run,
    fork_exec_1000 = execute::run,
    hash_64 = hashing::run,
    avx_state = vector_state::switches,
    avx_signal = vector_state::signals,
    fs_gs_base = segment_bases::run,
    sigaltstack = signal_stack::run,
    int3 = faults::int3,
    trap_flag = faults::trap_flag,
    divide_error = faults::divide_error,
    invalid_opcode = faults::invalid_opcode,
    nx_fault = faults::no_execute,
    read_only_page = faults::read_only,
    bus_past_eof = faults::past_end_of_file,
    general_protection = faults::general_protection,
    upper_half = faults::upper_half,
    privileged = privileged::run,
    ptrace_singlestep = tracing::single_step,
    hw_breakpoint = tracing::breakpoints,
    vsyscall = vsyscall::run,
    vdso = vdso::run,
    int80 = int80::run,
    modify_ldt = ldt::run,
    memory_stress = memory_stress::run,
    cow = copy_on_write::run,
    dontneed = copy_on_write::discard,
    shared_file = shared_file::run,
    signal_storm = signals::storm,
    signal_registers = signals::registers,
    pipe_pingpong = ping_pong::pipes,
    futex_pingpong = ping_pong::futexes,
    mutex_counter = ping_pong::mutex,
    time = clocks::run,
    exits_getppid = exits::getppid,
    exits_first_touch = exits::first_touch,
    undisturbed = undisturbed::run,
    oom = out_of_memory::run,
    dmesg = kernel_log::run,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (index, check) in ALL.iter().enumerate() {
            assert!(ALL[..index].iter().all(|other| other.name != check.name), "{}", check.name);
        }
    }
}
