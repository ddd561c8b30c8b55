//! Memory without an allocator: bytes that grow.
//!
//! In a module they come from `memory.grow` and are never given back; a buffer doubles, so that all it ever took is at
//! most twice what it is. This gets along with any allocator of the plugin's, since those grow the memory themselves.
//! Natively they are a Vec.

/// Bytes that grow.
pub(crate) struct Buf(sys::Bytes);

impl Buf {
    pub const fn new() -> Buf {
        Buf(sys::Bytes::new())
    }

    #[inline(always)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    #[inline(always)]
    pub fn truncate(&mut self, n: usize) {
        self.0.truncate(n)
    }

    /// Makes it `n` bytes longer, whatever they are, and returns them; `None` if there is no memory.
    #[inline(always)]
    pub fn extend(&mut self, n: usize) -> Option<&mut [u8]> {
        let at = self.0.len();
        if !self.0.extend(n) {
            return None;
        }
        self.0.bytes_mut().get_mut(at..)
    }

    pub fn push(&mut self, b: &[u8]) -> bool {
        match self.extend(b.len()) {
            Some(s) => {
                crate::abi::put(s, 0, b);
                true
            }
            None => false,
        }
    }
}

pub(crate) use sys::keep;

#[cfg(target_arch = "wasm32")]
pub(crate) mod sys {
    use core::cell::UnsafeCell;

    const PAGE: usize = 65536;

    struct Arena(UnsafeCell<(usize, usize)>); // the next free byte, and the end
                                              // SAFETY: a module has one thread.
    unsafe impl Sync for Arena {}
    static ARENA: Arena = Arena(UnsafeCell::new((0, 0)));

    /// Returns n bytes, 8-aligned and zero; null if there is no memory.
    pub fn alloc(n: usize) -> *mut u8 {
        // SAFETY: nobody else holds a reference into the arena: alloc is not re-entered.
        let (top, end) = unsafe { &mut *ARENA.0.get() };
        if n > isize::MAX as usize - 8 * PAGE {
            return core::ptr::null_mut();
        }
        let n = (n + 7) & !7;
        if n > *end - *top {
            let pages = (n + PAGE - 1) / PAGE;
            let at = core::arch::wasm32::memory_grow(0, pages);
            if at == usize::MAX {
                return core::ptr::null_mut();
            }
            if at * PAGE != *end {
                *top = at * PAGE; // an allocator has grown the memory meanwhile
            }
            *end = (at + pages) * PAGE;
        }
        let p = *top;
        *top += n;
        p as *mut u8
    }

    /// A copy that is never given back.
    pub fn keep(b: &[u8]) -> Option<&'static mut [u8]> {
        let p = alloc(b.len());
        if p.is_null() {
            return None;
        }
        // SAFETY: alloc gave these bytes to nobody else, and never takes them back.
        let copy = unsafe { core::slice::from_raw_parts_mut(p, b.len()) };
        crate::abi::put(copy, 0, b);
        Some(copy)
    }

    pub struct Bytes {
        p: *mut u8,
        len: usize,
        cap: usize,
    }

    impl Bytes {
        pub const fn new() -> Bytes {
            Bytes { p: core::ptr::NonNull::dangling().as_ptr(), len: 0, cap: 0 }
        }

        #[inline(always)]
        pub fn len(&self) -> usize {
            self.len
        }

        #[inline(always)]
        pub fn bytes(&self) -> &[u8] {
            // SAFETY: p has cap ≥ len bytes, which alloc made zero.
            unsafe { core::slice::from_raw_parts(self.p, self.len) }
        }

        #[inline(always)]
        pub fn bytes_mut(&mut self) -> &mut [u8] {
            // SAFETY: as above, and self is borrowed for writing.
            unsafe { core::slice::from_raw_parts_mut(self.p, self.len) }
        }

        #[inline(always)]
        pub fn truncate(&mut self, n: usize) {
            if n < self.len {
                self.len = n;
            }
        }

        #[inline(always)]
        pub fn extend(&mut self, n: usize) -> bool {
            if n > self.cap - self.len && !self.grow(n) {
                return false;
            }
            self.len += n;
            true
        }

        #[cold]
        #[inline(never)]
        fn grow(&mut self, n: usize) -> bool {
            let need = match self.len.checked_add(n) {
                Some(need) if need <= (isize::MAX as usize) / 2 => need,
                _ => return false,
            };
            let cap = need.max(2 * self.cap).max(1024);
            let p = alloc(cap);
            if p.is_null() {
                return false;
            }
            // SAFETY: both have at least len bytes; alloc gives no bytes twice.
            unsafe { core::ptr::copy_nonoverlapping(self.p, p, self.len) };
            self.p = p;
            self.cap = cap;
            true
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod sys {
    use std::vec::Vec;

    /// A copy that is never given back.
    pub fn keep(b: &[u8]) -> Option<&'static mut [u8]> {
        Some(std::boxed::Box::leak(b.to_vec().into_boxed_slice()))
    }

    pub struct Bytes(Vec<u8>);

    impl Bytes {
        pub const fn new() -> Bytes {
            Bytes(Vec::new())
        }
        pub fn len(&self) -> usize {
            self.0.len()
        }
        pub fn bytes(&self) -> &[u8] {
            &self.0
        }
        pub fn bytes_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }
        pub fn truncate(&mut self, n: usize) {
            self.0.truncate(n)
        }
        pub fn extend(&mut self, n: usize) -> bool {
            self.0.resize(self.0.len() + n, 0xa5); // whoever forgets to write them shall see it
            true
        }
    }
}
