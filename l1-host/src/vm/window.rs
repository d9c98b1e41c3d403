//! Builds a VM's half of the switcher window: the PVCS and LDT pages of its vCPUs.
//! May: nothing (page tables through [`Tree`]). Context: boot; PVCS and LDT pages at run time.

use crate::{
    hw::physmap::{self, frame},
    memory::{
        paging::{
            NoMemory, Tree,
            bits::{A, ADDRESS, D, NX, P, W},
            forget_own,
        },
        take_zeroed,
    },
};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::{addr::Hpa, ext::window::MAX_VCPUS};
use spin::Mutex;
use switcher::layout;

/// A VM's switcher window: the half that all VMs share, and the PVCS and LDT pages of its vCPUs.
#[derive(Debug)]
pub struct SwitcherWindow {
    tree: Tree,
    /// Leaf tables of the second half, by vCPU: one 2 MiB region holds 16 of them.
    tables: Vec<Hpa>,
}

const VCPUS_PER_TABLE: usize = (0x20_0000 / layout::VCPU_STRIDE) as usize;
const TABLES: usize = MAX_VCPUS.div_ceil(VCPUS_PER_TABLE);

/// Windows of VMs that are no more, empty. They are used again and never freed, for a CPU may have the
/// last one that it showed in its caches.
static SPARE: Mutex<Vec<(Tree, Vec<Hpa>)>> = Mutex::new(Vec::new());

impl SwitcherWindow {
    /// A window without any PVCS.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(shared: &Tree) -> Result<Self, NoMemory> {
        if let Some((tree, tables)) = SPARE.lock().pop() {
            return Ok(Self { tree, tables });
        }
        let tree = Tree::new(3)?;
        let areas = frame(shared.table)[0].load(Relaxed);
        frame(tree.table)[0].store(areas, Relaxed);
        let mut tables = Vec::new();
        let directory = take_zeroed().ok_or(NoMemory)?;
        frame(tree.table)[1].store(directory.0 | P | W | A, Relaxed);
        for index in 0..TABLES {
            let table = take_zeroed().ok_or(NoMemory)?;
            frame(directory)[index].store(table.0 | P | W | A, Relaxed);
            tables.push(table);
        }
        Ok(Self { tree, tables })
    }

    /// The VM is no more.
    pub fn retire(&self) {
        for &table in &self.tables {
            physmap::zero(table, 4096);
        }
        SPARE.lock().push((self.tree, self.tables.clone()));
    }

    /// The entry of PML4 slot [`layout::SLOT`].
    pub fn entry(&self) -> u64 {
        self.tree.entry()
    }

    /// Maps `hpa` as vCPU `index`'s PVCS, or nothing. A flush must follow.
    pub fn set_pvcs(&self, index: usize, hpa: Option<Hpa>) {
        self.set(index, layout::VCPU_PVCS, hpa.map(|hpa| hpa.0 | P | W | A | D | NX));
    }

    /// The page that is mapped as vCPU `index`'s PVCS, if one is.
    pub fn pvcs(&self, index: usize) -> Option<Hpa> {
        let entry = self.slot(index, layout::VCPU_PVCS).load(Relaxed);
        (entry & P != 0).then_some(Hpa(entry & ADDRESS))
    }

    /// Maps `hpa` as page `page` of vCPU `index`'s LDT, or nothing. A flush must follow.
    pub fn set_ldt(&self, index: usize, page: u64, hpa: Option<Hpa>) {
        self.set(index, layout::VCPU_LDT + page * 4096, hpa.map(|hpa| hpa.0 | P | A | NX));
    }

    /// Maps the VM's half in `shared`, the window of this CPU's own root, as well: L1 loads selectors for
    /// the guest, and the CPU then reads its LDT on L1's CR3.
    pub fn show_in(&self, shared: &Tree) {
        let half = frame(self.tree.table)[1].load(Relaxed);
        frame(shared.table)[1].store(half, Relaxed);
        forget_own();
    }

    fn set(&self, index: usize, offset: u64, entry: Option<u64>) {
        self.slot(index, offset).store(entry.unwrap_or(0), Relaxed);
    }

    /// The entry at `offset` in the pages of vCPU `index`.
    fn slot(&self, index: usize, offset: u64) -> &'static AtomicU64 {
        let table = self.tables[index / VCPUS_PER_TABLE];
        let address = (index % VCPUS_PER_TABLE) as u64 * layout::VCPU_STRIDE + offset;
        &frame(table)[(address / 4096) as usize]
    }
}
