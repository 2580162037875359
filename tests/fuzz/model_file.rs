//! Model files: reading one is an error that says why and changes nothing, or leaves what was asked for.
#![no_main]

use elman::io::{self, Load};
use elman_fuzz::{Training, bits, in_file, mended, says_why};
use libfuzzer_sys::fuzz_target;

thread_local!(static TRAINING: Training = Training::new(1).expect("a training"));

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    if let Some(bytes) = mended(bytes) {
        read(&bytes);
    }
});

fn read(bytes: &[u8]) {
    // Any of the four, always the same for one input.
    let asked = Load { strict: bytes.len() & 1 == 0, finite: bytes.len() & 2 == 0 };
    TRAINING.with(|Training { parameters, state, .. }| {
        in_file(bytes, |path| {
            let before = bits(parameters);
            match io::load_with(path, parameters, asked) {
                Ok(report) => {
                    let is_whole = report.missing.is_empty() && report.unexpected.is_empty();
                    assert!(!report.loaded.is_empty() && (is_whole || !asked.strict));
                    let is_finite = || bits(parameters).into_iter().all(|bits| f32::from_bits(bits).is_finite());
                    assert!(!(asked.strict && asked.finite) || is_finite());
                }
                Err(error) => {
                    says_why(&error);
                    assert_eq!(bits(parameters), before);
                }
            }
            let before = state.save().expect("f32 on the CPU");
            if let Err(error) = io::load_state(path, state) {
                says_why(&error);
                assert_eq!(state.save().expect("f32 on the CPU"), before);
            }
            if let Err(error) = io::config::<(usize, String)>(path) {
                says_why(&error);
            }
        });
    });
}
