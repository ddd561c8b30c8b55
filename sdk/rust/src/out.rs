use crate::abi;
use crate::buf::Buf;

/// The answer's frame. It is reused from call to call.
pub(crate) struct Out {
    buf: Buf,
    /// There was no memory for all of it.
    pub full: bool,
}

impl Out {
    pub const fn new() -> Out {
        Out { buf: Buf::new(), full: false }
    }

    pub fn clear(&mut self) {
        self.buf.truncate(0);
        self.full = false;
    }

    #[inline(always)]
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    #[inline(always)]
    pub fn truncate(&mut self, n: usize) {
        self.buf.truncate(n)
    }

    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        self.buf.bytes()
    }

    /// Appends n bytes that the caller writes; none if there is no memory.
    #[inline(always)]
    pub fn extend(&mut self, n: usize) -> &mut [u8] {
        match self.buf.extend(n) {
            Some(b) => b,
            None => {
                self.full = true;
                &mut []
            }
        }
    }

    /// Appends a record of `size` bytes with its padding, and writes the header: the body is the caller's to write.
    #[inline(always)]
    pub fn record(&mut self, kind: u16, flags: u16, size: usize) -> &mut [u8] {
        let whole = abi::align(size);
        let rec = self.extend(whole);
        abi::put_u64(rec, whole - 8, 0);
        abi::put_u64(rec, 0, size as u64 | u64::from(kind) << 32 | u64::from(flags) << 48);
        rec
    }

    /// Appends a record whose body is a text.
    pub fn text(&mut self, kind: u16, flags: u16, body: &[u8]) {
        let rec = self.record(kind, flags, abi::HEADER_SIZE + body.len());
        abi::put(rec, abi::HEADER_SIZE, body);
    }
}
