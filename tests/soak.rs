//! What a long run goes through: it is killed while it saves, its disk fills up, its folder cannot be written; and it gives the same bits
//! however often it is read or saved. `tests/run.sh --soak` has the full form.

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{f32_devices, soak, tokens};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{Cell, CharRnn, CharRnnOptions, Init, LanguageModel as _, Parameters, State};
use elman::optim::{Adam, Clip};
use elman::text::{Corpus, Windows};
use elman::{Autosave, Checkpoint, Device, Error, Trainer, rng};

/// A training on streams with dropout and the state carried.
struct Training {
    trainer: Trainer,
    parameters: Parameters,
    state: State,
}

impl Training {
    fn new(device: &Device, hidden: usize) -> Self {
        let mut init = Init::new(rng::manual_seed(5));
        let options = CharRnnOptions::new(11, 4, hidden).cell(Cell::Gru).num_layers(2).dropout(0.3);
        let model = CharRnn::new(&mut init, options).unwrap();
        let parameters = init.upload(device).unwrap();
        let corpus = Corpus::new(device, &tokens(1, 400, 11), 11).unwrap();
        let windows = Windows::streams(&corpus, 0..400, 3, 5).unwrap();
        let state = model.state(device, 3).unwrap();
        let trainer = Trainer::new(&parameters, Adam::new(1e-2).clip(Clip::Norm(1.0)), |g| {
            let batch = windows.batch_of_every_step(g, 3)?;
            let logits = model.forward_every_step(g, &batch.tokens, InitialState::Carried(&state))?;
            cross_entropy(g, logits, &batch.targets, Reduction::Mean)
        });
        Self { trainer: trainer.unwrap(), parameters, state }
    }

    fn checkpoint(&self) -> Checkpoint {
        let mut checkpoint = self.trainer.checkpoint().unwrap();
        checkpoint.set_state("training", &self.state).unwrap();
        checkpoint
    }

    fn resume(&mut self, checkpoint: &Checkpoint) {
        self.trainer.restore(checkpoint).unwrap();
        checkpoint.restore_state("training", &self.state).unwrap();
    }

    fn bits(&self) -> Vec<u32> {
        self.parameters.iter().flat_map(|(_, tensor)| tensor.to_vec().unwrap()).map(f32::to_bits).collect()
    }
}

/// The folder that the process below saves into.
const FOLDER: &str = "ELMAN_TEST_FOLDER";

/// Whether it saves when it is asked to end, in place of after every step.
const ON_INTERRUPT: &str = "ELMAN_TEST_ON_INTERRUPT";

/// Not a test of its own, but the process that [`no_kill_leaves_a_broken_file`] kills: it trains and saves for ever, and says each step
/// that it has saved.
#[test]
fn a_process_that_saves() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut training = Training::new(&Device::cpu(), 64);
    let mut autosave = Autosave::in_folder(folder).unwrap().keep(2);
    autosave = match std::env::var_os(ON_INTERRUPT) {
        None => autosave.every_steps(1),
        Some(_) => autosave.on_interrupt().unwrap(),
    };
    if let Some(checkpoint) = autosave.resume().unwrap() {
        training.resume(&checkpoint);
    }
    loop {
        training.trainer.step().unwrap();
        let steps = training.trainer.steps();
        if autosave.is_due(steps) {
            autosave.save(&training.checkpoint()).unwrap();
            common::say_loudly(&format!("saved {steps}"));
        } else {
            common::say_loudly(&format!("step {steps}"));
        }
        if autosave.is_interrupted() {
            return;
        }
    }
}

