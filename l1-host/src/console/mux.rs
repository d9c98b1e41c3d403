//! Shares one serial port among the consoles of all guests.
//! May: port-io, through [`Port`]; alloc (boot only). Context: irq-off. Input: guest-controlled bytes,
//! user's keystrokes.
//!
//! In focus mode one guest has the screen; what the others write waits. In prefix mode all guests
//! have it, by whole lines. In both, input goes to the guest that has the focus.
//!
//! Locks, in the order in which they are taken: keys, guests, a guest's output, the screen. A
//! guest's output is locked while its bytes go wherever they go, and so is that of both guests
//! while the focus moves from one to the other: no byte of the old one can follow the announcement
//! of the new one. CPUs that write for different guests meet at the screen only, in the order in
//! which they came.

use super::{
    Console, GuestId,
    backlog::Backlog,
    keys::{Key, Keys},
    lines::Lines,
    screen::{Port, Screen},
};
use alloc::{string::String, sync::Arc, vec::Vec};
use arrayvec::ArrayVec;
use core::{
    fmt::Display,
    sync::atomic::{
        AtomicBool, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};
use pv_abi::bundle::ConsoleMode;
use spin::{Mutex, RwLock, mutex::TicketMutex};

/// What the user asks of L1 with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End this guest.
    Stop(GuestId),
}

/// What the user asks for with one piece of input. More than fits is dropped; they can ask again.
pub type Actions = ArrayVec<Action, 8>;

/// The multiplexer.
#[derive(Debug)]
pub struct Mux<P> {
    keys: Mutex<Keys>,
    guests: RwLock<Guests>,
    /// Index of the guest that gets input. Changes with that guest's output locked, and the new one's.
    focus: AtomicUsize,
    /// Fair: a guest that floods its console must not keep the others waiting forever.
    screen: TicketMutex<Screen<P>>,
}

#[derive(Debug)]
struct Guests {
    mode: ConsoleMode,
    list: Vec<Arc<Guest>>,
}

#[derive(Debug)]
struct Guest {
    name: String,
    running: AtomicBool,
    console: Mutex<Arc<Console>>,
    output: Mutex<Output>,
}

/// Where a guest's output goes.
#[derive(Debug)]
enum Output {
    /// To the screen with the focus, else here.
    Focus(Backlog),
    /// To the screen by whole lines.
    Prefix(Lines),
}

impl Guest {
    fn running(&self) -> bool {
        self.running.load(Acquire)
    }
}

impl Guests {
    /// With a single guest in focus mode the console is that guest's alone: L1 says nothing there.
    fn silent(&self) -> bool {
        self.mode == ConsoleMode::Focus && self.list.len() <= 1
    }
}

impl<P: Port> Mux<P> {
    /// One without guests, in focus mode, at `port`.
    #[must_use]
    pub const fn new(port: P) -> Self {
        Self {
            keys: Mutex::new(Keys::new()),
            guests: RwLock::new(Guests { mode: ConsoleMode::Focus, list: Vec::new() }),
            focus: AtomicUsize::new(0),
            screen: TicketMutex::new(Screen::new(port)),
        }
    }

    /// Sets how guests share the console; for those that are added from now on.
    pub fn set_mode(&self, mode: ConsoleMode) {
        self.guests.write().mode = mode;
    }

    /// Adds a guest that is about to run. The first one has the focus.
    pub fn add(&self, name: &str, console: Arc<Console>) -> GuestId {
        let mut guests = self.guests.write();
        let id = GuestId(guests.list.len());
        console.belong_to(id);
        let output = match guests.mode {
            ConsoleMode::Focus => Output::Focus(Backlog::new()),
            ConsoleMode::Prefix => Output::Prefix(Lines::new(name)),
        };
        guests.list.push(Arc::new(Guest {
            name: name.into(),
            running: AtomicBool::new(true),
            console: Mutex::new(console),
            output: Mutex::new(output),
        }));
        id
    }

    /// Takes output of guest `id`.
    pub fn write(&self, id: GuestId, bytes: &[u8]) {
        let Some(guest) = self.guests.read().list.get(id.0).cloned() else { return };
        match &mut *guest.output.lock() {
            Output::Focus(_) if self.has_focus(id) => self.screen.lock().show(bytes),
            Output::Focus(backlog) => backlog.push(bytes),
            Output::Prefix(lines) => lines.push(bytes, |line| self.screen.lock().show(line)),
        }
    }

    /// Takes input of the user; says what L1 is to do.
    #[must_use]
    pub fn input(&self, bytes: &[u8]) -> Actions {
        let mut keys = self.keys.lock();
        let guests = self.guests.read();
        let mut actions = Actions::new();
        if let [only] = guests.list.as_slice() {
            // Nothing to switch to, so every key is the guest's.
            only.console.lock().receive(bytes);
            return actions;
        }
        for &byte in bytes {
            if let Some(action) = self.key(&guests, keys.next(byte))
                && !actions.contains(&action)
            {
                let _ = actions.try_push(action);
            }
        }
        actions
    }

