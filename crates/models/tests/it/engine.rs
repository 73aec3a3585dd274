//! The engine that answers: answers do not depend on what else is computed with them, requests join
//! and leave, and results say why they ended and how likely their tokens were.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;
use tunebook_models::{
    ChoiceScore, Choices, Context, DType, Device, EngineConfig, FinishReason, GenerationConfig,
    GenerationEngine, GenerationEvent, GenerationRequest, Linear, Message, Model, Overlay,
    Projection, Quantization, Tensor, TokenizedText,
};
use tunebook_progress::Stop;
use tunebook_testing::Random;

use crate::support::{golden, tensors};

fn load(name: &str) -> Model {
    Model::load(golden("logits").join(name).to_str().unwrap(), &Device::Cpu).unwrap()
}

fn engine(model: &Model, config: EngineConfig) -> GenerationEngine {
    GenerationEngine::new(model, config)
}

/// Tokens and the bits of their log-probabilities.
type Said = Vec<(u32, u32)>;

fn alone(model: &Model, prompt: &[u32], config: &GenerationConfig) -> Said {
    let mut engine = engine(
        model,
        EngineConfig { prefix_cache_bytes: 0, prefill_chunk_size: 4096, ..Default::default() },
    );
    engine.insert(GenerationRequest::new(prompt, config)).unwrap();
    let mut said = Vec::new();
    while !engine.is_empty() {
        for event in engine.step() {
            said.extend(event.token.map(|token| (token, event.log_probability.to_bits())));
        }
    }
    said
}

/// The loss of a reference whose prompt is the only one, as bits.
fn loss_alone(model: &Model, prompt: &[u32], reference: &[u32]) -> (u64, usize, usize) {
    let mut engine = engine(model, EngineConfig { prefix_cache_bytes: 0, ..Default::default() });
    let config = GenerationConfig { max_new_tokens: 1, ..Default::default() };
    engine.insert(GenerationRequest::new(prompt, &config).with_reference(reference)).unwrap();
    while !engine.is_empty() {
        engine.step();
    }
    let [(_, loss)] = engine.take_losses()[..] else { panic!("one reference") };
    (loss.sum.to_bits(), loss.tokens, loss.correct)
}

/// Prompts of random lengths, of which some begin alike: over the ends of pages, and wholly.
fn prompts(random: &mut Random, vocab: usize, count: usize, most: usize) -> Vec<Vec<u32>> {
    let mut all: Vec<Vec<u32>> = Vec::new();
    for i in 0..count {
        let mut tokens = |n: usize| (0..n).map(|_| random.below(vocab) as u32).collect::<Vec<_>>();
        let mut prompt = tokens(1 + i * 13 % (most / 2));
        if let Some(other) = all.get(i / 2).filter(|_| i % 3 > 0) {
            let common = *random.one(&[8, 20, 31, 32, 33, 40, usize::MAX]);
            let common = common.min(other.len());
            prompt = [&other[..common], prompt.as_slice()].concat();
            if random.below(4) == 0 {
                prompt.truncate(common);
            }
        }
        prompt.truncate(most);
        all.push(prompt);
    }
    all
}

