//! vLLM's routes to load and unload adapters, with its bodies.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::adapters::{self, Change, Origin, Swap};
use crate::api_error::{ApiError, ApiResult};
use crate::app::App;
use crate::error::Error;
use crate::router::{body_of, json_response};

/// An adapter that was loaded.
#[derive(Debug, Serialize, ToSchema)]
struct Loaded {
    /// `adapter`
    object: &'static str,
    message: String,
    /// The `model` of requests.
    id: String,
    generation: String,
    /// The generation that the name pointed to.
    replaced: Option<String>,
    warnings: Option<Vec<String>>,
}

/// An adapter that was removed.
#[derive(Debug, Serialize, ToSchema)]
struct Unloaded {
    /// `adapter`
    object: &'static str,
    message: String,
    id: String,
    generation: String,
    deleted: bool,
}

/// Loads an adapter, or replaces one.
#[utoipa::path(
    post, path = "/v1/load_lora_adapter", tag = "Adapters",
    request_body = crate::openapi::LoadRequest,
    responses((status = 200, body = Loaded))
)]
pub(crate) async fn load(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    check_allowed(&app)?;
    let mut fields = body_of(&app, request).await?;
    let name = fields.required_text("lora_name", "the adapter's name")?;
    let path = fields.required_text("lora_path", "its folder below the adapter root")?;
    let inplace = fields.flag("load_inplace")?.unwrap_or(false);
    let expected = fields.text("expected_generation")?;
    fields.neutral("base_model_name", &[app.adapters.base().name.clone().into()])?;
    fields.neutral("is_3d_lora_weight", &[false.into()])?;
    fields.end()?;
    let Some(root) = app.root.clone() else { return Err(not_allowed()) };
    let loading = Arc::clone(&app);
    // Done also when the client leaves meanwhile: `/v1/models` says what is.
    let change = app.loader.run_async(move || {
        let (app, begun) = (loading, Instant::now());
        let folder = root.resolve(&path)?;
        let adapter = adapters::read(&app.model, &name, &folder, &app.config)?;
        let swap = match (&expected, inplace) {
            (Some(expected), _) => Swap::From(expected),
            (None, true) => Swap::Always,
            (None, false) => Swap::New,
        };
        // Its client may have left, and the server be stopping meanwhile: the state stays as it was.
        if app.drain.is_stopping() {
            return Err(Error::Stopped);
        }
        let change = app.adapters.put(adapter, Origin::Folder(folder), swap)?;
        app.metrics.swapped(begun.elapsed());
        Ok(change)
    });
    let Change { served, replaced } = change.await?;
    let message = format!("Success: LoRA adapter '{}' added successfully.", served.name);
    Ok(json_response(&Loaded {
        object: "adapter",
        message,
        id: served.name.clone(),
        generation: served.generation.clone(),
        replaced,
        warnings: served.adapter().map(|adapter| adapter.warnings().to_vec()),
    }))
}

/// Removes an adapter. Requests that were accepted before are answered by it.
#[utoipa::path(
    post, path = "/v1/unload_lora_adapter", tag = "Adapters",
    request_body = crate::openapi::UnloadRequest,
    responses((status = 200, body = Unloaded))
)]
pub(crate) async fn unload(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    check_allowed(&app)?;
    let mut fields = body_of(&app, request).await?;
    let name = fields.required_text("lora_name", "the adapter's name")?;
    let expected = fields.text("expected_generation")?;
    fields.ignore(&["lora_int_id"]);
    fields.end()?;
    let change =
        tokio::task::spawn_blocking(move || app.adapters.remove(&name, expected.as_deref()));
    let served = change.await.map_err(|error| ApiError::engine(error.to_string()))??;
    let message = format!("Success: LoRA adapter '{}' removed successfully.", served.name);
    Ok(json_response(&Unloaded {
        object: "adapter",
        message,
        id: served.name.clone(),
        generation: served.generation.clone(),
        deleted: true,
    }))
}

fn check_allowed(app: &App) -> ApiResult<()> {
    if app.config.allow_adapter_changes { Ok(()) } else { Err(not_allowed()) }
}

fn not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "adapter_changes_off",
        "this server's adapters are not changed over HTTP; start it with `--allow-adapter-changes` and `--adapter-root` to allow it",
    )
}
