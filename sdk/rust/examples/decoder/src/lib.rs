//! A decoder: octets in, readings out.
//!
//! A payload is a version, 1, and then triples of a channel and a little-endian i16 of hundredths. No settings.

#![cfg_attr(target_arch = "wasm32", no_std)]

use dunlin::{Config, Context, Derived, Plugin, Raw, Refused};

/// The plugin.
pub struct Decoder;

/// The metric and the unit of a channel.
fn channel(n: u8) -> Option<(&'static str, &'static str)> {
    Some(match n {
        1 => ("temp", "Cel"),
        2 => ("humidity", "%RH"),
        3 => ("battery", "V"),
        _ => return None,
    })
}

impl Plugin for Decoder {
    type State = ();

    fn configure(_: &mut Config<'_>) -> Result<Self, Refused> {
        Ok(Decoder)
    }

    fn raw(&self, ctx: &mut Context<'_>, _: &mut (), raw: Raw<'_>) {
        let triples = match raw.payload {
            [1, rest @ ..] if !rest.is_empty() && rest.len() % 3 == 0 => rest,
            _ => return ctx.fail_input("bad payload"),
        };
        for t in triples.chunks_exact(3) {
            let (metric, unit) = match channel(t[0]) {
                Some(c) => c,
                None => return ctx.fail_input("bad payload"), // what was derived from this payload is taken back
            };
            let value = f64::from(i16::from_le_bytes([t[1], t[2]])) / 100.0;
            ctx.derive(&Derived { metric, unit, value, ..Derived::default() });
        }
    }
}

dunlin::plugin!(Decoder);

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin::testing::Harness;

    #[test]
    fn payloads() {
        let mut h = Harness::<Decoder>::new("{}");
        let got = h.send_raw("d", 42, &[1, 1, 0x66, 0x08, 3, 0x4a, 0x01]);
        let readings: Vec<_> = got.readings.iter().map(|r| (r.metric.as_str(), r.unit.as_str(), r.value)).collect();
        assert_eq!(readings, [("temp", "Cel", 21.5), ("battery", "V", 3.3)]);
        for bad in [&[][..], &[1], &[2, 1, 0, 0], &[1, 1, 0], &[1, 1, 0, 0, 9, 0, 0]] {
            let got = h.send_raw("d", 42, bad);
            assert_eq!((got.refused.as_slice(), got.readings.len()), (&[(0, "bad payload".into())][..], 0), "{:?}", bad);
        }
    }
}
