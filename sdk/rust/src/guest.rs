use crate::abi;
use crate::config::{Config, Refused};
use crate::context::Context;
use crate::input::{CommandResult, Lifecycle, Raw, Readings};
use crate::names::Names;
use crate::out::Out;
use crate::state::{State, StateReader, StateWriter};
use crate::Plugin;

const BAD_FRAME: &str = "bad frame";

/// Runs a plugin over frames, as the module's exports do. Only tests need it.
pub struct Guest<P> {
    plugin: Option<P>,
    names: Names,
    out: Out,
    state: Out, // the bytes of the state at hand
    refused: Option<Refused>,
}

impl<P: Plugin> Guest<P> {
    /// A guest that has no configuration yet.
    pub const fn new() -> Self {
        Guest { plugin: None, names: Names::new(), out: Out::new(), state: Out::new(), refused: None }
    }

    /// Takes the frame of `dunlin_init`; returns the answer's frame, or why it is refused.
    pub fn init(&mut self, frame: &[u8]) -> Result<&[u8], &str> {
        self.out.clear();
        let mut at = 0;
        while at < frame.len() {
            let (kind, rec) = match record(frame, &mut at) {
                Some((kind, _, rec)) => (kind, rec),
                None => return Err(BAD_FRAME),
            };
            match kind {
                abi::NAME if !self.names.define(rec) => return Err(BAD_FRAME),
                abi::CONFIG => {
                    if let Err(why) = self.configure(rec.get(abi::HEADER_SIZE..).unwrap_or(&[])) {
                        self.plugin = None;
                        return Err(self.refused.insert(why).as_str());
                    }
                }
                _ => {}
            }
        }
        self.answer()
    }

    fn configure(&mut self, text: &[u8]) -> Result<(), Refused> {
        let mut cfg = Config::parse(text, &mut self.names, &mut self.out)?;
        let plugin = P::configure(&mut cfg)?;
        cfg.finish()?;
        self.plugin = Some(plugin);
        Ok(())
    }

    fn answer(&self) -> Result<&[u8], &str> {
        if self.out.full {
            return Err("out of memory");
        }
        Ok(self.out.bytes())
    }

    /// Takes the frame of `dunlin_process`; returns the answer's frame, or why there is none. Nothing of the frame is kept.
    pub fn process(&mut self, frame: &[u8]) -> Result<&[u8], &str> {
        self.out.clear();
        let plugin = match &self.plugin {
            Some(p) => p,
            None => return Err("the plugin has no configuration"),
        };
        if !run(plugin, &mut self.names, &mut self.out, &mut self.state, frame) {
            return Err(BAD_FRAME);
        }
        self.answer()
    }
}

impl<P: Plugin> Default for Guest<P> {
    fn default() -> Self {
        Guest::new()
    }
}

/// Takes the record at `at`, and moves on to the next; `None` if the bytes are none.
#[inline(always)]
fn record<'a>(frame: &'a [u8], at: &mut usize) -> Option<(u16, u16, &'a [u8])> {
    let left = frame.len() - *at;
    if left < abi::HEADER_SIZE {
        return None;
    }
    let h = abi::u64_at(frame, *at);
    let n = h as u32 as usize;
    if n < abi::HEADER_SIZE || n > left {
        return None;
    }
    let rec = frame.get(*at..*at + n)?;
    *at += abi::align(n).min(left); // the last record's padding may be missing
    Some(((h >> 32) as u16, (h >> 48) as u16, rec))
}

/// Works off a frame; false says that it is none.
fn run<P: Plugin>(plugin: &P, names: &mut Names, out: &mut Out, state: &mut Out, frame: &[u8]) -> bool {
    let mut ctx = Context::new(out);
    let mut mem: Option<P::State> = None; // of the device at hand
    let mut at = 0;
    while at < frame.len() {
        let (kind, flags, rec) = match record(frame, &mut at) {
            Some(r) => r,
            None => return false,
        };
        let ok = match kind {
            abi::TELEMETRY => telemetry(plugin, names, &mut ctx, &mut mem, rec),
            abi::DEVICE => device::<P>(&mut ctx, &mut mem, state, rec),
            _ => seldom(plugin, names, &mut ctx, &mut mem, (kind, flags, rec)),
        };
        if !ok {
            return false;
        }
    }
    end::<P>(&mut ctx, &mem, state);
    true
}

// Each kind has a function of its own: a module pays fuel for all code of a loop at each pass, whether it runs or not.

