//! Refusals as clients see them: OpenAI's error body, with codes that stay the same.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::Error;
use crate::reply::text_of;

/// The result of a handler.
pub(crate) type ApiResult<T> = std::result::Result<T, ApiError>;

/// An answer that is a refusal.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// One of the codes in `docs/serving.md`.
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// The field that it is about.
    pub(crate) param: Option<String>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None }
    }

    /// 400 about a field.
    pub(crate) fn field(
        code: &'static str,
        param: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let param = Some(param.into());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, code, message) }
    }

    /// 400 about a field with a value that cannot be used.
    pub(crate) fn value(param: &str, found: &str, expected: &str) -> Self {
        Self::field("invalid_value", param, format!("`{param}` is {found}, expected {expected}"))
    }

    /// 500: what failed is no fault of the request.
    pub(crate) fn engine(problem: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", problem)
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`
    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                message: self.message.clone(),
                kind: self.kind(),
                param: self.param.clone(),
                code: self.code,
            },
        }
    }
}

/// OpenAI's error body.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
struct ErrorDetail {
    /// What is wrong, what was expected, what to do.
    message: String,
    /// A group of codes, such as `invalid_request_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field that it is about.
    param: Option<String>,
    /// Stays the same from version to version.
    code: &'static str,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(text_of(&self.body())));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // OpenAI's clients send such a request again by themselves, which would be refused again.
            StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            _ => {}
        }
        response
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let bad = |code, param: &str| Self::field(code, param, message.clone());
        match error {
            Error::UnknownAdapter { .. } => Self {
                param: Some("lora_name".to_owned()),
                ..Self::new(StatusCode::NOT_FOUND, "adapter_not_found", message)
            },
            Error::Generation { .. } => Self {
                param: Some("expected_generation".to_owned()),
                ..Self::new(StatusCode::CONFLICT, "generation_conflict", message)
            },
            Error::AdapterExists { .. } => bad("adapter_exists", "lora_name"),
            Error::BaseName { .. } => bad("adapter_name", "lora_name"),
            Error::TooManyAdapters { .. } => bad("too_many_adapters", "lora_name"),
            Error::AdapterMemory { .. } => bad("adapter_memory", "lora_path"),
            Error::AdapterPath { .. } => bad("adapter_path", "lora_path"),
            Error::Tune(tunebook_tune::Error::AdapterName { .. }) => {
                bad("adapter_name", "lora_name")
            }
            Error::Tune(tunebook_tune::Error::OtherBase { .. }) => bad("other_base", "lora_path"),
            Error::Tune(_) => bad("adapter_refused", "lora_path"),
            Error::Model(_) => bad("invalid_value", "prompt"),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_failed", message),
        }
    }
}
