//! Whoever looks on while a training goes: a page that renews itself, the whole terminal.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use elman::Trainer;

use super::dashboard::Dashboard;
use super::figures::{Figures, Observer};
use super::live;
use crate::cli::shared::progress::Rate;
use crate::cli::streams::Streams;

#[derive(Args, Clone)]
pub struct Options {
    /// Keep a page in the run's folder, live.html, that shows in any browser how the training goes, and renews itself
    #[arg(long)]
    pub live: bool,
    /// Show how the training goes on the whole terminal
    #[arg(long, conflicts_with_all = ["quiet", "json"])]
    pub dashboard: bool,
}

impl Options {
    pub fn is_any(&self) -> bool {
        self.live || self.dashboard
    }

    /// How often figures are made.
    pub fn every(&self) -> Duration {
        Duration::from_secs(if self.dashboard { 1 } else { 3 })
    }
}

/// The figures of a training, and where they are shown.
pub struct Watch<'a> {
    pub figures: Figures,
    observer: Observer<'a>,
    page: Option<PathBuf>,
    title: String,
    dashboard: Option<Dashboard>,
}

impl<'a> Watch<'a> {
    pub fn new(options: &Options, observer: Observer<'a>, figures: Figures, folder: &std::path::Path) -> Result<Self> {
        let title = folder.display().to_string();
        let dashboard = options.dashboard.then(|| Dashboard::open(title.clone())).transpose()?;
        let page = options.live.then(|| folder.join("live.html"));
        Ok(Self { figures, observer, page, title, dashboard })
    }

    /// Steps were done; whether the user wants no more of them.
    pub fn stepped(
        &mut self,
        losses: &[f32],
        trainer: &Trainer,
        streams: &Streams,
        rate: Option<Rate>,
    ) -> Result<bool> {
        let figures = &mut self.figures;
        figures.step = losses.len();
        figures.losses.extend_from_slice(&losses[figures.losses.len()..]);
        if let Some(rate) = rate {
            (figures.tokens_per_second, figures.seconds_left) = (rate.tokens_per_second, Some(rate.seconds_left));
        }
        if self.observer.is_due() {
            // Of the step that was done last.
            let step = losses.len().saturating_sub(1) % streams.steps();
            self.observer.look(figures, trainer, streams, step)?;
            self.show(false)?;
        }
        match &mut self.dashboard {
            Some(dashboard) => dashboard.draw(&self.figures),
            None => Ok(false),
        }
    }

    pub fn evaluated(&mut self, step: usize, loss: f64) -> Result<()> {
        self.figures.held_out.push((step, loss));
        self.observer.sample(&mut self.figures)?;
        self.show(false)
    }

    /// Gives the terminal back; the page renews itself no longer.
    pub fn end(&mut self) -> Result<()> {
        self.dashboard = None;
        self.show(true)
    }

    fn show(&self, is_done: bool) -> Result<()> {
        match &self.page {
            Some(page) => live::write(page, &self.title, &self.figures, is_done),
            None => Ok(()),
        }
    }
}
