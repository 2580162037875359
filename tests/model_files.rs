//! Model files: what is saved comes back, and damaged ones change nothing.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use elman::io::{self, Load, ModelFile, Save};
use elman::nn::functional::Conv1dOptions;
use elman::nn::functional::{self, Reduction};
use elman::nn::{
    Cell, CharRnn, CharRnnOptions, Conv1d, Embedding, Gru, GruCell, Init, LayerNorm, Linear, Lstm, LstmCell,
    Parameters, Recurrent, Rnn, RnnCell, RnnOptions, State,
};
use elman::optim::Sgd;
use elman::text::Vocabulary;
use elman::{Device, Error, Graph, Trainer, rng};
use safetensors::tensor::{Dtype, TensorView};

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

fn lstm(seed: u64, options: RnnOptions) -> Parameters {
    let mut init = Init::new(rng::manual_seed(seed));
    Lstm::new(&mut init, "rnn", options).unwrap();
    init.upload(&Device::cpu()).unwrap()
}

/// A file that has more than was asked for is not that model's, and the error says all at once what is wrong.
#[test]
fn a_file_must_have_the_parameters_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let options = RnnOptions::new(3, 4);
    for options in [options.num_layers(2), options.bidirectional(true)] {
        io::save(&path, &lstm(1, options), Default::default()).unwrap();
        let one = lstm(2, RnnOptions::new(3, 4));
        let before = all(&one);
        let error = io::load(&path, &one).unwrap_err().to_string();
        assert!(error.contains("4 of the file's names unexpected: `rnn.bias_hh_l"), "{error}");
        assert_eq!(all(&one), before);
    }
    // All three kinds, and no more than ten of each.
    io::save(&path, &lstm(1, options.num_layers(5)), Default::default()).unwrap();
    let mut init = Init::new(rng::manual_seed(3));
    Lstm::new(&mut init, "rnn", RnnOptions::new(2, 4)).unwrap();
    init.add("head".into(), &[1], vec![0.5]).unwrap();
    let error = io::load(&path, &init.upload(&Device::cpu()).unwrap()).unwrap_err().to_string();
    for part in [
        "1 of the parameters missing: `head`;",
        "16 of the file's names unexpected: `rnn.bias_hh_l1`, `rnn.bias_hh_l2`,",
        " and 6 more;",
        "1 of another shape or type: `rnn.weight_ih_l0` must be F32 [16, 2], but is F32 [16, 3];",
        "strict: false",
    ] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
    assert_eq!(error.matches("rnn.").count(), 11, "{error}");
}

/// `strict=False`: what has the same name is read, and the report says the rest; another shape is an error still.
#[test]
fn what_has_the_same_name_can_be_loaded_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let lenient = Load { strict: false, ..Load::default() };
    let (one, two) = (lstm(1, RnnOptions::new(3, 4)), lstm(2, RnnOptions::new(3, 4).num_layers(2)));
    let names = |parameters: &Parameters| parameters.names().map(str::to_owned).collect::<Vec<_>>();
    let own = all(&two);
    io::save(&path, &one, Default::default()).unwrap();
    let report = io::load_with(&path, &two, lenient).unwrap();
    assert_eq!((&report.loaded, &report.missing), (&names(&one), &names(&two)[4..].to_vec()));
    assert_eq!(report.unexpected, [""; 0]);
    assert_eq!(all(&two), [&all(&one)[..], &own[4..]].concat());

    io::save(&path, &two, Default::default()).unwrap();
    let report = io::load_with(&path, &one, lenient).unwrap();
    let mut above = names(&two)[4..].to_vec();
    above.sort();
    assert_eq!((report.loaded, report.missing.len(), report.unexpected), (names(&one), 0, above));

    let wider = lstm(3, RnnOptions::new(2, 4));
    let before = all(&wider);
    let error = io::load_with(&path, &wider, lenient).unwrap_err().to_string();
    assert!(error.contains("must be F32 [16, 2], but is F32 [16, 3]"), "{error}");
    assert_eq!(all(&wider), before);
    let nothing = io::load_with(&path, &parameters(1, 4), lenient);
    assert!(nothing.is_err(), "none of its names: {nothing:?}");
}

