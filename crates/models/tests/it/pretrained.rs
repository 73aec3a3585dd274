//! The default model from its GGUF file, against transformers' f32 logits and greedy text for the
//! same file.

use std::sync::{Arc, Mutex};

use tunebook_models::{
    Context, DEFAULT_MODEL, Device, GenerationConfig, Linear, Message, Model, Projection, Tensor,
};

use crate::support::{overlaid, relative_error, tensors};

fn load() -> Model {
    Model::load(DEFAULT_MODEL, &Device::Cpu)
        .unwrap_or_else(|e| panic!("{e} (`cargo xtask test` fetches it before the tests)"))
}

/// `generate.py` keeps the logits of every such token.
const STRIDE: usize = 61;

#[test]
fn logits_and_greedy_text_are_transformers() {
    let model = load();
    let golden = tensors("logits/smollm2.safetensors");
    let u32s = |name: String| golden[&name].to_vec1::<u32>().unwrap();
    let mut worst = 0f32;
    let mut prompts = Vec::new();
    let mut expected = Vec::new();
    for n in 0..5 {
        let ids = u32s(format!("{n}.ids"));
        let logits = model
            .forward(&Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap())
            .unwrap();
        let (_, t, vocab) = logits.dims3().unwrap();
        assert_eq!((t, vocab), (ids.len(), 49152));
        let logits = logits.squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        let reference = golden[&format!("{n}.logits")].to_vec2::<f32>().unwrap();
        let max_abs = golden[&format!("{n}.max_abs")].to_vec1::<f32>().unwrap();
        let argmax = u32s(format!("{n}.argmax"));
        for position in 0..t {
            let ours: Vec<f32> = logits[position].iter().step_by(STRIDE).copied().collect();
            let error = relative_error(&ours, &reference[position], max_abs[position]);
            assert!(error < 1e-3, "prompt {n}, position {position}: relative error {error}");
            worst = worst.max(error);
            let best = (0..vocab)
                .max_by(|a, b| logits[position][*a].total_cmp(&logits[position][*b]))
                .unwrap();
            assert_eq!(best as u32, argmax[position], "prompt {n}, position {position}");
        }
        prompts.push(ids);
        let greedy = u32s(format!("{n}.greedy"));
        // The reference goes on after the token that ends an answer.
        let end = greedy.iter().position(|id| Some(*id) == model.tokenizer().eos_id());
        expected.push(greedy[..end.unwrap_or(greedy.len())].to_vec());
    }
    println!("largest relative error of a logit: {worst:.1e}");
    assert!(expected.iter().filter(|ids| ids.len() == 32).count() >= 4);

    let config = GenerationConfig { max_new_tokens: 32, ..Default::default() };
    for (prompt, expected) in prompts.iter().zip(&expected) {
        assert_eq!(
            model.generate_ids(std::slice::from_ref(prompt), &config).unwrap()[0],
            *expected,
            "alone"
        );
    }
    // Prompts of 1 to 159 tokens, so nearly all of the batch is padding.
    assert_eq!(model.generate_ids(&prompts, &config).unwrap(), expected, "in one batch");
    assert_eq!(
        model.generate_ids(&prompts, &GenerationConfig { batch_size: 2, ..config }).unwrap(),
        expected,
        "in three"
    );
}

