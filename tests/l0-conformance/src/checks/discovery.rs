//! Discovery: the CPUID leaves (spec section 2).

use super::{Group, check};
use crate::{env::Env, holds, runtime::cpu, same, tap::Verdict};
use pv_abi::l0::{Features, VERSION, discover};

pub const GROUP: Group = Group {
    name: "discovery",
    checks: &[
        check("present", "L0-DISC-1 L0-DISC-2 L0-DISC-3", present),
        check("zeros", "L0-DISC-4", zeros),
        check("subleaves", "L0-DISC-4", subleaves),
        check("version", "L0-DISC-5", version),
        check("stays", "L0-DISC-6", stays),
    ],
};

/// The offer is well formed: `discover` says so, or nobody would be here.
fn present(env: &mut Env<'_>) -> Verdict {
    holds!(cpu::cpuid(1, 0)[2] >> 31 == 1, "the hypervisor bit is clear");
    let base = env.info.base;
    let earlier = (0x4000_0000..base).step_by(0x100);
    for other in earlier {
        holds!(cpu::cpuid(other, 0)[1..] != discover::SIGNATURE, "an earlier block at {other:#x}");
    }
    let [max, ..] = cpu::cpuid(base, 0);
    holds!(max >= base + discover::LAST_LEAF && max < base + 0x100, "highest leaf {max:#x}");
    Ok(())
}

/// What version 1.0 does not define is 0.
fn zeros(env: &mut Env<'_>) -> Verdict {
    let leaf = |number| cpu::cpuid(env.info.base + number, 0);
    same!(leaf(1)[2..], [0, 0], "leaf +1, ECX and EDX");
    same!(leaf(2)[2..], [0, 0], "leaf +2, ECX and EDX");
    same!(leaf(6)[1..], [0, 0, 0], "leaf +6, EBX to EDX");
    if env.info.version == VERSION {
        same!(leaf(1)[1] & !Features::all().bits(), 0, "undefined features");
        same!(leaf(2)[0] & !discover::Transports::all().bits(), 0, "undefined transports");
    }
    Ok(())
}

fn subleaves(env: &mut Env<'_>) -> Verdict {
    for leaf in env.info.base..=env.info.base + discover::LAST_LEAF {
        let first = cpu::cpuid(leaf, 0);
        same!(cpu::cpuid(leaf, 1), first, "leaf {leaf:#x}, subleaf 1");
        same!(cpu::cpuid(leaf, u32::MAX), first, "leaf {leaf:#x}, subleaf 0xffffffff");
    }
    Ok(())
}

fn version(env: &mut Env<'_>) -> Verdict {
    same!(env.info.version >> 16, VERSION >> 16, "major version");
    same!(env.l0.header().version, env.info.version, "version in the page and in the leaf");
    Ok(())
}

/// What has been registered since does not change the offer.
fn stays(env: &mut Env<'_>) -> Verdict {
    let found = discover(cpu::cpuid);
    same!(found, discover::Discovery::Present(env.info), "the offer");
    Ok(())
}
