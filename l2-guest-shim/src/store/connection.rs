//! The stream of requests and answers between the kernel and the store.
//! May: nothing. Context: shim. Input: guest-controlled.

use super::{
    Header, Message, Store,
    wire::{Error, HEADER, PAYLOAD, kind},
};

/// What bytes come from and go to.
pub trait Pipe {
    /// Takes bytes from the kernel, as many as there are and fit; how many.
    fn read(&mut self, out: &mut [u8]) -> usize;
    /// Gives bytes to the kernel, as many as there is room for; how many.
    fn write(&mut self, bytes: &[u8]) -> usize;
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    input: [u8; HEADER + PAYLOAD],
    have: usize,
    /// Bytes to come that belong to a request that was too long.
    skip: u32,
    output: Message,
}

impl Connection {
    /// Nothing has come yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { input: [0; HEADER + PAYLOAD], have: 0, skip: 0, output: Message::new() }
    }

    /// Serves what has come, as far as what is to be sent can be sent. After each request `devices` looks
    /// at what has changed. True if bytes went in either direction.
    pub fn serve(
        &mut self,
        store: &mut Store,
        pipe: &mut impl Pipe,
        mut devices: impl FnMut(&mut Store),
    ) -> bool {
        let mut moved = false;
        loop {
            while !self.output.rest().is_empty() {
                let sent = pipe.write(self.output.rest());
                if sent == 0 {
                    return moved;
                }
                self.output.advance(sent);
                moved = true;
            }
            if store.next_event(&mut self.output) {
                continue;
            }
            let Some(header) = self.receive(pipe, &mut moved) else { return moved };
            let payload = self.input.get(HEADER..HEADER + header.len as usize);
            match payload {
                Some(payload) => store.answer(header, payload, &mut self.output),
                None => too_long(header, &mut self.output),
            }
            devices(store);
        }
    }

    /// The next request's header, when all of it has come, or as much of it as is looked at.
    fn receive(&mut self, pipe: &mut impl Pipe, moved: &mut bool) -> Option<Header> {
        while self.skip > 0 {
            let most = self.input.len().min(self.skip as usize);
            let taken = pipe.read(&mut self.input[..most]);
            if taken == 0 {
                return None;
            }
            self.skip -= taken as u32;
            *moved = true;
        }
        self.fill(HEADER, pipe, moved)?;
        let header = Header::parse(*self.input.first_chunk()?);
        if header.len as usize > PAYLOAD {
            self.skip = header.len;
        } else {
            self.fill(HEADER + header.len as usize, pipe, moved)?;
        }
        self.have = 0;
        Some(header)
    }

    /// Waits for the first `wanted` bytes of a request.
    fn fill(&mut self, wanted: usize, pipe: &mut impl Pipe, moved: &mut bool) -> Option<()> {
        while self.have < wanted {
            let taken = pipe.read(&mut self.input[self.have..wanted]);
            if taken == 0 {
                return None;
            }
            self.have += taken;
            *moved = true;
        }
        Some(())
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self::new()
    }
}

fn too_long(header: Header, out: &mut Message) {
    super::refuse(Error::TooBig, out);
    out.finish(kind::ERROR, header.request, header.transaction);
}
