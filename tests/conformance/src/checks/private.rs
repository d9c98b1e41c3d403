//! Pages that the guest keeps to itself: what L1's devices may use, and what becomes of the content.

use super::{Group, Setting, check};
use crate::{
    abi,
    counters::{Counters, Exit},
    extension::enable,
    paging,
    tap::{Case, Verdict, equal},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    ext::{Features, call},
    hypercall::{EFAULT, EINVAL},
};

pub const GROUP: Group = Group {
    name: "private",
    setting: Setting::Feature(Features::PRIVATE),
    checks: &[
        check("arguments", "PRIV-1 FEAT-9 XHC-14 XHC-15", arguments),
        check("devices_are_kept_out", "PRIV-3", devices_are_kept_out),
        check("content", "PRIV-1 PRIV-2 PRIV-4", content),
        check("transfers_across_pages", "PRIV-3", transfers_across_pages),
        check("batch", "PRIV-3 CNT-2", batch),
        check("flips", "PRIV-3", flips),
    ],
};

const LINE: &[u8] = b"from a page that is shared";
/// A word that no device may see.
const SECRET: u64 = 0x5ec2_e700_5ec2_e700;

fn convert(number: u64, gpa: u64, pages: u64, flags: u64) -> u64 {
    abi::call(number, [gpa, pages, flags, 0])
}

fn unshare(gpa: u64, pages: u64) -> Verdict {
    equal("UNSHARE", convert(call::UNSHARE, gpa, pages, 0), 0)
}

fn share(gpa: u64, pages: u64) -> Verdict {
    equal("SHARE", convert(call::SHARE, gpa, pages, 0), 0)
}

/// What a device makes of `length` bytes at `gpa`.
fn log(gpa: u64, length: u64) -> u64 {
    abi::call(call::LOG, [gpa, length, 0, 0])
}

/// PRIV-1: whole pages of memory, at most 8192 of them, and no unknown flag.
fn arguments() -> Verdict {
    let gpa = paging::frame(0);
    for (name, gpa, pages, flags) in [
        ("not aligned", gpa + 8, 1, 0),
        ("no pages", gpa, 0, 0),
        ("too many", gpa, call::CONVERT_MOST + 1, 0),
        ("all there could be", gpa, u64::MAX, 0),
        ("no memory", 1 << 36, 1, 0),
        ("around the end", !0xfff, 2, 0),
        ("a flag", gpa, 1, 2),
    ] {
        for number in [call::UNSHARE, call::SHARE] {
            equal("result", convert(number, gpa, pages, flags), EINVAL).case(name)?;
        }
    }
    equal("nothing has changed", log(gpa, 0), 0)
}

/// PRIV-3: a device finds no memory there, until the page is shared again.
fn devices_are_kept_out() -> Verdict {
    enable(Features::CONSOLE)?;
    let (gpa, length) = (paging::frame(0), LINE.len() as u64);
    paging::write_bytes(gpa, LINE);
    equal("shared", log(gpa, length), length)?;
    unshare(gpa, 1)?;
    equal("private, to read", log(gpa, length), EFAULT)?;
    equal("to the console", abi::call(call::CONSOLE_WRITE, [gpa, 1, 0, 0]), EFAULT)?;
    equal("the page after it", log(gpa + 4096, 1), 1)?;
    share(gpa, 1)?;
    equal("shared again", log(gpa, length), length)
}

/// PRIV-1, PRIV-2, PRIV-4: content is kept or zeroed, as asked, and not touched without a change of owner.
fn content() -> Verdict {
    let gpa = paging::frame(0);
    let word = paging::word(gpa + 4088);
    for (name, number, flags, expected) in [
        ("kept", call::UNSHARE, 0, SECRET),
        ("private already", call::UNSHARE, call::CONVERT_ZERO, SECRET),
        ("zeroed on the way back", call::SHARE, call::CONVERT_ZERO, 0),
        ("shared already", call::SHARE, call::CONVERT_ZERO, SECRET),
        ("zeroed", call::UNSHARE, call::CONVERT_ZERO, 0),
        ("kept on the way back", call::SHARE, 0, SECRET),
    ] {
        word.store(SECRET, Relaxed);
        equal("result", convert(number, gpa, 1, flags), 0).case(name)?;
        equal("content", word.load(Relaxed), expected).case(name)?;
    }
    Ok(())
}

/// A transfer of which one page is private does not happen.
fn transfers_across_pages() -> Verdict {
    let border = paging::frame(1);
    for page in [paging::frame(0), paging::frame(1)] {
        equal("both shared", log(border - 8, 16), 16)?;
        unshare(page, 1)?;
        equal("one private", log(border - 8, 16), EFAULT)?;
        share(page, 1)?;
    }
    Ok(())
}

/// Many pages take one call.
fn batch() -> Verdict {
    const PAGES: u64 = 32;
    let gpa = paging::frame(0);
    let seen = Counters::of(|| convert(call::UNSHARE, gpa, PAGES, 0));
    seen.exactly(&[(Exit::Hypercall, 1)])?;
    for page in 0..PAGES {
        equal("each is private", log(gpa + 4096 * page, 1), EFAULT)?;
    }
    let seen = Counters::of(|| convert(call::SHARE, gpa, PAGES, 0));
    seen.exactly(&[(Exit::Hypercall, 1)])?;
    equal("the last is shared", log(gpa + 4096 * (PAGES - 1), 1), 1)
}

/// Back and forth many times: a device is kept out each time, and let in each time.
fn flips() -> Verdict {
    let gpa = paging::frame(0);
    let word = paging::word(gpa);
    for flip in 0..10_000 {
        unshare(gpa, 1)?;
        word.store(SECRET, Relaxed);
        // A line each time would fill the log.
        if flip % 100 == 0 {
            equal("private", log(gpa, 8), EFAULT)?;
        }
        equal("back", convert(call::SHARE, gpa, 1, call::CONVERT_ZERO), 0)?;
        equal("what is left", word.load(Relaxed), 0)?;
    }
    equal("shared in the end", log(gpa, 1), 1)
}
