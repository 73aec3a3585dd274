//! What requests may say. They are read field by field (`Fields`), so that a refusal names the field
//! and what was expected; these types are their description.

#![expect(dead_code, reason = "types that describe requests are never made")]

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The body of `/v1/chat/completions`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatRequest {
    /// A name of `/v1/models`, `name@` and the beginning of a generation, or a mix of adapters by
    /// weight: `support:0.7+poet:0.3`.
    model: String,
    #[schema(min_items = 1)]
    messages: Vec<RequestMessage>,
    logprobs: Option<bool>,
    /// With `logprobs` only.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    /// The most tokens of the answer. Without it, as many as the context holds.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<i64>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    /// Only the empty list.
    #[schema(max_items = 0)]
    tools: Option<Vec<Value>>,
    tool_choice: Option<ToolChoice>,
    /// Changes nothing without tools.
    parallel_tool_calls: Option<bool>,
    #[schema(min_items = 1, max_items = 1)]
    modalities: Option<Vec<Modality>>,
    /// Only false.
    store: Option<bool>,
    service_tier: Option<ServiceTier>,
}

/// The body of `/v1/completions`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompletionRequest {
    /// A name of `/v1/models`, `name@` and the beginning of a generation, or a mix of adapters by
    /// weight: `support:0.7+poet:0.3`.
    model: String,
    prompt: PromptField,
    /// Begins the answer with the prompt, and its log-probabilities with the prompt's.
    echo: Option<bool>,
    /// The log-probabilities of so many of the likeliest tokens.
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<i64>,
    /// 16 without it; 0 with `echo` only.
    #[schema(minimum = 0)]
    max_tokens: Option<i64>,
    /// Whether texts get the tokens that the tokenizer adds; true without it.
    add_special_tokens: Option<bool>,
    /// Only what `n` is.
    #[schema(minimum = 1)]
    best_of: Option<i64>,
    /// Only the empty text.
    #[schema(max_length = 0)]
    suffix: Option<String>,
}

/// What both endpoints take.
#[derive(ToSchema)]
pub(crate) struct SamplingFields {
    /// 0 takes the likeliest token each time; 1 without it.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f64>,
    #[schema(minimum = 0.000001, maximum = 1)]
    top_p: Option<f64>,
    /// -1 and 0 are no limit.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    #[schema(minimum = 0.01, maximum = 100)]
    repetition_penalty: Option<f64>,
    /// Answers to each prompt; at most as many as the server computes at a time.
    #[schema(minimum = 1)]
    n: Option<i64>,
    /// The same seed gives the same answer. Without it each request has one of its own.
    seed: Option<i64>,
    /// Texts that end the answer; they are not part of it.
    stop: Option<StopField>,
    /// Added to the logits of tokens, by id.
    logit_bias: Option<BTreeMap<String, f64>>,
    /// Lets answers go on after the token that ends them.
    ignore_eos: Option<bool>,
    response_format: Option<ResponseFormat>,
    structured_outputs: Option<StructuredOutputs>,
    stream: Option<bool>,
    /// With `stream` only.
    stream_options: Option<StreamOptions>,
    /// Only 0.
    #[schema(minimum = 0, maximum = 0)]
    presence_penalty: Option<f64>,
    /// Only 0.
    #[schema(minimum = 0, maximum = 0)]
    frequency_penalty: Option<f64>,
    /// A mix of adapters on the base, as llama.cpp has it.
    lora: Option<Vec<LoraPart>>,
    /// Ignored.
    user: Option<Value>,
    /// Ignored.
    metadata: Option<Value>,
    /// Ignored.
    safety_identifier: Option<Value>,
    /// Ignored.
    prompt_cache_key: Option<Value>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
struct RequestMessage {
    role: Role,
    content: MessageContent,
    r#type: Option<TextWord>,
    /// Only the empty list.
    #[schema(max_items = 0)]
    tool_calls: Option<Vec<Value>>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    /// OpenAI's newer name of `system`.
    Developer,
    User,
    Assistant,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum MessageContent {
    Text(String),
    Parts(Vec<TextPart>),
}

#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TextPart {
    r#type: TextWord,
    text: String,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum TextWord {
    Text,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ToolChoice {
    None,
    Auto,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Modality {
    Text,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ServiceTier {
    Auto,
    Default,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum PromptField {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    Lists(Vec<Vec<u32>>),
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum StopField {
    Text(String),
    Texts(Vec<String>),
}

/// The format that the answer must have. It is whole unless it ends by `length` or a stop text.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: NamedSchema },
}

#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NamedSchema {
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    /// A JSON Schema. A keyword that cannot be kept is refused by name.
    schema: Map<String, Value>,
    /// The schema is kept with it and without.
    strict: Option<bool>,
}

/// As with vLLM: one of these.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(min_properties = 1)]
struct StructuredOutputs {
    /// A JSON Schema.
    json: Option<Value>,
    json_object: Option<bool>,
    /// Matches the answer from end to end.
    regex: Option<String>,
    choice: Option<Vec<String>>,
    /// In llguidance's variant of Lark.
    grammar: Option<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    /// A last chunk with the usage.
    include_usage: Option<bool>,
    /// Only false.
    continuous_usage_stats: Option<bool>,
    /// Only false.
    include_obfuscation: Option<bool>,
}

/// An adapter with its weight.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
struct LoraPart {
    id: AdapterId,
    #[schema(minimum = -10, maximum = 10)]
    scale: f64,
}

/// A name, or the place in `/v1/models` behind the base, from 0.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum AdapterId {
    Name(String),
    Number(u32),
}

/// The body of `/tokenize`: `prompt` or `messages`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    #[schema(min_items = 1)]
    messages: Option<Vec<RequestMessage>>,
    /// True without it for a prompt, false for messages.
    add_special_tokens: Option<bool>,
    /// Ends the conversation where the answer begins; true without it.
    add_generation_prompt: Option<bool>,
    /// Answers how the vocabulary writes the tokens, too.
    return_token_strs: Option<bool>,
}

/// The body of `/detokenize`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// The body of `/v1/load_lora_adapter`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadRequest {
    /// The `model` of requests that the adapter is to answer.
    lora_name: String,
    /// Its folder below the adapter root.
    lora_path: String,
    /// Replaces an adapter of that name.
    load_inplace: Option<bool>,
    /// Replaces that generation or none.
    expected_generation: Option<String>,
    /// Only the base's name.
    base_model_name: Option<String>,
    /// Only false.
    is_3d_lora_weight: Option<bool>,
}

/// The body of `/v1/unload_lora_adapter`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnloadRequest {
    lora_name: String,
    /// Removes that generation or none.
    expected_generation: Option<String>,
    /// Ignored.
    lora_int_id: Option<Value>,
}
