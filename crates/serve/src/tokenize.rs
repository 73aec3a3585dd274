//! The tokenizer as a service: vLLM's routes, which lm-evaluation-harness uses, too.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde_json::json;

use crate::api_error::{ApiError, ApiResult};
use crate::app::{App, refused};
use crate::openai::messages;
use crate::openai::prompts::ids_of;
use crate::router::{body_of, json_response};

/// `POST /tokenize`: `prompt` and `add_special_tokens`, or `messages` and `add_generation_prompt`.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    let mut fields = body_of(&app, request).await?;
    if let Some(model) = fields.text("model")? {
        app.find(&model)?;
    }
    let prompt = fields.text("prompt")?;
    let messages = fields.take("messages");
    let special = fields.flag("add_special_tokens")?;
    let generation = fields.flag("add_generation_prompt")?.unwrap_or(true);
    let with_texts = fields.flag("return_token_strs")?.unwrap_or(false);
    fields.end()?;
    app.blocking(move |app| {
        let tokenizer = app.model.tokenizer();
        let tokens = match (prompt, messages) {
            (Some(prompt), None) => match special.unwrap_or(true) {
                true => tokenizer.encode_with_special_tokens(&prompt),
                false => tokenizer.encode(&prompt),
            }
            .map_err(|error| refused("prompt", &error))?,
            (None, Some(messages)) => {
                let messages = messages::read(messages)?;
                let text = app.model.chat_tokenizer().render(&messages, generation);
                let text = text.map_err(|error| refused("messages", &error))?;
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
        let texts = with_texts
            .then(|| tokens.iter().map(|id| tokenizer.id_to_token(*id)).collect::<Vec<_>>());
        Ok(json_response(&json!({
            "count": tokens.len(),
            "max_model_len": app.model.config().max_position_embeddings,
            "tokens": tokens,
            "token_strs": texts,
        })))
    })
    .await
}

/// `POST /detokenize`: `tokens`.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Response<Body>> {
    let mut fields = body_of(&app, request).await?;
    if let Some(model) = fields.text("model")? {
        app.find(&model)?;
    }
    let tokens = fields.take("tokens").ok_or_else(|| fields.missing("tokens", "a list of ids"))?;
    fields.end()?;
    app.blocking(move |app| {
        let ids = ids_of(&tokens, "tokens")?;
        app.model.check_ids("tokens", &ids).map_err(|error| refused("tokens", &error))?;
        let text = app.model.tokenizer().decode(&ids).map_err(|error| refused("tokens", &error))?;
        Ok(json_response(&json!({ "prompt": text })))
    })
    .await
}

/// `GET /tokenizer_info`.
pub(crate) async fn tokenizer_info(State(app): State<Arc<App>>) -> Response<Body> {
    let tokenizer = app.model.tokenizer();
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
    json_response(&json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token(tokenizer.bos_id()),
        "eos_token": token(tokenizer.eos_id()),
        "pad_token": token(tokenizer.pad_id()),
        "unk_token": token(tokenizer.unk_id()),
        "vocab_size": tokenizer.vocab_size(),
        "chat_template": app.model.chat_template().map(|template| template.source()),
        "model_max_length": app.model.config().max_position_embeddings,
    }))
}
