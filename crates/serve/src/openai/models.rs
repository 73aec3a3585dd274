//! `GET /v1/models`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Response;
use serde_json::{Value, json};

use crate::adapters::{Kind, Served};
use crate::api_error::ApiResult;
use crate::app::App;
use crate::router::json_response;

/// The base first, then the adapters by name.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response<Body> {
    let adapters = app.adapters.all();
    let all = std::iter::once(app.adapters.base()).chain(&adapters);
    let data: Vec<Value> = all.map(|served| card(&app, served)).collect();
    json_response(&json!({ "object": "list", "data": data }))
}

pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> ApiResult<Response<Body>> {
    let served = app.find(&model)?;
    Ok(json_response(&card(&app, &served)))
}

fn card(app: &App, served: &Served) -> Value {
    let is_base = matches!(served.kind, Kind::Base);
    let parent = (!is_base).then(|| &app.adapters.base().name);
    json!({
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "tunebook",
        "root": served.folder.as_ref().map_or(served.name.as_str().into(), |f| f.to_string_lossy()),
        "parent": parent,
        "max_model_len": app.prompt_room(served),
        "generation": served.generation,
        "adapter": served.adapter().map(|adapter| adapter.config().to_string()),
        "size_bytes": served.size_bytes(),
    })
}
