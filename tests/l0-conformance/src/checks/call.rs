//! Calls: transports, the word, the header (spec sections 3.1, 3.3, 4.1).

use super::{Group, check};
use crate::{
    env::Env,
    holds,
    l0::{Caller, Transport, args},
    runtime::{cpu, ram, user},
    same, skip,
    tap::{Case, Verdict},
};
use pv_abi::l0::{Op, Status, op, page, page::offset};

pub const GROUP: Group = Group {
    name: "call",
    checks: &[
        check("transports", "L0-CALL-1", transports),
        check("registers", "L0-CALL-2", registers),
        check("other_widths", "L0-CALL-4", other_widths),
        check("string_output", "L0-CALL-4", string_output),
        check("reading_the_port", "L0-CALL-4", reading_the_port),
        check("from_user_mode", "L0-CALL-3 L0-SEC-7", from_user_mode),
        check("without_page", "L0-CALL-6", without_page),
        check("unknown_numbers", "L0-OP-1", unknown_numbers),
        check("high_bits", "L0-OP-1 L0-CALL-1", high_bits),
        check("status_is_replaced", "L0-CALL-5 L0-STAT-1", status_is_replaced),
        check("header", "L0-PAGE-2 L0-OP-2", header),
        check("rest_is_ignored", "L0-PAGE-1", rest_is_ignored),
        check("rest_is_untouched", "L0-PAGE-2 L0-SEC-5", rest_is_untouched),
        check("order", "L0-PAGE-3", order),
    ],
};

fn transports(env: &mut Env<'_>) -> Verdict {
    for way in Transport::offered(&env.info) {
        let caller = Caller { way, ..env.l0 };
        caller.ok(Op::Query, &args::none()).case(format_args!("{way:x?}"))?;
    }
    Ok(())
}

/// No register changes but RAX, and that only by VMCALL and VMMCALL.
fn registers(env: &mut Env<'_>) -> Verdict {
    for way in Transport::offered(&env.info) {
        let mut before: [u64; 16] =
            core::array::from_fn(|number| 0x1111_0000_2222_0000 + number as u64);
        before[0] = Op::Query.word().into();
        let how = match way {
            Transport::Port(port) => {
                before[2] = port.into();
                0
            }
            Transport::Vmcall => 1,
            Transport::Vmmcall => 2,
        };
        ram::store32(env.l0.page + offset::STATUS as u64, Status::NotServed.raw());
        let mut after = cpu::call_with_registers(before, how);
        same!(env.l0.answer().status, Status::Ok, "QUERY by {way:x?}");
        if how != 0 {
            after[0] = before[0];
        }
        same!(after, before, "registers after {way:x?}");
    }
    Ok(())
}

/// The word as a string of one element is not a call.
fn string_output(env: &mut Env<'_>) -> Verdict {
    let Some(Transport::Port(port)) = Transport::offered(&env.info).next() else {
        return skip!("no port transport");
    };
    unanswered(env, || cpu::outs32(port, Op::Query.word()))
}

/// The word by another width or a few ports further is not a call.
fn other_widths(env: &mut Env<'_>) -> Verdict {
    let Some(Transport::Port(port)) = Transport::offered(&env.info).next() else {
        return skip!("no port transport");
    };
    let word = Op::Query.word();
    let ways: [(&str, &dyn Fn()); 5] = [
        ("OUT of one byte", &|| cpu::out8(port, word as u8)),
        ("OUT of two bytes", &|| cpu::out16(port, word as u16)),
        ("OUT to port + 1", &|| cpu::out32(port + 1, word)),
        ("OUT to port + 2", &|| cpu::out32(port + 2, word)),
        ("OUT to port + 3", &|| cpu::out32(port + 3, word)),
    ];
    for (name, way) in ways {
        unanswered(env, way).case(format_args!("{name}"))?;
    }
    env.l0.ok(Op::Query, &args::none())?;
    Ok(())
}

fn reading_the_port(env: &mut Env<'_>) -> Verdict {
    let Some(Transport::Port(port)) = Transport::offered(&env.info).next() else {
        return skip!("no port transport");
    };
    unanswered(env, || {
        cpu::in8(port);
        cpu::in32(port);
    })?;
    env.l0.ok(Op::Query, &args::none())?;
    Ok(())
}

/// Does something that L0 must take no notice of.
fn unanswered(env: &Env<'_>, action: impl Fn()) -> Verdict {
    let before = env.l0.header();
    ram::store32(env.l0.page + offset::STATUS as u64, Status::NotServed.raw());
    action();
    same!(env.l0.answer().status, Status::NotServed, "status");
    same!(env.l0.header().generation, before.generation, "generation");
    Ok(())
}

/// A hypercall from CPL3 is refused as other hypercalls are, and touches no page.
fn from_user_mode(env: &mut Env<'_>) -> Verdict {
    let mut tried = 0;
    for way in Transport::offered(&env.info) {
        let code: &[u8] = match way {
            Transport::Port(_) => continue,
            Transport::Vmcall => &[0x0f, 0x01, 0xc1],
            Transport::Vmmcall => &[0x0f, 0x01, 0xd9],
        };
        let left = user::execute(code, Op::Query.word(), 0);
        let refused = left.vector == 6 || left.vector == 3 && left.registers[0] != 0;
        holds!(refused, "{way:?} gave {left:x?}");
        unanswered(env, || {
            user::execute(code, Op::Query.word(), 0);
        })?;
        tried += 1;
    }
    if tried == 0 { skip!("the CPU guards the port, the only transport") } else { Ok(()) }
}

