//! A front end that changes its grant table and its ring at any moment.

use super::*;

/// One thing that the front end or the device does.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// An entry of the grant table: any flags, any domain, any frame.
    Grant { reference: u32, head: u32, frame: u32 },
    /// The next request: a few bytes that may make sense, and segments of such grants.
    Ask { head: [u8; 4], sector: u64, segments: [(u32, u8, u8); 3] },
    /// A request under way is written over.
    Overwrite { at: u64, word: u32 },
    /// The index of requests.
    Index(u32),
    /// The device serves what it has.
    Serve,
    /// The device says that it is done with what it has not, and how it went is anything.
    Done { head: u32, status: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![4 => Just(1_u32), 2 => Just(5), 1 => any::<u32>()];
    let frame = prop_oneof![4 => FIRST_LENT..PAGES, 1 => any::<u32>()];
    let reference = || prop_oneof![8 => 0..PAGES, 1 => 500..520_u32, 1 => any::<u32>()];
    let segment = (reference(), 0..9_u8, 0..9_u8);
    let operation = prop_oneof![4 => 0..2_u8, 2 => Just(op::INDIRECT), 1 => any::<u8>()];
    let head = (operation, 0..4_u8, 0..40_u8, any::<bool>());
    let head = head.prop_map(|(a, b, c, odd)| [a, b, c, odd.into()]);
    let sector = prop_oneof![4 => 0..70_u64, 1 => any::<u64>()];
    let grant = (0..PAGES, flags, frame);
    prop_oneof![
        4 => grant.prop_map(|(reference, head, frame)| Step::Grant { reference, head, frame }),
        8 => (head, sector, [segment.clone(), segment.clone(), segment])
            .prop_map(|(head, sector, segments)| Step::Ask { head, sector, segments }),
        2 => (0..1000_u64, any::<u32>()).prop_map(|(at, word)| Step::Overwrite { at: 4 * at, word }),
        1 => prop_oneof![0..200_u32, any::<u32>()].prop_map(Step::Index),
        4 => Just(Step::Serve),
        1 => (0..200_u32, any::<u8>()).prop_map(|(head, status)| Step::Done { head, status }),
    ]
}

/// What a page is lent for at this moment, by any entry of the table that could be meant.
fn lent(ram: &Ram, page: u64, writes: bool) -> bool {
    (0..GRANTS.entries).any(|reference| {
        let at = 8 * u64::from(reference);
        let (head, frame) = (ram.load32(at).unwrap(), ram.load32(at + 4).unwrap());
        let readable = head & 3 == 1 && head >> 16 == 0;
        readable && !(writes && head & 4 != 0) && u64::from(frame) == page
    })
}

impl World {
    /// The device's buffers beside header and status lie within pages that are lent for what it does.
    fn is_given_what_is_lent(&self, chain: &[Seen]) -> bool {
        let own = |gpa: u64| gpa >> 12 == QUEUE >> 12;
        chain.iter().all(|&(gpa, len, writes)| {
            let pages = gpa >> 12..=(gpa + len as u64 - 1) >> 12;
            own(gpa) || pages.into_iter().all(|page| lent(&self.ram, page, writes))
        })
    }

    /// All pages that may be lent, as they are.
    fn lendable(&self) -> Vec<u8> {
        let mut bytes = vec![0; ((PAGES - FIRST_LENT) as usize) << 12];
        self.ram.read(u64::from(FIRST_LENT) << 12, &mut bytes).unwrap();
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// No panic, no page that is not lent for it, and no store of the shim's own into a lent page. With
    /// all cases these are about 10^4 steps.
    #[test]
    fn any_grants_and_rings(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        let mut held = Vec::<(u16, Vec<Seen>)>::new();
        for step in steps {
            match step {
                Step::Grant { reference, head, frame } => lend(&world.ram, reference, head, frame),
                Step::Ask { head, sector, segments } => world.ask(head, sector, &segments),
                Step::Overwrite { at, word } => world.ram.store32(RING + at, word).unwrap(),
                Step::Index(index) => world.requests = index,
                Step::Serve => {
                    for (head, chain) in core::mem::take(&mut held) {
                        let end = chain[chain.len() - 1].0;
                        world.ram.write(end, &[answer::OK]).unwrap();
                        world.device.put(&world.ram, head.into(), 1);
                    }
                }
                Step::Done { head, status } => {
                    world.status = status;
                    world.device.put(&world.ram, head, status.into());
                    held.retain(|(other, _)| u32::from(*other) != head);
                }
            }
            let before = world.lendable();
            // What is shown of it is what a kernel would have to bear.
            world.ram.store32(RING, world.requests).unwrap();
            world.kick();
            while let Some((head, chain)) = world.device.take(&world.ram) {
                prop_assert!(world.is_given_what_is_lent(&chain), "{chain:x?}");
                held.push((head, chain));
            }
            world.complete();
            while let Some((head, chain)) = world.device.take(&world.ram) {
                prop_assert!(world.is_given_what_is_lent(&chain), "{chain:x?}");
                held.push((head, chain));
            }
            prop_assert!(before == world.lendable(), "the shim has stored into a lent page");
        }
        world.connection.close(&world.ram);
    }
}
