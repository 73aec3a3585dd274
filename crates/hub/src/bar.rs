//! Our progress bar in the shape that hf-hub asks for.

use std::cell::Cell;
use std::rc::Rc;

use hf_hub::api::Progress;
use tunebook_progress::ProgressBar;

/// Shows a transfer, and keeps the size that the hub announced.
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
    size: Rc<Cell<Option<u64>>>,
}

impl Bar {
    pub(crate) fn new(size: &Rc<Cell<Option<u64>>>) -> Self {
        Self { bar: None, size: Rc::clone(size) }
    }
}

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        self.size.set(Some(size as u64));
        // Called again when the transfer itself begins.
        self.bar
            .get_or_insert_with(|| ProgressBar::new(format!("Fetching {filename}"), None).unit("B"))
            .set_total(Some(size as u64));
    }

    fn update(&mut self, size: usize) {
        if let Some(bar) = &self.bar {
            bar.advance(size as u64);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
