//! The places where a model lets others compute: after its sublayers, before the tokens, before the
//! keys and values; in every family.

use std::sync::Arc;

use tunebook_models::{
    Branch, Context, Device, Flow, GenerationConfig, KeysValues, Mode, Model, Overlay, Pass,
    Result, Sublayer, Tensor, VirtualTokens,
};

use crate::families::{FAMILIES, load};
use crate::support::overlaid;

const IDS: [u32; 9] = [5, 17, 3, 42, 8, 29, 11, 2, 30];

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    model.forward(&ids).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest value expected.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    found.iter().zip(expected).fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

#[derive(Debug)]
struct Fixed(Tensor);

impl VirtualTokens for Fixed {
    fn vectors(&self, _: Mode) -> Result<Tensor> {
        Ok(self.0.clone())
    }

    fn count(&self) -> usize {
        self.0.dims()[0]
    }
}

#[derive(Debug)]
struct Pair(Tensor, Tensor);

impl KeysValues for Pair {
    fn keys_values(&self, _: Mode) -> Result<(Tensor, Tensor)> {
        Ok((self.0.clone(), self.1.clone()))
    }

    fn count(&self) -> usize {
        self.0.dims()[0]
    }
}

#[derive(Debug)]
struct Scaled {
    stream: f64,
    output: f64,
}

impl Branch for Scaled {
    fn forward(&self, x: &Tensor, y: &Tensor, _: &Context<'_>) -> Result<Tensor> {
        Ok(((y * self.output)? + (x * self.stream)?)?)
    }
}

fn random(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu).unwrap()
}

/// A prefix for every block, of `n` positions.
fn put_past(overlay: &mut Overlay, model: &Model, n: usize) {
    let places = model.past_key_values();
    let pair = |heads, head_dim| {
        let shape = (n, heads, head_dim);
        Arc::new(Pair(random(shape), random(shape))) as Arc<dyn KeysValues>
    };
    let pasts = places.iter().map(|place| pair(place.heads(), place.head_dim())).collect();
    overlay.put_past_key_values(&places, pasts).unwrap();
}

/// The embeddings of some tokens.
fn embedded(model: &Model, ids: &[u32]) -> Tensor {
    let snapshot = model.snapshot();
    let positions = model.positions(1, ids.len(), &snapshot).unwrap();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    model.embed(&ids, &Pass::new(&snapshot, &positions)).unwrap().squeeze(0).unwrap()
}

#[test]
fn embeddings_of_tokens_before_the_tokens_are_those_tokens() {
    for (name, _) in FAMILIES {
        let model = load(name);
        let whole = logits(&model, &IDS);
        let begun = overlaid(&model, |overlay| {
            overlay.put_virtual_tokens(Arc::new(Fixed(embedded(&model, &IDS[..3]))));
        });
        let vocab = whole.len() / IDS.len();
        let rest = logits(&begun, &IDS[3..]);
        assert!(error(&rest, &whole[3 * vocab..]) < 1e-5, "{name}");
        let config = GenerationConfig { max_new_tokens: 12, ..Default::default() };
        let after = begun.generate_ids(&[IDS[3..].to_vec()], &config).unwrap();
        assert_eq!(after, model.generate_ids(&[IDS.to_vec()], &config).unwrap(), "{name}");
        assert_eq!(logits(&model, &IDS), whole, "{name}");
    }
}

#[test]
fn a_batch_of_different_lengths_gives_what_each_row_gives_alone() {
    let prompts: Vec<Vec<u32>> = [&IDS[..], &IDS[4..], &IDS[7..]].map(<[u32]>::to_vec).into();
    let config = GenerationConfig { max_new_tokens: 20, ..Default::default() };
    for (name, _) in FAMILIES {
        let model = load(name);
        let hidden = model.config().hidden_size;
        let base = model.generate_ids(&prompts, &config).unwrap();
        let check = |model: &Model, what: &str| {
            let together = model.generate_ids(&prompts, &config).unwrap();
            assert_ne!(together, base, "{name}: {what} changes nothing");
            for (row, prompt) in prompts.iter().enumerate() {
                let alone = model.generate_ids(std::slice::from_ref(prompt), &config).unwrap();
                assert_eq!(together[row], alone[0], "{name}: {what}, row {row}");
                // With the cache as without it.
                let mut ids = prompt.clone();
                let context = model.config().max_position_embeddings;
                for id in alone[0].iter().take(context - model.positions_before() - ids.len()) {
                    let last = logits(model, &ids);
                    let last = &last[last.len() - model.config().vocab_size..];
                    let likeliest =
                        last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
                    assert_eq!(
                        likeliest as u32,
                        *id,
                        "{name}: {what}, row {row}, after {} tokens",
                        ids.len()
                    );
                    ids.push(*id);
                }
            }
        };
        let virtual_tokens = Arc::new(Fixed((random((4, hidden)) * 0.5).unwrap()));
        let front = overlaid(&model, |overlay| overlay.put_virtual_tokens(virtual_tokens));
        check(&front, "virtual tokens");
        if model.past_key_values().is_empty() {
            assert_eq!(*name, "falcon-40b");
        } else {
            check(&overlaid(&model, |overlay| put_past(overlay, &model, 4)), "a past");
        }
        assert_eq!(model.generate_ids(&prompts, &config).unwrap(), base, "{name}");
    }
}

