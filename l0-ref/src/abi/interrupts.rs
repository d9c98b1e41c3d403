//! Serves KICK, SET_GSI and SEND_MSI (spec sections 6.2, 6.6).
//! Input: guest-controlled numbers.

use crate::{
    abi::{
        answer::{Answer, Reply},
        server::Server,
    },
    backend::{Backend, Controllers, Vm as _},
};
use pv_abi::l0::{Op, Status, page::Args};

impl<B: Backend> Server<B> {
    pub(super) fn kick(&self, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        let mut inner = self.alive(&vm)?;
        self.slot(&mut inner, args)?.kick.kick();
        Ok(Answer::OK)
    }

    pub(super) fn interrupt(&self, op: Op, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        let inner = self.alive(&vm)?;
        if inner.controllers == Controllers::L1 {
            return Err(Status::BadState.into());
        }
        let [first, second, ..] = args.arg;
        if op == Op::SetGsi {
            if first > 23 || second > 1 {
                return Err(Status::BadArg.into());
            }
            inner.vm.set_line(first as u32, second == 1)?;
            return Ok(Answer::value(1));
        }
        let Some(data) = u32::try_from(second).ok().filter(|_| first >> 20 == 0xfee) else {
            return Err(Status::BadArg.into());
        };
        Ok(Answer::value(inner.vm.send_message(first, data)?.into()))
    }
}
