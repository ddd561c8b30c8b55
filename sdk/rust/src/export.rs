//! What `dunlin::plugin!` exports, and where panics end. It is not meant to be used by hand.

use crate::buf::Buf;
use crate::guest::Guest;
use crate::Plugin;
use core::cell::UnsafeCell;

/// A module's guest and the host's buffer.
pub struct Module<P>(UnsafeCell<Parts<P>>);

struct Parts<P> {
    guest: Guest<P>,
    buffer: Buf,
}

// SAFETY: a module has one thread, and the host calls one export at a time.
unsafe impl<P> Sync for Module<P> {}

const RESULT_ERROR: u64 = 1 << 63;

impl<P: Plugin> Module<P> {
    /// Nothing yet.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Module(UnsafeCell::new(Parts { guest: Guest::new(), buffer: Buf::new() }))
    }

    #[allow(clippy::mut_from_ref)]
    fn parts(&self) -> &mut Parts<P> {
        // SAFETY: as for Sync; exports don't call each other.
        unsafe { &mut *self.0.get() }
    }

    /// `dunlin_buffer`: at least `size` bytes; an address that no memory has if there are none.
    pub fn buffer(&self, size: u32) -> u32 {
        let b = &mut self.parts().buffer;
        b.truncate(0);
        match b.extend(size as usize) {
            Some(s) => s.as_mut_ptr() as usize as u32,
            None => 0xffff_fff8,
        }
    }

    /// `dunlin_init`.
    pub fn init(&self, len: u32) -> u64 {
        #[cfg(all(target_arch = "wasm32", feature = "std"))]
        std::panic::set_hook(std::boxed::Box::new(|info| {
            log(3, &std::format!("{}", info));
        }));
        let p = self.parts();
        result(match p.buffer.bytes().get(..len as usize) {
            Some(frame) => p.guest.init(frame),
            None => Err("bad frame"),
        })
    }

    /// `dunlin_process`.
    #[inline(always)]
    pub fn process(&self, len: u32) -> u64 {
        let p = self.parts();
        result(match p.buffer.bytes().get(..len as usize) {
            Some(frame) => p.guest.process(frame),
            None => Err("bad frame"),
        })
    }
}

#[inline(always)]
fn result(answer: Result<&[u8], &str>) -> u64 {
    let pack = |b: &[u8]| (b.as_ptr() as usize as u64) << 32 | b.len() as u64;
    match answer {
        Ok([]) => 0,
        Ok(frame) => pack(frame),
        Err(why) => pack(why.as_bytes()) | RESULT_ERROR,
    }
}

#[cfg(target_arch = "wasm32")]
mod host {
    #[link(wasm_import_module = "dunlin_v1")]
    extern "C" {
        pub fn log(level: u32, ptr: *const u8, len: usize);
    }
}

/// Writes a line to the node's log at once, even if the call traps then.
#[cfg(target_arch = "wasm32")]
pub fn log(level: u32, text: &str) {
    // SAFETY: the host reads the bytes, and keeps nothing.
    unsafe { host::log(level, text.as_ptr(), text.len()) }
}

/// A panic's text goes to the log, then the call traps: the host throws the instance away, and tries the devices of the
/// batch one by one.
#[cfg(all(target_arch = "wasm32", not(feature = "std")))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    use core::fmt::Write;
    let mut text = crate::line::Line::<512>::new();
    let _ = write!(text, "{}", info);
    log(3, text.as_str());
    core::arch::wasm32::unreachable()
}
