//! The tokenizer as a service: vLLM's routes, which lm-evaluation-harness uses, too.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api_error::{ApiError, ApiResult};
use crate::app::{App, refused};
use crate::fields::Fields;
use crate::openai::messages;
use crate::openai::prompts::{check_size, ids_of};
use crate::router::{body_of, json_response};

/// Texts of so many of the longest tokens are tokenised for models with a smaller context, too.
const LEAST_TOKENS: usize = 4096;

/// The tokens of a text or a conversation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tokens {
    count: usize,
    /// The most that prompt and answer may have.
    max_model_len: usize,
    tokens: Vec<u32>,
    /// How the vocabulary writes them, with `return_token_strs`.
    token_strs: Option<Vec<Option<String>>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Detokenized {
    prompt: String,
}

/// What the tokenizer is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenizerInfo {
    /// `PreTrainedTokenizerFast`
    tokenizer_class: &'static str,
    bos_token: Option<String>,
    eos_token: Option<String>,
    pad_token: Option<String>,
    unk_token: Option<String>,
    vocab_size: usize,
    chat_template: Option<String>,
    model_max_length: usize,
}

/// A body that may name a model, which must be one.
async fn body_for_model(app: &Arc<App>, request: Request) -> ApiResult<Fields> {
    let mut fields = body_of(app, request).await?;
    if let Some(model) = fields.text("model")? {
        app.check_model(&model)?;
    }
    Ok(fields)
}

/// The ids of a text, or of a conversation as the chat template writes it.
#[utoipa::path(
    post, path = "/tokenize", tag = "Tokenizer", request_body = crate::openapi::TokenizeRequest,
    responses((status = 200, body = Tokens))
)]
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    let mut fields = body_for_model(&app, request).await?;
    let prompt = fields.text("prompt")?;
    let messages = fields.take("messages");
    let special = fields.flag("add_special_tokens")?;
    let generation = fields.flag("add_generation_prompt")?.unwrap_or(true);
    let with_texts = fields.flag("return_token_strs")?.unwrap_or(false);
    fields.end()?;
    app.reading(move |app| {
        let tokenizer = app.model.tokenizer();
        // A text that is to be cut to the context may be longer than it.
        let room = app.model.config().max_position_embeddings.max(LEAST_TOKENS);
        let tokens = match (prompt, messages) {
            (Some(prompt), None) => {
                check_size(app, room, "prompt", &prompt)?;
                match special.unwrap_or(true) {
                    true => tokenizer.encode_with_special_tokens(&prompt),
                    false => tokenizer.encode(&prompt),
                }
                .map_err(|error| refused("prompt", &error))?
            }
            (None, Some(messages)) => {
                let messages = messages::read(messages)?;
                let text = app.model.chat_tokenizer().render(&messages, generation);
                let text = text.map_err(|error| refused("messages", &error))?;
                check_size(app, room, "messages", &text)?;
                // The template writes what begins a conversation.
                let ids = match special.unwrap_or(false) {
                    true => tokenizer.encode_with_special_tokens(&text),
                    false => tokenizer.encode(&text),
                };
                ids.map_err(|error| refused("messages", &error))?
            }
            _ => {
                let message = "expected `prompt` or `messages`, and one of them only";
                return Err(ApiError::field("missing_field", "prompt", message));
            }
        };
        Ok(json_response(&Tokens {
            count: tokens.len(),
            max_model_len: app.model.config().max_position_embeddings,
            token_strs: with_texts
                .then(|| tokens.iter().map(|id| tokenizer.id_to_token(*id)).collect()),
            tokens,
        }))
    })
    .await
}

/// The text of ids.
#[utoipa::path(
    post, path = "/detokenize", tag = "Tokenizer", request_body = crate::openapi::DetokenizeRequest,
    responses((status = 200, body = Detokenized))
)]
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    let mut fields = body_for_model(&app, request).await?;
    let tokens = fields.take("tokens").ok_or_else(|| fields.missing("tokens", "a list of ids"))?;
    fields.end()?;
    app.reading(move |app| {
        let ids = ids_of(&tokens, "tokens")?;
        app.model.check_ids("tokens", &ids).map_err(|error| refused("tokens", &error))?;
        let text = app.model.tokenizer().decode(&ids);
        let prompt = text.map_err(|error| refused("tokens", &error))?;
        Ok(json_response(&Detokenized { prompt }))
    })
    .await
}

/// What the tokenizer is.
#[utoipa::path(
    get, path = "/tokenizer_info", tag = "Tokenizer", responses((status = 200, body = TokenizerInfo))
)]
pub(crate) async fn tokenizer_info(State(app): State<Arc<App>>) -> Response<Body> {
    let tokenizer = app.model.tokenizer();
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
    json_response(&TokenizerInfo {
        tokenizer_class: "PreTrainedTokenizerFast",
        bos_token: token(tokenizer.bos_id()),
        eos_token: token(tokenizer.eos_id()),
        pad_token: token(tokenizer.pad_id()),
        unk_token: token(tokenizer.unk_id()),
        vocab_size: tokenizer.vocab_size(),
        chat_template: app.model.chat_template().map(|template| template.source().to_owned()),
        model_max_length: app.model.config().max_position_embeddings,
    })
}