#[test]
fn a_chat_is_streamed_and_ends() {
    let model = load();
    assert!((model.memory_bytes(), model.parameter_count()) == (538_060_032, 134_515_008));
    assert!(
        format!("{model:?}").contains("134.5 M parameters")
            && format!("{model:?}").contains("538 MB")
    );

    let mut pieces = Vec::new();
    let question = [Message::user("What is the capital of France?")];
    let config = GenerationConfig::default();
    let answer =
        model.chat_to(&question, &config, &mut |piece| pieces.push(piece.to_owned())).unwrap();
    assert_eq!(answer, "The capital of France is Paris.");
    assert_eq!(pieces.concat(), answer);
    assert!(pieces.len() > 3, "{pieces:?}");

    let stopped =
        GenerationConfig { stop: vec!["of Fr".to_owned(), "Paris!".to_owned()], ..config.clone() };
    pieces.clear();
    let answer =
        model.chat_to(&question, &stopped, &mut |piece| pieces.push(piece.to_owned())).unwrap();
    assert_eq!((answer.as_str(), pieces.concat().as_str()), ("The capital ", "The capital "));

    let users = ["Name a colour.", "What is the capital of France?"].map(str::to_owned);
    let answers = model
        .chat_batch(&users, &GenerationConfig { max_new_tokens: 16, ..config.clone() })
        .unwrap();
    assert_eq!(answers[1], "The capital of France is Paris.");

    let sampled = |seed| {
        let config = GenerationConfig {
            temperature: 0.9,
            top_p: 0.9,
            top_k: 50,
            seed,
            max_new_tokens: 12,
            ..Default::default()
        };
        model.generate("My favourite animal is", &config).unwrap()
    };
    assert_eq!(sampled(1), sampled(1), "the same seed, the same text");
    assert!((2..6).any(|seed| sampled(seed) != sampled(1)), "another seed, another text");

    let long = "word ".repeat(9000);
    let error = model.generate(&long, &config).unwrap_err().to_string();
    assert!(error.contains("9001 tokens") && error.contains("context of 8192"), "{error}");
    let ids = Tensor::zeros((1, 8193), tunebook_models::DType::U32, &Device::Cpu).unwrap();
    let error = model.forward(&ids).unwrap_err().to_string();
    assert!(error.contains("8193 tokens") && error.contains("context of 8192"), "{error}");
    let error = model.generate("", &config).unwrap_err().to_string();
    assert!(error.contains("`prompt` is empty"), "{error}");
}

/// Counts what passes through a projection.
#[derive(Debug)]
struct Counting(Arc<Linear>, Mutex<usize>);

impl Projection for Counting {
    fn forward(&self, x: &Tensor, context: &Context<'_>) -> tunebook_models::Result<Tensor> {
        *self.1.lock().unwrap() += x.elem_count() / self.0.in_features();
        self.0.forward(x, context)
    }

    fn in_features(&self) -> usize {
        self.0.in_features()
    }

    fn out_features(&self) -> usize {
        self.0.out_features()
    }

    fn weight(&self) -> Tensor {
        self.0.weight()
    }
}

#[test]
fn slots_are_named_as_in_hugging_face_and_serve_generation() {
    let model = load();
    let slots = model.slots();
    assert_eq!(slots.len(), 210);
    assert_eq!(slots[0].path(), "model.layers.0.self_attn.q_proj");
    assert_eq!(slots[209].path(), "model.layers.29.mlp.down_proj");
    assert_eq!((slots[1].base().out_features(), slots[1].base().in_features()), (192, 576));

    let prompt = model.tokenizer().encode("The capital of France is").unwrap();
    let config = GenerationConfig { max_new_tokens: 4, ..Default::default() };
    let before = model.generate_ids(std::slice::from_ref(&prompt), &config).unwrap();
    let counting = Arc::new(Counting(Arc::clone(slots[0].base()), Mutex::new(0)));
    let counted = overlaid(&model, |overlay| {
        overlay.put_projection(&slots[0], counting.clone()).unwrap();
    });
    assert_eq!(
        counted.clone().generate_ids(std::slice::from_ref(&prompt), &config).unwrap(),
        before
    );
    assert_eq!(
        *counting.1.lock().unwrap(),
        prompt.len() + 3,
        "each position passes once: the cache works"
    );

    let zero = Linear::new(
        Tensor::zeros((576, 576), tunebook_models::DType::F32, &Device::Cpu).unwrap(),
        None,
    );
    let deaf = overlaid(&model, |overlay| {
        for slot in slots.iter().filter(|slot| slot.path().ends_with("o_proj")) {
            overlay.put_projection(slot, Arc::new(zero.clone())).unwrap();
        }
    });
    assert_ne!(deaf.generate_ids(std::slice::from_ref(&prompt), &config).unwrap(), before);
    assert_eq!(model.generate_ids(&[prompt], &config).unwrap(), before);
}
