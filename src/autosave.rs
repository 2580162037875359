//! Checkpoints of a training in a folder, written as it goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Keeps the checkpoints of a training in a folder: `last.safetensors`, those before it as `step-<steps>.safetensors`, and
/// `best.safetensors`. Each is there whole or not at all, and the one before goes when its successor is whole.
///
/// ```
/// use elman::data::Array;
/// use elman::nn::functional::{Reduction, mse_loss};
/// use elman::{Autosave, Device, Trainer, nn, optim::Adam, rng};
///
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path().join("run");
/// let mut init = nn::Init::new(rng::manual_seed(777));
/// let layer = nn::Linear::new(&mut init, "layer", 2, 1)?;
/// let parameters = init.upload(&Device::cpu())?;
/// let mut trainer = Trainer::on_batches(&parameters, Adam::new(1e-2), |g, [x, y]| {
///     let x = g.input(x)?;
///     let output = layer.forward(g, x)?;
///     mse_loss(g, output, y, Reduction::Mean)
/// })?;
/// let mut autosave = Autosave::in_folder(&folder)?.every_steps(10).keep(3);
/// if let Some(checkpoint) = autosave.resume()? {
///     trainer.restore(&checkpoint)?; // the program was run before
/// }
/// while trainer.steps() < 100 && !autosave.is_interrupted() {
///     trainer.step_on(&[Array::new("x", &[1, 2], vec![0.5, 1.0])?, Array::new("y", &[1, 1], vec![1.0])?])?;
///     if autosave.is_due(trainer.steps()) {
///         autosave.save(&trainer.checkpoint()?)?; // with what the program adds
///     }
/// }
/// let files: Vec<_> = ["step-80", "step-90", "last"].map(|name| folder.join(format!("{name}.safetensors"))).into();
/// assert!(files.iter().all(|file| file.exists()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Autosave {
    folder: PathBuf,
    every_steps: Option<u64>,
    every: Option<Duration>,
    keep: usize,
    /// The steps of the newest checkpoint of this training.
    saved: Option<u64>,
    /// At what step one was last to be written, and when; a browser has no such clock.
    tried: u64,
    since: Option<Instant>,
    best: Option<f64>,
    interrupts: bool,
}

/// The newest.
const LAST: &str = "last.safetensors";
const BEST: &str = "best.safetensors";

/// The setting of a best checkpoint that says how good it is.
const BEST_LOSS: &str = "best_loss";