#[test]
fn sublayers_are_named_and_what_stands_after_them_is_used() {
    for (name, _) in FAMILIES {
        let model = load(name);
        let base = logits(&model, &IDS);
        let places = model.residuals();
        let found: Vec<(usize, Sublayer)> = places
            .iter()
            .map(|place| (model.block_of(place.path()).unwrap(), place.sublayer()))
            .collect();
        let wanted =
            [0, 1].map(|block| [(block, Sublayer::Attention), (block, Sublayer::FeedForward)]);
        assert_eq!(found, wanted.concat(), "{name}");
        for place in places {
            let scaled = |stream, output| {
                let branch = Arc::new(Scaled { stream, output });
                logits(&overlaid(&model, |overlay| overlay.put_branch(&place, branch)), &IDS)
            };
            assert_eq!(scaled(0.0, 1.0), base, "{name}: {}", place.path());
            assert!(
                error(&scaled(0.0, 0.5), &base) > 1e-4 || place.flow() == Flow::Normed,
                "{name}: {}",
                place.path()
            );
            assert!(error(&scaled(0.3, 1.0), &base) > 1e-3, "{name}: {}", place.path());
        }
    }
}

/// After the feed-forward network the output is doubled where the stream before it is added again:
/// `x + (y + x)` is `2·(x + y) - y`.
#[test]
fn a_branch_sees_the_stream_that_its_sublayer_read() {
    /// Keeps what it was shown.
    #[derive(Debug, Default)]
    struct Seen(std::sync::Mutex<Option<(Tensor, Tensor)>>);
    impl Branch for Seen {
        fn forward(&self, x: &Tensor, y: &Tensor, _: &Context<'_>) -> Result<Tensor> {
            *self.0.lock().unwrap() = Some((x.clone(), y.clone()));
            Ok(y.clone())
        }
    }
    for (name, _) in FAMILIES {
        let model = load(name);
        let ids = Tensor::new(&IDS, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        // What GPT-2 adds to it belongs to its first block.
        let block = usize::from(*name == "gpt2");
        let seen = [0, 1].map(|_| Arc::new(Seen::default()));
        let watched = overlaid(&model, |overlay| {
            for (place, seen) in model.residuals()[2 * block..2 * block + 2].iter().zip(&seen) {
                overlay.put_branch(place, seen.clone());
            }
        });
        let snapshot = watched.snapshot();
        let positions = model.positions(1, IDS.len(), &snapshot).unwrap();
        let pass = Pass::new(&snapshot, &positions);
        let x = model.embed(&ids, &pass).unwrap();
        let x = if block == 1 { model.block_forward(0, &x, &pass).unwrap() } else { x };
        let y = model.block_forward(block, &x, &pass).unwrap();
        let take = |seen: &Arc<Seen>| seen.0.lock().unwrap().take().unwrap();
        let ((x_attention, attended), (x_mlp, fed)) = (take(&seen[0]), take(&seen[1]));
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&x_attention), flat(&x), "{name}");
        match model.residuals()[0].flow() {
            Flow::Sequential => {
                assert!(error(&flat(&(&x + &attended).unwrap()), &flat(&x_mlp)) < 1e-5, "{name}");
                assert!(error(&flat(&(&x_mlp + &fed).unwrap()), &flat(&y)) < 1e-5, "{name}");
            }
            Flow::Parallel => {
                assert_eq!(flat(&x_mlp), flat(&x), "{name}");
                assert!(
                    error(&flat(&((&x + &attended).unwrap() + &fed).unwrap()), &flat(&y)) < 1e-5,
                    "{name}"
                );
            }
            Flow::Normed => {
                assert!(
                    error(&flat(&(&x + &attended).unwrap()), &flat(&x_mlp)) > 1e-3,
                    "{name}: the norm is between"
                );
            }
        }
    }
}