#[inline(never)]
fn telemetry<'a, P: Plugin>(plugin: &P, names: &Names, ctx: &mut Context<'a>, mem: &mut Option<P::State>, rec: &'a [u8]) -> bool {
    match (Readings::new(rec, names), mem) {
        (Some(rs), Some(mem)) => {
            ctx.begin_input(abi::u64_at(rec, 8));
            if !ctx.failed {
                plugin.readings(ctx, mem, rs);
            }
            true
        }
        _ => false,
    }
}

#[inline(never)]
fn device<'a, P: Plugin>(ctx: &mut Context<'a>, mem: &mut Option<P::State>, state: &mut Out, rec: &'a [u8]) -> bool {
    end::<P>(ctx, mem, state);
    let ok = ctx.begin(rec);
    *mem = Some(P::State::load(&mut StateReader::new(ctx.state)));
    ok
}

/// Works off a record of the other kinds.
#[inline(never)]
fn seldom<'a, P: Plugin>(
    plugin: &P,
    names: &mut Names,
    ctx: &mut Context<'a>,
    mem: &mut Option<P::State>,
    (kind, flags, rec): (u16, u16, &'a [u8]),
) -> bool {
    let body = |at: usize| rec.get(at..).unwrap_or(&[]);
    match kind {
        abi::NAME => return names.define(rec),
        abi::FORGET => names.forget(),
        abi::BATCH => {
            if rec.len() < abi::TWO_WORDS {
                return false;
            }
            ctx.now = abi::u64_at(rec, 8) as i64;
        }
        abi::RAW..=abi::INPUT_LAST | abi::MIGRATE | abi::CONFIGURED => {
            let mem = match mem {
                Some(mem) => mem,
                None => return kind > abi::LIFECYCLE, // of no device: those that are known are not a host's
            };
            if ctx.failed {
                return true;
            }
            match kind {
                abi::RAW if rec.len() >= abi::TWO_WORDS => {
                    ctx.begin_input(abi::u64_at(rec, 8));
                    plugin.raw(ctx, mem, Raw { format: abi::u32_at(rec, 16) as u16, payload: body(abi::TWO_WORDS) });
                }
                abi::TIMER if rec.len() >= abi::ONE_WORD => {
                    ctx.begin_input(abi::u64_at(rec, 8));
                    plugin.timer(ctx, mem, abi::text(body(abi::ONE_WORD)));
                }
                abi::RESULT => {
                    let n = u64::from(abi::u32_at(rec, 20));
                    if rec.len() < abi::TWO_WORDS || n > (rec.len() - abi::TWO_WORDS) as u64 {
                        return false;
                    }
                    ctx.begin_input(abi::u64_at(rec, 8));
                    let result = CommandResult {
                        id: abi::text(abi::part(rec, abi::TWO_WORDS, n as usize)),
                        timed_out: flags & abi::FLAG_TIMED_OUT != 0,
                        format: abi::u32_at(rec, 16) as u16,
                        payload: body(abi::align(abi::TWO_WORDS + n as usize)),
                    };
                    plugin.result(ctx, mem, result);
                }
                abi::LIFECYCLE if rec.len() >= abi::ONE_WORD => {
                    ctx.begin_input(abi::u64_at(rec, 8));
                    plugin.lifecycle(ctx, mem, Lifecycle { json: body(abi::ONE_WORD) });
                }
                abi::MIGRATE if rec.len() >= abi::ONE_WORD => plugin.migrate(ctx, mem, abi::u32_at(rec, 8)),
                abi::CONFIGURED => plugin.configured(ctx, mem),
                abi::RAW | abi::TIMER | abi::LIFECYCLE | abi::MIGRATE => return false,
                _ => ctx.skip_input(),
            }
        }
        _ => {}
    }
    true
}

/// Completes a device's turn: its state goes into the answer if it isn't the one that came.
#[inline(always)]
fn end<P: Plugin>(ctx: &mut Context<'_>, mem: &Option<P::State>, state: &mut Out) {
    if let Some(mem) = mem {
        if P::State::KEPT && !ctx.failed {
            state.clear();
            mem.save(&mut StateWriter { out: state });
            if state.bytes() != ctx.state {
                changed::<P>(ctx, state);
            }
        }
    }
}

#[inline(never)]
fn changed<P: Plugin>(ctx: &mut Context<'_>, state: &mut Out) {
    let n = state.len();
    if ctx.state.is_empty() {
        // A device that has no state gets none as long as it would be that of a new one.
        P::State::load(&mut StateReader::new(&[])).save(&mut StateWriter { out: state });
        let all = state.bytes();
        if all.get(..n) == all.get(n..) {
            return;
        }
    }
    ctx.open();
    ctx.out.text(abi::STATE, 0, state.bytes().get(..n).unwrap_or(&[]));
    ctx.out.full |= state.full;
}
