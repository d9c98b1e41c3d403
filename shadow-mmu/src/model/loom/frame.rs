//! A host frame is taken away: whoever was about to map it does not.

use super::{
    machine::{Cpu, PAGE, READ, address, check_structures, entry, explore, leaf, vm},
    world::DATA,
};
use crate::primitive::Ordering::Relaxed;
use loom::thread;

/// `zap_frame`, once the frame is gone, against a fault that maps it.
///
/// Fails if `permitted` does not ask for the host frame again.
#[test]
fn a_frame_that_is_gone_stays_away() {
    explore(3, || {
        let mmu = vm(5);
        leaf(mmu.env(), 0).store(entry(DATA[0], PAGE), Relaxed);
        leaf(mmu.env(), 1).store(entry(DATA[1], PAGE), Relaxed);
        let (mut first, mut second) = (Cpu::new(&mmu, 0), Cpu::new(&mmu, 1));
        first.fault(address(0, 1), READ);
        let faulting = thread::spawn(move || {
            let _ = second.mmu.prefault(&mut second.vcpu, address(0, 0), READ);
        });
        first.world().take(DATA[0]);
        mmu.zap_frame(DATA[0]);
        assert_eq!(first.mapped(address(0, 0)), None);
        faulting.join().unwrap();
        assert_eq!(first.mapped(address(0, 0)), None);
        check_structures(&mmu);
    });
}