/// A safetensors file of these values in another type and under other names.
fn write_as(path: &Path, parameters: &Parameters, dtype: Dtype, rename: impl Fn(&str) -> String) {
    let bytes = parameters.iter().map(|(name, tensor)| {
        let values = tensor.to_vec().unwrap();
        let bytes: Vec<u8> = match dtype {
            Dtype::F64 => values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
            Dtype::F32 => bytemuck::cast_slice(&values).to_vec(),
            _ => values.iter().flat_map(|&value| (value as i32).to_le_bytes()).collect(),
        };
        (rename(name), tensor.shape().to_vec(), bytes)
    });
    let bytes: Vec<_> = bytes.collect();
    let views = bytes.iter().map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A state_dict with a wrapper's name in front, and a checkpoint that is no safetensors file.
#[test]
fn checkpoints_of_pytorch_are_recognized() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let own = parameters(1, 4);
    for wrapper in ["module.", "_orig_mod.", "model.", "_orig_mod.module.", "module._orig_mod.model."] {
        write_as(&path, &own, Dtype::F32, |name| format!("{wrapper}{name}"));
        let other = parameters(2, 4);
        let report = io::load_with(&path, &other, Load::default()).unwrap();
        assert_eq!(all(&other), all(&own));
        assert_eq!(report.renamed[0], (format!("{wrapper}embedding_layer.weight"), "embedding_layer.weight".into()));
        assert_eq!((report.renamed.len(), report.unexpected.len()), (7, 0));
    }
    // Of no wrapper: the error says how.
    write_as(&path, &own, Dtype::F32, |name| format!("net.{name}"));
    let error = io::load(&path, &own).unwrap_err().to_string();
    for part in [
        "7 of the parameters missing: `embedding_layer.weight`",
        "7 of the file's names unexpected: `net.embedding_layer.weight`",
        r#"rename(&[("net.", "")])"#,
    ] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
    let other = parameters(2, 4);
    let renamed = ModelFile::open(&path).unwrap().rename(&[("net.", "")]).unwrap();
    renamed.load(&other, Load::default()).unwrap();
    assert_eq!(all(&other), all(&own));
    let error = renamed.rename(&[("rnn.weight_ih", "x"), ("rnn.weight_hh", "x")]).unwrap_err();
    assert!(matches!(error, Error::Argument { argument: "renames", .. }), "{error}");
    // What two have in front is not a wrapper's, if one is a parameter's own.
    let mut init = Init::new(rng::manual_seed(1));
    let layers = ["model.a", "b"].map(|name| Linear::new(&mut init, name, 1, 1).unwrap());
    let both = init.upload(&Device::cpu()).unwrap();
    write_as(&path, &both, Dtype::F32, |name| format!("model.{}", name.trim_start_matches("model.")));
    let report = io::load_with(&path, &both, Load { strict: false, ..Load::default() }).unwrap();
    assert_eq!((report.loaded.len(), report.renamed.len(), report.unexpected.len()), (2, 0, 2));
    drop(layers);
    for magic in [&b"PK\x03\x04\0\0\x08\x08\0\0\0\0"[..], b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."] {
        std::fs::write(&path, magic).unwrap();
        for error in [io::load(&path, &own).unwrap_err(), io::metadata(&path).unwrap_err()].map(|e| e.to_string()) {
            assert!(error.contains("torch.save"), "{error}");
            let python =
                "save_file(torch.load(\"model.pt\", map_location=\"cpu\", weights_only=True), \"model.safetensors\")";
            assert!(error.contains(python), "{error}");
        }
    }
}

/// F16, BF16 and F64 become f32, the report says which; other types are errors, and so is what f32 cannot hold.
#[test]
fn values_of_other_types_are_converted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let own = parameters(1, 4);
    for (dtype, tolerance) in [(Dtype::F32, 0.0), (Dtype::F64, 0.0), (Dtype::F16, 5e-4), (Dtype::BF16, 4e-3)] {
        write_as(&path, &own, dtype, str::to_owned);
        let other = parameters(2, 4);
        let report = io::load_with(&path, &other, Load::default()).unwrap();
        for (got, want) in all(&other).concat().iter().zip(all(&own).concat()) {
            assert!((got - want).abs() <= tolerance * want.abs().max(1e-4), "{dtype:?}: {got}, {want}");
        }
        let converted = if dtype == Dtype::F32 { 0 } else { 7 };
        assert_eq!(report.converted.len(), converted);
        assert!(report.converted.iter().all(|(_, from)| *from == format!("{dtype:?}")));
    }
    let before = all(&own);
    write_as(&path, &own, Dtype::I32, str::to_owned);
    let error = io::load(&path, &own).unwrap_err().to_string();
    assert!(error.contains("`rnn.bias_ih_l0` must be F32 [4], but is I32 [4]"), "{error}");
    let large = 1e300f64.to_le_bytes();
    let views = [("a.weight", TensorView::new(Dtype::F64, vec![1, 1], &large).unwrap())];
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let file = ModelFile::open(&path).unwrap();
    let error = Linear::from_file(&mut Init::from_file(&file), "a").unwrap_err().to_string();
    assert!(error.contains("inf at index 0 of `a.weight`"), "{error}");
    assert_eq!(all(&own), before);
}

