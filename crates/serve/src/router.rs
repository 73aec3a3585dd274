//! Routes, and what every request passes before its handler: its name, the host, the key.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use axum::http::{Response, StatusCode};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use utoipa::ToSchema;

use crate::adapters::routes as adapter_routes;
use crate::api_error::{ApiError, ApiResult};
use crate::app::App;
use crate::config::Access;
use crate::drain::{self, Accepted, stopping};
use crate::fields::Fields;
use crate::openai::{chat, completions, models};
use crate::reply::text_of;
use crate::{openapi, tokenize, unread};

/// All paths, for counting.
const ROUTES: [&str; 13] = [
    "/docs",
    "/health",
    "/metrics",
    "/openapi.json",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "other",
];

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi::json))
        .route("/docs", get(openapi::page))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/tokenizer_info", get(tokenize::tokenizer_info))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::one))
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/load_lora_adapter", post(adapter_routes::load))
        .route("/v1/unload_lora_adapter", post(adapter_routes::unload))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), record))
        .layer(middleware::from_fn(drain::keep))
        .layer(middleware::from_fn(unread::close))
        .with_state(app)
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`
    status: &'static str,
}

/// Whether the server takes requests. Needs no key.
#[utoipa::path(get, path = "/health", tag = "Server", responses((status = 200, body = Health)))]
pub(crate) async fn health(State(app): State<Arc<App>>) -> ApiResult<Response<Body>> {
    match app.drain.is_stopping() {
        true => Err(stopping()),
        false => Ok(json_response(&Health { status: "ok" })),
    }
}

/// What the server has done, in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "Server",
    responses((status = 200, body = String, content_type = "text/plain"))
)]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let text = app.metrics_text();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn unknown_path(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(100).collect();
    let message = format!("there is nothing at `{path}`");
    ApiError::new(StatusCode::NOT_FOUND, "unknown_path", message)
}

async fn wrong_method(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("`{path}` does not take {method}");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
}

/// Gives the request a name, counts it and tells the access log.
async fn record(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<Body> {
    let begun = Instant::now();
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let given = request.headers().get(&REQUEST_ID).filter(|id| id.len() <= 128).cloned();
    let id = given
        .or_else(|| HeaderValue::from_str(&app.new_id("req")).ok())
        .unwrap_or_else(|| HeaderValue::from_static("req"));
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID.clone(), id.clone());
    let status = response.status().as_u16();
    let route = ROUTES.iter().find(|route| **route == path).copied().unwrap_or("other");
    app.metrics.request(route, status);
    if let Some(log) = &app.config.access_log {
        let request_id = id.to_str().unwrap_or_default().to_owned();
        (log.0)(&Access { request_id, method, path, status, time: begun.elapsed() });
    }
    response
}

/// Lets in who may ask.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<Body> {
    match check_host(&app, &request).and_then(|()| check_key(&app, &request)) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// A page of the web may ask the visitor's own machine under a name of its own (DNS rebinding). It
/// cannot do so under one of this machine's names.
fn check_host(app: &App, request: &Request) -> ApiResult<()> {
    if !app.loopback || app.config.api_key.is_some() {
        return Ok(());
    }
    // One that is no text is nobody's name, and not the same as none.
    let host = request.headers().get(HOST).map_or(Some(""), |host| host.to_str().ok());
    let host = host.unwrap_or("?");
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    if name.is_empty() || name == "localhost" || ip.is_ok_and(|ip| ip.is_loopback()) {
        return Ok(());
    }
    let message = "without a key this server answers to `localhost` and `127.0.0.1` alone (header `Host`); start it with an API key to use another name";
    Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_host", message))
}

fn check_key(app: &App, request: &Request) -> ApiResult<()> {
    let Some(key) = &app.config.api_key else { return Ok(()) };
    // The description is the same for every server, and a browser's first request has no key.
    if matches!(request.uri().path(), "/health" | "/docs" | "/openapi.json") {
        return Ok(());
    }
    let given = request.headers().get(AUTHORIZATION).map_or(b"".as_slice(), HeaderValue::as_bytes);
    // The scheme's letters may be of either case (RFC 9110, 11.1).
    match given.split_at_checked(b"Bearer ".len()) {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"Bearer ") && key.is(given) => Ok(()),
        _ => {
            let message =
                "the header `Authorization: Bearer` with this server's key is missing or wrong";
            Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
        }
    }
}

/// The JSON object of a request's body.
///
/// # Errors
/// Another content type (415), too large (413), too slow (408), no JSON object (400), too many
/// requests at a time (429), or the server is stopping (503).
pub(crate) async fn body_of(app: &Arc<App>, request: Request) -> ApiResult<Fields> {
    let json = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let json = json.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    // A page of the web cannot send this type to another server without asking it first.
    if !json.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        let message = "expected the header `Content-Type: application/json`";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", message));
    }
    let accepted = request.extensions().get::<Accepted>().cloned();
    let bytes = read_body(app, request.into_body()).await?;
    if let Some(accepted) = accepted {
        accepted.begin(app)?;
    }
    app.reading(move |_| Fields::parse(&bytes)).await
}

async fn read_body(app: &App, body: Body) -> ApiResult<Bytes> {
    let limits = &app.config.limits;
    let read = Limited::new(body, limits.max_body_bytes).collect();
    let Ok(read) = tokio::time::timeout(limits.read_timeout, read).await else {
        let message = format!("the body took longer than {:?}", limits.read_timeout);
        return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "slow_body", message));
    };
    read.map(|body| body.to_bytes()).map_err(|error| match error.is::<LengthLimitError>() {
        true => {
            let message = format!("the body is larger than {} bytes", limits.max_body_bytes);
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
        }
        false => ApiError::new(StatusCode::BAD_REQUEST, "incomplete_body", error.to_string()),
    })
}

pub(crate) fn json_response(value: &impl Serialize) -> Response<Body> {
    ([(CONTENT_TYPE, "application/json")], text_of(value)).into_response()
}
