//! Turns SMAP on, if guests can live with it.
//! May: unsafe, cr3, take-frame. Context: boot.
//!
//! L1 reaches no memory through user mappings. While it stays on a guest's root there are some, and SMAP
//! catches a pointer that leads there by mistake. Some emulators fault under it on IRETQ at CPL3, which guests
//! execute all the time (QEMU 7.2), so that is tried first, by a guest of two instructions.
#![expect(unsafe_code, reason = "the trial enters user mode")]

use super::cpus;
use crate::{
    hw::{
        percpu::{self, Cpu},
        physmap,
    },
    log,
    memory::{
        self,
        paging::{
            NoMemory, Tree,
            bits::{D, U, W},
        },
    },
};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use pv_abi::selectors::{USER_CS, USER_DS};
use switcher::{
    Context,
    enter::{self, Text},
    exit::Exit,
};
use zerocopy::IntoBytes;

/// The trial's only page, where L1 has nothing: code, and the frame that its IRETQ takes.
const PAGE: u64 = 0x1000_0000;
const FRAME: u64 = 0x800;
/// IRETQ, UD2.
const CODE: [u8; 4] = [0x48, 0xcf, 0x0f, 0x0b];
const UD2: u64 = PAGE + 2;
const INVALID_OPCODE: u8 = 6;
/// Interrupts stay out: nobody takes them yet.
const RFLAGS: u64 = 2;

static ON: AtomicBool = AtomicBool::new(false);

/// Tries on the boot CPU, before there are guests and other CPUs.
///
/// # Errors
/// [`NoMemory`]: for the trial.
pub fn start(cpu: &Cpu) -> Result<(), NoMemory> {
    if !cpu.features.smap {
        return Ok(());
    }
    percpu::set_smap(true);
    let works = try_iret(cpu)?;
    if works {
        cpus::overwrite_text(Text::linked().no_clac, &enter::CLAC);
        ON.store(true, Relaxed);
    } else {
        percpu::set_smap(false);
    }
    log!("SMAP: {}", if works { "on" } else { "off, for IRET at CPL3 faults with it" });
    Ok(())
}

/// Turns it on for another CPU, if it is on.
pub fn follow() {
    if ON.load(Relaxed) {
        percpu::set_smap(true);
    }
}

/// True if IRETQ at CPL3 works as things are.
fn try_iret(cpu: &Cpu) -> Result<bool, NoMemory> {
    let page = memory::take_zeroed().ok_or(NoMemory)?;
    let (code, data) = (u64::from(USER_CS), u64::from(USER_DS));
    let frame = [UD2, code, RFLAGS, PAGE + FRAME, data];
    physmap::write(page, &CODE);
    physmap::write(page.offset(FRAME), frame.as_bytes());
    let user = Tree::for_guest(3)?;
    user.map(PAGE, page, 1, U | W | D)?;
    let root = cpus::fork_root()?;
    root.link(PAGE, &user);
    let mut context = Context {
        rip: PAGE,
        cs: code,
        rflags: RFLAGS,
        rsp: PAGE + FRAME,
        ss: data,
        cr3: root.table.0,
        ..Context::default()
    };
    // SAFETY: 1. `cpu` is this CPU, brought up by `hw::percpu`; interrupts are off in L1.
    // 2. The root is a copy of L1's, so it maps the window the same way; the code that sees the rest is two
    //    instructions of ours. The mode in the block, which nobody has set, inhibits the direct switch.
    // 3. `sysret` is not set.
    // 4. There is no IOPL and no VM, and the selectors are user mode's. IF may be off, for this code ends.
    unsafe { enter::enter(cpu.enter, &mut context) };
    user.free();
    memory::give_frame(page);
    memory::give_frame(root.table);
    let ended = Exit::decode(context.reason, context.error);
    Ok(ended == Exit::Exception(INVALID_OPCODE, 0) && context.rip == UD2)
}