/// What is made from a file's names and shapes alone has its sizes and values, whatever the options.
#[test]
fn modules_are_made_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut options = vec![];
    for (layers, bidirectional, bias) in [(1, false, true), (3, true, true), (2, false, false), (1, true, false)] {
        options.push(RnnOptions::new(3, 6).num_layers(layers).bidirectional(bidirectional).bias(bias));
    }
    // Sizes that look like another's: as many inputs as hidden units, one unit.
    options.extend([RnnOptions::new(6, 6), RnnOptions::new(1, 1), RnnOptions::new(2, 3)]);
    for options in options {
        for (cell, proj_size) in [(Cell::Tanh, 0), (Cell::Gru, 0), (Cell::Lstm, 0), (Cell::Lstm, 2)] {
            if proj_size >= options.hidden_size {
                continue;
            }
            let options = options.proj_size(proj_size);
            for name in ["encoder.rnn", ""] {
                let mut init = Init::new(rng::manual_seed(1));
                Recurrent::new(&mut init, name, cell, options).unwrap();
                let own = init.upload(&Device::cpu()).unwrap();
                io::save(&path, &own, Default::default()).unwrap();
                let file = ModelFile::open(&path).unwrap();
                assert_eq!(RnnOptions::from_file(&file, name).unwrap(), options);
                let mut init = Init::from_file(&file);
                assert_eq!(Recurrent::from_file(&mut init, name).unwrap().cell(), cell);
                assert_eq!(init.unused(), [""; 0]);
                let made = init.upload(&Device::cpu()).unwrap();
                assert_eq!((all(&made), made.names().collect::<Vec<_>>()), (all(&own), own.names().collect()));
                let mut init = Init::from_file(&file);
                let made = match cell {
                    Cell::Gru => Gru::from_file(&mut init, name).map(drop),
                    Cell::Lstm => Lstm::from_file(&mut init, name).map(drop),
                    _ => Rnn::from_file(&mut init, name).map(drop),
                };
                made.unwrap();
                if cell != Cell::Gru {
                    let error = Gru::from_file(&mut Init::from_file(&file), name).unwrap_err().to_string();
                    assert!(error.contains(&format!("must be an Gru, but has the shapes of a {cell:?}")), "{error}");
                }
            }
        }
    }

    let mut init = Init::new(rng::manual_seed(1));
    let wide = Conv1dOptions { groups: 2, ..Default::default() };
    Embedding::new(&mut init, "a", 5, 4).unwrap();
    Linear::new(&mut init, "b", 4, 3).unwrap();
    Linear::without_bias(&mut init, "c", 4, 3).unwrap();
    LayerNorm::new(&mut init, "d", 4).unwrap();
    Conv1d::new(&mut init, "e", 4, 6, 3, wide).unwrap();
    Conv1d::without_bias(&mut init, "f", 4, 6, 3, wide).unwrap();
    RnnCell::new(&mut init, "g", RnnOptions::new(3, 2)).unwrap();
    GruCell::new(&mut init, "h", RnnOptions::new(3, 2)).unwrap();
    LstmCell::new(&mut init, "i", RnnOptions::new(3, 2).bias(false)).unwrap();
    let own = init.upload(&Device::cpu()).unwrap();
    io::save(&path, &own, Default::default()).unwrap();
    let file = ModelFile::open(&path).unwrap();
    let mut init = Init::from_file(&file);
    Embedding::from_file(&mut init, "a").unwrap();
    Linear::from_file(&mut init, "b").unwrap();
    Linear::from_file(&mut init, "c").unwrap();
    LayerNorm::from_file(&mut init, "d").unwrap();
    Conv1d::from_file(&mut init, "e", wide).unwrap();
    Conv1d::from_file(&mut init, "f", wide).unwrap();
    assert_eq!(init.unused().len(), 10);
    RnnCell::from_file(&mut init, "g").unwrap();
    GruCell::from_file(&mut init, "h").unwrap();
    LstmCell::from_file(&mut init, "i").unwrap();
    assert_eq!(all(&init.upload(&Device::cpu()).unwrap()), all(&own));

    let mut init = Init::from_file(&file);
    for (error, expected) in [
        (Linear::from_file(&mut init, "z").unwrap_err(), "it has no `z.weight`, but `a.weight`"),
        (Linear::from_file(&mut init, "e").unwrap_err(), "`e.weight` must have 2 dimensions, but has shape [6, 2, 3]"),
        (Lstm::from_file(&mut init, "a").unwrap_err(), "it has no `a.weight_ih_l0`"),
        (Linear::new(&mut init, "b", 4, 4).unwrap_err(), "`b.weight` must have shape [4, 4], but has [3, 4]"),
        (Linear::from_file(&mut Init::new(rng::manual_seed(1)), "b").unwrap_err(), "must be one of `Init::from_file`"),
        (Conv1d::from_file(&mut init, "e", Conv1dOptions { groups: 4, ..wide }).unwrap_err(), "groups that divide"),
    ] {
        assert!(error.to_string().contains(expected), "{error}");
    }
    // Five gates are no cell's.
    let mut init = Init::new(rng::manual_seed(1));
    init.constant("rnn.weight_ih_l0".into(), &[20, 3], 0.5).unwrap();
    init.constant("rnn.weight_hh_l0".into(), &[20, 4], 0.5).unwrap();
    io::save(&path, &init.upload(&Device::cpu()).unwrap(), Default::default()).unwrap();
    let file = ModelFile::open(&path).unwrap();
    let error = Recurrent::from_file(&mut Init::from_file(&file), "rnn").unwrap_err().to_string();
    assert!(error.contains("of 4 hidden units, must have 4 (RNN), 12 (GRU) or 16 (LSTM) rows, but has 20"), "{error}");
}

