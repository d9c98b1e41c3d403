//! Makes chosen system calls fail in this process for good.
#![expect(unsafe_code, reason = "prctl takes a pointer to the filter")]

use std::io;

/// Offset of the system call number in `struct seccomp_data`.
const NUMBER: u32 = 0;

/// Lets the system calls `numbers` fail with `error`; all others work as before.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn refuse(numbers: &[i64], error: u16) -> io::Result<()> {
    let op = |code: u32, jt, k| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let mut filter = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, NUMBER)];
    for (index, number) in numbers.iter().enumerate() {
        // A hit jumps over the rest and over "allow".
        let skip = (numbers.len() - index) as u8;
        filter.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skip, *number as u32));
    }
    filter.push(op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    let refusal = libc::SECCOMP_RET_ERRNO | u32::from(error);
    filter.push(op(libc::BPF_RET | libc::BPF_K, 0, refusal));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: no memory is involved in the first call; the second reads the program and the
    // filter, which live to the end of this function.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
