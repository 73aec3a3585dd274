//! `GET /v1/models`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::adapters::{Kind, Served};
use crate::api_error::{ApiError, ApiResult};
use crate::app::App;
use crate::router::json_response;

/// The base or an adapter.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelCard {
    /// The `model` of requests.
    id: String,
    /// `model`
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    /// `tunebook`
    owned_by: &'static str,
    /// The adapter's folder; without one, its name.
    root: String,
    /// The base; `null` for itself.
    parent: Option<String>,
    /// Tokens of a prompt, and one for the answer.
    max_model_len: usize,
    /// The fingerprint that answers name as `system_fingerprint`.
    generation: String,
    /// What the adapter is; `null` for the base.
    adapter: Option<String>,
    /// The memory that the adapter takes.
    size_bytes: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`
    object: &'static str,
    data: Vec<ModelCard>,
}

/// The base, then the adapters by name.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, body = ModelList)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response<Body> {
    let adapters = app.adapters.all();
    let all = std::iter::once(app.adapters.base()).chain(&adapters);
    let data = all.map(|served| card(&app, served)).collect();
    json_response(&ModelList { object: "list", data })
}

/// The base or an adapter.
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "OpenAI",
    params(("model" = String, Path, description = "A name, or `name@` and the beginning of a generation")),
    responses((status = 200, body = ModelCard), (status = 404, body = crate::api_error::ErrorBody, description = "`model_not_found`"))
)]
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    model: Result<Path<String>, PathRejection>,
) -> ApiResult<Response<Body>> {
    let wrong = |error: PathRejection| ApiError::field("invalid_value", "model", error.body_text());
    let Path(model) = model.map_err(wrong)?;
    // A mix is built for it, and nobody else's is forgotten for that.
    app.blocking(move |app| Ok(json_response(&card(app, &*app.describe(&model)?)))).await
}

fn card(app: &App, served: &Served) -> ModelCard {
    let is_base = matches!(served.kind, Kind::Base);
    let folder = served.folder().map(|folder| folder.to_string_lossy().into_owned());
    ModelCard {
        id: served.name.clone(),
        object: "model",
        created: served.created,
        owned_by: "tunebook",
        root: folder.unwrap_or_else(|| served.name.clone()),
        parent: (!is_base).then(|| app.adapters.base().name.clone()),
        max_model_len: app.prompt_room(served),
        generation: served.generation.clone(),
        adapter: served.adapter().map(|adapter| adapter.config().to_string()),
        size_bytes: served.size_bytes(),
    }
}