/// As PyTorch draws them: `torch.manual_seed(777); nn.Conv1d(4, 6, 3, groups=2)`.
#[test]
fn a_convolution_starts_as_pytorchs() {
    let mut init = Init::new(rng::manual_seed(777));
    let options = Conv1dOptions { groups: 2, ..Default::default() };
    Conv1d::new(&mut init, "conv", 4, 6, 3, options).unwrap();
    let parameters = init.upload(&Device::cpu()).unwrap();
    let get = |name: &str| parameters.get(name).unwrap().to_vec().unwrap();
    assert_eq!(get("conv.weight")[..4], [-0.3413647, -0.007236246, -0.07896069, -0.09314599]);
    assert_eq!(get("conv.bias"), [0.26795363, 0.11914575, 0.04441885, -0.10593353, -0.35142657, -0.0922915]);
}

/// An index of shards, and everything that can be wrong with one.
#[test]
fn shards_are_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let index = at("model.safetensors.index.json");
    let own = parameters(1, 4);
    let half = |keep: bool| {
        let tensors = own.iter().map(|(name, tensor)| (name, tensor.shape().to_vec(), tensor.to_vec().unwrap()));
        let tensors: Vec<_> = tensors.filter(|(name, ..)| name.starts_with("rnn.") == keep).collect();
        let view = |(name, shape, values): &(&str, Vec<usize>, Vec<f32>)| {
            let data: Vec<u8> = bytemuck::cast_slice(values).to_vec();
            (name.to_string(), shape.clone(), data)
        };
        let tensors: Vec<_> = tensors.iter().map(view).collect();
        let views = tensors.iter().map(|(n, s, d)| (n, TensorView::new(Dtype::F32, s.clone(), d).unwrap()));
        safetensors::serialize(views, Some([("half".to_owned(), keep.to_string())].into())).unwrap()
    };
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    std::fs::write(at(shards[0]), half(true)).unwrap();
    std::fs::write(at(shards[1]), half(false)).unwrap();
    let map = |name: &str| (name.to_owned(), shards[usize::from(!name.starts_with("rnn."))].to_owned());
    let map: std::collections::BTreeMap<_, _> = own.names().map(map).collect();
    let write = |map: &std::collections::BTreeMap<String, String>| {
        let text = serde_json::json!({ "metadata": { "total_size": 1234 }, "weight_map": map }).to_string();
        std::fs::write(&index, text).unwrap();
    };
    write(&map);
    let other = parameters(2, 4);
    io::load(&index, &other).unwrap();
    assert_eq!(all(&other), all(&own));
    assert_eq!(io::metadata(&index).unwrap()["half"], "true");

    let before = all(&other);
    let refused = |what: &str| {
        let error = io::load(&index, &other).unwrap_err();
        assert!(matches!(error, Error::ModelFile { .. }) && error.to_string().contains(what), "{error}");
        assert_eq!(all(&other), before);
    };
    let changed = |name: &str, shard: &str| {
        let mut map = map.clone();
        map.insert(name.into(), shard.into());
        write(&map);
    };
    changed("rnn.bias_hh_l0", shards[1]);
    refused("which the index lists in `model-00002-of-00002.safetensors`");
    changed("rnn.bias_hh_l1", shards[0]);
    refused("lacks `rnn.bias_hh_l1`, which the index lists there");
    changed("rnn.bias_hh_l1", "model-00003-of-00003.safetensors");
    refused("its shard `model-00003-of-00003.safetensors`, one of 3, is missing");
    for path in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "C:x", "./x.safetensors"]
    {
        changed("rnn.bias_hh_l1", path);
        refused("must be the name of a file beside the index");
    }
    let mut fewer = map.clone();
    fewer.remove("rnn.bias_hh_l0");
    write(&fewer);
    refused("has `rnn.bias_hh_l0`, which the index does not list");
    for text in ["", "{", "[]", r#"{"weight_map": 3}"#, r#"{"weight_map": {"a": 3}}"#, "{}"] {
        std::fs::write(&index, text).unwrap();
        refused("no index of shards");
    }
    write(&map);
    std::fs::write(at(shards[1]), "no shard").unwrap();
    refused("it is no safetensors file");
}

