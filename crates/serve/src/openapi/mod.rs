//! The description of the HTTP interface (<https://spec.openapis.org/oas/v3.2.0>) and its page.
//!
//! Paths and answers are described where their handlers are. What requests may say stands in
//! `requests.rs`, since they are read field by field; a test sends each of these fields.

mod requests;

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::Response;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi, ToSchema};

use crate::adapters::routes as adapter_routes;
use crate::api_error::ErrorBody;
use crate::openai::chat::{self, ChatChunkChoice};
use crate::openai::{completions, models};
use crate::reply::Envelope;
use crate::{router, tokenize};
pub(crate) use requests::*;

/// Why an answer has ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "describes texts")]
pub(crate) enum FinishWord {
    /// The model has ended it, or a stop text has come.
    Stop,
    /// It has the most tokens that were allowed, or fills the context.
    Length,
}

/// A server-sent event of a chat answer.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a stream")]
pub(crate) struct ChatEvent {
    /// An `Envelope_ChatChunkChoice` as JSON; at last `[DONE]`, or an `ErrorBody` in place of it.
    data: String,
}

/// A server-sent event of a completion.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a stream")]
pub(crate) struct CompletionEvent {
    /// An `Envelope_TextChoice` as JSON; at last `[DONE]`, or an `ErrorBody` in place of it.
    data: String,
}

#[derive(OpenApi)]
#[openapi(
    version = "3.2.0",
    info(
        title = "tunebook",
        description = "A language model and its adapters over OpenAI's HTTP interface.",
        license(name = "MIT OR Apache-2.0"),
    ),
    paths(
        chat::chat_completions,
        completions::completions,
        models::list,
        models::one,
        adapter_routes::load,
        adapter_routes::unload,
        tokenize::tokenize,
        tokenize::detokenize,
        tokenize::tokenizer_info,
        router::health,
        router::metrics,
        json,
        page,
    ),
    components(schemas(ErrorBody, Envelope<ChatChunkChoice>, SamplingFields)),
    modifiers(&Shared),
)]
struct Description;

static JSON: LazyLock<String> =
    LazyLock::new(|| Description::openapi().to_json().unwrap_or_default());

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "Server",
    responses((status = 200, body = serde_json::Value, content_type = "application/json"))
)]
pub(crate) async fn json() -> Response<Body> {
    ([(CONTENT_TYPE, "application/json")], JSON.as_str()).into_response()
}

/// This description as a page.
#[utoipa::path(
    get, path = "/docs", tag = "Server",
    responses((status = 200, body = String, content_type = "text/html"))
)]
pub(crate) async fn page() -> Response<Body> {
    const PAGE: &str = include_str!("page.html");
    // Nothing of the page comes from elsewhere or goes there.
    const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";
    let headers = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)];
    (headers, PAGE).into_response()
}

/// What many operations have in common.
struct Shared;

impl Modify for Shared {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        if let Some(components) = &mut openapi.components {
            components.add_security_scheme(
                "key",
                SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
            );
            // Both endpoints take them.
            if let Some(RefOr::T(Schema::Object(shared))) =
                components.schemas.remove("SamplingFields")
            {
                for name in ["ChatRequest", "CompletionRequest"] {
                    if let Some(RefOr::T(Schema::Object(request))) =
                        components.schemas.get_mut(name)
                    {
                        request.properties.extend(shared.properties.clone());
                    }
                }
            }
        }
        for (path, item) in &mut openapi.paths.paths {
            let PathItem { get, post, .. } = item;
            for operation in [get, post].into_iter().flatten() {
                refusals(path, operation);
            }
        }
    }
}

/// Adds the refusals of an operation.
fn refusals(path: &str, operation: &mut Operation) {
    let with_body = operation.request_body.is_some();
    let open = matches!(path, "/health" | "/docs" | "/openapi.json");
    let answers = matches!(path, "/v1/chat/completions" | "/v1/completions");
    let adapters = matches!(path, "/v1/load_lora_adapter" | "/v1/unload_lora_adapter");
    let one_model = path == "/v1/models/{model}";
    let mut add = |applies: bool, status: &str, codes: &str| {
        if applies {
            let schema = Ref::from_schema_name("ErrorBody");
            let response = ResponseBuilder::new()
                .description(codes)
                .content("application/json", Content::new(Some(schema)))
                .build();
            operation.responses.responses.insert(status.to_owned(), response.into());
        }
    };
    add(
        with_body || one_model,
        "400",
        "The request is wrong: `error.param` and `error.code` say what.",
    );
    add(!open, "401", "`invalid_api_key`");
    add(true, "403", "`forbidden_host`, `adapter_changes_off`");
    add(with_body || one_model, "404", "`model_not_found`, `adapter_not_found`");
    add(with_body, "408", "`slow_body`, `deadline_exceeded`");
    add(adapters, "409", "`generation_conflict`");
    add(with_body, "413", "`body_too_large`");
    add(with_body, "415", "`content_type`");
    add(answers, "429", "`queue_full`, with `Retry-After`");
    add(with_body, "500", "`engine_failed`, `server_failed`: no fault of the request");
    add(answers || path == "/health", "503", "`stopping`");
    if !open {
        let none: [&str; 0] = [];
        operation.security =
            Some(vec![SecurityRequirement::default(), SecurityRequirement::new("key", none)]);
    }
}
