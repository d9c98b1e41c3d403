//! Gives QEMU orders while it runs, over its control protocol (QMP).
//! Input: lines from QEMU.

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

/// How long QEMU may take to obey: it writes memory to a file meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// QEMU's end of the connection, to be inherited.
#[derive(Debug)]
pub struct Inherited(OwnedFd);

impl Inherited {
    /// Its number.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
impl From<Inherited> for UnixStream {
    /// For a stand-in for QEMU.
    fn from(socket: Inherited) -> Self {
        socket.0.into()
    }
}

/// Our end.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
    greeted: bool,
}

impl Control {
    /// Both ends.
    ///
    /// # Errors
    /// The system has no socket left.
    pub fn pair() -> Result<(Self, Inherited)> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
        ours.set_read_timeout(Some(PATIENCE)).context("cannot set up a socket")?;
        let theirs = OwnedFd::from(theirs);
        fcntl_setfd(&theirs, FdFlags::empty()).context("cannot set up a socket")?;
        Ok((Self { stream: BufReader::new(ours), greeted: false }, Inherited(theirs)))
    }

    /// Gives an order and waits until it was obeyed.
    ///
    /// # Errors
    /// QEMU refuses, is gone, or does not answer.
    pub fn order(&mut self, name: &str, arguments: Value) -> Result<()> {
        if !self.greeted {
            self.send(&json!({ "execute": "qmp_capabilities" }))?;
            self.greeted = true;
        }
        self.send(&json!({ "execute": name, "arguments": arguments }))
            .with_context(|| format!("QEMU's answer to `{name}`"))
    }

    fn send(&mut self, command: &Value) -> Result<()> {
        writeln!(self.stream.get_mut(), "{command}").context("QEMU does not listen")?;
        let mut line = String::new();
        loop {
            line.clear();
            if self.stream.read_line(&mut line).context("QEMU does not answer")? == 0 {
                bail!("QEMU is gone");
            }
            // Greetings and events come in between.
            let answer: Value = serde_json::from_str(&line).context("QEMU says what is no JSON")?;
            if let Some(error) = answer.get("error") {
                bail!("{}", error["desc"].as_str().unwrap_or("no reason"));
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A QEMU that says `lines`, one more with each order.
    fn qemu(theirs: Inherited, lines: &'static [&'static str]) -> thread::JoinHandle<Vec<String>> {
        thread::spawn(move || {
            let mut stream = BufReader::new(UnixStream::from(theirs));
            let mut heard = Vec::new();
            for line in lines {
                let mut order = String::new();
                stream.read_line(&mut order).unwrap();
                heard.push(order);
                stream.get_mut().write_all(line.as_bytes()).unwrap();
            }
            heard
        })
    }

    #[test]
    fn orders_are_obeyed_or_refused() {
        let (mut control, theirs) = Control::pair().unwrap();
        let lines = &[
            "{\"QMP\": {}}\r\n{\"return\": {}}\r\n",
            "{\"event\": \"STOP\"}\r\n{\"return\": {}}\r\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no room\"}}\r\n",
        ];
        let qemu = qemu(theirs, lines);
        control.order("stop", json!({})).unwrap();
        let refused = control.order("pmemsave", json!({ "val": 1 })).unwrap_err();
        assert_eq!(format!("{refused:#}"), "QEMU's answer to `pmemsave`: no room");
        let heard = qemu.join().unwrap();
        assert!(heard[0].contains("qmp_capabilities") && heard[2].contains("\"val\":1"));
        assert!(format!("{:#}", control.order("cont", json!({})).unwrap_err()).contains("QEMU"));
    }
}