    /// Guest `id` has ended and will not run again; `how` follows its name: "powered off".
    pub fn ended(&self, id: GuestId, how: impl Display) {
        // The keys' lock orders all that moves the focus.
        let _keys = self.keys.lock();
        let guests = self.guests.read();
        let Some(guest) = guests.list.get(id.0) else { return };
        guest.running.store(false, Release);
        if guests.silent() {
            return;
        }
        self.say_of(guest, format_args!("'{}' {how}", guest.name));
        if self.has_focus(id)
            && let Some(next) = next(&guests, id.0, Guest::running)
        {
            self.switch(&guests, next);
        }
    }

    /// Guest `id` has ended as `how` says, and starts again with a console of its own.
    pub fn restarted(&self, id: GuestId, how: impl Display, console: Arc<Console>) {
        let _keys = self.keys.lock();
        let guests = self.guests.read();
        let Some(guest) = guests.list.get(id.0) else { return };
        console.belong_to(id);
        *guest.console.lock() = console;
        guest.running.store(true, Release);
        if !guests.silent() {
            self.say_of(guest, format_args!("'{}' {how} and starts again", guest.name));
        }
    }

    /// Shows what still waits, before the machine ends.
    pub fn finish(&self) {
        let _keys = self.keys.lock();
        let guests = self.guests.read();
        for (index, guest) in guests.list.iter().enumerate() {
            match &mut *guest.output.lock() {
                Output::Focus(backlog) if backlog.waiting() > 0 => {
                    self.show(&guests, index, backlog)
                }
                Output::Focus(_) => {}
                Output::Prefix(lines) => lines.flush(|line| self.screen.lock().show(line)),
            }
        }
    }

    fn has_focus(&self, id: GuestId) -> bool {
        self.focus.load(Relaxed) == id.0
    }

    fn key(&self, guests: &Guests, key: Key) -> Option<Action> {
        let focus = self.focus.load(Relaxed);
        let guest = guests.list.get(focus)?;
        match key {
            Key::Escape => {}
            Key::Input(byte) => guest.console.lock().receive(&[byte]),
            Key::List => self.list(guests),
            Key::Select(index) if index < guests.list.len() => self.switch(guests, index),
            Key::Select(index) => self.say(format_args!(
                "there is no guest {}; Ctrl-] l lists all {}",
                index + 1,
                guests.list.len()
            )),
            Key::Next => self.switch(guests, next(guests, focus, |_| true).unwrap_or(focus)),
            Key::Stop if guest.running() => {
                self.say(format_args!("'{}' is being stopped", guest.name));
                return Some(Action::Stop(GuestId(focus)));
            }
            Key::Stop => self.say(format_args!("'{}' has ended already", guest.name)),
            Key::Help => self.say(format_args!(
                "Ctrl-] and l: list the guests, 1 to 9: switch to that guest, n: to the next one, \
                 q: stop the guest, Ctrl-] or ]: send the key itself"
            )),
            Key::Unknown => self.say(format_args!("Ctrl-] ? shows the keys")),
        }
        None
    }

    fn list(&self, guests: &Guests) {
        for (index, guest) in guests.list.iter().enumerate() {
            let state = if guest.running() { "running" } else { "ended" };
            let focus = if self.focus.load(Relaxed) == index { ", has the focus" } else { "" };
            let waiting = match &*guest.output.lock() {
                Output::Focus(backlog) => backlog.waiting(),
                Output::Prefix(_) => 0,
            };
            let number = index + 1;
            if waiting == 0 {
                self.say(format_args!("{number} '{}' {state}{focus}", guest.name));
            } else {
                let name = &guest.name;
                self.say(format_args!("{number} '{name}' {state}{focus}, {waiting} bytes wait"));
            }
        }
    }

    /// Gives the focus to guest `to`.
    fn switch(&self, guests: &Guests, to: usize) {
        let from = self.focus.load(Relaxed);
        let old = (from != to).then(|| guests.list[from].output.lock());
        let mut new = guests.list[to].output.lock();
        self.focus.store(to, Relaxed);
        match &mut *new {
            Output::Focus(backlog) => self.show(guests, to, backlog),
            Output::Prefix(_) => self.say(format_args!("input goes to {}", Place(guests, to))),
        }
        drop(old);
    }

    fn show(&self, guests: &Guests, index: usize, backlog: &mut Backlog) {
        let mut screen = self.screen.lock();
        screen.say(format_args!("console of {}", Place(guests, index)));
        if backlog.lost() > 0 {
            screen.say(format_args!("{} bytes before this are lost", backlog.lost()));
        }
        backlog.show(|part| screen.show(part));
    }

    fn say(&self, words: core::fmt::Arguments<'_>) {
        self.screen.lock().say(words);
    }

    /// Says something that follows all of `guest`'s output so far.
    fn say_of(&self, guest: &Guest, words: core::fmt::Arguments<'_>) {
        let mut output = guest.output.lock();
        if let Output::Prefix(lines) = &mut *output {
            lines.flush(|line| self.screen.lock().show(line));
        }
        self.say(words);
    }
}

/// The guest after the one at `index`, round and round, that `fits`.
fn next(guests: &Guests, index: usize, fits: impl Fn(&Guest) -> bool) -> Option<usize> {
    let count = guests.list.len();
    (1..count).map(|step| (index + step) % count).find(|&other| fits(&guests.list[other]))
}

/// A guest in words: its name and number.
struct Place<'a>(&'a Guests, usize);

impl Display for Place<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self(guests, index) = self;
        let name = &guests.list[*index].name;
        write!(f, "'{name}' ({} of {})", index + 1, guests.list.len())
    }
}