fn process(folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_process_that_saves", "--nocapture"]).env(FOLDER, folder);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Asked to end, by Ctrl-C or by the system, a training is saved where it is.
#[cfg(unix)]
#[test]
fn a_signal_saves_the_training() {
    for signal in ["-INT", "-TERM"] {
        let folder = tempfile::tempdir().unwrap();
        let mut child = process(folder.path()).env(ON_INTERRUPT, "1").spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        lines.find(|line| line == "step 3").expect("it ended by itself");
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let saved = lines.find_map(|line| line.strip_prefix("saved ")?.parse::<u64>().ok()).expect("it saves");
        assert!(child.wait().unwrap().success(), "{signal}");
        let checkpoint = Autosave::in_folder(folder.path()).unwrap().resume().unwrap().unwrap();
        assert!(checkpoint.steps() == saved && saved > 3, "{signal}: {saved}");
    }
}

/// A process that saves all the time is killed at random moments: the newest checkpoint is whole, and of the step that was last said to
/// be saved or of the next; what goes on from it is what was never killed.
#[test]
fn no_kill_leaves_a_broken_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = rng::manual_seed(1);
    let (mut steps, mut unfinished) = (0, 0);
    let names = || -> Vec<_> { fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect() };
    let is_unfinished = |name: &std::ffi::OsString| name.to_string_lossy().starts_with('.');
    for kill in 0..soak(12, 200) {
        let mut child = process(folder.path()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut saved = lines.filter_map(|line| line.strip_prefix("saved ")?.parse::<u64>().ok());
        for _ in 0..1 + rng.next_u32() % 4 {
            steps = saved.next().expect("it ended by itself");
        }
        // Somewhere in the next step, or the save of it.
        (0..rng.next_u32() % 3000).for_each(|_| std::thread::yield_now());
        child.kill().unwrap();
        steps = saved.last().unwrap_or(steps);
        child.wait().unwrap();
        unfinished += usize::from(names().iter().any(is_unfinished));
        let checkpoint = Autosave::in_folder(folder.path()).unwrap().resume().unwrap().unwrap();
        assert!([steps, steps + 1].contains(&checkpoint.steps()), "kill {kill}: {} after {steps}", checkpoint.steps());
        steps = checkpoint.steps();
        let last = Checkpoint::load(folder.path().join("last.safetensors")).unwrap();
        assert_eq!(last, checkpoint);
        // What was not finished has gone; the one before is whole too.
        for name in names().iter().filter(|name| *name != "last.safetensors") {
            assert!(Checkpoint::load(folder.path().join(name)).unwrap().steps() <= steps, "kill {kill}: {name:?}");
        }
    }
    common::say_loudly(&format!("{unfinished} of {} kills came while a file was written", soak(12, 200)));
    // Of few, none may.
    assert!(unfinished >= soak(0, 1), "no kill came while a file was written");
    let mut undisturbed = Training::new(&Device::cpu(), 64);
    (0..steps).for_each(|_| undisturbed.trainer.step().unwrap());
    let mut resumed = Training::new(&Device::cpu(), 64);
    resumed.resume(&Autosave::in_folder(folder.path()).unwrap().resume().unwrap().unwrap());
    assert_eq!(resumed.bits(), undisturbed.bits());
}

/// A damaged newest checkpoint is no lost run, and it is kept which are to be kept.
#[test]
fn the_one_before_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let mut training = Training::new(&Device::cpu(), 8);
    let mut autosave = Autosave::in_folder(folder.path()).unwrap().every_steps(2).keep(3);
    assert!(autosave.resume().unwrap().is_none() && autosave.best().unwrap().is_none());
    let mut due = Vec::new();
    for loss in [3.0, 2.0, 2.5, f64::NAN, 1.5, 1.6, 1.7, 1.8, 1.9] {
        training.trainer.step().unwrap();
        let checkpoint = training.checkpoint();
        autosave.save_best(loss, &checkpoint).unwrap();
        if autosave.is_due(training.trainer.steps()) {
            due.push(checkpoint.steps());
            autosave.save(&checkpoint).unwrap();
        }
    }
    assert_eq!(due, [2, 4, 6, 8]);
    assert_eq!(names(), ["best.safetensors", "last.safetensors", "step-4.safetensors", "step-6.safetensors"]);
    let mut later = Autosave::in_folder(folder.path()).unwrap().keep(3);
    let best = later.best().unwrap().unwrap();
    assert_eq!((best.steps(), best.get::<f64>("best_loss").unwrap()), (5, 1.5));
    let last = folder.path().join("last.safetensors");
    let bytes = fs::read(&last).unwrap();
    fs::write(&last, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(later.resume().unwrap().unwrap().steps(), 6);
    // It knows how good the best was.
    assert!(!later.save_best(1.6, &training.checkpoint()).unwrap());
    // It goes on from step 6: the damaged one is replaced, and kept is what comes before.
    training.resume(&Checkpoint::load(folder.path().join("step-6.safetensors")).unwrap());
    training.trainer.step().unwrap();
    later.save(&training.checkpoint()).unwrap();
    assert_eq!(names(), ["best.safetensors", "last.safetensors", "step-4.safetensors", "step-6.safetensors"]);
    assert_eq!(Checkpoint::load(&last).unwrap().steps(), 7);
    // Another training's go with the first save of this one, its best too, which is none of this one's.
    let mut other = Autosave::in_folder(folder.path()).unwrap();
    other.save(&training.checkpoint()).unwrap();
    assert_eq!(names(), ["last.safetensors"]);
    let mut resumed = Autosave::in_folder(folder.path()).unwrap();
    resumed.resume().unwrap();
    assert!(resumed.save_best(9.0, &training.checkpoint()).unwrap());
    // None is whole: what is wrong, not a new start.
    fs::write(&last, b"nothing").unwrap();
    assert!(matches!(other.resume(), Err(Error::ModelFile { .. })));
    assert!(matches!(Autosave::in_folder(&last), Err(Error::Io { .. })));
}

/// A training that goes back to an earlier step is saved by what it does anew; and where it cannot be saved, it is not tried at every step.
#[test]
fn it_is_due_by_what_was_tried_last() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("run");
    let mut training = Training::new(&Device::cpu(), 4);
    let mut autosave = Autosave::in_folder(&folder).unwrap().every_steps(3);
    let run = |training: &mut Training, autosave: &mut Autosave, steps: usize| {
        let mut due = Vec::new();
        for _ in 0..steps {
            training.trainer.step().unwrap();
            if autosave.is_due(training.trainer.steps()) {
                due.push((training.trainer.steps(), autosave.save(&training.checkpoint()).is_ok()));
            }
        }
        due
    };
    training.trainer.step().unwrap();
    let early = training.checkpoint();
    assert_eq!(run(&mut training, &mut autosave, 9), [(3, true), (6, true), (9, true)]);
    training.resume(&early);
    assert_eq!(run(&mut training, &mut autosave, 5), [(2, true), (5, true)]);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(run(&mut training, &mut autosave, 6), [(8, false), (11, false)]);
    fs::create_dir(&folder).unwrap();
    assert_eq!(run(&mut training, &mut autosave, 3), [(14, true)]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

/// A file system of a MiB, unmounted when dropped. None where this user may not mount.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path()).output();
        let mounted = mount.is_ok_and(|output| output.status.success());
        if !mounted {
            common::not_tested("a disk that is full: file systems cannot be mounted here");
        }
        mounted.then(|| Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.path()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

/// A disk that is full, and a folder that is read-only: an error that names the file, the old file whole, and the training goes on, to
/// the bit.
#[test]
fn a_full_disk_costs_no_run() {
    let Some(small) = Small::new() else { return };
    let folder = small.path().join("run");
    let mut training = Training::new(&Device::cpu(), 64);
    let mut undisturbed = Training::new(&Device::cpu(), 64);
    let mut autosave = Autosave::in_folder(&folder).unwrap().keep(1);
    let mut step = |training: &mut Training| {
        training.trainer.step().unwrap();
        undisturbed.trainer.step().unwrap();
        assert_eq!(training.bits(), undisturbed.bits());
    };
    step(&mut training);
    autosave.save(&training.checkpoint()).unwrap();
    let good = fs::read(folder.join("last.safetensors")).unwrap();
    // 600 kB a checkpoint: another has no place beside it.
    let filler = small.path().join("filler");
    let error = fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    for (name, rest) in [("full", ""), ("read-only", "ro")] {
        if !rest.is_empty() {
            small.remount(rest);
        }
        step(&mut training);
        let error = autosave.save(&training.checkpoint()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("last.safetensors"), "{name}: {error}");
        assert_eq!(fs::read(folder.join("last.safetensors")).unwrap(), good, "{name}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "{name}: a temporary file is left");
    }
    small.remount("rw");
    fs::remove_file(filler).unwrap();
    step(&mut training);
    autosave.save(&training.checkpoint()).unwrap();
    assert_eq!(autosave.resume().unwrap().unwrap().steps(), 4);
}

/// The same seed gives the same bits, however often losses are read, a checkpoint is written, or a training goes on from one, and
/// whatever a submission may take.
#[test]
fn bits_do_not_depend_on_reading_and_saving() {
    let steps = soak(60, 500);
    let folder = tempfile::tempdir().unwrap();
    for device in f32_devices() {
        let mut results = Vec::new();
        for (read, save, resume) in [(1000, 1000, 1000), (1, 7, 1000), (13, 1, 29)] {
            device.set_submission_budget(std::time::Duration::from_micros(read * read * 100));
            let mut training = Training::new(&device, 6);
            let mut autosave = Autosave::in_folder(folder.path()).unwrap();
            let mut losses = Vec::new();
            for step in 1..=steps {
                training.trainer.step().unwrap();
                if step % read as usize == 0 || step % resume == 0 {
                    losses.extend(training.trainer.losses().unwrap());
                }
                if step % save == 0 {
                    autosave.save(&training.checkpoint()).unwrap();
                }
                if step % resume == 0 {
                    training = Training::new(&device, 6);
                    training.resume(&autosave.resume().unwrap().unwrap());
                }
            }
            losses.extend(training.trainer.losses().unwrap());
            let losses: Vec<_> = losses.into_iter().map(f32::to_bits).collect();
            results.push((losses, training.bits()));
        }
        device.set_submission_budget(std::time::Duration::from_millis(100));
        assert_eq!(results[0].0.len(), steps);
        assert!(results.iter().all(|result| *result == results[0]), "{device:?}");
    }
}
