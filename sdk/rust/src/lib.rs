//! What a plugin's author writes against: handlers for a device's readings, payloads and timers, its state, and what to do
//! about them: alerts, derived readings, timers, commands.
//!
//! A plugin is a crate of its own, with `crate-type = ["cdylib"]`:
//!
//! ```
//! #![cfg_attr(target_arch = "wasm32", no_std)]
//!
//! use dunlin::{Config, Context, Metric, Plugin, Readings, Refused, Severity};
//!
//! struct TooWarm { metric: Metric, max: f64 }
//!
//! impl Plugin for TooWarm {
//!     type State = ();
//!
//!     fn configure(cfg: &mut Config<'_>) -> Result<Self, Refused> {
//!         Ok(TooWarm { metric: cfg.metric("metric", "temp"), max: cfg.number("max", 8.0) })
//!     }
//!
//!     fn readings(&self, ctx: &mut Context<'_>, _: &mut (), rs: Readings<'_>) {
//!         for r in rs {
//!             match r.number() {
//!                 Some(v) if r.is(self.metric) && v > self.max => ctx.alert("too-warm", Severity::Major, "", v),
//!                 _ => {}
//!             }
//!         }
//!     }
//! }
//!
//! dunlin::plugin!(TooWarm);
//! # fn main() {}
//! ```
//!
//! `cargo build --release --target wasm32-unknown-unknown` makes a module of some kilobytes.
//!
//! # What to rely on
//!
//! The runtime keeps a plugin's memory of a device: [`Plugin::State`], which comes with the device's inputs and is committed
//! with what the plugin made of them. Nothing else survives: an instance serves many devices and may be replaced between any
//! two calls. So handlers get the plugin by `&self`: it holds what [`Plugin::configure`] derived from the settings and nothing
//! about devices.
//!
//! Time is the device's: [`Context::now`] is the moment of the input, the same in a replay. There are no files, no network
//! and no environment.
//!
//! A panic ends the call: its text is in the node's log, and of the devices of the batch those that panic alone fail.
//!
//! # Features
//!
//! None by default: the crate then needs neither an allocator nor std, and brings the panic handler.
//!
//! * `alloc`: for plugins with an allocator; a `Vec<u8>` can be the state.
//! * `std`: for plugins that are no `no_std` crates: the panic handler is std's, and its text reaches the log by a hook.
//! * `testing`: `dunlin::testing`, for unit tests that run natively.

#![no_std]
#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]
#![allow(clippy::result_large_err)] // a refusal is a text, and there is no allocator

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(any(feature = "std", not(target_arch = "wasm32")))]
extern crate std;

mod abi;
mod buf;
mod config;
mod context;
#[doc(hidden)]
pub mod export;
mod guest;
mod input;
mod json;
mod line;
mod names;
mod number;
mod out;
mod state;
#[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
pub mod testing;

pub use config::{Config, Refused};
pub use context::Context;
pub use guest::Guest;
pub use input::{CommandResult, Iter, Lifecycle, Raw, Reading, Readings};
pub use line::Line;
pub use names::Metric;
pub use state::{State, StateReader, StateWriter};

/// A moment, or a span of time, in microseconds; moments since 1970-01-01 00:00 UTC.
pub type Time = i64;

/// A second.
pub const SECOND: Time = 1_000_000;
/// A minute.
pub const MINUTE: Time = 60 * SECOND;
/// An hour.
pub const HOUR: Time = 60 * MINUTE;

/// The value of an alert that has none.
pub const NO_VALUE: f64 = f64::NAN;

/// A plugin: what it derives from the settings, and its handlers.
///
/// For each device with new inputs the runtime loads the state, calls [`migrate`](Plugin::migrate) and
/// [`configured`](Plugin::configured) if there is reason to, then the handler of each input in order, and keeps the state if
/// it has changed.
pub trait Plugin: Sized {
    /// What it remembers of a device; `()` for nothing.
    type State: State;

