//! Model files: what is saved comes back, and damaged ones change nothing.

mod common;

use elman::io;
use elman::nn::{CharRnn, CharRnnOptions, Init, Parameters};
use elman::text::Vocabulary;
use elman::{Device, Error, rng};

fn parameters(seed: u64, hidden: usize) -> Parameters {
    let mut init = Init::new(rng::manual_seed(seed));
    CharRnn::new(&mut init, CharRnnOptions::new(7, 3, hidden)).unwrap();
    init.upload(&Device::cpu()).unwrap()
}

fn all(parameters: &Parameters) -> Vec<Vec<f32>> {
    parameters.iter().map(|(_, tensor)| tensor.to_vec().unwrap()).collect()
}

#[test]
fn parameters_and_metadata_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let saved = parameters(1, 6);
    let vocabulary = Vocabulary::of("äbc\n\"");
    io::save(&path, &saved, [("vocabulary".to_owned(), vocabulary.to_string())].into()).unwrap();
    let loaded = parameters(2, 6);
    assert_ne!(all(&loaded), all(&saved));
    io::load(&path, &loaded).unwrap();
    assert_eq!(all(&loaded), all(&saved));
    let text = io::metadata(&path).unwrap()["vocabulary"].clone();
    assert_eq!(Vocabulary::try_from(text).unwrap(), vocabulary);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn names_are_those_of_a_state_dict() {
    let names = [
        "embedding_layer.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "rnn.bias_ih_l0",
        "rnn.bias_hh_l0",
        "output_layer.weight",
        "output_layer.bias",
    ];
    assert_eq!(parameters(0, 2).names().collect::<Vec<_>>(), names);
}

#[test]
fn damaged_files_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let saved = parameters(1, 6);
    io::save(&path, &saved, Default::default()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let target = parameters(2, 6);
    let before = all(&target);
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = io::load(&path, &target).unwrap_err();
        assert!(matches!(error, Error::ModelFile { .. }), "{error}");
        assert_eq!(all(&target), before);
        error.to_string()
    };
    for length in (0..good.len()).step_by(61) {
        refused(&good[..length]);
    }
    let mut nan = good.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(refused(&nan).contains("NaN at index"));
    let mut header = good.clone();
    header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&header);
    refused(b"not a model");
}

#[test]
fn a_model_of_another_size_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    io::save(&path, &parameters(1, 6), Default::default()).unwrap();
    let target = parameters(2, 5);
    let before = all(&target);
    let error = io::load(&path, &target).unwrap_err().to_string();
    assert!(error.contains("`rnn.weight_ih_l0` must be F32 [5, 3], but is F32 [6, 3]"), "{error}");
    assert_eq!(all(&target), before);
    let missing = io::load(folder.path().join("nowhere"), &target).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }) && missing.to_string().contains("nowhere"), "{missing}");
}

#[test]
fn vocabularies_are_checked() {
    for bad in ["", "abc", "\0ba", "\0aa"] {
        assert!(Vocabulary::try_from(bad.to_owned()).is_err(), "{bad:?}");
    }
    let vocabulary = Vocabulary::of("hello\0");
    assert_eq!(vocabulary.to_string(), "\0ehlo");
    let error = vocabulary.encode("hexo").unwrap_err();
    assert!(matches!(error, Error::UnknownCharacter { character: 'x', position: 2, .. }), "{error}");
    assert_eq!(vocabulary.decode(&[1, 99]), "e\u{fffd}");
}
