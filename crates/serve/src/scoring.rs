//! Log-probabilities of prompts, for `echo`.

use std::sync::Arc;

use tunebook_models::TokenScore;
use tunebook_progress::Stop;

use crate::adapters::Served;
use crate::api_error::{ApiError, ApiResult};
use crate::app::{App, refused};

/// Stops the work when nobody waits for it any more.
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// How likely each token of each prompt is, from the second on.
///
/// # Errors
/// A prompt that the model refuses; the work fails.
pub(crate) async fn score(
    app: &Arc<App>,
    served: &Arc<Served>,
    prompts: &[Vec<u32>],
    top: usize,
) -> ApiResult<Vec<Vec<TokenScore>>> {
    let guard = StopOnDrop(Stop::new());
    let _turn = app.scoring.acquire().await;
    let model = app.model.with_overlay(Arc::clone(&served.overlay)).with_stop(&guard.0);
    let prompts = prompts.to_vec();
    app.blocking(move |_| {
        model.token_scores(&prompts, top).map_err(|error| match error {
            tunebook_models::Error::NotFinite { .. } => ApiError::engine(error.to_string()),
            other => refused("prompt", &other),
        })
    })
    .await
}