/// Requests that join and leave at random, against each of them alone.
fn company(model: &Model, seed: u64, (count, most, answer): (usize, usize, usize)) {
    let mut random = Random::new(seed);
    let vocab = model.config().vocab_size;
    let prompts = prompts(&mut random, vocab, count, most);
    let config = GenerationConfig { ignore_eos: true, ..Default::default() };
    let configs: Vec<GenerationConfig> = prompts
        .iter()
        .map(|_| GenerationConfig { max_new_tokens: 1 + random.below(answer), ..config.clone() })
        .collect();
    let chunk = *random.one(&[1, 5, 33, 512]);
    let mut engine = engine(
        model,
        EngineConfig {
            max_batch_size: *random.one(&[1, 2, 8, 32]),
            prefill_chunk_size: chunk,
            prefix_cache_bytes: *random.one(&[0, 64 << 20]),
        },
    );
    let references: Vec<Vec<u32>> = prompts
        .iter()
        .map(|_| (0..random.below(answer)).map(|_| random.below(vocab) as u32).collect())
        .collect();
    let mut said: HashMap<_, Said> = HashMap::new();
    let mut losses = HashMap::new();
    let mut ids = Vec::new();
    let mut removed = Vec::new();
    let mut waiting = prompts.iter().zip(&configs).zip(&references);
    loop {
        if random.below(3) > 0
            && let Some(((prompt, config), reference)) = waiting.next()
        {
            let request = GenerationRequest::new(prompt.as_slice(), config);
            ids.push(engine.insert(request.with_reference(reference.as_slice())).unwrap());
        }
        if random.below(12) == 0 && !ids.is_empty() {
            let id = *random.one(&ids);
            if engine.remove(id) {
                removed.push(id);
            }
        }
        for event in engine.step() {
            let token = event.token.map(|token| (token, event.log_probability.to_bits()));
            said.entry(event.id).or_default().extend(token);
        }
        losses.extend(engine.take_losses());
        if engine.is_empty() && ids.len() == prompts.len() {
            break;
        }
    }
    for ((id, prompt), reference) in ids.iter().zip(&prompts).zip(&references) {
        if removed.contains(id) || reference.is_empty() {
            continue;
        }
        let is_long = model.config().model_type == "phi3";
        let Some(loss) = losses.get(id) else {
            assert!(model.is_quantized() || is_long, "no loss");
            continue;
        };
        let found = (loss.sum.to_bits(), loss.tokens, loss.correct);
        assert_eq!(found, loss_alone(model, prompt, reference), "seed {seed}, {prompt:?}");
        let ids = [prompt.as_slice(), reference].concat();
        let loss_mask = (0..ids.len()).map(|at| at >= prompt.len()).collect();
        let text = TokenizedText { ids, loss_mask };
        let expected = model.text_losses(&[text]).unwrap()[0];
        assert!((loss.sum - expected.sum).abs() <= 1e-4 * expected.sum, "{loss:?} {expected:?}");
        assert_eq!(loss.tokens, expected.tokens);
    }
    for ((id, prompt), config) in ids.iter().zip(&prompts).zip(&configs) {
        let expected = alone(model, prompt, config);
        let found = said.remove(id).unwrap_or_default();
        if removed.contains(id) {
            assert_eq!(found, expected[..found.len()], "as far as it came");
        } else {
            assert_eq!(found, expected, "prompts of {} tokens, chunks of {chunk}", prompt.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn greedy_answers_are_the_same_bits_in_any_company(seed in any::<u64>()) {
        // Grouped queries; a bias by distance; bounded scores and windows; angles that change.
        for name in ["llama3", "falcon-rw", "gemma2", "phi3-longrope"] {
            company(&load(name), seed, (9, 70, 24));
        }
    }
}

/// Requests that wait are ended by Stop without a pass, and a batch holds as many answers as it may.
#[test]
fn waiting_requests_end_and_answers_are_counted() {
    let model = load("llama3");
    let config = GenerationConfig {
        max_new_tokens: 3,
        num_return_sequences: 4,
        ignore_eos: true,
        ..Default::default()
    };
    let mut engine = engine(&model, EngineConfig { max_batch_size: 8, ..Default::default() });
    let stop = Stop::new();
    for i in 0..5u32 {
        let request = GenerationRequest::new(vec![i + 1, 2], &config);
        engine.insert(if i == 4 { request.with_stop(&stop) } else { request }).unwrap();
    }
    stop.stop();
    let first = engine.step();
    let interrupted = |event: &tunebook_models::GenerationEvent| {
        event.finish.as_ref().is_some_and(|end| end.reason == FinishReason::Interrupted)
    };
    assert_eq!(first.iter().filter(|event| interrupted(event)).count(), 4);
    let mut ends = 4;
    while !engine.is_empty() {
        assert!(engine.load().1 <= 8);
        ends += engine.step().iter().filter(|event| event.finish.is_some()).count();
    }
    assert_eq!(ends, 20);
}

/// The default model as stored in Q4_1 and Q8_0, in bf16 and in f32.
#[test]
fn greedy_answers_of_smollm_are_the_same_bits_in_any_company() {
    for dtype in [None, Some(DType::BF16), Some(DType::F32)] {
        let name = tunebook_models::DEFAULT_MODEL;
        let model = match dtype {
            None => Model::load_quantized(name, Quantization::Stored, &Device::Cpu).unwrap(),
            dtype => Model::load_as(name, dtype, &Device::Cpu).unwrap(),
        };
        company(&model, 1, (5, 80, 8));
    }
}

#[test]
fn a_prompt_that_begins_as_another_takes_its_pages() {
    let model = load("llama3");
    let config = GenerationConfig { max_new_tokens: 4, ignore_eos: true, ..Default::default() };
    let long: Vec<u32> = (0..100).map(|i| i % 50).collect();
    let mut engine = engine(&model, EngineConfig::default());
    let mut said: HashMap<_, Said> = HashMap::new();
    let mut usage = |engine: &mut GenerationEngine| {
        let mut usage = Vec::new();
        while !engine.is_empty() {
            for event in engine.step() {
                let token = event.token.map(|token| (token, event.log_probability.to_bits()));
                said.entry(event.id).or_default().extend(token);
                usage.extend(event.finish.map(|finish| (event.id, finish.usage)));
            }
        }
        usage.sort_unstable_by_key(|(id, _)| *id);
        usage.into_iter().map(|(_, usage)| usage).collect::<Vec<_>>()
    };
    // Two at once: the second waits for the first's pages.
    engine.insert(GenerationRequest::new(long.clone(), &config)).unwrap();
    let other = [&long[..90], &[1, 2, 3]].concat();
    let second = engine.insert(GenerationRequest::new(other.clone(), &config)).unwrap();
    let both = usage(&mut engine);
    assert_eq!((both[0].cached_tokens, both[1].cached_tokens), (0, 90));
    assert_eq!((both[0].prompt_tokens, both[0].completion_tokens), (100, 4));
    // Weights that have changed in place have computed nothing yet.
    model.weights_changed();
    engine.insert(GenerationRequest::new(long.clone(), &config)).unwrap();
    assert_eq!(usage(&mut engine)[0].cached_tokens, 0);
    engine.insert(GenerationRequest::new(long.clone(), &config)).unwrap();
    assert_eq!(usage(&mut engine)[0].cached_tokens, 96);
    // The base, by another handle.
    let last = GenerationRequest::new(long.clone(), &config).with_overlay(model.base().overlay());
    let last = engine.insert(last).unwrap();
    assert_eq!(usage(&mut engine)[0].cached_tokens, 96);
    assert_eq!(said[&second], alone(&model, &other, &config));
    assert_eq!(said[&last], alone(&model, &long, &config));
}

#[test]
fn answers_say_why_they_ended() {
    let model = load("llama3");
    let context = model.config().max_position_embeddings;
    let config = GenerationConfig { max_new_tokens: 5, ignore_eos: true, ..Default::default() };
    let prompts = [vec![1, 2, 3], vec![3; context - 2]];
    let answers = model.completions(&prompts, &config).unwrap();
    assert_eq!(answers[0].finish_reason, FinishReason::Length);
    assert_eq!((answers[0].ids.len(), answers[0].log_probabilities.len()), (5, 5));
    // The long prompt is answered as far as the context reaches, and the other whole.
    assert_eq!(answers[1].finish_reason, FinishReason::Context);
    assert_eq!(answers[1].ids.len(), 2);
    // A text that occurs in the answer ends it, before the token that has it.
    let text = answers[0].text.clone();
    if let Some((at, _)) = text.char_indices().nth(text.chars().count() / 2) {
        let stop = text[at..].to_owned();
        let stopped = model
            .completions(&prompts[..1], &GenerationConfig { stop: vec![stop], ..config.clone() });
        let stopped = &stopped.unwrap()[0];
        assert_eq!(stopped.finish_reason, FinishReason::Stop);
        assert!(text.starts_with(&stopped.text) && stopped.text.len() < text.len());
    }
    let nothing = GenerationConfig { max_new_tokens: 0, num_return_sequences: 3, ..config.clone() };
    for answer in model.completions(&prompts[..1], &nothing).unwrap() {
        assert_eq!((answer.ids.len(), &answer.finish_reason), (0, &FinishReason::Length));
        assert_eq!(answer.usage.prompt_tokens, 3);
    }
    let stop = Stop::new();
    stop.stop();
    let answers = model.with_stop(&stop).completions(&prompts, &config).unwrap();
    assert!(answers.iter().all(|answer| answer.finish_reason == FinishReason::Interrupted));
    let outside = model.completions(&[vec![model.config().vocab_size as u32]], &config);
    assert!(outside.unwrap_err().to_string().contains("vocabulary"));
}

#[test]
fn answers_end_at_the_border_of_the_context() {
    let model = load("llama3");
    let context = model.config().max_position_embeddings;
    for room in [2, 1] {
        for max_new_tokens in [0, 1, 2, 5, usize::MAX] {
            let config = GenerationConfig {
                max_new_tokens,
                num_return_sequences: 2,
                ignore_eos: true,
                ..Default::default()
            };
            let prompt = vec![3; context - room];
            let answers = model.completions(std::slice::from_ref(&prompt), &config).unwrap();
            assert_eq!(answers.len(), 2);
            for answer in answers {
                let by_context = max_new_tokens > room;
                let reason = if by_context { FinishReason::Context } else { FinishReason::Length };
                assert_eq!(
                    (answer.ids.len(), answer.finish_reason),
                    (max_new_tokens.min(room), reason)
                );
                assert_eq!(answer.usage.completion_tokens, max_new_tokens.min(room));
            }
            for more in 0..2 {
                let prompt = vec![3; context + more];
                let error = model.completions(&[prompt], &config).unwrap_err().to_string();
                assert!(error.contains(&format!("{} tokens", context + more)), "{error}");
            }
        }
    }
    assert!(model.completions(&[vec![]], &GenerationConfig::default()).is_err());
    assert!(model.completions(&[], &GenerationConfig::default()).unwrap().is_empty());
}

#[test]
fn one_prompt_gets_several_answers_and_log_probabilities_are_the_models() {
    let model = load("llama3");
    let config = GenerationConfig {
        max_new_tokens: 6,
        temperature: 1.5,
        num_return_sequences: 3,
        top_logprobs: 4,
        ignore_eos: true,
        ..Default::default()
    };
    let prompts = [vec![5, 6, 7], vec![8, 9]];
    let answers = model.completions(&prompts, &config).unwrap();
    assert_eq!(answers.len(), 6);
    assert_ne!(answers[0].ids, answers[1].ids);
    assert_eq!(answers, model.completions(&prompts, &config).unwrap(), "the same seed");
    for (answer, prompt) in answers.iter().zip(prompts.iter().flat_map(|p| [p, p, p])) {
        let ids = [prompt.as_slice(), &answer.ids].concat();
        let logits = model
            .forward(&Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap());
        let log_probs = candle_nn::ops::log_softmax(&logits.unwrap().get(0).unwrap(), 1).unwrap();
        let log_probs = log_probs.to_vec2::<f32>().unwrap();
        for (i, id) in answer.ids.iter().enumerate() {
            let row = &log_probs[prompt.len() - 1 + i];
            assert!((row[*id as usize] - answer.log_probabilities[i]).abs() < 1e-4);
            let most = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            assert_eq!(answer.top_logprobs[i].len(), 4);
            assert!((answer.top_logprobs[i][0].1 - most).abs() < 1e-4);
        }
    }
}

#[test]
fn an_engine_on_its_own_thread_answers_many_askers() {
    let model = load("llama3");
    let config = GenerationConfig { max_new_tokens: 12, ignore_eos: true, ..Default::default() };
    let handle = engine(&model, EngineConfig { max_batch_size: 3, ..Default::default() }).spawn();
    std::thread::scope(|scope| {
        for asker in 0..6u32 {
            let (handle, model, config) = (handle.clone(), &model, &config);
            scope.spawn(move || {
                let prompt = vec![asker, 2 * asker + 1, 7];
                if asker == 3 {
                    // It does not wait for its answer.
                    drop(handle.submit(GenerationRequest::new(prompt, config)).unwrap());
                    return;
                }
                let expected = alone(model, &prompt, config);
                let events = handle.submit(GenerationRequest::new(prompt, config)).unwrap();
                let said: Vec<u32> = events.iter().filter_map(|event| event.token).collect();
                assert_eq!(said, expected.iter().map(|(id, _)| *id).collect::<Vec<_>>());
            });
        }
    });
    assert!(handle.submit(GenerationRequest::new(Vec::new(), &config)).is_err());
    // Every answer of a request has an end, also of one that never begins.
    for (max_new_tokens, stopped) in [(0, false), (4, true), (4, false)] {
        let stop = Stop::new();
        if stopped {
            stop.stop();
        }
        let config = GenerationConfig { max_new_tokens, num_return_sequences: 3, ..config.clone() };
        let request = GenerationRequest::new(vec![1, 2], &config).with_stop(&stop);
        let events = handle.submit(request).unwrap();
        let ends: Vec<_> = events.iter().filter_map(|e| Some((e.answer, e.finish?))).collect();
        assert_eq!(ends.len(), 3, "{ends:?}");
    }
    let stop = Stop::new();
    let events = handle.submit(GenerationRequest::new(vec![1], &config).with_stop(&stop)).unwrap();
    stop.stop();
    let last = events.iter().last().unwrap();
    let reason = last.finish.unwrap().reason;
    assert!(matches!(reason, FinishReason::Interrupted | FinishReason::Length), "{reason:?}");
}

/// In place of a projection: panics.
#[derive(Debug)]
struct Panics([usize; 2]);

impl Projection for Panics {
    fn forward(&self, _: &Tensor, _: &Context<'_>) -> tunebook_models::Result<Tensor> {
        panic!("no such kernel")
    }

    fn weight(&self) -> Tensor {
        panic!("no weight")
    }

    fn in_features(&self) -> usize {
        self.0[0]
    }

    fn out_features(&self) -> usize {
        self.0[1]
    }
}

/// An overlay with something in the model's first slot.
fn in_first_slot(
    model: &Model,
    make: impl Fn(&Arc<Linear>) -> Arc<dyn Projection>,
) -> Arc<Overlay> {
    let mut overlay = Overlay::default();
    let slot = &model.slots()[0];
    overlay.put_projection(slot, make(slot.base())).unwrap();
    Arc::new(overlay)
}

#[test]
fn a_panic_of_an_engine_on_its_own_thread_is_told_to_all_askers() {
    let model = load("llama3");
    let overlay =
        in_first_slot(&model, |base| Arc::new(Panics([base.in_features(), base.out_features()])));
    let handle = engine(&model, EngineConfig::default()).spawn();
    let config = GenerationConfig {
        max_new_tokens: 100_000,
        num_return_sequences: 2,
        ignore_eos: true,
        ..Default::default()
    };
    let request = || GenerationRequest::new(vec![3, 4], &config);
    let good = handle.submit(request()).unwrap();
    let bad = handle.submit(request().with_overlay(overlay)).unwrap();
    for events in [good, bad] {
        let events: Vec<GenerationEvent> = events.iter().collect();
        let ends: Vec<_> = events.into_iter().filter_map(|event| event.finish).collect();
        assert_eq!(ends.len(), 2);
        for end in ends {
            let reason = end.reason;
            let told =
                matches!(&reason, FinishReason::Failed(why) if why.contains("no such kernel"));
            assert!(told || reason == FinishReason::Context, "{reason:?}");
        }
    }
    let error = handle.submit(request()).unwrap_err().to_string();
    assert!(error.contains("no such kernel") && error.contains("spawn"), "{error}");
}

/// What an answer was computed with goes with the last who holds it, not with the engine.
#[test]
fn an_engine_that_is_idle_holds_no_overlay() {
    let model = load("llama3");
    let overlay = in_first_slot(&model, |base| Arc::<Linear>::clone(base));
    let mut engine = engine(&model, EngineConfig::default());
    let config = GenerationConfig { max_new_tokens: 2, ..Default::default() };
    let prompt: Vec<u32> = (0..70).collect();
    for round in 0..2 {
        let request = GenerationRequest::new(prompt.clone(), &config);
        engine.insert(request.with_overlay(Arc::clone(&overlay))).unwrap();
        while !engine.is_empty() {
            engine.step();
        }
        assert_eq!(Arc::strong_count(&overlay), 1);
        assert_eq!(engine.cached_tokens() > 0, round > 0, "its pages are kept");
    }
}

/// Two overlays: the first floods the engine, then the second asks once. The requests in the order
/// in which they end; the second overlay's is the last number.
fn flooded(prompt_tokens: u32, config: EngineConfig) -> Vec<usize> {
    let model = load("llama3");
    let overlays = [0, 1].map(|_| in_first_slot(&model, |base| Arc::<Linear>::clone(base)));
    let mut engine = engine(&model, config);
    let config = GenerationConfig { max_new_tokens: 4, ignore_eos: true, ..Default::default() };
    let mut ids = Vec::new();
    for number in 0..=16u32 {
        // None begins as another does.
        let prompt: Vec<u32> = (0..prompt_tokens).map(|at| (number * 7 + at) % 50).collect();
        let overlay = Arc::clone(&overlays[usize::from(number == 16)]);
        let request = GenerationRequest::new(prompt, &config).with_overlay(overlay);
        ids.push(engine.insert(request).unwrap());
    }
    let mut ended = Vec::new();
    while !engine.is_empty() {
        let ends = engine.step().into_iter().filter(|event| event.finish.is_some());
        ended.extend(ends.map(|event| ids.iter().position(|id| *id == event.id).unwrap()));
    }
    ended
}

#[test]
fn a_flood_for_one_overlay_does_not_keep_another_waiting() {
    // Two places: the second overlay's request has one of the first two that are free.
    let ended = flooded(3, EngineConfig { max_batch_size: 2, ..Default::default() });
    assert_eq!(ended.len(), 17);
    let place = ended.iter().position(|request| *request == 16).unwrap();
    assert!(place < 4, "it was answered after {place} others: {ended:?}");
}

#[test]
fn long_prompts_for_one_overlay_do_not_keep_another_waiting() {
    // All have places; a step computes the inputs of one prompt.
    let config = EngineConfig { prefill_chunk_size: 40, ..Default::default() };
    let ended = flooded(40, config);
    let place = ended.iter().position(|request| *request == 16).unwrap();
    assert!(place < 2, "it was answered after {place} others: {ended:?}");
}

#[test]
fn a_removed_request_gives_everything_back_at_any_step() {
    let model = load("llama3");
    for steps in 0..12 {
        let config =
            EngineConfig { prefill_chunk_size: 3, max_batch_size: 3, ..Default::default() };
        let mut engine = engine(&model, config);
        let config = GenerationConfig {
            max_new_tokens: 6,
            ignore_eos: true,
            num_return_sequences: 2,
            temperature: 0.8,
            ..Default::default()
        };
        let overlay = in_first_slot(&model, |base| Arc::<Linear>::clone(base));
        let insert = |engine: &mut GenerationEngine, token| {
            let request = GenerationRequest::new(vec![token; 10], &config);
            engine.insert(request.with_overlay(Arc::clone(&overlay))).unwrap()
        };
        let ids: Vec<_> = (3..7).map(|token| insert(&mut engine, token)).collect();
        (0..steps).for_each(|_| drop(engine.step()));
        for id in ids {
            engine.remove(id);
            assert!(!engine.remove(id));
        }
        assert!(engine.is_empty() && engine.step().is_empty());
        assert_eq!(Arc::strong_count(&overlay), 1, "after {steps} steps");
    }
}

#[test]
fn settings_that_no_answer_can_follow_are_refused_by_name() {
    let model = load("llama3");
    let config = GenerationConfig { max_new_tokens: 2, ..Default::default() };
    let answers = |config: &GenerationConfig| model.completions(&[vec![3, 4]], config);
    for temperature in [0.0, 1.0] {
        let base = GenerationConfig { temperature, ..config.clone() };
        for (config, says) in [
            (GenerationConfig { num_return_sequences: usize::MAX, ..base.clone() }, "65536"),
            (GenerationConfig { logit_bias: [(7, 1e39)].into(), ..base.clone() }, "1e20"),
            (GenerationConfig { logit_bias: [(999_999, 5.0)].into(), ..base.clone() }, "999999"),
            (GenerationConfig { repetition_penalty: 1e39, ..base.clone() }, "from 0.000001"),
            (GenerationConfig { temperature: 1e39, top_p: 0.5, ..base.clone() }, "to 1000000"),
        ] {
            let error = answers(&config).unwrap_err().to_string();
            assert!(error.contains("GenerationConfig.") && error.contains(says), "{error}");
        }
        // The ends of the ranges are usable, all together.
        let all = 0..model.config().vocab_size as u32;
        for (bias, repetition_penalty) in [(1e20, 1e6), (-1e20, 1e6), (1e20, 1e-6)] {
            let logit_bias = all.clone().map(|id| (id, bias)).collect();
            for temperature in [temperature, 1e-7, 1e6] {
                for top_p in [1.0, 0.5] {
                    let base = GenerationConfig { temperature, top_p, ..config.clone() };
                    answers(&base).unwrap();
                    let all = GenerationConfig { repetition_penalty, ..base.clone() };
                    answers(&all).unwrap();
                    let biased =
                        GenerationConfig { logit_bias: BTreeMap::clone(&logit_bias), ..all };
                    answers(&biased).unwrap();
                }
            }
        }
        let top = GenerationConfig { top_logprobs: usize::MAX, ..base };
        let top = answers(&top).unwrap().remove(0).top_logprobs;
        assert!(top.iter().all(|top| top.len() == model.config().vocab_size));
    }
}

/// Sampled so wildly that there are bytes that are no text.
#[test]
fn the_text_of_an_answer_is_that_of_its_ids_up_to_the_stop_text() {
    let model = load("llama-tied");
    let config = GenerationConfig {
        max_new_tokens: 30,
        ignore_eos: true,
        temperature: 2.5,
        ..Default::default()
    };
    let prompt = [vec![3, 4]];
    let mut stopped = 0;
    for seed in 0..40 {
        let config = GenerationConfig { seed, ..config.clone() };
        let answer = model.completions(&prompt, &config).unwrap().remove(0);
        let whole = model.tokenizer().decode_text(&answer.ids).unwrap();
        assert_eq!(answer.text, whole, "seed {seed}");
        let characters: Vec<char> = whole.chars().collect();
        for stop in characters.windows(3).skip(1).step_by(4) {
            let stop: String = stop.iter().collect();
            let (before, _) = whole.split_once(&stop).unwrap();
            let config = GenerationConfig { stop: vec![stop.clone()], ..config.clone() };
            let answer = model.completions(&prompt, &config).unwrap().remove(0);
            assert_eq!((answer.text.as_str(), answer.finish_reason), (before, FinishReason::Stop));
            stopped += 1;
        }
    }
    assert!(stopped > 0);
}

/// Against transformers' logits, for all families, with contexts that occur more than once.
#[test]
fn log_likelihoods_are_transformers() {
    for (name, _) in crate::families::FAMILIES {
        let model = load(name);
        let expected = tensors(&format!("logits/{name}/expected.safetensors"));
        let ids = expected["ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let lengths = expected["lengths"].to_vec1::<i64>().unwrap();
        let logits = expected["logits"].to_dtype(DType::F32).unwrap();
        let log_probs = candle_nn::ops::log_softmax(&logits, 2).unwrap();
        let log_probs = log_probs.to_vec3::<f32>().unwrap();
        // Continuations of different lengths of each text's two beginnings.
        let mut pairs = Vec::new();
        for (row, (ids, length)) in ids.iter().zip(&lengths).enumerate() {
            let length = *length as usize;
            for from in [1, length / 2].into_iter().filter(|from| *from > 0) {
                for to in [from + 1, (from + 3).min(length), length] {
                    if to > from {
                        pairs.push((row, from, ids[..from].to_vec(), ids[from..to].to_vec()));
                    }
                }
            }
        }
        let asked: Vec<_> = pairs.iter().map(|(_, _, a, b)| (a.clone(), b.clone())).collect();
        let found = model.log_likelihoods_of_ids(&asked).unwrap();
        assert!(found.len() >= 4, "{name}");
        for ((row, from, _, rest), found) in pairs.iter().zip(&found) {
            let mut sum = 0.0;
            let mut greedy = true;
            // The angles of this family depend on the length of the text, which ends before the
            // last token.
            let shorter = (*name == "phi3-longrope").then(|| {
                let ids = &ids[*row][..from + rest.len() - 1];
                let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
                let logits = model.forward(&ids).unwrap().get(0).unwrap();
                candle_nn::ops::log_softmax(&logits, 1).unwrap().to_vec2::<f32>().unwrap()
            });
            let log_probs = shorter.as_ref().unwrap_or(&log_probs[*row]);
            for (i, id) in rest.iter().enumerate() {
                let row = &log_probs[from + i - 1];
                sum += f64::from(row[*id as usize]);
                greedy &= row.iter().all(|other| *other <= row[*id as usize]);
                assert!((row[*id as usize] - found.tokens[i]).abs() < 1e-4, "{name}: token {i}");
            }
            let error = (sum - found.sum).abs() / rest.len() as f64;
            assert!(error < 1e-4, "{name}: {sum} {}", found.sum);
            assert_eq!(greedy, found.is_greedy, "{name}");
        }
        if *name == "phi3-longrope" {
            continue;
        }
        // The mean loss of a text is that of its tokens.
        let text = TokenizedText {
            ids: ids[0][..lengths[0] as usize].to_vec(),
            loss_mask: (0..lengths[0]).map(|at| at % 3 == 1).collect(),
        };
        let nothing = TokenizedText { loss_mask: vec![false; text.ids.len()], ..text.clone() };
        let losses = model.losses(&[text.clone(), nothing]).unwrap();
        let trained: Vec<f32> = (1..text.ids.len())
            .filter(|at| text.loss_mask[*at])
            .map(|at| log_probs[0][at - 1][text.ids[at] as usize])
            .collect();
        let mean = -trained.iter().sum::<f32>() / trained.len() as f32;
        assert!((losses[0].unwrap() as f32 - mean).abs() < 1e-4, "{name}: {losses:?} {mean}");
        assert_eq!(losses[1], None);
    }
}

#[test]
fn one_answer_is_returned_where_one_is_asked_for() {
    let model = load("llama3");
    let config =
        GenerationConfig { num_return_sequences: 2, temperature: 1.0, ..Default::default() };
    let error = model.generate("a", &config).unwrap_err().to_string();
    assert!(
        error.contains("num_return_sequences` is 2") && error.contains("`completions`"),
        "{error}"
    );
    let mut shown = String::new();
    let asked = [Message::user("a")];
    let error = model.chat_to(&asked, &config, &mut |text| shown.push_str(text)).unwrap_err();
    assert!(error.to_string().contains("`chat_completions`"), "{error}");
    assert!(model.chat_with(&asked, &config).is_err() && shown.is_empty());
    let both = GenerationConfig { max_new_tokens: 2, ..config };
    assert_eq!(model.generate_batch(&["a".to_owned()], &both).unwrap().len(), 2);
}

#[test]
fn a_text_of_several_that_cannot_be_used_is_named() {
    let model = load("llama3");
    let config = GenerationConfig { max_new_tokens: 2, ..Default::default() };
    let most = model.config().max_position_embeddings;
    let error = model.completions(&[vec![1], vec![1; most + 1]], &config).unwrap_err().to_string();
    assert!(error.starts_with("`prompts[1]`: ") && error.contains("context"), "{error}");
    let texts = ["a".to_owned(), "word ".repeat(most)];
    let error = model.generate_batch(&texts, &config).unwrap_err().to_string();
    assert!(error.starts_with("`prompts[1]`: "), "{error}");
    let error = model.generate(&texts[1], &config).unwrap_err().to_string();
    assert!(!error.contains('['), "{error}");
    let pairs = [("a", " b"), ("a", " c"), ("a", "")];
    let error = model.log_likelihoods(&pairs).unwrap_err().to_string();
    assert!(error.starts_with("`pairs[2]`: `continuation` is empty"), "{error}");
    let good = TokenizedText { ids: vec![1, 2], loss_mask: vec![true; 2] };
    let long = TokenizedText { ids: vec![1; most + 2], loss_mask: vec![true; most + 2] };
    let error = model.text_losses(&[good.clone(), long]).unwrap_err().to_string();
    assert!(error.starts_with("`texts[1]`: "), "{error}");
    let asked = [Choices { prompt: vec![1], answers: vec![vec![2], vec![]] }];
    let error = model.score_choices(&asked, 0.0).unwrap_err().to_string();
    assert!(error.starts_with("`questions[0]`: "), "{error}");
    // A handle with an adapter for each text.
    let two = model.with_overlays(vec![model.overlay(), model.overlay()]);
    for error in [
        two.completions(&[vec![1]], &config).unwrap_err().to_string(),
        two.log_likelihoods(&pairs).unwrap_err().to_string(),
        two.text_losses(&[good]).unwrap_err().to_string(),
        two.generate("a", &config).unwrap_err().to_string(),
    ] {
        assert!(error.contains("this handle answers 2"), "{error}");
        assert!(error.contains("with_adapter_names") && !error.contains("overlay"), "{error}");
    }
}

#[test]
fn texts_that_cannot_be_scored_are_refused_by_their_place() {
    let model = load("llama3");
    let error = |pair| model.log_likelihoods_of_ids(&[pair]).unwrap_err().to_string();
    assert!(error((vec![1], vec![])).contains("continuation"));
    assert!(error((vec![1], vec![1 << 30])).contains("vocabulary"));
    let context = model.config().max_position_embeddings;
    assert!(error((vec![1; context], vec![1, 2])).contains("context"));
    assert!(model.log_likelihoods_of_ids(&[(vec![1; context], vec![1])]).is_ok());
    // Without a text and without an answer.
    assert!(model.log_likelihoods(&[("", "")]).is_err());
    let empty = Choices { prompt: vec![], answers: vec![vec![3]] };
    let filled = Choices { prompt: vec![3], answers: vec![vec![3]] };
    let error = model.score_choices(&[filled, empty], 0.0).unwrap_err().to_string();
    assert!(error.contains("empty in question 1"), "{error}");
}

#[test]
fn a_handle_with_overlays_scores_a_text_for_each_of_them() {
    let model = load("llama3");
    let handle = model.with_overlays(vec![Arc::default(); 2]);
    let pair = (vec![3u32, 4], vec![5u32]);
    let text = TokenizedText { ids: vec![3, 4, 5], loss_mask: vec![true; 3] };
    let question = Choices { prompt: vec![3, 4], answers: vec![vec![5], vec![6]] };
    let config = GenerationConfig { max_new_tokens: 1, ..Default::default() };
    for count in [0, 1, 2, 3] {
        let ids = Tensor::zeros((count.max(1), 2), DType::U32, &Device::Cpu).unwrap();
        let found = [
            handle.log_likelihoods_of_ids(&vec![pair.clone(); count]).map(|all| all.len()),
            handle.text_losses(&vec![text.clone(); count]).map(|all| all.len()),
            handle.losses(&vec![text.clone(); count]).map(|all| all.len()),
            handle.score_choices(&vec![question.clone(); count], 0.0).map(|all| all.len()),
            handle.completions(&vec![vec![3]; count], &config).map(|all| all.len()),
            handle.forward(&ids).map(|logits| logits.dims()[0]),
        ];
        for found in found {
            match found {
                Ok(answers) => assert_eq!((count, answers), (2, 2)),
                Err(error) => {
                    assert_ne!(count, 2, "{error}");
                    assert!(error.to_string().contains("this handle answers 2"), "{error}");
                }
            }
        }
    }
}

/// The angles of the keys depend on the length of the whole text.
#[test]
fn answers_on_both_sides_of_the_first_context_are_scored_as_alone() {
    let model = load("phi3-longrope");
    let answers = vec![vec![5], vec![6, 7, 8, 9, 10, 11], vec![6, 7, 2], vec![12]];
    for len in 4..model.config().max_position_embeddings - 8 {
        let prompt: Vec<u32> = (0..len as u32).map(|i| 3 + i % 60).collect();
        let question = Choices { prompt: prompt.clone(), answers: answers.clone() };
        let pairs: Vec<_> = answers.iter().map(|answer| (prompt.clone(), answer.clone())).collect();
        let apart = model.log_likelihoods_of_ids(&pairs).unwrap();
        for margin in [f64::INFINITY, 0.0] {
            let found = model.score_choices(std::slice::from_ref(&question), margin).unwrap();
            let best = apart.iter().map(|answer| answer.sum).fold(f64::MIN, f64::max);
            for (found, apart) in found[0].iter().zip(&apart) {
                let same = (found.log_likelihood - apart.sum).abs() < 1e-4;
                let cut = !found.is_exact && found.log_likelihood < best - margin;
                assert!(same || cut, "a prompt of {len}: {found:?} and {}", apart.sum);
            }
        }
    }
}

/// Answers that begin alike, after prompts that begin alike.
fn questions() -> Vec<Choices> {
    let beginning: Vec<u32> = (1..20).collect();
    let answers = vec![
        vec![5, 6, 7, 2],
        vec![5, 6, 2],
        vec![5, 6, 8, 9, 10, 2],
        vec![5, 2],
        vec![11, 12, 13, 14, 2],
        vec![2],
        vec![11, 12, 13, 2],
    ];
    let question = |ends: &[u32]| Choices {
        prompt: beginning.iter().chain(ends).copied().collect(),
        answers: answers.clone(),
    };
    let mut questions = vec![question(&[20, 21, 22]), question(&[30]), question(&[])];
    questions.push(Choices { prompt: vec![9, 8], answers: vec![vec![3, 4], vec![4]] });
    questions.push(Choices { prompt: vec![1, 2], answers: Vec::new() });
    questions
}

#[test]
fn choices_are_scored_as_continuations_are_and_the_unlikely_ones_cut_short() {
    for (name, _) in crate::families::FAMILIES {
        let model = load(name);
        let questions = questions();
        let alone = |prompt: &Vec<u32>, answer: &Vec<u32>| {
            model.log_likelihoods_of_ids(&[(prompt.clone(), answer.clone())]).unwrap().remove(0)
        };
        let pairs: Vec<(Vec<u32>, Vec<u32>)> = questions
            .iter()
            .flat_map(|question| {
                question.answers.iter().map(|answer| (question.prompt.clone(), answer.clone()))
            })
            .collect();
        let together = model.log_likelihoods_of_ids(&pairs).unwrap();
        let exact = model.score_choices(&questions, f64::INFINITY).unwrap();
        assert_eq!(exact.iter().map(Vec::len).collect::<Vec<_>>(), [7, 7, 7, 2, 0]);
        for ((found, (prompt, answer)), likelihood) in
            exact.iter().flatten().zip(&pairs).zip(&together)
        {
            let expected = alone(prompt, answer);
            if *name != "phi3-longrope" {
                assert_eq!(*likelihood, expected, "{name}: the same bits alone and together");
            }
            assert!(found.is_exact && found.tokens == answer.len());
            assert!((found.log_likelihood - expected.sum).abs() < 1e-4, "{name}");
        }
        for margin in [0.0, 0.05] {
            let found = model.score_choices(&questions, margin).unwrap();
            for (found, exact) in found.iter().zip(&exact) {
                let best = exact.iter().map(|score| score.log_likelihood).fold(f64::MIN, f64::max);
                for (found, exact) in found.iter().zip(exact) {
                    if found.is_exact {
                        assert_eq!(found, exact, "{name}");
                    } else {
                        assert!(found.log_likelihood < best - margin, "{name}");
                        assert!(found.log_likelihood >= exact.log_likelihood, "{name}");
                    }
                }
            }
            let scored = |scores: &[Vec<ChoiceScore>]| -> usize {
                scores.iter().flatten().map(|score| score.tokens).sum()
            };
            assert!(scored(&found) < scored(&exact), "{name}: nothing was cut short");
        }
    }
    let model = load("llama3");
    let error = model.score_choices(&questions(), -1.0).unwrap_err().to_string();
    assert!(error.contains("margin") && error.contains("-1"), "{error}");
    let empty = Choices { prompt: vec![1], answers: vec![vec![]] };
    assert!(model.score_choices(&[empty], 0.0).is_err());
}

#[test]
fn the_scores_of_a_text_are_its_log_likelihoods() {
    let model = load("llama3");
    let texts = [vec![5u32, 9, 33, 7, 70, 41], vec![3, 3, 9], vec![8], vec![]];
    let found = model.token_scores(&texts, 4).unwrap();
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [5, 2, 0, 0]);
    for (ids, scores) in texts.iter().zip(&found).take(2) {
        for (at, score) in scores.iter().enumerate() {
            let pair = (ids[..=at].to_vec(), ids[at + 1..at + 2].to_vec());
            let expected = model.log_likelihoods_of_ids(&[pair]).unwrap().remove(0);
            assert_eq!(score.log_probability.to_bits(), expected.tokens[0].to_bits());
            assert_eq!(score.top.len(), 4);
            assert!(score.top.is_sorted_by(|a, b| a.1 >= b.1));
            assert_eq!(score.top[0].1 == score.log_probability, expected.is_greedy);
        }
    }
    let error = model.token_scores(&[vec![1], vec![1, 1_000_000]], 0).unwrap_err().to_string();
    assert!(error.contains("texts[1]"), "{error}");
}

#[test]
fn texts_of_more_tokens_than_a_pass_has_are_scored_as_each_alone() {
    let model = load("llama3");
    let text = |row: u32| (0..40 + row * 8).map(|at| (at * (row + 3) + row) % 60).collect();
    let texts: Vec<Vec<u32>> = (0..10).map(text).collect();
    assert!(texts.iter().map(Vec::len).sum::<usize>() > 700);
    let found = model.token_scores(&texts, 2).unwrap();
    for (text, found) in texts.into_iter().zip(found) {
        assert_eq!(found.len(), text.len() - 1);
        assert_eq!(model.token_scores(&[text], 2).unwrap(), [found]);
    }
}

#[test]
fn whoever_does_not_wait_is_told_of_everything() {
    let engine = engine(&load("llama3"), EngineConfig::default()).spawn();
    let config = GenerationConfig { max_new_tokens: 6, ignore_eos: true, ..Default::default() };
    let ask = |prompt: Vec<u32>, most: usize| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut seen = 0;
        let on_event = move |event: tunebook_models::Result<GenerationEvent>| {
            seen += 1;
            sender.send(event).is_ok() && seen < most
        };
        engine.submit_to(GenerationRequest::new(prompt, &config), on_event).unwrap();
        receiver
    };
    let whole: Vec<GenerationEvent> = ask(vec![5, 6], 99).iter().map(Result::unwrap).collect();
    assert_eq!(whole.len(), 6);
    let finish = whole[5].finish.as_ref().unwrap();
    assert_eq!(finish.reason, FinishReason::Length);
    // Who wants no more gets no more.
    assert_eq!(ask(vec![5, 6], 2).iter().count(), 2);
    let refused: Vec<_> = ask(Vec::new(), 99).iter().collect();
    assert!(matches!(&refused[..], [Err(error)] if error.to_string().contains("prompt")));
}