    /// Reads the domain's settings, once for each instance, before anything else. An error says what is wrong with them; so
    /// does a value of the wrong type, by itself.
    fn configure(cfg: &mut Config<'_>) -> Result<Self, Refused>;

    /// Takes the readings of one report.
    fn readings(&self, ctx: &mut Context<'_>, mem: &mut Self::State, rs: Readings<'_>) {
        let _ = (ctx, mem, rs);
    }

    /// Takes a payload that the runtime doesn't decode.
    fn raw(&self, ctx: &mut Context<'_>, mem: &mut Self::State, raw: Raw<'_>) {
        let _ = (ctx, mem, raw);
    }

    /// A timer that [`Context::set_timer`] armed is due.
    fn timer(&self, ctx: &mut Context<'_>, mem: &mut Self::State, name: &str) {
        let _ = (ctx, mem, name);
    }

    /// A command was answered, or its deadline passed.
    fn result(&self, ctx: &mut Context<'_>, mem: &mut Self::State, result: CommandResult<'_>) {
        let _ = (ctx, mem, result);
    }

    /// The device was registered, or its domain or labels changed.
    fn lifecycle(&self, ctx: &mut Context<'_>, mem: &mut Self::State, event: Lifecycle<'_>) {
        let _ = (ctx, mem, event);
    }

    /// The state was made by another version of the plugin, whose module's hash begins with `module`. `mem` is what
    /// [`State::load`] made of it, [`Context::state`] has its bytes.
    fn migrate(&self, ctx: &mut Context<'_>, mem: &mut Self::State, module: u32) {
        let _ = (ctx, mem, module);
    }

    /// The state was made under other settings.
    fn configured(&self, ctx: &mut Context<'_>, mem: &mut Self::State) {
        let _ = (ctx, mem);
    }
}

/// Ranks alerts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Severity {
    Info = 1,
    Warning = 2,
    Major = 3,
    Critical = 4,
}

/// Ranks lines of the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum Level {
    Debug = 0,
    Info = 1,
    Warning = 2,
    Error = 3,
}

/// What a reading's value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// One that is younger than this crate.
    Unknown = 0,
    /// A number.
    Number = 1,
    /// True (1) or false (0).
    Boolean = 2,
    /// A text.
    Text = 3,
    /// Bytes.
    Data = 4,
}

/// What is to be said about a condition; see [`Context::raise`]. What isn't given is empty:
///
/// ```
/// # use dunlin::*;
/// let a = Alert { rule: "open", key: "door-2", severity: Severity::Warning, ..Alert::default() };
/// assert!(a.value.is_nan());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Alert<'a> {
    /// The rule's name, in the alphabet of device ids: at most 64 bytes of `[A-Za-z0-9._:~@-]`.
    pub rule: &'a str,
    /// Which of the rule's alerts at the device, in the alphabet of metrics; "" if there is one.
    pub key: &'a str,
    /// How bad it is.
    pub severity: Severity,
    /// A sentence for people.
    pub text: &'a str,
    /// What did it; [`NO_VALUE`] if nothing.
    pub value: f64,
}

/// A reading that a plugin makes; see [`Context::derive`].
#[derive(Clone, Copy, Debug)]
pub struct Derived<'a> {
    /// The metric's name.
    pub metric: &'a str,
    /// The unit (SenML), "" if none.
    pub unit: &'a str,
    /// When it was measured; 0: when the input at hand was received.
    pub time: Time,
    /// What the value is.
    pub kind: Kind,
    /// The value of a number, or of a boolean: 0 or 1.
    pub value: f64,
    /// The bytes of a text or of data.
    pub bytes: &'a [u8],
}

/// Makes a type the module's plugin.
///
/// The second form also writes the manifest: a JSON object, see api/plugin-abi.md.
///
/// ```ignore
/// dunlin::plugin!(TooWarm);
/// dunlin::plugin!(TooWarm, br#"{"name": "too-warm", "version": "1.0.0"}"#);
/// ```
#[macro_export]
macro_rules! plugin {
    ($plugin:ty, $manifest:expr) => {
        $crate::plugin!($plugin);
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            const TEXT: &[u8] = $manifest;
            const fn copy() -> [u8; TEXT.len()] {
                let mut b = [0; TEXT.len()];
                let mut i = 0;
                while i < b.len() {
                    b[i] = TEXT[i];
                    i += 1;
                }
                b
            }
            #[link_section = "dunlin.manifest"]
            #[used]
            static MANIFEST: [u8; TEXT.len()] = copy();
        };
    };
    ($plugin:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            static MODULE: $crate::export::Module<$plugin> = $crate::export::Module::new();
            #[no_mangle]
            extern "C" fn dunlin_abi_v1() {}
            #[no_mangle]
            extern "C" fn dunlin_buffer(size: u32) -> u32 {
                MODULE.buffer(size)
            }
            #[no_mangle]
            extern "C" fn dunlin_init(len: u32) -> u64 {
                MODULE.init(len)
            }
            #[no_mangle]
            extern "C" fn dunlin_process(len: u32) -> u64 {
                MODULE.process(len)
            }
        };
    };
}
