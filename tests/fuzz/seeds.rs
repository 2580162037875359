//! Writes the files that fuzzing starts from.

use std::path::Path;

use elman::io::{self, Metadata};
use elman::schedule::{EarlyStopping, Mode, PlateauOptions, ReduceOnPlateau};
use elman::{Device, nn, rng};
use elman_fuzz::Training;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let folder = |target: &str| std::fs::create_dir_all(seeds.join(target)).map(|()| seeds.join(target));

    let mut training = Training::new(2)?;
    let models = folder("model_file")?;
    io::save(models.join("parameters"), &training.parameters, Metadata::new())?;
    io::save_with_config(models.join("config"), &training.parameters, &(3, "abc"))?;
    io::save_state(models.join("state"), &training.state)?;
    // Those of a wrapper, and those of another network.
    let named = |names: [&str; 2]| -> elman::Result<_> {
        let mut init = nn::Init::new(rng::manual_seed(1));
        names.into_iter().try_for_each(|name| nn::Linear::new(&mut init, name, 2, 3).map(drop))?;
        init.upload(&Device::cpu())
    };
    io::save(models.join("wrapped"), &named(["module.output_layer", "module.rnn"])?, Metadata::new())?;
    io::save(models.join("part"), &named(["output_layer", "head"])?, Metadata::new())?;
    std::fs::write(models.join("zip"), b"PK\x03\x04model")?;
    std::fs::write(models.join("pickle"), [0x80, 2, b'}'])?;

    let checkpoints = folder("checkpoint")?;
    training.trainer.step()?;
    training.trainer.checkpoint()?.save(checkpoints.join("bare"))?;
    training.checkpoint()?.save(models.join("checkpoint"))?;
    let mut whole = training.checkpoint()?;
    whole.set("stopping", &EarlyStopping::new(Mode::Min, 3, 0.0)?)?;
    whole.set("plateau", &ReduceOnPlateau::new(1e-2, PlateauOptions::default())?)?;
    whole.save(checkpoints.join("whole"))?;
    whole.set("rng", &rng::manual_seed(3))?;
    whole.save(checkpoints.join("rng"))?;

    let corpus = folder("corpus")?;
    let text = |name: &str, sizes: [u8; 8], text: &[u8]| std::fs::write(corpus.join(name), [&sizes, text].concat());
    text("streams", [0, 30, 2, 3, 4, 9, 1, 7], "abcdefghijabcdefghij0123456789".as_bytes())?;
    text("bytes", [3, 40, 3, 2, 5, 255, 2, 1], "\u{feff}é☃😀z\r\naé☃😀z\r\naé☃😀zé☃😀z".as_bytes())?;
    text("huge", [0, 255, 254, 255, 253, 252, 255, 0], "\0a\u{7f}é".as_bytes())?;
    text("latin", [0, 9, 1, 1, 0, 1, 0, 0], b"caf\xe9 au lait")?;
    text("empty", [0; 8], b"")?;

    let files = folder("onnx")?;
    let cases = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/onnx_cases.safetensors"))?;
    let cases = safetensors::SafeTensors::deserialize(&cases)?;
    for name in cases.names() {
        match name.strip_suffix("/model") {
            Some(case) => std::fs::write(files.join(case), cases.tensor(name)?.data())?,
            None => continue,
        }
    }
    Ok(())
}
