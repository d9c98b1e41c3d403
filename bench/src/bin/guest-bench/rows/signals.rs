//! Measures signals.

use super::Operation;
use crate::sys::{
    memory::{Access, Region},
    signal::{Handler, Target, came},
};

/// Installing a handler.
pub fn install() -> Result<Operation, String> {
    let handler = Handler::counting();
    Ok(Box::new(move |n, watch| watch.time(|| (0..n).for_each(|_| handler.install()))))
}

/// A signal to oneself.
pub fn deliver() -> Result<Operation, String> {
    Handler::counting().install();
    let own = Target::own();
    own.send();
    if came() == 0 {
        return Err("the signal does not come".into());
    }
    Ok(Box::new(move |n, watch| watch.time(|| (0..n).for_each(|_| own.send()))))
}

/// A fault that a handler repairs.
pub fn protect_fault() -> Result<Operation, String> {
    let region = Region::new(1).map_err(|error| error.to_string())?;
    region.touch_first();
    Handler::repairing(&region).install();
    Ok(Box::new(move |n, watch| {
        watch.time(|| {
            for _ in 0..n {
                region.protect(Access::Read);
                region.touch_first();
            }
        });
    }))
}