impl Autosave {
    /// Takes this folder, and makes it if it is not there. What a program that was killed had not finished to write there goes.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        crate::files::remove_temporary(&folder);
        Ok(Self {
            folder,
            every_steps: None,
            every: None,
            keep: 2,
            saved: None,
            tried: 0,
            since: now(),
            best: None,
            interrupts: false,
        })
    }

    /// Is due once in so many steps.
    pub fn every_steps(self, steps: u64) -> Self {
        Self { every_steps: Some(steps.max(1)), ..self }
    }

    /// Is due when this time has passed since the last checkpoint.
    pub fn every(self, time: Duration) -> Self {
        Self { every: Some(time), ..self }
    }

    /// Keeps so many checkpoints, at least one: the newest, and those before it. Without it, two.
    pub fn keep(self, checkpoints: usize) -> Self {
        Self { keep: checkpoints.max(1), ..self }
    }

    /// Is due on Ctrl-C, SIGTERM and SIGHUP, which end the program no longer: it is to look at [`Self::is_interrupted`]. A second one
    /// ends it at once.
    ///
    /// # Errors
    /// The program has a handler for these signals already, or was built without the default feature `signals`.
    pub fn on_interrupt(self) -> Result<Self> {
        crate::signals::listen()?;
        Ok(Self { interrupts: true, ..self })
    }

    /// Whether the program was asked to end; always false without [`Self::on_interrupt`].
    pub fn is_interrupted(&self) -> bool {
        self.interrupts && crate::signals::is_interrupted()
    }

    /// Whether a training that has done so many steps is to be saved now. Where it could not be, it is due again as much later as where
    /// it could; one that went back to an earlier step is due by what it would do anew.
    pub fn is_due(&self, steps: u64) -> bool {
        let since = steps.abs_diff(self.tried);
        let by_steps = self.every_steps.is_some_and(|every| since >= every);
        let by_time = || since > 0 && self.every.zip(self.since).is_some_and(|(every, since)| since.elapsed() >= every);
        by_steps || by_time() || since > 0 && self.is_interrupted()
    }

    /// Writes the newest checkpoint. That before it is kept beside it, and the oldest goes, as far as more are there than are to be kept;
    /// those of another training in this folder go too, and those of steps that this one has still to do.
    ///
    /// # Errors
    /// The folder cannot be written: what is there stays, and the training can go on. A value is not finite.
    pub fn save(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let now_at = checkpoint.steps();
        (self.tried, self.since) = (now_at, now());
        let bytes = checkpoint.to_bytes()?;
        let is_ours = |at: u64| self.saved.is_some() && at < now_at;
        let others: Vec<_> = self.kept()?.into_iter().filter(|&at| !is_ours(at)).collect();
        let last = self.folder.join(LAST);
        let kept = match self.saved.filter(|&saved| self.keep > 1 && saved < now_at).map(|saved| self.step(saved)) {
            Some(step) if !step.exists() && last.exists() => {
                // The file itself, where `last` is a symbolic link. Some file systems have no such links as this.
                let linked = fs::canonicalize(&last).and_then(|file| fs::hard_link(file, &step));
                linked.or_else(|_| {
                    let bytes = fs::read(&last).map_err(Error::io(&last))?;
                    crate::io::write_atomically(step, &bytes)
                })
            }
            _ => Ok(()),
        };
        crate::io::write_atomically(&last, &bytes)?;
        let is_first = self.saved.replace(now_at).is_none();
        kept?;
        // Nothing goes before the new one is whole.
        others.into_iter().try_for_each(|other| remove(&self.step(other)))?;
        if is_first && self.best.is_none() && self.best().is_ok_and(|best| best.is_some()) {
            remove(&self.folder.join(BEST))?;
        }
        let steps = self.kept()?;
        steps[..steps.len().saturating_sub(self.keep - 1)].iter().try_for_each(|&old| remove(&self.step(old)))
    }

    /// Writes the best checkpoint, if this loss is lower than that of all before, and says whether.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_best(&mut self, loss: f64, checkpoint: &Checkpoint) -> Result<bool> {
        if !loss.is_finite() || self.best.is_some_and(|best| best <= loss) {
            return Ok(false);
        }
        let mut checkpoint = checkpoint.clone();
        checkpoint.set(BEST_LOSS, &loss)?;
        checkpoint.save(self.folder.join(BEST))?;
        self.best = Some(loss);
        Ok(true)
    }

    /// The newest checkpoint that is whole, to go on from: those before it are looked at where it is damaged. None if there is none;
    /// then, and without this call, what is in the folder is of another training, and goes with the first [`Self::save`].
    ///
    /// # Errors
    /// There are checkpoints, and none is whole: what is wrong with the newest.
    pub fn resume(&mut self) -> Result<Option<Checkpoint>> {
        let last = self.folder.join(LAST);
        let older = self.kept()?.into_iter().rev().map(|at| self.step(at));
        let mut first = None;
        for path in std::iter::once(last).chain(older).filter(|path| path.exists()) {
            match Checkpoint::load(&path) {
                Ok(checkpoint) => {
                    (self.saved, self.tried, self.since) = (Some(checkpoint.steps()), checkpoint.steps(), now());
                    // One that is damaged is no reason not to go on.
                    self.best = self.best().ok().flatten().and_then(|best| best.get(BEST_LOSS).ok());
                    return Ok(Some(checkpoint));
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(None), Err)
    }

    /// The best checkpoint, if there is one.
    ///
    /// # Errors
    /// It is damaged.
    pub fn best(&self) -> Result<Option<Checkpoint>> {
        let path = self.folder.join(BEST);
        path.exists().then(|| Checkpoint::load(path)).transpose()
    }

    fn step(&self, at: u64) -> PathBuf {
        self.folder.join(format!("step-{at}.safetensors"))
    }

    /// The steps of the checkpoints before the newest that are there, in order.
    fn kept(&self) -> Result<Vec<u64>> {
        let mut steps = Vec::new();
        for file in fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let name = file.map_err(Error::io(&self.folder))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors"));
            steps.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }
}

fn now() -> Option<Instant> {
    (!cfg!(target_arch = "wasm32")).then(Instant::now)
}

fn remove(file: &Path) -> Result<()> {
    fs::remove_file(file).map_err(Error::io(file))
}