/// What could not be loaded is not saved, unless it is asked for.
#[test]
fn parameters_that_are_not_finite_are_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let good = parameters(1, 4);
    io::save(&path, &good, Default::default()).unwrap();
    let before = std::fs::read(&path).unwrap();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let bad = parameters(2, 4);
        let tensor = bad.get("rnn.bias_hh_l0").unwrap();
        tensor.write(&[0.5, 0.5, value, value]).unwrap();
        let error = io::save(&path, &bad, Default::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("{value} at index 2 of `rnn.bias_hh_l0`")), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

        let kept = folder.path().join("diverged");
        io::save_with(&kept, &bad, Default::default(), Save { finite: false }).unwrap();
        assert!(io::load(&kept, &good).is_err());
        let target = parameters(3, 4);
        io::load_with(&kept, &target, Load { finite: false, ..Load::default() }).unwrap();
        let bits = |parameters: &Parameters| all(parameters).concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&target), bits(&bad));
        std::fs::remove_file(kept).unwrap();
    }
    // No reader takes a header of more than 100 MB.
    let long = [("notes".to_owned(), "x".repeat(100 << 20))].into();
    assert!(matches!(io::save(&path, &good, long), Err(Error::Argument { argument: "metadata", .. })));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// A link stays a link, wherever it leads; what is replaced keeps its mode.
#[cfg(unix)]
#[test]
fn files_are_replaced_as_they_are() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let (first, second) = (parameters(1, 4), parameters(2, 4));
    let holds = |path: &Path, saved: &Parameters| {
        let loaded = parameters(3, 4);
        io::load(path, &loaded).unwrap();
        all(&loaded) == all(saved)
    };
    std::fs::create_dir(at("elsewhere")).unwrap();
    // From a link to a link, relative to where it is, to nothing yet.
    symlink("elsewhere/link", at("link")).unwrap();
    symlink("../model", at("elsewhere/link")).unwrap();
    io::save(at("link"), &first, Default::default()).unwrap();
    assert!(std::fs::symlink_metadata(at("link")).unwrap().is_symlink());
    assert!(std::fs::symlink_metadata(at("elsewhere/link")).unwrap().is_symlink());
    assert!(std::fs::symlink_metadata(at("model")).unwrap().is_file() && holds(&at("model"), &first));
    std::fs::write(at("plain"), "").unwrap();
    assert_eq!(mode(&at("model")), mode(&at("plain")), "a new file is as the umask has it");

    for bits in [0o600, 0o640, 0o666, 0o400] {
        std::fs::set_permissions(at("model"), std::fs::Permissions::from_mode(bits)).unwrap();
        io::save(at("link"), &second, Default::default()).unwrap();
        assert_eq!(mode(&at("model")), bits, "{bits:o}");
        assert!(holds(&at("link"), &second));
    }
    // Only root may give a file away.
    if chown(at("model"), Some(4321), Some(4321)).is_ok() {
        io::save(at("model"), &first, Default::default()).unwrap();
        let owner = std::fs::metadata(at("model")).unwrap();
        assert_eq!((owner.uid(), owner.gid(), mode(&at("model"))), (4321, 4321, 0o400));
    }
    symlink("round", at("around")).unwrap();
    symlink("around", at("round")).unwrap();
    for bad in ["around", "elsewhere", "nowhere/model"] {
        let error = io::save(at(bad), &first, Default::default()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains(bad), "{error}");
    }
    // Six, and no temporary file.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 6);
}

