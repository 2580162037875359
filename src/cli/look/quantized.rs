//! Values as characters: each is one of 91 printable ones, so that a page holds a byte for each, and nothing in it ends a script.

/// The largest value of a unit has this step.
pub const STEPS: f32 = 45.0;

/// The characters from `#` to `~`, without `<`.
const FIRST: u8 = b'#';

/// Adds the values of one unit to a page; gives the value of one step.
pub fn encode(values: &[f32], out: &mut String) -> f32 {
    let scale = values.iter().fold(0f32, |most, value| most.max(value.abs()));
    let step = if scale > 0.0 { scale / STEPS } else { 1.0 };
    out.extend(values.iter().map(|value| {
        let code = FIRST + ((value / step).round() + STEPS).clamp(0.0, 2.0 * STEPS) as u8;
        char::from(code + u8::from(code >= b'<'))
    }));
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the page does it.
    fn decode(code: char, step: f32) -> f32 {
        let code = code as i32;
        (code - i32::from(FIRST) - i32::from(code > 60)) as f32 * step - STEPS * step
    }

    #[test]
    fn values_come_back_within_half_a_step() {
        let values: Vec<f32> = (-100..=100).map(|i| 0.037 * i as f32).collect();
        let mut out = String::new();
        let step = encode(&values, &mut out);
        assert_eq!(out.len(), values.len());
        assert!(out.bytes().all(|byte| (b'#'..=b'~').contains(&byte) && byte != b'<'));
        for (value, code) in values.iter().zip(out.chars()) {
            assert!((value - decode(code, step)).abs() <= 0.501 * step, "{value}");
        }
        assert_eq!(encode(&[0.0, 0.0], &mut out), 1.0);
    }
}