fn without_page(env: &mut Env<'_>) -> Verdict {
    env.l0.teardown();
    let verdict = [Op::Query, Op::Reset, Op::CreateVm, Op::Run].into_iter().try_for_each(|op| {
        let answer = env.l0.call(op, &args::none());
        same!(answer.status, Status::NotServed, "{op:?} without a page");
        Ok(())
    });
    same!(env.l0.setup(), Status::Ok, "SETUP afterwards");
    verdict
}

/// Every number that no operation has.
fn unknown_numbers(env: &mut Env<'_>) -> Verdict {
    let known =
        |number| number == op::TEARDOWN_WORD || Op::ALL.iter().any(|(op, _)| op.raw() == number);
    for number in (0..1 << op::NUMBER_BITS).filter(|number| !known(*number)) {
        let answer = env.l0.word(number);
        same!(answer.status, Status::UnknownOp, "operation {number:#x}");
        same!((answer.index, answer.value), (0, 0), "index and value of operation {number:#x}");
    }
    Ok(())
}

/// A known number with a bit above is none; SETUP's are its page's address.
fn high_bits(env: &mut Env<'_>) -> Verdict {
    let others = Op::ALL.iter().filter(|(op, _)| *op != Op::Setup);
    for (op, name) in others {
        for bit in op::NUMBER_BITS..32 {
            let answer = env.l0.word(op.raw() | 1 << bit);
            same!(answer.status, Status::UnknownOp, "{name} with bit {bit}");
        }
    }
    Ok(())
}

/// The mark for "nobody answered" never comes from L0, whatever the answer.
fn status_is_replaced(env: &mut Env<'_>) -> Verdict {
    for (op, name) in
        Op::ALL.iter().filter(|(op, _)| !matches!(op, Op::Setup | Op::Reset | Op::Run))
    {
        let answer = env.l0.call(*op, &args::vcpu(u32::MAX, u32::MAX));
        let known = !matches!(answer.status, Status::NotServed | Status::Unknown(_));
        holds!(known, "{name} answered {:?}", answer.status);
    }
    Ok(())
}

/// Every answer writes the whole header but what is L1's.
fn header(env: &mut Env<'_>) -> Verdict {
    let right = env.l0.header();
    for (word, status, value) in [
        (Op::Query.word(), Status::Ok, u64::from(env.info.features.bits())),
        (0xfff, Status::UnknownOp, 0),
        (Op::DestroyVm.word(), Status::NoSuch, 0),
    ] {
        env.l0.put(offset::ARGS, &args::none());
        let garbage = page::Header {
            status: Status::NotServed.raw(),
            index: 0x5555,
            value: 0x5555,
            generation: !right.generation,
            features: 0x5555,
            version: 0x5555,
            active_cpuid_table: 0x5555,
            reserved: [0; 8],
        };
        env.l0.put(0, &garbage);
        env.l0.way.call(word);
        let found = env.l0.header();
        env.l0.put(0, &page::Header { active_cpuid_table: 0, ..found });
        same!(found.status(), status, "status of {word:#x}");
        same!((found.index, found.value), (0, value), "index and value of {word:#x}");
        same!(found.generation, right.generation, "generation");
        same!(found.features, env.info.features.bits(), "features");
        same!(found.version, env.info.version, "version");
        same!(found.active_cpuid_table, 0x5555, "active_cpuid_table, which is L1's");
    }
    Ok(())
}

/// What an operation does not name has no effect on it.
fn rest_is_ignored(env: &mut Env<'_>) -> Verdict {
    ram::fill(env.l0.page, ram::PAGE, 0xff);
    env.l0.word(Op::Query.word());
    let answer = env.l0.answer();
    ram::fill(env.l0.page + 64, ram::PAGE - 64, 0);
    same!(answer.status, Status::Ok, "QUERY with a page full of ones");
    Ok(())
}

/// A call that returns nothing but the header writes nothing but the header.
fn rest_is_untouched(env: &mut Env<'_>) -> Verdict {
    for op in [Op::Query, Op::DestroyVm, Op::Unknown(0x7ff)] {
        ram::fill(env.l0.page + 64, ram::PAGE - 64, 0xa5);
        env.l0.word(op.raw());
        let changed = (64..ram::PAGE)
            .step_by(8)
            .find(|at| ram::load(env.l0.page + at) != 0xa5a5_a5a5_a5a5_a5a5);
        ram::fill(env.l0.page + 64, ram::PAGE - 64, 0);
        same!(changed, None, "the offset that {op:?} wrote");
    }
    Ok(())
}

/// L0 sees what was stored just before, and L1 what L0 stored: many times in a row.
fn order(env: &mut Env<'_>) -> Verdict {
    let l0 = env.l0;
    for round in 0..1000_u64 {
        let set = if round % 2 == 0 { 0 } else { u64::from(env.info.features.bits()) };
        let mut with = args::none();
        with.arg[0] = set;
        let answer = l0.ok(Op::Enable, &with)?;
        same!((answer.value, u64::from(answer.features)), (set, set), "ENABLE in round {round}");
    }
    Ok(())
}