#[test]
fn what_stands_before_a_text_takes_its_part_of_the_context() {
    let model = load("llama3");
    let (context, hidden) = (model.config().max_position_embeddings, model.config().hidden_size);
    let base = model;
    let model = overlaid(&base, |overlay| {
        overlay.put_virtual_tokens(Arc::new(Fixed(random((4, hidden)))));
        put_past(overlay, &base, 3);
    });
    assert_eq!(model.positions_before(), 7);
    let long = vec![3u32; context - 6];
    let message = model
        .forward(&Tensor::new(long, &Device::Cpu).unwrap().unsqueeze(0).unwrap())
        .unwrap_err()
        .to_string();
    assert!(message.starts_with(&format!("{} tokens are longer", context + 1)), "{message}");
    let config = GenerationConfig::default();
    assert!(model.generate_ids(&[vec![3; context - 7]], &config).is_err());
    let most = model.generate_ids(&[vec![3; context - 9]], &config).unwrap();
    assert!(most[0].len() <= 2);
    let message =
        model.packed_positions(8, &[vec![4, 4]], &model.snapshot()).unwrap_err().to_string();
    assert!(message.contains("virtual tokens"), "{message}");
    let model = overlaid(&base, |overlay| {
        overlay.put_virtual_tokens(Arc::new(Fixed(random((4, hidden + 1)))));
    });
    let ids = Tensor::new(&[[1u32]], &Device::Cpu).unwrap();
    let message = model.forward(&ids).unwrap_err().to_string();
    assert!(message.contains(&format!("[{}]", hidden + 1)), "{message}");
}

/// The prompts of a batch are put together by length, rows leave it, and they differ in what stands
/// before them: each text is that of its overlay alone.
#[test]
fn each_text_of_a_batch_is_answered_by_its_overlay() {
    for name in ["mistral", "gemma3", "falcon-7b", "gpt2"] {
        let model = load(name);
        let hidden = model.config().hidden_size;
        let scaled = overlaid(&model, |overlay| {
            for place in model.residuals() {
                overlay.put_branch(&place, Arc::new(Scaled { stream: 0.3, output: 1.5 }));
            }
        });
        let fixed = Arc::new(Fixed((random((3, hidden)) * 0.5).unwrap()));
        let front = overlaid(&model, |overlay| overlay.put_virtual_tokens(fixed));
        let past = overlaid(&model, |overlay| put_past(overlay, &model, 5));
        let zero = overlaid(&model, |overlay| {
            let weights = model.weights();
            for weight in weights
                .iter()
                .filter(|w| w.name().contains("layernorm") || w.name().contains("ln_"))
            {
                let var = candle_core::Var::from_tensor(&(weight.get() * 0.5).unwrap()).unwrap();
                overlay.put_weight(weight, var).unwrap();
            }
        });
        let handles = [&scaled, &model, &front, &past, &zero, &front, &scaled];
        let prompts: Vec<Vec<u32>> =
            [&IDS[7..], &IDS[..], &IDS[2..5], &IDS[4..], &IDS[1..6], &IDS[..4], &IDS[3..]]
                .map(<[u32]>::to_vec)
                .into();
        let overlays: Vec<_> = handles.iter().map(|handle| handle.overlay()).collect();
        let mixed = model.with_overlays(overlays);
        for batch_size in [3, 32] {
            let config = GenerationConfig { max_new_tokens: 12, batch_size, ..Default::default() };
            let together = mixed.generate_ids(&prompts, &config).unwrap();
            let mut different = 0;
            for (text, prompt) in prompts.iter().enumerate() {
                let of = |model: &Model| {
                    model.generate_ids(std::slice::from_ref(prompt), &config).unwrap().remove(0)
                };
                assert_eq!(together[text], of(handles[text]), "{name}: prompt {text}");
                different += usize::from(together[text] != of(&model));
            }
            assert!(different >= 4, "{name}: the overlays do something");
        }
        // Logits of texts of one length, step by step as whole.
        let ids = Tensor::new(&[[5u32, 17, 3, 42]; 7], &Device::Cpu).unwrap();
        let together = mixed.forward(&ids).unwrap();
        for (row, handle) in handles.iter().enumerate() {
            let found: Vec<f32> =
                together.get(row).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(error(&found, &logits(handle, &[5, 17, 3, 42])) < 1e-5, "{name}: row {row}");
        }
        let two = Tensor::new(&[[5u32, 17]; 2], &Device::Cpu).unwrap();
        assert!(mixed.forward(&two).unwrap_err().to_string().contains("this handle answers 7"));
    }
}