/// Runs `step` in one thread for as long as `look` runs in another.
fn beside<T: Send>(step: impl Fn() + Sync, look: impl FnOnce() -> T + Send) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                step();
            }
        });
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look));
        done.store(true, Ordering::Relaxed);
        looked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn is_one_value(values: &[f32]) -> bool {
    values.iter().all(|value| value == &values[0])
}

/// Parameters that every step moves by the same amount are the same in every file that is written meanwhile, and after
/// every load.
#[test]
fn a_file_is_of_one_step() {
    for device in common::f32_devices() {
        let mut init = Init::new(rng::manual_seed(1));
        let ids: Vec<_> = (0..16).map(|i| init.add(format!("p{i}"), &[4, 1], vec![0.0; 4]).unwrap()).collect();
        let parameters = init.upload(&device).unwrap();
        let target = device.upload("target", &[4, 1], &[1e6; 4]).unwrap();
        let trainer = Trainer::new(&parameters, Sgd::new(1e-6), |g| {
            let mut sum = g.parameter(ids[0])?;
            for &id in &ids[1..] {
                let next = g.parameter(id)?;
                sum = functional::add(g, sum, next)?;
            }
            functional::mse_loss(g, sum, &target, Reduction::Sum)
        });
        let trainer = std::sync::Mutex::new(trainer.unwrap());
        let step = || trainer.lock().unwrap().step().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (start, path) = (folder.path().join("start"), folder.path().join("model"));
        io::save(&start, &parameters, Default::default()).unwrap();
        let block =
            || pollster::block_on(io::to_bytes_async(&parameters, Default::default(), Save::default())).unwrap();
        let values = |bytes: &[u8]| -> Vec<f32> {
            let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
            file.tensors().iter().flat_map(|(_, view)| bytemuck::pod_collect_to_vec::<u8, f32>(view.data())).collect()
        };
        beside(step, || {
            let (mut last, mut moved) = (0.0, 0);
            for i in 0.. {
                let saved = values(&block());
                assert!(saved.len() == 64 && is_one_value(&saved), "{}: {saved:?}", device.describe());
                moved += u32::from(saved[0] != last);
                last = saved[0];
                match i % 10 {
                    9 => io::load(&start, &parameters).unwrap(),
                    _ if i > 600 && moved > 200 => break,
                    _ => {}
                }
            }
            io::save(&path, &parameters, Default::default()).unwrap();
        });
        assert!(is_one_value(&values(&std::fs::read(&path).unwrap())));
    }
}

/// Likewise the tensors of a carried state.
#[test]
fn a_snapshot_of_a_state_is_of_one_step() {
    for device in common::f32_devices() {
        let names: Vec<_> = ('a'..='p').map(String::from).collect();
        let state = State::zeros(&device, &names.iter().map(|name| (name.as_str(), [1, 1, 3])).collect::<Vec<_>>());
        let state = state.unwrap();
        let one = device.upload("one", &[1, 1, 3], &[1.0; 3]).unwrap();
        let mut g = Graph::without_parameters(&device);
        for name in &names {
            let (before, one) = (state.get(&mut g, name).unwrap(), g.input(&one).unwrap());
            let after = functional::add(&mut g, before, one).unwrap();
            state.set(&mut g, name, after).unwrap();
        }
        let plan = g.finish().unwrap();
        let fresh = state.save().unwrap();
        beside(
            || plan.run().unwrap(),
            || {
                let (mut last, mut moved) = (0.0, 0);
                for i in 0.. {
                    let saved: Vec<f32> = state.save().unwrap().into_values().flatten().collect();
                    assert!(saved.len() == 48 && is_one_value(&saved), "{}: {saved:?}", device.describe());
                    moved += u32::from(saved[0] != last);
                    last = saved[0];
                    match i % 20 {
                        9 => state.restore(&fresh).unwrap(),
                        19 => state.zero().unwrap(),
                        _ if i > 600 && moved > 200 => break,
                        _ => {}
                    }
                }
            },
        );
    }
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
