//! The comparison that the other tests lean on fails when it should.

mod common;

use common::compare;

#[test]
fn equal_values_pass() {
    compare(&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 3.0, 4.0], 2, 0.0).unwrap();
    compare(&[1.0, 2.0 + 1e-6], &[1.0, 2.0], 2, 1e-6).unwrap();
}

#[test]
fn planted_faults_are_found() {
    let want = [1.0, -2.0, 3.0, -4.0];
    let got = |at: usize, value: f64| {
        let mut got = want;
        got[at] = value;
        got
    };
    let fails = |got: &[f64], want: &[f64]| compare(got, want, 2, 1e-5).unwrap_err();
    for at in 0..4 {
        fails(&got(at, want[at] + 1e-3), &want);
        fails(&got(at, -want[at]), &want);
        fails(&got(at, 0.0), &want);
        assert!(fails(&got(at, f64::NAN), &want).contains(&format!("worst at {at}")));
        fails(&got(at, f64::INFINITY), &want);
        // An expected NaN is no excuse either.
        fails(&want, &got(at, f64::NAN));
    }
    fails(&[], &[]);
    fails(&want[..3], &want);
    fails(&want, &want[..3]);
    fails(&[-2.0, 1.0, 3.0, -4.0], &want);
    // Nothing is right where zero is expected but zero.
    fails(&[1e-30, 0.0], &[0.0, 0.0]);
    // A small value in a small row is measured against its own row.
    fails(&[1e6, 1e6, 1e-3, 2e-3], &[1e6, 1e6, 1e-3, 1e-3]);
}
